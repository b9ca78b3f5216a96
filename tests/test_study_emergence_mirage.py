"""Edit distances, emergence scores and intervals, on the paper's examples and against plain references."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bakeoff.budget import Budget
from bakeoff.studies.emergence_mirage import EDITS, EXACT, TOKENS, distances, emergence, gone, grow, wilson
from bakeoff.training.run import Run


def plain_distance(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Levenshtein's distance by its recursive definition."""
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return plain_distance(a[1:], b[1:])
    return 1 + min(plain_distance(a[1:], b), plain_distance(a, b[1:]), plain_distance(a[1:], b[1:]))


def distance(found: str, wanted: str) -> int:
    ids = [np.array([[int(c) for c in text]]) for text in (found, wanted)]
    return int(distances(ids[0], np.array([len(found)]), ids[1])[0])


def test_edit_distances_of_the_paper() -> None:
    assert distance("1234", "1243") == 2
    assert distance("123", "1234") == 1
    assert distance("1234", "1234") == 0


def test_edit_distances_agree_with_the_definition_up_to_the_stop() -> None:
    draw = np.random.default_rng(0)
    found, wanted = draw.integers(3, size=(200, 5)), draw.integers(3, size=(200, 4))
    length = draw.integers(6, size=200)
    by_hand = [plain_distance(tuple(f[:n]), tuple(w)) for f, n, w in zip(found, length, wanted, strict=True)]
    assert distances(found, length, wanted).tolist() == by_hand


def test_of_one_token_both_metrics_say_the_same() -> None:
    draw = np.random.default_rng(0)
    found, wanted = draw.integers(3, size=(50, 1)), draw.integers(3, size=(50, 1))
    assert np.array_equal(distances(found, np.ones(50, np.int64), wanted), (found != wanted)[:, 0])


@pytest.mark.parametrize(
    ("values", "score"), [((0, 0.1, 0.2, 0.3), 3), ((0.3, 0.2, 0.1, 0), -3), ((0, 0.01, 0.02, 0.5), 50)]
)
def test_emergence_scores(values: tuple[float, ...], score: float) -> None:
    assert emergence(values, 1e-6) == pytest.approx(score)


def test_emergence_has_a_floor_under_flat_curves() -> None:
    assert emergence((0, 0, 0, 0.5), 0.01) == pytest.approx(50)
    assert emergence((0.2, 0.2, 0.2), 0.01) == 0


def test_wilson_intervals() -> None:
    # Of no hits in n: 0 to z^2 / (n + z^2).
    assert wilson(0, 100) == pytest.approx((0, 1.96**2 / (100 + 1.96**2)))
    low, high = wilson(50, 100)
    assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_the_way_gone() -> None:
    assert gone(np.array([[0.2, 0.4, 1.0], [3.0, 2.0, 1.0]])).tolist() == pytest.approx(
        np.array([[0, 0.25, 1], [0, 0.5, 1]])
    )
    assert gone(np.array([[0.5, 0.5]])).tolist() == [[1, 1]]


def test_the_same_answers_are_scored_in_both_ways(tmp_path: Path) -> None:
    run = Run(Budget.parse("60steps"), 0, tmp_path)
    found = grow(run, tmp_path, width=16, task="copying(symbols=6)", length=3, rows=32, test=60, rate=1e-2)
    exact, edits, tokens = (found[m.name] for m in (EXACT, EDITS, TOKENS))
    assert np.array_equal(exact[:, 0] == 1, edits[:, 0] == 0)
    # Greedily generated answers are right where each token is the likeliest after the right ones.
    assert np.array_equal(exact[:, 0] == 1, tokens[:, 0] == 3)
    assert exact[:, 0].mean() > 0
    assert (edits[:, 1] == 3).all()
    assert (tokens[:, 1] == 3).all()
    assert run.notes["prefixes"][-1] == pytest.approx(exact[:, 0].mean())
