"""Sentences whose classes show in places and words, and embeddings that are forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bakeoff.budget import Budget
from bakeoff.studies.dual_process import SETS, Sentences, forget, learn
from bakeoff.training.run import Run

TASK = Sentences(400, 1.5, 0.1)
SMALL: dict[str, Any] = {
    "rows": 8, "words": 40, "skew": 1.5, "ambiguous": 0.1, "width": 16, "layers": 1, "heads": 2, "rate": 1e-3, "test": 20,
}  # fmt: skip


def by_place(ids: np.ndarray) -> np.ndarray:
    """The adjective's place is after the copula; the query comes twice after it."""
    adjective = np.where(ids[:, 0] == TASK.copula, ids[:, 1], ids[:, 2])
    return np.stack([adjective, ids[:, 3], ids[:, 3]], 1)


def by_heart(ids: np.ndarray) -> np.ndarray:
    """The adjective is the word of the class of adjectives."""
    words = np.sort(ids[:, :3], 1)[:, :2]
    return np.stack([words[:, 1], ids[:, 3], ids[:, 3]], 1)


@pytest.mark.parametrize("name", SETS)
def test_places_solve_every_set_and_memory_only_words_in_their_own_places(name: str) -> None:
    ids, answers = TASK.asked(np.random.default_rng(0), 500, name)
    assert ids.shape == (500, 7)
    assert np.array_equal(by_place(ids), answers)
    if name != "novel":
        assert (by_heart(ids) == answers).all(1).mean() == (0 if "swapped" in name else 1)


def test_four_patterns_come_equally_often() -> None:
    ids, answers = TASK.asked(np.random.default_rng(1), 4000, "all words")
    first, about = ids[:, 0] == TASK.copula, ids[:, 3] == answers[:, 0]
    assert np.allclose(np.bincount(2 * first + about) / 4000, 1 / 4, atol=0.03)
    assert (ids[:, 4:] == TASK.copula + 1).all()
    row = ids[first & about][0]
    assert row[3] == row[1]


def test_places_solve_what_is_taught_and_a_tenth_of_the_ranks_is_ambiguous() -> None:
    ids, answers = TASK.taught(np.random.default_rng(2), 20_000)
    assert np.array_equal(by_place(ids), answers)
    nouns = np.where(ids[:, 0] == TASK.copula, ids[:, 2], ids[:, 0])
    strange = nouns >= TASK.each
    assert set((nouns[strange] - TASK.each) % 10) == {9}
    assert strange.sum() == pytest.approx((TASK.doubtful(nouns % TASK.each) & ~strange).sum(), rel=0.2)
    # Rank r comes with a chance proportional to r^-1.5.
    counts = np.bincount(nouns % TASK.each)
    assert counts[0] / counts[3] == pytest.approx(4**1.5, rel=0.15)


def test_novel_words_are_never_taught_and_parts_are_what_they_say() -> None:
    novel = TASK.asked(np.random.default_rng(0), 300, "novel")[1]
    assert ((novel >= TASK.words) & (novel < TASK.copula)).all()
    assert (TASK.taught(np.random.default_rng(0), 5000)[1] < TASK.words).all()
    head, tail = (TASK.asked(np.random.default_rng(0), 300, name)[1] % TASK.each for name in ("head", "tail"))
    assert (head < 20).all()
    assert (tail >= 180).all()


def test_forgetting_draws_embeddings_and_clears_their_moments_only() -> None:
    torch.manual_seed(0)
    table, body = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4, 4))
    optimizer = torch.optim.AdamW([table, body], lr=0.1)
    (table @ body).square().sum().backward()
    optimizer.step()
    before, moments = body.detach().clone(), optimizer.state[body]["exp_avg"].clone()
    fresh = torch.randn(6, 4)
    forget(table, optimizer, fresh)
    assert torch.equal(table, fresh)
    assert torch.equal(body, before)
    assert all(not value.any() for value in optimizer.state[table].values())
    assert torch.equal(optimizer.state[body]["exp_avg"], moments)
    assert optimizer.state[body]["step"] == 1


def losses(folder: Path, name: str, **options: Any) -> list[float]:
    run = Run(Budget.parse("6steps"), 3, folder / name)
    learn(run, folder, **{"steps": 6, "every": 2, "until": 0, "looks": 1, **SMALL, **options})
    return [loss for _, _, loss in run.curve]


def test_forgetting_for_no_step_is_ordinary_training_and_looking_changes_nothing(tmp_path: Path) -> None:
    ordinary = losses(tmp_path, "ordinary")
    assert losses(tmp_path, "too rare", every=7, until=6) == ordinary
    assert losses(tmp_path, "looked at", looks=3) == ordinary
    temporary, active = losses(tmp_path, "temporary", until=2), losses(tmp_path, "active", until=6)
    # The first reset comes after step 2, the second after step 4.
    assert temporary[:2] == active[:2] == ordinary[:2]
    assert temporary[2] == active[2] != ordinary[2]
    assert temporary[4] != active[4]
