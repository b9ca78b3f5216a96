"""Comparisons as processes that outlive the site: the queue, stopping and going on, what a killed server leaves running."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

pytest.importorskip("fastapi")

from bakeoff import running
from bakeoff.errors import UsageError
from bakeoff.progress import Journal
from bakeoff.store import Store
from bakeoff.web import jobs
from bakeoff.web.site import Site

FIELDS = {"methods": ["full", "hft"], "model": "reference", "train": "rows.jsonl", "budget": "2steps"}

# Stands for `python -m bakeoff compare`: it says what it was given, keeps the journal, and ends when the file `end` is there.
PROGRAM = """#!{python}
import json, os, sys, time
from pathlib import Path
from bakeoff.progress import Journal

folder = Path(sys.argv[sys.argv.index("--out") + 1])
given = {{"words": sys.argv[1:], "cwd": os.getcwd(), "input": sys.stdin.read(), "session": os.getsid(0) == os.getpid(),
         "environment": dict(os.environ)}}
(folder / "given.json").write_text(json.dumps(given))
print("\\x1b[31mcannot read\\x1b[0m a.txt\\x07" if (folder / "broken").exists() else "begun", flush=True)
if (folder / "broken").exists():
    sys.exit(2)
try:
    with Journal(folder) as journal:
        journal.watch("full, seed 0", 0, 2, 0.5, 1.0)
        while not (folder / "end").exists():
            time.sleep(0.02)
        journal.ended("full", 0, {{"status": "done", "metrics": {{}}, "cost": {{}}}})
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    root = (tmp_path / "root").resolve()
    root.mkdir()
    rows = [
        json.dumps({"text": f"The {word} of text number {n} is here."}) for n, word in enumerate("abcdefghijklmnop")
    ]
    (root / "rows.jsonl").write_text("\n".join(rows))
    yield Site((root,))
    for process in psutil.Process().children():
        if str(root) in " ".join(process.cmdline()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                process.wait(10)


@pytest.fixture
def quick(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The site, whose comparisons are the program above."""
    program = tmp_path / "program"
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(jobs.sys, "executable", str(program))
    return site


def until(reached: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.05)


def state(site: Site, folder: Path) -> str:
    return jobs.look(site, folder).state


def process_of(folder: Path) -> psutil.Process:
    return psutil.Process(json.loads((folder / "job.json").read_text())["pid"])


def test_a_comparison_is_a_process_of_its_own_without_network_or_input(quick: Site) -> None:
    folder = jobs.start(quick, "tune", FIELDS, "My first!")
    assert folder == quick.roots[0] / "comparisons" / "my-first"
    assert state(quick, folder) in ("starting", "running")
    until(lambda: state(quick, folder) == "running")
    given = json.loads((folder / "given.json").read_text())
    assert given["words"] == [
        "-m", "bakeoff", "compare", "tune", "--config", str(folder / "comparison.yaml"), "--out", str(folder), "--quiet",
    ]  # fmt: skip
    assert (given["cwd"], given["input"], given["session"]) == (str(quick.roots[0]), "", True)
    assert all(
        given["environment"][name] == "1" for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "PYTHONSAFEPATH")
    )
    assert yaml.safe_load((folder / "comparison.yaml").read_text()) == {"contest": "tune", **FIELDS}
    seen = jobs.look(quick, folder)
    assert (seen.title, seen.contest, seen.methods, seen.mine) == ("My first!", "tune", ("full", "hft"), True)
    process = process_of(folder)
    (folder / "end").touch()
    until(lambda: state(quick, folder) == "done")
    until(lambda: not process.is_running())  # a zombie would be
    assert jobs.log_tail(folder) == "begun"


def test_one_runs_and_the_others_wait_in_their_order_whatever_becomes_of_the_server(quick: Site) -> None:
    first, second, third = (jobs.start(quick, "tune", FIELDS, "") for _ in range(3))
    today = datetime.date.today().isoformat()
    assert [folder.name for folder in (first, second, third)] == [f"tune-{today}-{n}" for n in (1, 2, 3)]
    until(lambda: state(quick, first) == "running")
    assert (state(quick, second), state(quick, third)) == ("waiting", "waiting")
    jobs.stop(quick, second)
    assert state(quick, second) == "stopped"
    jobs.go_on(quick, second)  # now behind the third
    again = Site(quick.roots)
    jobs.start_waiting(again)
    assert (state(again, second), state(again, third)) == ("waiting", "waiting")
    (first / "end").touch()
    until(lambda: not jobs._is_held(first / ".job.lock"))

    async def tended() -> None:
        task = asyncio.create_task(jobs.tend(again))
        await asyncio.to_thread(until, lambda: state(again, third) == "running")
        task.cancel()

    asyncio.run(tended())
    assert (state(again, first), state(again, second)) == ("done", "waiting")
    assert [seen.folder for seen in jobs.listed(again)] == [second, third, first]


def test_stop_interrupts_and_go_on_starts_the_same_command_again(quick: Site) -> None:
    folder = jobs.start(quick, "tune", FIELDS, "x")
    until(lambda: state(quick, folder) == "running")
    with pytest.raises(UsageError, match="runs already"):
        jobs.go_on(quick, folder)
    words = json.loads((folder / "given.json").read_text())["words"]
    jobs.stop(quick, folder)
    until(lambda: state(quick, folder) == "stopped")
    with pytest.raises(UsageError, match="nothing to stop"):
        jobs.stop(quick, folder)
    (folder / "given.json").unlink()
    jobs.go_on(quick, folder)  # at once, though the process may still be on its way out
    assert state(quick, folder) != "stopped"
    until(lambda: jobs.start_waiting(quick) or state(quick, folder) == "running")
    assert json.loads((folder / "given.json").read_text())["words"] == words


def test_a_killed_process_is_lost_and_one_that_cannot_begin_failed(quick: Site) -> None:
    folder = jobs.start(quick, "tune", FIELDS, "x")
    until(lambda: state(quick, folder) == "running")
    process_of(folder).kill()
    until(lambda: state(quick, folder) == "lost" and not jobs._is_held(folder / ".job.lock"))
    (folder / "broken").touch()
    jobs.go_on(quick, folder)
    until(lambda: state(quick, folder) == "failed")
    assert jobs.log_tail(folder) == "cannot read a.txt"
    assert jobs.look(quick, folder).progress is None or jobs.look(quick, folder).progress.state == "lost"  # type: ignore[union-attr]


def test_a_process_that_is_not_the_comparison_is_never_signalled(site: Site) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        created = psutil.Process(other.pid).create_time()
        for name, when in (("another", created - 100), ("unlocked", created)):
            folder = site.roots[0] / name
            folder.mkdir()
            event = {"event": "began", "at": "2026-01-01T00:00:00+00:00", "pid": other.pid, "created": when}
            (folder / "progress.jsonl").write_text(json.dumps(event) + "\n")
            with pytest.raises(UsageError, match="nothing to stop"):
                jobs.stop(site, folder)
        time.sleep(0.1)
        assert other.poll() is None
        assert {seen.state for seen in jobs.listed(site)} == {"lost", "running"}
        other.kill()


def test_a_comparison_of_the_command_line_is_seen_and_can_be_stopped_but_not_started(site: Site) -> None:
    folder = site.roots[0] / "mine" / "deep"
    script = f"from bakeoff.progress import Journal; import time, pathlib\nwith Journal(pathlib.Path({str(folder)!r})): time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: folder.exists() and state(site, folder) == "running")
            with pytest.raises(UsageError, match="did not start"):
                jobs.go_on(site, folder)
            (seen,) = jobs.listed(site)
            assert (seen.title, seen.mine) == ("mine/deep", False)
            jobs.stop(site, folder)
            assert process.wait(30) != 0
        finally:
            process.kill()
    assert state(site, folder) == "stopped"
    assert not (folder.parent / ".queue.lock").exists()


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "..", "<script>", "a" * 300, "job.json"])
def test_a_folder_is_new_and_lies_in_comparisons_whatever_the_name(quick: Site, name: str) -> None:
    home = quick.roots[0] / "comparisons"
    home.mkdir()
    (home / ".job.lock").touch()
    jobs._write_job(home, {"state": "waiting"})  # what lies there is no comparison
    folders = [jobs._new_folder(home, "x", numbered=False) for _ in range(2)]
    assert [folder.name for folder in folders] == ["x", "x-2"]
    folder = jobs.start(quick, "tune", FIELDS, name)
    assert folder.parent == home
    assert len(folder.name) < 100
    assert jobs.look(quick, folder).title in (name, folder.name)


def results(folder: Path, method: str = "full") -> Path:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"comparison": {"contest": "tune", "methods": [method]}}))
    return folder


def test_all_comparisons_below_the_roots_are_listed_newest_first(site: Site, tmp_path: Path) -> None:
    root = site.roots[0]
    old, new, deep = results(root / "old"), results(root / "a" / "new"), results(root / "a" / "b" / "c" / "d")
    results(root / ".hidden")
    results(root / "a" / "b" / "c" / "e" / "too-deep")
    results(old / "inside")
    outside = results(tmp_path / "elsewhere")
    (root / "link").symlink_to(outside)
    for age, folder in enumerate((new, deep, old)):
        os.utime(folder / "results.json", (1_700_000_000 - age, 1_700_000_000 - age))
    listed = jobs.listed(site)
    assert [seen.folder for seen in listed] == [new, deep, old]
    assert {(seen.contest, seen.methods, seen.state) for seen in listed} == {("tune", ("full",), "done")}
    assert all(seen.id.isalnum() for seen in listed)
    assert [jobs.find(Site(site.roots), seen.id) for seen in listed] == listed
    assert jobs.find(Site((tmp_path / "elsewhere",)), listed[0].id) is None
    assert jobs.find(site, "0" * 16) is None
    (new / "results.json").unlink()
    assert jobs.find(site, listed[0].id) is None


@pytest.mark.parametrize("text", ["", "[]\n", "{\n", '{"comparison": 3}\n', "[" * 5000 + "\n"])
def test_damaged_files_hide_nothing(site: Site, text: str) -> None:
    folder = results(site.roots[0] / "x")
    for name in ("results.json", "comparison.yaml", "progress.jsonl"):
        (folder / name).write_text(text)
    good = results(site.roots[0] / "y")
    home = site.roots[0] / "comparisons"
    (home / "z").mkdir(parents=True)
    (home / "z" / "job.json").write_text(text)
    assert {folder, good} <= {seen.folder for seen in jobs.listed(site)}
    jobs.start_waiting(site)


SERVER = """
import sys, time
from pathlib import Path
from bakeoff.web import jobs
from bakeoff.web.site import Site

site = Site((Path(sys.argv[1]),))
fields = {fields}
print(jobs.start(site, "tune", fields, "whole"), flush=True)
time.sleep(600)
"""


def measured(results: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (trial["label"], trial["seed"], trial["weights_sha256"], {n: m["value"] for n, m in trial["metrics"].items()})
        for trial in results["trials"]
    ]


def test_a_comparison_outlives_a_killed_server_and_goes_on_to_the_same_results(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {
        **FIELDS,
        "seeds": 2,
        "max_length": 32,
        "exam_items": 4,
        "per_device_train_batch_size": 2,
        "methods": ["full", "ia3"],
    }
    command = [sys.executable, "-c", SERVER.format(fields=fields), str(site.roots[0])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        folder = Path(server.stdout.readline().strip())
        assert state(site, folder) == "starting"
        server.send_signal(signal.SIGKILL)
    until(lambda: (now := jobs.look(site, folder)).state == "failed" or (now.progress and now.progress.trials), 300)
    assert state(site, folder) == "running", jobs.log_tail(folder)
    jobs.stop(site, folder)
    until(lambda: state(site, folder) == "stopped" and not jobs._is_held(folder / ".job.lock"), 60)
    stopped = jobs.follow(folder)
    assert stopped
    assert 1 <= len(stopped.trials) < 4
    assert not (folder / "results.json").exists()
    assert "Interrupted" in jobs.log_tail(folder)
    jobs.go_on(site, folder)
    until(lambda: state(site, folder) == "done", 300)
    monkeypatch.chdir(site.roots[0])
    comparison = running.comparison_from("tune", fields)
    whole = running.run_comparison(comparison, tmp_path / "whole", Store(str(tmp_path / "other")))
    assert measured(running.read_results(folder)) == measured(whole)
    assert len(measured(whole)) == 4


def test_a_comparison_that_was_started_by_hand_in_the_meantime_is_running(quick: Site) -> None:
    folder = jobs.start(quick, "tune", FIELDS, "x")
    until(lambda: state(quick, folder) == "running")
    process = process_of(folder)
    process.kill()
    until(lambda: state(quick, folder) == "lost" and not jobs._is_held(folder / ".job.lock"))
    with Journal(folder):  # as the same command by hand keeps it
        assert state(quick, folder) == "running"
        with pytest.raises(UsageError, match="runs already"):
            jobs.go_on(quick, folder)
