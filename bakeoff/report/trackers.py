"""Trials in experiment trackers, through accelerate's classes: MLflow, Weights & Biases, TensorBoard and trackio.

Every trial becomes one run, written whole when the trial is over: what made it, its loss step by step, its metrics and costs.
Runs of one comparison form a group; a last run holds the effects with their intervals. Nothing is sent anywhere but where
the user has pointed the tracker's own settings (MLFLOW_TRACKING_URI, WANDB_MODE, TRACKIO_SPACE_ID, ...); trackio itself asks
the Hub for the user's name where a Hub token is set.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import (
    GeneralTracker,
    MLflowTracker,
    TensorBoardTracker,
    TrackioTracker,
    WandBTracker,
    get_available_trackers,
)

from bakeoff import files, registry
from bakeoff.errors import UsageError
from bakeoff.training import parallel

Value = str | int | float | bool

PATIENCE = 120.0
"""Seconds that one run may take to be written."""

_EFFECT = ("metric", "method", "baseline", "effect", "low", "high", "p_adjusted", "decided", "unit", "better")


@dataclass(frozen=True)
class Entry:
    """One run as a tracker shows it. `curve` holds (step, loss); `table` the rows of the effects, by the names in _EFFECT.

    `folder` is where trackers that write files put them; `identity` tells this run from every other one of the folder.
    """

    project: str
    group: str
    name: str
    folder: Path
    identity: str
    config: Mapping[str, Value]
    curve: Sequence[tuple[int, float]] = ()
    finals: Mapping[str, float] | None = None
    failed: bool = False
    table: Sequence[Sequence[Value | None]] = ()


class _TensorBoard(TensorBoardTracker):
    def __init__(self, entry: Entry) -> None:
        name, group = (re.sub(r"[^\w.()=, +-]+", "_", text).strip(". ") for text in (entry.name, entry.group))
        super().__init__(name, entry.folder / "tensorboard" / group)
        self.finals = entry.finals or {}

    def start(self) -> None:
        # What a killed process left here is half a run.
        shutil.rmtree(os.path.join(self.logging_dir_param, self.run_name), ignore_errors=True)
        super().start()

    def store_init_configuration(self, values: dict[str, Value]) -> None:
        """Beside the run's own scalars, so that the table of hyper-parameters shows its metrics as well."""
        from torch.utils.tensorboard.summary import hparams

        for summary in hparams(values, dict.fromkeys(self.finals, 0.0)):
            self.writer.file_writer.add_summary(summary)

    def log_table(self, table_name: str, columns: Sequence[str], data: Sequence[Sequence[Value | None]]) -> None:
        lines = [columns, ["---"] * len(columns), *data]
        text = "\n".join("| " + " | ".join("" if cell is None else str(cell) for cell in line) + " |" for line in lines)
        self.writer.add_text(table_name, text)


class _MLflow(MLflowTracker):
    def __init__(self, entry: Entry) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        place = entry.folder.resolve() / "mlflow"
        self.store = None if os.environ.get("MLFLOW_TRACKING_URI") else f"sqlite:///{place / 'mlflow.db'}"
        if self.store:
            place.mkdir(parents=True, exist_ok=True)
        super().__init__(
            entry.project, logging_dir=(place / "artifacts").as_uri() if self.store else None, run_name=entry.name
        )
        self.run_id = None  # MLFLOW_RUN_ID would make all trials one run
        self.tags = {**(self.tags or {}), "comparison": entry.group}
        self.failed = entry.failed
        self.points: list[Any] = []

    def start(self) -> None:
        import mlflow

        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        if self.store:
            mlflow.set_tracking_uri(self.store)
        super().start()

    def log(self, values: dict[str, float], step: int | None = None, **kwargs: Any) -> None:
        """Kept until the end: one request for a thousand points instead of one for each."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.points += [Metric(name, value, now, step or 0) for name, value in values.items()]

    def log_table(self, table_name: str, columns: Sequence[str], data: Sequence[Sequence[Value | None]]) -> None:
        import mlflow

        mlflow.log_table(dict(zip(columns, map(list, zip(*data, strict=True)), strict=True)), f"{table_name}.json")

    def finish(self) -> None:
        import mlflow

        try:
            for first in range(0, len(self.points), 1000):
                mlflow.MlflowClient().log_batch(self.active_run.info.run_id, metrics=self.points[first : first + 1000])
        finally:
            mlflow.end_run("FAILED" if self.failed else "FINISHED")
            if self.store:
                mlflow.set_tracking_uri(None)


class _WandB(WandBTracker):
    @staticmethod
    def check() -> None:
        """UsageError where runs would be sent without a key: wandb would stop to ask for one."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        if wandb.setup().settings.mode in ("online", "shared") and not wandb.login(prompt=False, verify=False):
            raise UsageError("wandb has no key to log in with: run `wandb login`, or set WANDB_MODE=offline.")

    def __init__(self, entry: Entry) -> None:
        import wandb

        entry.folder.mkdir(parents=True, exist_ok=True)
        unique = hashlib.sha256(f"{entry.folder.resolve()}\0{entry.identity}".encode()).hexdigest()
        super().__init__(
            os.environ.get("WANDB_PROJECT") or entry.project, name=entry.name, group=entry.group, id=unique[:16],
            dir=os.environ.get("WANDB_DIR") or str(entry.folder),
            settings=wandb.Settings(
                console="off", silent=True, init_timeout=PATIENCE / 2, finish_timeout=PATIENCE / 2, finish_timeout_raises=True,
            ),
        )  # fmt: skip
        self.failed = entry.failed

    def finish(self) -> None:
        self.run.finish(exit_code=int(self.failed))


class _Trackio(TrackioTracker):
    def __init__(self, entry: Entry) -> None:
        super().__init__(
            entry.project, name=entry.name, group=entry.group, embed=False, auto_log_cpu=False, auto_log_gpu=False
        )

    def store_init_configuration(self, values: dict[str, Value]) -> None:
        """accelerate 1.15 would add `allow_val_change` to the configuration, which trackio keeps in a plain dictionary."""
        self.run.config.update(values)

    def log_table(self, table_name: str, columns: Sequence[str], data: Sequence[Sequence[Value | None]]) -> None:
        import trackio

        self.run.log({table_name: trackio.Table(columns=list(columns), data=[list(row) for row in data])})


KINDS: dict[str, Callable[[Entry], GeneralTracker]] = {
    "mlflow": _MLflow, "wandb": _WandB, "tensorboard": _TensorBoard, "trackio": _Trackio,
}  # fmt: skip
"""The trackers by name; what each makes has `log_table(table_name, columns, data)` besides the methods of GeneralTracker."""


class Trackers:
    """Where a comparison's trials are shown as they end.

    Args:
        names: the trackers, as in "mlflow,wandb"; "all" is each one that is installed.
        project: where the trackers file the runs.
        folder: for what is kept in files: `tracked.json`, which says what was logged, and the trackers' own.
        config: what all trials have in common: contest, question, budget. It tells this comparison from others.
        notice: told, once for each, of a tracker that failed: it gets no more runs, and the comparison goes on.

    Raises: UsageError for a name that is unknown, a tracker that is not installed or has no key, a damaged `tracked.json`.

    Under a launcher of several processes all construct it and call it; the first one logs.
    """

    def __init__(
        self,
        names: str,
        project: str,
        folder: Path,
        config: Mapping[str, Any],
        notice: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self.kinds = chosen(names)
        self.project, self.folder, self.notice = project, folder, notice
        self.config = _flat(config)
        self.group = f"{folder.resolve().name}-{_digest(self.config)[:6]}"
        self.tracked: dict[str, list[str]] = {}
        self._writing = threading.Lock()
        if parallel.processes() > 1:
            parallel.join()
        parallel.on_first(self._prepare)

    def _prepare(self) -> None:
        PartialState(cpu=True)  # the tracker classes ask it who logs
        for kind in self.kinds:
            if check := getattr(KINDS[kind], "check", None):
                check()
        path = self.folder / "tracked.json"
        try:
            self.tracked = {str(kind): list(known) for kind, known in json.loads(path.read_text("utf-8")).items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise UsageError(
                f"{path} is damaged ({error}): remove it, and what was logged before is logged again."
            ) from None

    def ended(self, label: str, seed: int, record: Mapping[str, Any]) -> None:
        """Log a trial that is over, unless that was done before. `record` is what the store keeps of it."""
        environment = {k: v for k, v in record.get("environment", {}).items() if k != "began"}
        made_by = _flat(
            {
                "label": label, "seed": seed, "status": record["status"], "error": record.get("error"),
                **{name: record.get(name) for name in ("method", "args", "budget", "weights_sha256", "setting")},
                "environment": environment,
            }
        )  # fmt: skip
        curve = [(int(point[0]), float(point[-1])) for point in record.get("curve") or []]
        measured = {name: metric["value"] for name, metric in record.get("metrics", {}).items()}
        finals = {
            f"{group}/{_key(name)}": float(value)
            for group, values in (("metrics", measured), ("cost", record.get("cost", {})))
            for name, value in values.items()
            if isinstance(value, int | float)
        }
        if failed := record["status"] == "failed":
            finals["failed"] = 1.0  # trackio keeps no run without a number
        self._log(
            Entry(
                self.project, self.group, f"{label}, seed {seed}", self.folder, _digest([made_by, curve, finals]),
                {**self.config, **made_by}, curve, finals, failed,
            )
        )  # fmt: skip

    def finish(self, results: Mapping[str, Any]) -> None:
        """Log the effects that a comparison found; `results` as `Comparison.run` returns them."""
        rows = [[effect[name] for name in _EFFECT] for effect in results["effects"]]
        if rows:
            config = {**self.config, **_flat({"winner": results["comparison"]["winner"]})}
            self._log(
                Entry(self.project, self.group, "effects", self.folder, _digest([self.group, rows]), config, table=rows)
            )

    def _log(self, entry: Entry) -> None:
        if not parallel.is_first():
            return
        for kind in [k for k in self.kinds if entry.identity not in self.tracked.get(k, ())]:
            errors: list[BaseException] = []
            thread = threading.Thread(target=self._write, args=(kind, entry, errors), daemon=True)
            with contextlib.redirect_stdout(io.StringIO()):  # trackio prints seven lines a run
                thread.start()
                thread.join(PATIENCE)
            if thread.is_alive() or errors:
                told = " ".join(f"{type(errors[0]).__name__}: {errors[0]}".split()[:40]) if errors else ""
                self.kinds.remove(kind)
                self.notice(
                    f"{kind} gets no more of these trials ({told or f'no answer within {PATIENCE:g} seconds'}): their "
                    "results are complete without it, and the same command again logs what is missing."
                )

    def _write(self, kind: str, entry: Entry, errors: list[BaseException]) -> None:
        try:
            tracker = KINDS[kind](entry)
            tracker.start()
            try:
                tracker.store_init_configuration(dict(entry.config))
                for step, loss in entry.curve:
                    tracker.log({"loss": loss}, step=step)
                if entry.finals:
                    tracker.log(dict(entry.finals), step=entry.curve[-1][0] if entry.curve else 0)
                if entry.table:
                    tracker.log_table("effects", list(_EFFECT), [list(row) for row in entry.table])
            finally:
                tracker.finish()
            with self._writing:
                self.tracked.setdefault(kind, []).append(entry.identity)
                files.write_json(self.folder / "tracked.json", self.tracked)
        except (Exception, SystemExit) as error:
            errors.append(error)


def chosen(names: str) -> list[str]:
    """The trackers that a text such as "mlflow,wandb" or "all" names; UsageError where one is unknown or not installed."""
    named = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    installed = {str(kind) for kind in get_available_trackers()}
    for name in named:
        registry.pick(name, [*KINDS, "all"], "experiment tracker")
        if name != "all" and name not in installed:
            raise UsageError(f"{name} is not installed: run `pip install {name}`, or leave it out of --report-to.")
    if "all" in named:
        named = [name for name in KINDS if name in installed]
    if not named:
        raise UsageError(f"--report-to finds no tracker: name and install one of {', '.join(KINDS)}.")
    return named


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Value]:
    """Nested values under dotted names, as trackers take them; None is left out, a list becomes JSON."""
    flat: dict[str, Value] = {}
    for name, value in values.items():
        key = f"{before}{_key(str(name))}"
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{key}.")
        elif isinstance(value, float) and not math.isfinite(value):
            flat[key] = str(value)
        elif isinstance(value, str | int | float):
            flat[key] = value
        elif value is not None:
            flat[key] = json.dumps(value, default=str)
    return flat


def _key(name: str) -> str:
    """The name of a value as each of the trackers accepts it."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "_"


def _digest(value: Mapping[str, Any] | Iterable[Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
