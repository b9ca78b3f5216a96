"""The schedule of re-warming, the texts' partition, and that going on is going on: bit for bit when nothing changes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

from bakeoff.budget import Budget
from bakeoff.studies.rewarm import DOWNSTREAM, UPSTREAM, Streams, _learn
from bakeoff.training import checkpoint, loop
from bakeoff.training.run import Run
from bakeoff.training.schedules import cosine

TEXTS = {
    UPSTREAM: [f"chapter {i}: " + "the quick brown fox jumps. " * 12 for i in range(20)],
    DOWNSTREAM: [f"part {i}; " + "pack my box with jugs! " * 12 for i in range(20)],
}
CONSTANT = {"rate": 1e-2, "warm_up": 0.0, "least": 1.0}


def learn(place: Path, start: Path | None, run: Run | None = None, **changed: Any) -> Path:
    """The snapshots of a training."""
    values = {
        "on": UPSTREAM, "begin": "scratch", "state": "fresh", "snapshots": (), "steps": 4, "rows": 2, "length": 16,
        "width": 16, "layers": 1, "exam_windows": 3, "along_windows": 2, **CONSTANT, **changed,
    }  # fmt: skip
    folder = place / "result"
    folder.mkdir(parents=True, exist_ok=True)
    run = run or Run(Budget.parse(f"{values['steps']}steps"), 7, place / "work")
    _learn(run, folder, Streams(TEXTS), start, values)
    return folder


def weights(folder: Path, step: int) -> torch.Tensor:
    saved = checkpoint.read(folder / str(step))
    assert saved
    return torch.cat([saved["parameters"][name].flatten() for name in sorted(saved["parameters"])])


@pytest.mark.parametrize(
    ("warm_up", "step", "rate"),
    [(0.01, 0, 0.0), (0.01, 5, 1.5e-4), (0.01, 10, 3e-4), (0.01, 505, 1.65e-4), (0.01, 1000, 3e-5), (0.0, 0, 3e-4)],
)
def test_schedule(warm_up: float, step: int, rate: float) -> None:
    # 1,000 steps, 1% of them warm-up, from 3e-4 to a tenth; step 505 is halfway down: (3e-4 + 3e-5) / 2.
    assert 3e-4 * cosine(warm_up, least=0.1)(step / 1000) == pytest.approx(rate)


def test_schedule_of_the_constant_arm_is_constant() -> None:
    assert {cosine(0.0, least=1.0)(step / 10) for step in range(11)} == {1.0}


class NoCounter(contextlib.nullcontext[Any]):
    """Counting the operations of a training's first step rounds some of them otherwise than plain steps are."""

    def __init__(self, display: bool) -> None:
        super().__init__(self)

    def get_total_flops(self) -> int:
        return 0


def test_going_on_with_the_state_loaded_is_the_uninterrupted_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "FlopCounterMode", NoCounter)
    whole = learn(tmp_path / "whole", None, steps=8, snapshots=(4, 8))
    kept = {"begin": 4, "snapshots": (4,)}
    loaded = learn(tmp_path / "loaded", whole, state="loaded", **kept)
    assert torch.equal(weights(loaded, 4), weights(whole, 8))
    fresh = learn(tmp_path / "fresh", whole, **kept)
    elsewhere = learn(tmp_path / "elsewhere", whole, state="loaded", on=DOWNSTREAM, **kept)
    for other in (fresh, elsewhere):
        assert not torch.equal(weights(other, 4), weights(whole, 8))


def test_killed_training_leaves_the_snapshots_and_the_curve_of_an_undisturbed_one(tmp_path: Path) -> None:
    def stop(fraction: float, loss: float) -> None:
        if fraction > 0.7:
            raise KeyboardInterrupt

    def run(place: str, **changed: Any) -> Run:
        return Run(Budget.parse("4steps"), 7, tmp_path / place / "work", checkpoint_seconds=0.0, **changed)

    undisturbed, resumed = run("undisturbed"), run("killed")
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "killed", None, run("killed", progress=stop), snapshots=(2, 4))
    folders = [learn(r.folder.parent, None, r, snapshots=(2, 4)) for r in (undisturbed, resumed)]
    for step in (2, 4):
        assert torch.equal(*(weights(folder, step) for folder in folders))
    assert resumed.notes["along"] == undisturbed.notes["along"]


def test_loaded_state_brings_no_rate_of_its_own(tmp_path: Path) -> None:
    whole = learn(tmp_path / "whole", None, snapshots=(4,))
    still = learn(tmp_path / "still", whole, begin=4, state="loaded", rate=1e-12, snapshots=(4,))
    assert torch.allclose(weights(still, 4), weights(whole, 4), atol=1e-9)


def test_no_document_is_both_learned_and_measured() -> None:
    streams = Streams(TEXTS)

    def documents(stream: torch.Tensor) -> set[bytes]:
        return set(bytes(stream.to(torch.uint8).tolist()).split(b"\0")) - {b""}

    learned, exam, tuning = (
        documents(stream) for stream in (streams.learned[DOWNSTREAM], streams.exam[DOWNSTREAM], streams.tuning)
    )
    assert (len(learned), len(exam), len(tuning)) == (16, 2, 2)
    assert learned | exam | tuning == {text.encode() for text in TEXTS[DOWNSTREAM]}
