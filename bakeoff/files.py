"""Files that are either the old or the new, never half: atomic writing, digests and canonical JSON.

What is being written has a temporary name, `.NAME.HOST.PID.ID.partial`, in the folder where it will stand. The name
tells whose it is, so that `clean_temporaries` removes what killed writers left and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from bakeoff.errors import StoreError, UsageError

AnyPath = str | os.PathLike[str]

_HOST = hashlib.sha256(os.uname().nodename.encode()).hexdigest()[:8]
_PROCESS = secrets.token_hex(
    4
)  # tells this process from an earlier one with the same number, as in restarted containers
_count = itertools.count()
_TEMPORARY = re.compile(
    r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})\.(?P<pid>\d+)\.(?P<process>[0-9a-f]{8})-\d+\.(?P<state>partial|replaced)",
    re.DOTALL,
)
_OTHER_HOST_SECONDS = 24 * 3600

_FULL = {
    errno.ENOSPC: ("the disk is full", "free some space or choose another folder"),
    errno.EDQUOT: ("the disk quota is used up", "free some space or choose another folder"),
    errno.EFBIG: (
        "the file is larger than the file system or the limit of this process allows",
        "raise the limit (ulimit -f) or choose another folder",
    ),
    errno.EROFS: ("the file system is read-only", "choose another folder"),
}
_DENIED = ("permission is denied", "choose a folder that you may write to")
_REASONS = {**_FULL, errno.EACCES: _DENIED, errno.EPERM: _DENIED}


@contextlib.contextmanager
def writing(path: AnyPath) -> Iterator[None]:
    """Turn an operating-system error of the block into a StoreError that names `path`, the reason and what to do."""
    try:
        yield
    except OSError as error:
        raise _explained(path, error.errno, str(error)) from error


def _explained(path: AnyPath, number: int | None, text: str) -> StoreError:
    known = os.strerror(number) if number else text
    reason, advice = _REASONS.get(number or 0, (known, "check the path or choose another folder"))
    return StoreError(f"cannot write {os.fspath(path)}: {reason}; {advice}")


def _temporary(target: Path, state: Literal["partial", "replaced"]) -> Path:
    return target.parent / f".{target.name}.{_HOST}.{os.getpid()}.{_PROCESS}-{next(_count)}.{state}"


def _sync(path: AnyPath) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # network file systems that cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def write_bytes(path: AnyPath, data: bytes) -> None:
    """Write a file so that a reader, or a crash at any moment, finds the old content or the new one, whole.

    Missing parent folders are made; a symbolic link is followed, not replaced.
    Errors: StoreError if it cannot be written (full disk, read-only, ...); the old file is then untouched.
    """
    target = Path(os.path.realpath(path))
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(target, "partial")
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync(target.parent)


def write_text(path: AnyPath, text: str) -> None:
    """`write_bytes` of `text` in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: AnyPath, value: Any) -> None:
    """`write_bytes` of `value` as indented JSON in the order given; what may stand in it is said at `canonical`."""
    write_text(path, json.dumps(_plain(value, "the value"), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def replace_folder(path: AnyPath) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; when the block ends well, it becomes `path`.

    The files are synced, a folder that stood at `path` is moved aside, the new one takes its place, and the old one is
    removed. A process killed before the new one stands leaves the old one at `path` or, between the two renames, aside
    under `.NAME....replaced`; the next `clean_temporaries` of the parent folder, which `replace_folder` itself calls
    first, puts it back. A process killed later leaves the new one at `path`. One writer at a time: hold a lock.

    Errors: StoreError if it cannot be written; what the block raises. In both cases the old folder stays.
    """
    target = Path(os.path.realpath(path))
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        clean_temporaries(target.parent)
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target))
        temporary = _temporary(target, "partial")
        temporary.mkdir()
    try:
        try:
            yield temporary
        except Exception as error:
            if (number := _system_error(error)) in _FULL:
                raise _explained(target, number, str(error)) from error
            raise
        with writing(target):
            for folder, _, names in os.walk(temporary, topdown=False):
                for name in names:
                    _sync(os.path.join(folder, name))
                _sync(folder)
            _swap(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _swap(temporary: Path, target: Path) -> None:
    aside = _temporary(target, "replaced")
    try:
        if target.exists():
            os.rename(target, aside)
        os.rename(temporary, target)
        _sync(target.parent)
    finally:
        if not target.exists() and aside.exists():
            os.rename(aside, target)
        shutil.rmtree(aside, ignore_errors=True)


def _system_error(error: Exception) -> int | None:
    """The errno behind an error, also of libraries in Rust (safetensors), which have it only in the text."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def remove_folder(path: AnyPath) -> None:
    """Remove a folder so that a crash in between never leaves half of it under its name. A missing one is no error.

    Errors: StoreError if it cannot be removed.
    """
    target = Path(path)
    temporary = _temporary(target, "partial")
    with writing(target), contextlib.suppress(FileNotFoundError):
        os.rename(target, temporary)
        shutil.rmtree(temporary)


def clean_temporaries(folder: AnyPath) -> None:
    """Remove, from `folder` itself, what killed writers left; put back a folder that was moved aside and not replaced.

    Only what belongs to no living process is touched: process numbers are looked up on this machine, and what another
    machine left in a shared folder goes once it is a day old. What cannot be read or removed stays, without an error.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _TEMPORARY.fullmatch(entry.name)
            if not found:
                continue
            with contextlib.suppress(OSError):
                if _is_alive(found, entry):
                    continue
                target = Path(folder, found["name"])
                if found["state"] == "replaced" and not target.exists():
                    os.rename(entry.path, target)
                elif entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)


def _is_alive(name: re.Match[str], entry: os.DirEntry[str]) -> bool:
    if name["host"] != _HOST:
        return time.time() - entry.stat(follow_symlinks=False).st_ctime < _OTHER_HOST_SECONDS
    if int(name["pid"]) == os.getpid():
        return name["process"] == _PROCESS
    try:
        os.kill(int(name["pid"]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def digest(path: AnyPath) -> str:
    """The sha256, as 64 hexadecimal digits, of a file's bytes, or of a folder's file names and bytes.

    A folder's is that of the canonical JSON of its sorted [relative name, digest of the file] pairs: it does not depend
    on where the folder stands, on times, permissions or empty folders. Links count as what they point to.
    Errors: UsageError for a path, or a file in the folder, that is missing or cannot be read.
    """
    root = Path(path)
    try:
        if not root.is_dir():
            if root.exists() and not root.is_file():
                raise UsageError(f"{root} is neither a file nor a folder; name one of these")
            with open(root, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        pairs = []
        for folder, folders, names in os.walk(root, onerror=_raise, followlinks=True):
            if any(os.path.samefile(folder, parent) for parent in Path(folder).parents if parent.is_relative_to(root)):
                raise UsageError(f"the folder {folder} is a link to a folder that it is in; remove the link")
            folders.sort()
            pairs += [[Path(folder, name).relative_to(root).as_posix(), digest(Path(folder, name))] for name in names]
    except OSError as error:
        raise UsageError(f"cannot read {error.filename or root}: {error.strerror}; check the path") from error
    return hashlib.sha256(canonical(sorted(pairs))).hexdigest()


def _raise(error: OSError) -> None:
    raise error


def canonical(value: Any) -> bytes:
    """JSON in which equal values have equal bytes, and different values different ones: keys sorted, no spaces, UTF-8.

    Takes None, booleans, integers, finite floats, text, lists, tuples (as lists) and mappings with text keys. Integers
    and floats differ (1 is not 1.0). NaN and infinities are errors, as JSON has no such numbers and NaN would equal
    nothing: record None, and the reason beside it.

    Errors: UsageError that names the place, for any other value.
    """
    return json.dumps(
        _plain(value, "the value"), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def _plain(value: Any, place: str) -> Any:
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UsageError(f"{place} is {float(value)}, which JSON cannot hold; record None in its place")
        return value
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UsageError(
                f"{place} is text that is not valid Unicode: {value!a}; replace those characters"
            ) from None
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise UsageError(f"{place} has the key {key!r}, which is not text; turn it into text")
        return {_plain(key, f"a key of {place}"): _plain(item, f"{place}[{key!r}]") for key, item in value.items()}
    raise UsageError(f"{place} is a {type(value).__name__}, which JSON cannot hold; turn it into numbers or text")


def read_yaml(path: Path, what: str) -> Any:
    """The content of a YAML file that a user wrote; `what` names its kind in the sentence of a UsageError."""
    import yaml

    try:
        return yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"The {what} {path} cannot be read ({error.strerror}): check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"The {what} {path} is not YAML: {' '.join(str(error).split())}.") from None
