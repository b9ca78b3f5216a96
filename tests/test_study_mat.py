"""The shift, the flips, the models without explicit weights and the baselines of the study on memorisation-aware training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from bakeoff.studies.mat import (
    KNOBS,
    Linear,
    Treatment,
    calibrated_shift,
    descend,
    flip_probability,
    group_weights,
    held_out_logits,
    sample,
    softmax,
    treated,
)

Y = np.array([0, 0, 0, 1])
CERTAIN = np.array([[50, 0], [50, 0], [0, 50], [0, 50]], np.float32)


def test_the_shift_is_the_logarithm_of_the_calibrated_prediction() -> None:
    # Predicted classes 0 0 1 1, so J = [[.5, 0], [.25, .25]] and C = [[1, 0], [.5, .5]].
    expected = np.log(np.array([[1, 0], [1, 0], [0.5, 0.5], [0.5, 0.5]]) + 1e-6)
    assert calibrated_shift(CERTAIN, Y, 1.0) == pytest.approx(expected, abs=1e-4)
    # By the definition, term by term.
    logits = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    y = np.random.default_rng(1).integers(3, size=30)
    q = np.exp(logits / 0.5) / np.exp(logits / 0.5).sum(1, keepdims=True)
    joint = np.array([[q[y == c, k].sum() / 30 for c in range(3)] for k in range(3)])
    rows = [
        [np.log(sum(q[i, k] * joint[k, c] / joint[k].sum() for k in range(3))) for c in range(3)] for i in range(30)
    ]
    assert calibrated_shift(logits, y, 0.5) == pytest.approx(np.array(rows), abs=1e-4)


def test_uninformative_predictions_give_logit_adjustment() -> None:
    shift = calibrated_shift(np.zeros((4, 2), np.float32), Y, 0.1)
    adjustment = treated("logit adjustment", CERTAIN, Y, np.ones(1, np.float32)).shifts
    assert isinstance(adjustment, np.ndarray)
    assert shift == pytest.approx(np.log([[0.75, 0.25]] * 4), abs=1e-4)
    assert shift == pytest.approx(np.tile(adjustment, (4, 1)), abs=1e-4)


def test_the_gradient_at_nothing_learned_sums_to_zero_for_every_class() -> None:
    draw = np.random.default_rng(0)
    logits, y = draw.normal(size=(200, 2)).astype(np.float32), draw.integers(2, size=200)
    slopes = softmax(calibrated_shift(logits, y, 0.3)) - np.eye(2)[y]
    assert slopes.sum(0) == pytest.approx([0, 0], abs=1e-2)
    assert np.abs(slopes).sum() > 10


@pytest.mark.parametrize(
    ("classes", "probability", "expected"), [(2, 0.5, 0), (2, 0.75, 0.5), (2, 1, 1), (4, 0.25, 0), (4, 0.625, 0.5)]
)
def test_flip_probability(classes: int, probability: float, expected: float) -> None:
    assert flip_probability(np.array([probability], np.float32), classes) == pytest.approx(expected)


def test_models_are_those_of_gradient_descent_on_their_weights() -> None:
    """Against torch, with weight decay, per-example weights and a shift to which a constant of each example is added."""
    draw = np.random.default_rng(0)
    training = sample(draw, 40, 12, 0.5, 0.1)
    new = sample(draw, 9, 12, 0.5, 0.5)
    start = draw.normal(size=(12, 2)).astype(np.float32)
    shift = draw.normal(size=(40, 1, 2)).astype(np.float32)
    weights = draw.random((40, 1)).astype(np.float32) / np.float32(40)
    model = Linear(training.x, training.x @ training.x.T, start, 1)
    moved = shift + draw.normal(size=(40, 1, 1)).astype(np.float32)
    rate = np.array([0.05], np.float32)
    descend(model, training.y, rate, 30, Treatment(moved, weights, np.array([0.1], np.float32)))

    matrix = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.SGD([matrix], lr=0.05, weight_decay=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        logits = torch.tensor(training.x) @ matrix + torch.tensor(shift[:, 0])
        losses = cross_entropy(logits, torch.tensor(training.y), reduction="none")
        torch.autograd.backward((losses * torch.tensor(weights[:, 0])).sum())
        optimizer.step()
    found = model.logits(new.x @ training.x.T, new.x @ start)[:, 0]
    assert found == pytest.approx((torch.tensor(new.x) @ matrix).detach().numpy(), abs=1e-4)


def test_the_example_is_that_of_the_paper() -> None:
    made = sample(np.random.default_rng(0), 1000, 30, 0.5, 0.1)
    sign = 2 * made.y - 1
    assert (np.sign(made.x[:, 0]) == -sign).all()
    assert (~made.majority).sum() == 100
    assert ((np.sign(made.x[:, 1]) == -sign) == made.majority).all()
    assert np.abs(made.x[:, :2]).mean(0) == pytest.approx([1, 5], abs=0.05)
    assert np.abs(made.x[:, :2]).std(0) == pytest.approx([0.12, 0.6], abs=0.05)
    assert made.x[:, 2:].std() == pytest.approx(0.5, abs=0.01)


def test_twins_find_the_exceptions_without_knowing_them() -> None:
    training = sample(np.random.default_rng(0), 300, 600, 0.3, 0.1)
    draw = np.random.default_rng(1)
    starts = [draw.uniform(-1, 1, (600, 2)).astype(np.float32) / np.float32(600**0.5) for _ in range(2)]
    logits, flipped = held_out_logits(training, training.x @ training.x.T, starts, 0.01, 300, draw)
    assert (logits.argmax(1) != training.y)[~training.majority].mean() > 0.9
    assert flipped[~training.majority].mean() > 0.9
    assert flipped[training.majority].mean() < 0.05


def test_treatments_of_the_baselines() -> None:
    wrong = CERTAIN.argmax(1) != Y  # the third
    knobs = np.array([1, 10], np.float32)
    weights = treated("reweighting", CERTAIN, Y, knobs).weights
    assert isinstance(weights, np.ndarray)
    assert pytest.approx(np.array([[1, 1, 1, 1], [1, 1, 10, 1]]) / [[4], [13]]) == weights.T
    mean = treated("mean shift", CERTAIN, Y, knobs).shifts
    assert isinstance(mean, np.ndarray)
    assert mean[0, 0] == pytest.approx(calibrated_shift(CERTAIN, Y, 1.0).mean(0))
    assert len({len(values) for _, values in KNOBS.values()}) == 1

    weigh = group_weights(wrong, np.array([0.0, 1.0], np.float32))
    losses = np.array([[1, 1], [1, 1], [3, 3], [1, 1]], np.float32)
    once = weigh(losses)
    # Groups of one and three examples: half of the weight each, then exp(3) against exp(1).
    assert once[:, 0] == pytest.approx([1 / 6, 1 / 6, 1 / 2, 1 / 6])
    share = np.exp(3) / (np.exp(3) + np.exp(1))
    assert once[:, 1] == pytest.approx([(1 - share) / 3, (1 - share) / 3, share, (1 - share) / 3])
    assert weigh(losses)[2, 1] > once[2, 1]
