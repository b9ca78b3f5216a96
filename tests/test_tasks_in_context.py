"""Functions to be learned in context: their laws, their labels by plain computation, teaching sequences, pools of tasks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from bakeoff.errors import UsageError
from bakeoff.text import tasks
from bakeoff.text.tasks.in_context import (
    CLASSES,
    Boolean,
    LinearRegression,
    PermutedClassification,
    nearest_neighbour,
    right,
    share_right,
)
from bakeoff.text.tasks.task import IGNORED, Points


def pairs(points: Points) -> tuple[Any, Any]:
    """Inputs and labels of Boolean sequences."""
    return points.inputs[:, ::2].astype(int), points.targets[:, ::2]


def drawn(count: int, dimension: int, seed: int = 0, **options: Any) -> Points:
    return Boolean(**options).draw(np.random.default_rng(seed), dimension, count)


@pytest.mark.parametrize("function", CLASSES)
def test_labels_follow_their_inputs_and_targets_stand_at_inputs(function: str) -> None:
    points = drawn(50, 6, function=function)
    x, y = pairs(points)
    assert set(np.unique(x)) == {-1, 1}
    assert (points.targets[:, 1::2] == IGNORED).all()
    assert not points.inputs[:, 1::2, 1:].any()
    told = points.inputs[:, 1::2, 0] > 0
    assert np.array_equal(told[y != IGNORED], y[y != IGNORED] == 1)
    assert 0.02 < told.mean() < 0.98


@pytest.mark.parametrize(
    ("function", "positive"),
    [
        # A balanced input is true of a conjunction with chance 0.3, another with (1/2)^k, k ~ Binomial(28, 0.3): 0.85^28.
        ("conjunction", 0.3 + 0.7 * 0.85**28),
        ("disjunction", 1 - 0.3 - 0.7 * 0.85**28),
        ("sparse disjunction", 0.7 * 15 / 16),
        ("parity", 0.5),
        ("sparse parity", 0.5),
    ],
)
def test_shares_of_true_labels_are_those_of_the_law(function: str, positive: float) -> None:
    _, y = pairs(drawn(3000, 28, function=function))
    assert y.mean() == pytest.approx(positive, abs=0.012)


def consistent(x: Any, y: Any, functions: Any) -> bool:
    return any(all(f(row) == bool(label) for row, label in zip(x, y, strict=True)) for f in functions)


def literals(signed: bool, dimension: int) -> list[tuple[int, ...]]:
    return list(itertools.product((-1, 0, 1) if signed else (0, 1), repeat=dimension))


def conjunction(w: Any) -> Any:
    return lambda x: all(x[i] == v for i, v in enumerate(w) if v)


def disjunction(w: Any) -> Any:
    return lambda x: any(x[i] == v for i, v in enumerate(w) if v)


def above(w: Any, threshold: float) -> Any:
    return lambda x: sum(a * b for a, b in zip(w, x, strict=True)) > threshold


def odd(w: Any) -> Any:
    return lambda x: sum(x[i] == 1 for i, v in enumerate(w) if v) % 2 == 1


@pytest.mark.parametrize(
    ("function", "dimension", "functions"),
    [
        ("conjunction", 4, [conjunction(w) for w in literals(True, 4)]),
        ("monotone conjunction", 4, [conjunction(w) for w in literals(False, 4)]),
        ("disjunction", 4, [disjunction(w) for w in literals(True, 4)]),
        ("sparse disjunction", 6, [disjunction(w) for w in literals(False, 6) if sum(w) == 4]),
        ("majority", 5, [above(w, 0.5) for w in literals(False, 5)]),
        ("half-space", 4, [above(w, 0.5) for w in itertools.product(range(-3, 4), repeat=4)]),
        ("threshold", 4, [above(w, t + 0.5) for w in literals(True, 4) for t in range(-3, 3)]),
        ("parity", 6, [odd(w) for w in literals(False, 6)]),
        ("sparse parity", 6, [odd(w) for w in literals(False, 6) if sum(w) == 2]),
    ],
)
def test_every_sequence_is_of_some_function_of_its_class(function: str, dimension: int, functions: list[Any]) -> None:
    x, y = pairs(drawn(12, dimension, function=function))
    assert all(consistent(a.tolist(), b, functions) for a, b in zip(x, y, strict=True))
    # Labels at random fit none, so the check above can fail.
    draw = np.random.default_rng(1)
    assert not any(consistent(a.tolist(), draw.integers(2, size=len(a)), functions) for a in x)


@pytest.mark.parametrize("function", ["3-dnf", "3-cnf"])
def test_normal_forms_are_those_of_three_clauses(function: str) -> None:
    task = Boolean(function=function, examples_each=16)
    draw = np.random.default_rng(1)
    w = task._weights(draw, 40, 5)
    x = np.broadcast_to(np.array(list(itertools.product((-1, 1), repeat=5)), np.int8), (40, 32, 5)).copy()
    y, _ = task._labels(draw, x, w)
    inner, outer = (conjunction, any) if function == "3-dnf" else (disjunction, all)
    for row, inputs, labels in zip(w.tolist(), x.tolist(), y, strict=True):
        assert [outer(inner(clause)(one) for clause in row) for one in inputs] == labels.astype(bool).tolist()


def test_a_conjunction_of_the_note() -> None:
    task, draw = Boolean(), np.random.default_rng(0)
    x = np.array([[[1, 1, -1], [1, 1, 1]]], np.int8)
    assert task._labels(draw, x, np.array([[[1, 0, -1]]], np.int8))[0].tolist() == [[1, 0]]


def test_the_teaching_sequence_of_a_conjunction() -> None:
    task = Boolean(examples_each=5, teaching=1.0)
    x, w = np.zeros((1, 5, 3), np.int8), np.array([[1, 0, -1]], np.int8)
    end = task._teach(x, w, np.zeros(1, np.int64), np.array([0]))
    assert end.tolist() == [4]
    assert x[0, :4].tolist() == [[1, -1, -1], [1, 1, -1], [-1, -1, -1], [1, -1, 1]]
    assert task._labels(np.random.default_rng(0), x[:, :4], w[:, None])[0].tolist() == [[1, 1, 0, 0]]


def eliminated(x: Any, y: Any) -> set[int]:
    """Literals i + 1 and -(i + 1) that all true examples satisfy."""
    left = {sign * (i + 1) for i in range(len(x[0])) for sign in (-1, 1)}
    for inputs, label in zip(x, y, strict=True):
        if label:
            left &= {int(v) * (i + 1) for i, v in enumerate(inputs)}
    return left


def test_elimination_is_exact_after_a_teaching_sequence_and_errs_on_one_side_before() -> None:
    everything = list(itertools.product((-1, 1), repeat=5))
    for function in ("conjunction", "monotone conjunction"):
        x, y = pairs(drawn(60, 5, function=function, teaching=1.0, examples_each=12))
        for inputs, labels in zip(x, y, strict=True):
            left = eliminated(inputs[:7], labels[:7])
            if function == "monotone conjunction":
                left = {i for i in left if i > 0}
            said = [all(one[abs(i) - 1] * i > 0 for i in left) for one in inputs]
            assert [bool(v) for v in labels] == said
            assert len(everything) == 32
    x, y = pairs(drawn(200, 5))
    for inputs, labels in zip(x, y, strict=True):
        left = eliminated(inputs[:10], labels[:10])
        said = np.array([all(one[abs(i) - 1] * i > 0 for i in left) for one in inputs])
        assert not (said & (labels == 0)).any()


def test_teaching_dnf_shows_each_monotone_clause_in_turn() -> None:
    x, y = pairs(drawn(40, 4, function="3-dnf", teaching=1.0, examples_each=15))
    for inputs, labels in zip(x, y, strict=True):
        place = 0
        for _ in range(3):
            literals_true = int((inputs[place] == 1).sum())
            assert labels[place] == 1
            for step in range(1, literals_true + 1):
                assert (inputs[place + step] != inputs[place]).sum() == 1
                assert (inputs[place + step] == 1).sum() == literals_true - 1
            place += literals_true + 1


def test_a_share_of_the_prompts_is_taught() -> None:
    x, _ = pairs(drawn(4000, 6, teaching=0.5, chance=0.5))
    # After the two satisfying ones, taught prompts have inputs that differ from the first in one place.
    first = x[:, 0].astype(int)
    taught = ((x[:, 1] - first >= 0).all(1)) & ((x[:, 2] != first).sum(1) == 1)
    assert 0.45 < taught.mean() < 0.62


def test_nearest_neighbour_labels_by_a_plain_search() -> None:
    points = drawn(30, 5, function="nearest neighbour", start=6, examples_each=16)
    x, y = pairs(points)
    assert (y[:, :6] == IGNORED).all()
    told = points.inputs[:, 1::2, 0] > 0
    for inputs, labels in zip(x, told, strict=True):
        for place in range(1, 16):
            alike = [int(inputs[place] @ inputs[before]) for before in range(place)]
            if place >= 6 or max(alike) == 5:
                assert labels[place] == labels[alike.index(max(alike))]
    said = nearest_neighbour(points.inputs[:, ::2], told.astype(int))
    assert np.array_equal(said[:, 6:], told[:, 6:])


def test_splits_hold_different_functions_where_there_are_enough() -> None:
    x, _ = pairs(drawn(400, 8, teaching=1.0, examples_each=12, chance=0.5))
    points = Boolean(teaching=1.0, examples_each=12, chance=0.5).examples("train", 8, 400)
    test = Boolean(teaching=1.0, examples_each=12, chance=0.5).examples("test", 8, 400)
    functions = [{tuple(np.where(a[0] == a[1], a[0], 0)) for a in pairs(part)[0]} for part in (points, test)]
    assert not functions[0] & functions[1]
    assert len(functions[1]) > 50
    assert x.shape == (400, 12, 8)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"function": "conjuncton"}, "conjunction"),
        ({"function": "parity", "teaching": 0.5}, "no teaching sequence of parity"),
    ],
)
def test_wrong_functions_get_one_sentence(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Boolean(**options)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("boolean(examples_each=0)", "examples_each is 0"),
        ("boolean(teaching=1.5)", "teaching is 1.5"),
        ("boolean(chance=-0.1)", "chance is -0.1"),
        ("linear-regression(noise=())", "noise is"),
        ("permuted-classification(fixed=2.0)", "fixed is 2.0"),
    ],
)
def test_options_out_of_range_get_one_sentence(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        tasks.make(text)


def test_a_teaching_sequence_must_fit() -> None:
    with pytest.raises(UsageError, match="examples_each=12"):
        Boolean(teaching=1.0, examples_each=11).examples("train", 10, 1)
    assert len(Boolean(teaching=1.0, examples_each=12, chance=1.0).examples("train", 10, 5)) == 5


def test_linear_regression_tokens_and_law() -> None:
    points = tasks.make("linear-regression(examples_each=40, noise=(0.5,), weight_mean=2.0)").draw(
        np.random.default_rng(0), 2, 4000
    )
    x, y = points.inputs[:, ::2, 2:], points.targets[:, ::2]
    assert np.array_equal(points.targets[:, 1::2], y)
    assert not points.inputs[:, ::2, :2].any()
    assert np.array_equal(points.inputs[:, 1::2, 2:], x)
    assert np.array_equal(points.inputs[:, 1::2, 0], y)
    assert (points.inputs[:, 1::2, 1] == 1).all()
    w = np.linalg.solve(x.transpose(0, 2, 1) @ x, (x * y[..., None]).sum(1)[..., None])[..., 0]
    assert w.mean() == pytest.approx(2, abs=0.05)
    assert w.std() == pytest.approx(1, abs=0.05)
    residual = y - (x @ w[..., None])[..., 0]
    assert (residual**2).sum() / (4000 * 38) == pytest.approx(0.25, abs=0.01)
    assert x.std() == pytest.approx(1, abs=0.02)


def test_mixed_dimensions_keep_what_is_told_in_its_place() -> None:
    points = LinearRegression(examples_each=5).examples("train", (2, 4), 40)
    assert np.array_equal(points.inputs[:, 1::2, 0], points.targets[:, ::2])
    small = ~points.inputs[..., 4:].any((1, 2))
    assert 5 < small.sum() < 35


def test_noise_takes_its_values_equally_often() -> None:
    points = LinearRegression(examples_each=60, noise=(0.1, 1.0)).draw(np.random.default_rng(0), 1, 1000)
    x, y = points.inputs[:, ::2, 2], points.targets[:, ::2]
    w = (x * y).sum(1) / (x**2).sum(1)
    sigma = np.sqrt(((y - w[:, None] * x) ** 2).sum(1) / 59)
    assert (sigma < 0.3).mean() == pytest.approx(0.5, abs=0.05)
    assert np.median(sigma[sigma < 0.3]) == pytest.approx(0.1, abs=0.01)


def test_a_classification_task_is_a_projection_and_a_permutation() -> None:
    task = PermutedClassification(pool=1, classes=3, examples_each=50)
    points = task.examples("train", 5, 40)
    assert len(set(points.key.tolist())) == 1
    assert not points.inputs[:, 0, :3].any()
    assert np.array_equal(points.inputs[:, 1:, :3].argmax(2), points.targets[:, :-1])
    assert (points.inputs[:, 1:, :3].sum(2) == 1).all()
    # One task: classes are told apart by the same means in all sequences.
    x, y = points.inputs[..., 3:].reshape(-1, 5), points.targets.ravel()
    means = np.stack([x[y == c].mean(0) for c in range(3)])
    assert (((x[:, None] - means) ** 2).sum(2).argmin(1) == y).mean() > 0.9


def test_pools_are_nested_and_of_the_train_split() -> None:
    keys = [set(PermutedClassification(pool=pool).examples("train", 5, 600).key.tolist()) for pool in (2, 8, 0)]
    assert (len(keys[0]), len(keys[1]), len(keys[2])) == (2, 8, 600)
    assert keys[0] < keys[1]
    test = PermutedClassification(pool=2).examples("test", 5, 50)
    assert len(set(test.key.tolist())) == 50


def test_a_fixed_permutation_changes_labels_only() -> None:
    fixed, free = (PermutedClassification(fixed=share).draw(np.random.default_rng(3), 6, 300) for share in (1.0, 0.0))
    assert np.array_equal(fixed.inputs[..., 5:], free.inputs[..., 5:])
    for a, b in zip(fixed.targets, free.targets, strict=True):
        assert len(set(zip(a.tolist(), b.tolist(), strict=True))) == len(set(a.tolist())) == len(set(b.tolist()))
    assert (fixed.targets != free.targets).any()
    assert np.bincount(free.targets[:, 0], minlength=5).min() > 35


def test_projections_keep_lengths_and_neighbours() -> None:
    draw = np.random.default_rng(0)
    points = PermutedClassification(data="digits", classes=10, examples_each=100).draw(draw, 64, 60)
    assert (points.inputs[..., 10:] ** 2).sum(2).mean() == pytest.approx(64, rel=0.05)
    said = nearest_neighbour(points.inputs[..., 10:], points.targets)
    from sklearn.datasets import load_digits

    images, kinds = load_digits(return_X_y=True)
    rows = np.stack([draw.choice(len(images), 100, replace=False) for _ in range(60)])
    raw = nearest_neighbour(images[rows].astype(np.float32), kinds[rows])
    projected, plain = (share_right(right(s, t).sum(0), 80) for s, t in ((said, points.targets), (raw, kinds[rows])))
    assert projected == pytest.approx(plain, abs=0.06)
    assert plain > 0.75


def test_new_points_are_others_and_unknown_data_are_refused() -> None:
    one, other = (PermutedClassification(pool=1, new=new, fixed=1.0).examples("train", 5, 50) for new in (False, True))
    seen = {row.tobytes() for row in one.inputs[..., 5:].reshape(-1, 5)}
    assert not seen & {row.tobytes() for row in other.inputs[..., 5:].reshape(-1, 5)}
    with pytest.raises(UsageError, match="data set"):
        PermutedClassification(data="mnist")
    with pytest.raises(UsageError, match="10 digits, not 11"):
        PermutedClassification(data="digits", classes=11)


def test_right_answers_are_counted_where_they_count() -> None:
    found = right(np.array([[1, 0, 1], [0, 0, 0]]), np.array([[1, 1, IGNORED], [0, 1, 0]]))
    assert found.tolist() == [[1, 0, 0, 1, 1, 0], [1, 0, 1, 1, 1, 1]]
    assert share_right(found.sum(0)) == pytest.approx(3 / 5)
    assert share_right(found.sum(0), 1) == pytest.approx(1 / 3)
    assert share_right(found.sum(0), 0, 1) == 1
