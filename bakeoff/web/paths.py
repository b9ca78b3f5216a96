"""What a visitor may name: paths within the folders that the site was given, and nothing beyond them."""

from __future__ import annotations

import contextlib
import os
import re
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from bakeoff.errors import UsageError

_LONGEST = 4096
_DEPTH, _NUMBER, _ENTRIES = 4, 500, 20_000
_DATA = (".txt", ".jsonl", ".json", ".csv", ".parquet")
_OF_A_COMPARISON = {"comparison.yaml", "progress.jsonl", "results.json"}
_SEPARATORS = re.compile(r"""[\s()\[\]{}<>=,:;|&+@"'`]+""")


def confined(roots: Sequence[Path], text: str) -> Path:
    """The path that a visitor's text names, absolute and with symbolic links resolved; it need not exist.

    Args:
        roots: resolved folders. A relative path is taken from the first.
        text: as it came. `~` and `\\` are ordinary characters.

    Raises:
        UsageError: the path lies outside all roots, or is none: empty, too long, with a NUL byte, links in a circle.
    """
    if not text:
        raise UsageError("No path was given; name one within the folders of this site.")
    if len(text) > _LONGEST:
        raise UsageError(f"A path of {len(text):,} characters is too long; it may have {_LONGEST:,}.")
    try:
        path = (roots[0] / text).resolve()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()
    except (OSError, RuntimeError, ValueError):
        raise UsageError(f"{_short(text)} cannot be read as a path on this machine; name another.") from None
    if not any(path.is_relative_to(root) for root in roots):
        raise UsageError(
            f"{_short(text)} lies outside the folders of this site; name a path in {' or '.join(map(str, roots))}."
        )
    return path


def confined_value(roots: Sequence[Path], text: str) -> str:
    """The text itself, which may name a path or something else (`reference`, `installed:docstrings`, `1-5,10`).

    What follows a separator, as in `task:name(file=PATH)`, is looked at like the whole.

    Raises:
        UsageError: it is a URL, a path from somebody's home folder (`~`), or, read as a path, leaves the roots.
    """
    if "://" in text:
        raise UsageError(f"{_short(text)} is a URL; copy the data into a folder of this site, and name that.")
    path = confined(roots, text)
    parts = [text] if os.path.lexists(path) else [text, *filter(None, _SEPARATORS.split(text))]
    for part in parts:
        if part.startswith("~"):
            raise UsageError(f"{_short(text)} begins in a home folder; write the path from the site's own folder.")
        confined(roots, part)
    return text


def listing(roots: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Models and data that a visitor can choose from: relative to the first root where within it, else absolute, sorted.

    A model is a folder with config.json and safetensors; data are .txt, .jsonl, .json, .csv and .parquet files that belong
    to no model and no comparison. Folders that are hidden, linked or hold installed packages are passed over, and so is what
    lies more than 4 folders deep or after 20,000 entries; the first 500 of each are given.

    Returns:
        models, data
    """
    models: set[Path] = set()
    data: set[Path] = set()
    waiting = deque((root, 0) for root in roots)
    entries = 0
    while waiting and entries < _ENTRIES:
        folder, depth = waiting.popleft()
        names: list[os.DirEntry[str]] = []
        try:
            with os.scandir(folder) as found:
                for entry in found:
                    entries += 1
                    if entries > _ENTRIES:
                        break
                    names.append(entry)
        except OSError:
            continue
        names.sort(key=lambda entry: entry.name)
        present = {entry.name for entry in names}
        if "pyvenv.cfg" in present:
            continue
        model = "config.json" in present and any(name.endswith(".safetensors") for name in present)
        if model:
            models.add(folder)
        own = model or not present.isdisjoint(_OF_A_COMPARISON)
        for entry in names:
            if entry.name.startswith(".") or not _printable(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                if depth < _DEPTH and entry.name not in ("node_modules", "site-packages", "__pycache__"):
                    waiting.append((folder / entry.name, depth + 1))
            elif not own and entry.name.endswith(_DATA) and _is_file(roots, entry):
                data.add(folder / entry.name)
    return _named(roots[0], models), _named(roots[0], data)


def _is_file(roots: Sequence[Path], entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a file, or a link to one within the roots."""
    try:
        return entry.is_file() and (not entry.is_symlink() or confined(roots, entry.path).is_file())
    except (OSError, UsageError):
        return False


def _printable(name: str) -> bool:
    """Whether a name can be shown on a page: the file system also has names that are no text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _named(first: Path, found: set[Path]) -> list[str]:
    names = (str(path.relative_to(first)) if path.is_relative_to(first) else str(path) for path in found)
    return sorted(names)[:_NUMBER]


def _short(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:99] + "…")
