"""The power-law study: shares by hand, equal budgets, forgetting by loops, elastic weight consolidation by its definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bakeoff.budget import Budget
from bakeoff.studies.power_law_rehearsal import (
    EWC,
    EXPONENTIAL,
    FORGETTING,
    NEEDED,
    NONE,
    POWER,
    UNIFORM,
    Consolidation,
    Phase,
    accuracies,
    counts,
    forgotten,
    learn,
    need,
)  # fmt: skip
from bakeoff.training.batches import Batch
from bakeoff.training.run import Run

REHEARSING = (UNIFORM, EXPONENTIAL, POWER)
SMALL: dict[str, Any] = {
    "strength": 0.0, "series": 0, "split": "validation", "phases": 3, "steps": 4, "rows": 8, "width": 6, "rate": 1e-2,
    "exponent": 1.0, "decay": 1.0, "fisher": 8,
}  # fmt: skip


def learned(folder: Path, **conditions: Any) -> dict[str, Any]:
    own = {**SMALL, **conditions}
    return learn(Run(Budget.parse(f"{own['phases'] * own['steps']}steps"), 3, folder), folder, **own)


def test_shares_of_the_power_law() -> None:
    assert counts(POWER, 4, 2500, 1.0, 1.0).tolist() == [300, 400, 600, 1200]
    assert counts(POWER, 4, 1708, 2.0, 1.0).tolist() == [75, 133, 300, 1200]
    # The new task gets N in each of 10 phases, so all get N (H_1 + ... + H_10) = N (11 H_10 - 10).
    assert sum(need(np.arange(1, t + 1), 1.0).sum() for t in range(1, 11)) == pytest.approx(22.219, abs=5e-4)


def test_no_exponent_is_uniform_and_a_great_one_is_no_rehearsal() -> None:
    assert counts(POWER, 5, 1000, 0.0, 1.0).tolist() == counts(UNIFORM, 5, 1000, 0.0, 1.0).tolist() == [200] * 5
    assert counts(POWER, 5, 1000, 50.0, 1.0).tolist() == counts(NONE, 5, 1000, 50.0, 1.0).tolist() == [0] * 4 + [1000]
    assert all(counts(arm, 1, 70, 1.0, 1.0).tolist() == [70] for arm in (NONE, EWC, *REHEARSING))


@pytest.mark.parametrize("phase", [2, 5, 8])
def test_rehearsing_arms_have_equal_budgets(phase: int) -> None:
    found = {arm: counts(arm, phase, 4800, 1.0, 1.0) for arm in REHEARSING}
    new = 4800 / need(np.arange(1, phase + 1), 1.0).sum()
    for made in found.values():
        assert made.sum() == 4800
        assert made[-1] == pytest.approx(new, abs=phase)
    assert np.ptp(found[UNIFORM][:-1]) == 0
    if phase > 2:
        assert found[EXPONENTIAL][-2] / found[EXPONENTIAL][-3] == pytest.approx(np.e, rel=0.01)


def test_a_phase_holds_the_examples_that_its_counts_say() -> None:
    draw = np.random.default_rng(0)
    pixels = {task: (task + draw.random((7, 64)) / 2).astype(np.float32) for task in (1, 2, 3)}
    digits = np.arange(7)
    phase = Phase(pixels, digits, np.array([5, 0, 11]), 4, 1)
    batches = [phase(step) for step in range(4)]
    rows = torch.cat([batch.extra["pixels"] for batch in batches]).numpy()
    labels = torch.cat([batch.labels for batch in batches])[:, 1].tolist()
    task = np.floor(rows[:, 0]).astype(int)
    assert np.bincount(task, minlength=4).tolist() == [0, 5, 0, 11]
    assert task.tolist() != sorted(task)
    for row, own, label in zip(rows, task, labels, strict=True):
        assert np.array_equal(row, pixels[own][label])
    assert all(batch.tokens == 4 for batch in batches)


def test_forgetting_is_the_fall_from_the_best() -> None:
    table = np.random.default_rng(1).random((2, 4, 4))
    sums = np.concatenate([np.full((2, 1), 50.0), 50 * table.reshape(2, -1)], 1)
    assert np.allclose(accuracies(sums), table)
    for one, value in zip(table, forgotten(sums), strict=True):
        falls = [max(one[t][k] for t in range(k, 3)) - one[3][k] for k in range(3)]
        assert value == pytest.approx(sum(falls) / 3)


def test_tasks_weighted_by_need() -> None:
    weights = need(np.array([4, 3, 2, 1]), 1.0)
    assert np.array([0.5, 0.6, 0.8, 0.9]) @ weights / weights.sum() == pytest.approx(0.780, abs=1e-9)


def test_what_is_measured_fits_together(tmp_path: Path) -> None:
    found = learned(tmp_path, arm=POWER)
    last = accuracies(found[FORGETTING].sum(0))[-1]
    weights = need(np.array([3, 2, 1]), 1.0)
    needed = found[NEEDED].sum(0)
    assert needed[0] / needed[1] == pytest.approx(last @ weights / weights.sum())


def test_consolidation_without_strength_is_no_rehearsal_and_one_task_is_plain_training(tmp_path: Path) -> None:
    none, ewc = (learned(tmp_path / arm, arm=arm)[FORGETTING] for arm in (NONE, EWC))
    assert np.array_equal(none, ewc)
    strong = learned(tmp_path / "strong", arm=EWC, strength=1e4)[FORGETTING]
    assert not np.array_equal(none, strong)
    alone = [
        learned(tmp_path / f"alone-{arm}", arm=arm, phases=1, steps=6)["average accuracy"]
        for arm in (NONE, EWC, *REHEARSING)
    ]
    assert all(np.array_equal(alone[0], other) for other in alone[1:])


def test_consolidation_is_its_definition() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    pixels = torch.rand(20, 6)
    pixels[:, 2] = 0
    uniform = torch.rand(20)
    consolidation = Consolidation(7.0)
    consolidation.keep(model, pixels, uniform)
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    shares = model(pixels).softmax(-1).detach()
    drawn = [[i for i in range(3) if u <= share[: i + 1].sum()] for u, share in zip(uniform, shares, strict=True)]
    answers = torch.tensor([several[0] if several else 2 for several in drawn])
    fisher = {name: torch.zeros_like(p) for name, p in old.items()}
    for image, answer in zip(pixels, answers, strict=True):
        model.zero_grad()
        functional.cross_entropy(model(image[None]), answer[None]).backward()
        for name, p in model.named_parameters():
            assert p.grad is not None
            fisher[name] += p.grad**2 / 20
    for name, (found, anchor) in consolidation.anchors[0].items():
        assert torch.allclose(found, fisher[name], atol=1e-6)
        assert torch.equal(anchor, old[name])
    assert not consolidation.anchors[0]["0.weight"][0][:, 2].any()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    labels = torch.stack([torch.full((20,), -100), answers], 1)
    batch = Batch(torch.zeros_like(labels), labels, 20, extra={"pixels": pixels})
    penalty = consolidation(model, batch, 0) - functional.cross_entropy(model(pixels), answers)
    assert float(penalty.detach()) == pytest.approx(
        7 / 2 * 0.01 * sum(float(f.sum()) for f in fisher.values()), rel=1e-3
    )
