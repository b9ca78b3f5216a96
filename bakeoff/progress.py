"""What a comparison leaves in its output folder while it runs, so that others can watch it: `progress.jsonl`.

Each line is one event: `began`, `progress`, `trial` or `ended`. A comparison that is run again writes below what is there.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import psutil

from bakeoff import files

State = Literal["running", "done", "failed", "stopped", "lost"]
NAME = "progress.jsonl"

_SECONDS_BETWEEN = 0.5
_POINTS = 200  # of a loss curve, at most


@dataclass(frozen=True)
class Progress:
    """How far the last run of a comparison came.

    Attributes: `state`: `lost` means that its process ended without a word, `stopped` that it was interrupted; `over` of
    `total` trials are over; `fraction` in [0, 1] and `loss` (nats/token, None where nothing trains) of what runs now, named by
    `what`; `trials` in the order in which they ended, each with `label`, `seed`, `status`, `metrics`, `cost` and `error`;
    `losses`: for what runs or ran, the (fraction, loss) points; `began` and `updated` in UTC.
    """

    state: State
    pid: int
    created: float
    began: str
    updated: str
    what: str = ""
    over: int = 0
    total: int = 0
    fraction: float = 0.0
    loss: float | None = None
    trials: tuple[Mapping[str, Any], ...] = ()
    losses: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    error: str = ""


class Journal:
    """Writes the events of one run of a comparison; of several processes with one output folder only the first writes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._file: Any = None
        self._last: tuple[str, int, float] = ("", -1, -math.inf)

    def __enter__(self) -> Journal:
        import filelock

        with files.writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(filelock.Timeout):
                self._stack.enter_context(filelock.FileLock(self._folder / ".progress.lock", timeout=0))
                self._file = self._stack.enter_context(open(self._folder / NAME, "a", encoding="utf-8"))
        me = psutil.Process()
        self._write("began", pid=me.pid, created=me.create_time())
        return self

    def watch(self, what: str, over: int, total: int, fraction: float, loss: float) -> None:
        """As `comparison.Watch`; repeated news within half a second are left out."""
        name, before, written = self._last
        if (what, over) == (name, before) and time.monotonic() - written < _SECONDS_BETWEEN:
            return
        self._last = (what, over, time.monotonic())
        self._write(
            "progress", what=what, over=over, total=total, fraction=fraction, loss=None if math.isnan(loss) else loss
        )

    def ended(self, label: str, seed: int, record: Mapping[str, Any]) -> None:
        """As `comparison.Ended`."""
        shown = {name: record[name] for name in ("status", "metrics", "cost", "error") if name in record}
        self._write("trial", label=label, seed=seed, **shown)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        state = "done" if error is None else "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        with self._stack:
            self._write("ended", state=state, error="" if error is None else str(error) or type(error).__name__)

    def _write(self, event: str, **fields: Any) -> None:
        if self._file is None:
            return
        line = json.dumps({"event": event, "at": now(), **fields}, ensure_ascii=False)
        with files.writing(self._folder / NAME):
            self._file.write(line + "\n")
            self._file.flush()


class Reader:
    """Reads a folder's events as they come: each call of `read` goes on where the last one ended."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._offset = 0
        self._found: Progress | None = None

    def read(self) -> Progress | None:
        """What is known now; None where no comparison began in the folder."""
        with contextlib.suppress(FileNotFoundError), open(self._path, "rb") as file:
            if os.fstat(file.fileno()).st_size < self._offset:
                self._offset, self._found = 0, None
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                with contextlib.suppress(
                    ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError
                ):
                    self._found = _after(self._found, json.loads(line))
        found = self._found
        if found and found.state == "running" and not lives(found.pid, found.created):
            return replace(found, state="lost")
        return found


def read(folder: Path) -> Progress | None:
    """How far the comparison of an output folder came; None where none began."""
    return Reader(folder).read()


def _after(found: Progress | None, event: Mapping[str, Any]) -> Progress | None:
    at = event["at"]
    if event["event"] == "began":
        return Progress("running", event["pid"], event["created"], at, at)
    if found is None:
        return None
    if event["event"] == "trial":
        trial = {"metrics": {}, "cost": {}, "error": "", **{k: v for k, v in event.items() if k not in ("event", "at")}}
        return replace(found, updated=at, trials=(*found.trials, trial))
    if event["event"] == "ended":
        return replace(found, updated=at, state=event["state"], error=event["error"])
    what, loss, losses = event["what"], event["loss"], found.losses
    if loss is not None:
        points = (*losses.get(what, ()), (event["fraction"], loss))
        losses = {**losses, what: points if len(points) <= _POINTS else points[::2]}
    return replace(
        found, updated=at, what=what, over=event["over"], total=event["total"], fraction=event["fraction"], loss=loss,
        losses=losses,
    )  # fmt: skip


def lives(pid: int, created: float) -> bool:
    """Whether the process of that number is still the one that began then."""
    try:
        process = psutil.Process(pid)
        return bool(abs(process.create_time() - created) < 1.0 and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def now() -> str:
    """The time, as ISO 8601 in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
