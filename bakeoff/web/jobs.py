"""Comparisons as the site sees them: processes that outlive it, a queue of those that wait, and all that its roots hold.

A comparison that the site starts has a folder in ROOT/comparisons with `comparison.yaml` (what was asked, as `bakeoff compare
--config` reads it), `job.json` (when, and which process), `log.txt`, and whatever `bakeoff compare --out` writes. Its process
holds `.job.lock` as long as it lives, whichever server started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import fcntl
import functools
import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil
import yaml

from bakeoff import files
from bakeoff.errors import BakeoffError, UsageError
from bakeoff.progress import NAME as JOURNAL
from bakeoff.progress import Progress, Reader, lives, now

if TYPE_CHECKING:
    from bakeoff.web.site import Site

State = Literal["waiting", "starting", "running", "done", "failed", "stopped", "lost"]
ACTIVE: tuple[State, ...] = ("waiting", "starting", "running")
INTERRUPTED: tuple[State, ...] = ("failed", "stopped", "lost")

_AT_ONCE = 1
_DEPTH, _FOLDERS = 4, 5000  # of the walk through the roots
_MARKS = ("job.json", JOURNAL, "results.json")
_SECONDS_BETWEEN = 1.0
_LOG_BYTES, _LOG_LINES = 8192, 30
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@dataclass(frozen=True)
class Seen:
    """A comparison that lies under the site's roots.

    Attributes: `id` names it in addresses; `mine`: whether the site started it, and so can start it again; `when` it was
    asked for, or began, or ended, in UTC; `progress` of its last run, None before that began.
    """

    id: str
    folder: Path
    title: str
    state: State
    contest: str
    methods: tuple[str, ...]
    when: str
    mine: bool
    progress: Progress | None


def start(site: Site, contest: str, fields: Mapping[str, Any], name: str) -> Path:
    """Begin a comparison, or let it wait until the one that runs has ended; returns its new folder.

    fields: as `bakeoff.running.comparison_from` takes them. name: what the visitor calls it; empty: contest, date, a number.
    Raises: StoreError if it cannot be written.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60]
    with files.writing(_home(site)):
        _home(site).mkdir(exist_ok=True)
    folder = _new_folder(_home(site), slug or f"{contest}-{datetime.date.today().isoformat()}", numbered=not slug)
    files.write_text(
        folder / "comparison.yaml",
        yaml.safe_dump({"contest": contest, **fields}, sort_keys=False, allow_unicode=True),
    )
    job = {"title": name.strip() or folder.name, "contest": contest, "methods": list(fields["methods"])}
    _write_job(folder, {**job, "asked": now(), "state": "waiting", "pid": None, "created": None})
    start_waiting(site)
    return folder


def stop(site: Site, folder: Path) -> None:
    """Take a comparison out of the queue, or interrupt its process as Ctrl-C does; UsageError where neither is there."""
    job = None
    if folder.parent == _home(site):
        with _locked(_home(site) / ".queue.lock"):
            job = _job(folder)
            if job and job["state"] == "waiting":
                _write_job(folder, {**job, "state": "stopped"})
                return
    progress = follow(folder)
    state = _state(folder, job, progress)
    if progress and state == "running" and _is_held(folder / ".progress.lock"):
        _interrupt(progress.pid, progress.created)
    elif job and state == "starting" and job["pid"] is not None:
        _interrupt(job["pid"], job["created"])
        _write_job(folder, {**job, "state": "stopped"})
    else:
        raise UsageError("This comparison does not run, so there is nothing to stop: load the page again.")


def go_on(site: Site, folder: Path) -> None:
    """Put a comparison that the site had started into the queue again; what it has finished is taken from the store.

    Raises: UsageError where the site did not start it, or where it runs or waits.
    """
    not_mine = UsageError("The site did not start this comparison: give its command again where it was started.")
    if folder.parent != _home(site):
        raise not_mine
    with _locked(_home(site) / ".queue.lock"):
        job = _job(folder)
        if job is None:
            raise not_mine
        # A process that has said its last word may still hold the lock for a moment: then this waits like any other.
        if _state(folder, job, follow(folder)) in ACTIVE:
            raise UsageError("This comparison runs already, or waits to: load the page again.")
        _write_job(folder, {**job, "asked": now(), "state": "waiting"})
    start_waiting(site)


def start_waiting(site: Site) -> None:
    """Start comparisons that wait, oldest first, as far as there are places."""
    home = _home(site)
    if not home.is_dir():
        return
    with _locked(home / ".queue.lock"):
        jobs = [(folder, job) for folder in home.iterdir() if (job := _job(folder))]
        running = sum(_is_held(folder / ".job.lock") for folder, _ in jobs)
        waiting = sorted((job["asked"], folder, job) for folder, job in jobs if job["state"] == "waiting")
        for _, folder, job in waiting[: max(_AT_ONCE - running, 0)]:
            _launch(site, folder, job)


async def tend(site: Site) -> None:
    """Start comparisons that wait whenever a place becomes free, until cancelled."""
    while True:
        try:
            await asyncio.to_thread(start_waiting, site)
        except (BakeoffError, OSError) as error:
            logging.getLogger(__name__).warning("The queue of comparisons cannot be read: %s", error)
        await asyncio.sleep(_SECONDS_BETWEEN)


def listed(site: Site) -> list[Seen]:
    """All comparisons under the roots, newest first."""
    found = {folder: look(site, folder) for root in site.roots for folder in _walk(root)}
    return sorted(found.values(), key=lambda seen: seen.when, reverse=True)


def find(site: Site, id: str) -> Seen | None:
    """The comparison of that id; None where there is none under the roots."""
    with _guard:
        folder = _folders.get(id)
    if folder is None or not _is_comparison(folder) or not any(folder.is_relative_to(root) for root in site.roots):
        folder = next((f for root in site.roots for f in _walk(root) if _id(f) == id), None)
    return look(site, folder) if folder else None


def look(site: Site, folder: Path) -> Seen:
    """What is known of a comparison now."""
    identifier = _id(folder)
    with _guard:
        _folders[identifier] = folder
    job = _job(folder) if folder.parent == _home(site) else None
    progress = follow(folder)
    contest, methods = (job["contest"], tuple(job["methods"])) if job else _asked(folder)
    root = next((root for root in site.roots if folder.is_relative_to(root)), folder.parent)
    inside = folder.relative_to(root)
    when = job["asked"] if job else progress.began if progress else _when_changed(folder)
    state = _state(folder, job, progress)
    return Seen(
        identifier, folder, job["title"] if job else str(inside) if inside.parts else folder.name, state, contest, methods,
        when, job is not None, None if state in ("waiting", "starting") else progress,
    )  # fmt: skip


def follow(folder: Path) -> Progress | None:
    """The progress of a comparison; all who watch one share one reader, which reads only what was added."""
    with _guard:
        reader = _readers.pop(folder, None) or Reader(folder)
        _readers[folder] = reader
        while len(_readers) > 512:
            _readers.popitem(last=False)
        return reader.read()


def log_tail(folder: Path) -> str:
    """The last lines of what the process wrote, without control characters; empty where it wrote nothing."""
    try:
        with open(folder / "log.txt", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_BYTES))
            text = file.read(_LOG_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    lines = re.sub(r"\x1b\[[0-9;]*[A-Za-z]|[^\S\n]*\r|[\x00-\x08\x0b-\x1f\x7f]", "", text).splitlines()
    return "\n".join(lines[-_LOG_LINES:]).strip()


_guard = threading.Lock()
_readers: OrderedDict[Path, Reader] = OrderedDict()
_folders: dict[str, Path] = {}


def _home(site: Site) -> Path:
    return site.roots[0] / "comparisons"


def _new_folder(home: Path, name: str, numbered: bool) -> Path:
    number = 1
    while True:
        folder = home / (f"{name}-{number}" if numbered or number > 1 else name)
        with files.writing(folder), contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
        number += 1


def _job(folder: Path) -> dict[str, Any] | None:
    try:
        job = json.loads((folder / "job.json").read_text("utf-8"))
        known: dict[str, Any] = {
            "title": str, "contest": str, "methods": list, "asked": str, "state": str, "pid": int | None, "created": float | None,
        }  # fmt: skip
        whole = all(isinstance(job[name], kind) for name, kind in known.items())
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return dict(job) if whole else None


def _write_job(folder: Path, job: Mapping[str, Any]) -> None:
    files.write_json(folder / "job.json", job)


def _launch(site: Site, folder: Path, job: Mapping[str, Any]) -> None:
    """Start the process of a comparison, unless one lives."""
    command = [
        sys.executable, "-m", "bakeoff", "compare", job["contest"], "--config", str(folder / "comparison.yaml"),
        "--out", str(folder), "--quiet", *(["--store", site.store] if site.store else []),
    ]  # fmt: skip
    with (
        files.writing(folder),
        _locked(folder / ".job.lock", wait=False) as lock,
        open(folder / "log.txt", "wb") as log,
    ):
        if lock is None:
            return
        # The folder that a visitor may fill is no place to import from.
        process = subprocess.Popen(
            command, cwd=site.roots[0], env={**os.environ, **_OFFLINE, "PYTHONSAFEPATH": "1"}, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, pass_fds=(lock,), start_new_session=True,
        )  # fmt: skip
        created = psutil.Process(process.pid).create_time()
    threading.Thread(target=process.wait, daemon=True).start()  # leaves no zombie
    _write_job(folder, {**job, "state": "launched", "pid": process.pid, "created": created})


@contextlib.contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[int | None]:
    """Hold a lock on a file; None where another holds it. Processes that inherit the descriptor hold the lock as well."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        for _ in range(20):  # one who only looks whether the lock is held holds it for a moment
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                time.sleep(0.01)
            else:
                yield descriptor
                return
        yield None
    finally:
        os.close(descriptor)


def _is_held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _interrupt(pid: int, created: float) -> None:
    if lives(pid, created):
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).send_signal(signal.SIGINT)


def _same(created: float, other: float | None) -> bool:
    return other is not None and abs(created - other) < 1.0


def _state(folder: Path, job: Mapping[str, Any] | None, progress: Progress | None) -> State:
    if job is None:
        return progress.state if progress else "done" if (folder / "results.json").is_file() else "lost"
    if job["state"] in ("waiting", "stopped"):
        return "waiting" if job["state"] == "waiting" else "stopped"
    if progress and progress.state == "running":
        return "running"
    # What an earlier process left says nothing of the one that was launched last.
    if progress and (job["pid"] is None or (progress.pid == job["pid"] and _same(progress.created, job["created"]))):
        return progress.state
    if _is_held(folder / ".job.lock"):
        return "starting"
    return "failed" if log_tail(folder) else "lost"


def _walk(root: Path) -> Iterator[Path]:
    """The folders of comparisons below a root; hidden folders and links are passed over."""
    left, seen = deque([(root, 0)]), 0
    while left and seen < _FOLDERS:
        folder, depth = left.popleft()
        seen += 1
        if _is_comparison(folder):
            yield folder
            if depth:
                continue
        if depth == _DEPTH:
            continue
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            left += [
                (Path(entry.path), depth + 1)
                for entry in sorted(entries, key=lambda entry: entry.name)
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
            ]


def _is_comparison(folder: Path) -> bool:
    return any((folder / mark).is_file() for mark in _MARKS)


def _id(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]


def _asked(folder: Path) -> tuple[str, tuple[str, ...]]:
    """Contest and methods of a comparison from the command line, as far as its files tell."""
    for name in ("results.json", "comparison.yaml"):
        with contextlib.suppress(OSError):
            facts = (folder / name).stat()
            return _asked_in(folder / name, facts.st_mtime_ns, facts.st_size)
    return "", ()


@functools.lru_cache(maxsize=1024)
def _asked_in(path: Path, changed: int, size: int) -> tuple[str, tuple[str, ...]]:
    if size > 100_000_000:
        return "", ()
    try:
        text = path.read_text("utf-8")
        found = json.loads(text)["comparison"] if path.suffix == ".json" else yaml.safe_load(text)
        return str(found["contest"]), tuple(map(str, found["methods"]))
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError, RecursionError):
        return "", ()


def _when_changed(folder: Path) -> str:
    changed = 0.0
    for mark in _MARKS:
        with contextlib.suppress(OSError):
            changed = max(changed, (folder / mark).stat().st_mtime)
    return datetime.datetime.fromtimestamp(changed, datetime.UTC).isoformat(timespec="milliseconds")
