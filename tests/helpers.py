"""What the tests of whole commands share: a tiny model folder, small texts, the command line in this and other processes.

PYTEST_DONT_REWRITE: the tests import it before pytest takes its fixtures.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from bakeoff import check, registry
from bakeoff.cli import main
from bakeoff.files import digest
from bakeoff.lm.tiny import save_tiny
from bakeoff.store import Store

METHODS = ("full", "lora(rank=2)")
SEEDS = 3
STEPS = 4
WORDS = ("the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "hill", "big", "small", "red", "old", "new")


@dataclass(frozen=True)
class Material:
    """What the commands of the tests read, and a store that holds nothing but the verdicts of the quick checks."""

    folder: Path
    model: Path
    train: Path
    keep: Path
    checked: Path

    def compare(self, store: Path, out: Path, *more: str, methods: Sequence[str] = METHODS) -> list[str]:
        """The words of a comparison that is small in every way and saves its state after every step."""
        return [
            "compare", "tune", *methods, "--model", str(self.model), "--train", str(self.train), "--keep", str(self.keep),
            "--budget", f"{STEPS}steps", "--seeds", str(SEEDS), "--max-length", "32", "--exam-items", "6",
            "--per-device-train-batch-size", "2", "--checkpoint-seconds", "0", "--store", str(store), "--out", str(out), *more,
        ]  # fmt: skip

    def store(self, place: Path) -> Path:
        """A fresh store where the methods need not take their quick checks again."""
        shutil.copytree(self.checked, place)
        return place


@dataclass(frozen=True)
class Said:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """What it printed to say that it failed: one line, no traceback."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("bakeoff: ")
        assert "Traceback" not in self.err
        assert "unexpected" not in self.err
        return lines[0]


@dataclass(frozen=True)
class Finished:
    """A comparison that nothing interrupted."""

    store: Path
    out: Path
    results: dict[str, Any]
    said: Said


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    folder = tmp_path_factory.mktemp("material")
    save_tiny(folder / "model", "llama", 1)
    draw = random.Random(0)
    for name in ("train.txt", "keep.txt"):
        texts = [" ".join(draw.choice(WORDS) for _ in range(50)) for _ in range(40)]
        (folder / name).write_text("\n\n".join(texts))
    for name in ("full", "lora"):
        verdict = check.quick_verdict(registry.method("tune", name), Store(folder / "checked"))
        assert verdict is None, verdict
    return Material(folder, folder / "model", folder / "train.txt", folder / "keep.txt", folder / "checked")


@pytest.fixture(scope="session")
def finished(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    place = tmp_path_factory.mktemp("finished")
    store, out = material.store(place / "store"), place / "out"
    child = Child(place, material.compare(store, out))
    said = child.ended()
    assert said.code == 0, said.err
    return Finished(store, out, json.loads((out / "results.json").read_text()), said)


@pytest.fixture
def bakeoff(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs a command in this process."""

    def command(*words: object) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        printed = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Said(ended.value.code, printed.out, printed.err)

    return command


def essence(out: Path) -> dict[str, Any]:
    """What must come out the same however often a comparison was interrupted."""
    results = json.loads((out / "results.json").read_text())
    winner = results["comparison"]["winner"]
    return {
        "weights": {(t["label"], t["seed"]): t["weights_sha256"] for t in results["trials"]},
        "metrics": {(t["label"], t["seed"]): t["metrics"] for t in results["trials"]},
        "steps": {(t["label"], t["seed"]): t["curve"] for t in results["trials"]},
        "effects": results["effects"],
        "winner": winner,
        "model": {p.name: digest(p) for p in (out / "winner").iterdir() if p.suffix == ".safetensors"},
    }


def done_trials(store: Path) -> dict[str, tuple[int, bytes]]:
    """When the record of each finished trial was written, and what it holds."""
    found = {}
    for path in (store / "trials").glob("*.json"):
        data = path.read_bytes()
        if json.loads(data)["status"] == "done":
            found[path.name] = (path.stat().st_mtime_ns, data)
    return found


def _context() -> ForkServerContext:
    # Children are forked from a process without threads that has imported everything: no child waits for an import, and
    # none inherits a lock that a thread of the test process held.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["pytest", "transformers.models.llama.modeling_llama", "peft", "bakeoff.cli", "bakeoff.check", "bakeoff.tune.contest",
         "bakeoff.comparison", "bakeoff.report.page", "bakeoff.report.card", "bakeoff.tune.baselines", "filelock", "duckdb"]
    )  # fmt: skip
    return context


class Child:
    """A command in a process of its own. `prepare`, a function of a module, is called there first with `told`."""

    def __init__(
        self, place: Path, words: Sequence[str], prepare: Callable[..., None] | None = None, *told: object
    ) -> None:
        place.mkdir(exist_ok=True)
        self.printed = place / f"printed-{time.monotonic_ns()}"
        self.process: ForkServerProcess = _context().Process(
            target=_run, args=(str(self.printed), list(words), prepare, told)
        )
        self.process.start()

    def ended(self, seconds: float = 300) -> Said:
        """Wait until it has ended."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"the command did not end: {self.printed.with_suffix('.err').read_text()}")
        texts = [p.read_text() if p.exists() else "" for p in map(self.printed.with_suffix, (".out", ".err"))]
        return Said(self.process.exitcode, *texts)

    def killed(self, seconds: float) -> bool:
        """Kill it with SIGKILL after a time; whether it was still alive."""
        self.process.join(seconds)
        self.process.kill()
        self.process.join()
        return self.process.exitcode == -signal.SIGKILL


def _run(printed: str, words: list[str], prepare: Callable[..., None] | None, told: tuple[object, ...]) -> None:
    import torch

    for stream, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(printed + suffix, os.O_WRONLY | os.O_CREAT, 0o666), stream)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    if prepare:
        prepare(*told)
    main(words)
