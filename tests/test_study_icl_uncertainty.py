"""The Bayes rule, losses and distances of the study of uncertainty in context, by hand and by other formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from bakeoff.studies.icl_uncertainty import LEAST, _reordered, bayes, divergence, gaussian_loss, loss, ridge
from bakeoff.text.tasks.in_context import LinearRegression


def test_the_loss_is_least_at_the_residuals_own_size() -> None:
    residual = np.array([2.0, -2.0])
    assert loss((np.zeros(2), np.full(2, 2.0)), residual).mean() == pytest.approx(0.5 + math.log(2))
    assert all(loss((np.zeros(2), np.full(2, s)), residual).mean() > 0.5 + math.log(2) for s in (1.9, 2.1))
    raw = torch.tensor([[0.0, math.log(math.expm1(2 - LEAST))]] * 2)
    assert gaussian_loss(raw, torch.tensor([2.0, -2.0])).tolist() == pytest.approx([0.5 + math.log(2)] * 2)


def test_one_example_with_known_noise() -> None:
    # w ~ N(0, 1), x = y = 1, sigma = 1: the posterior is N(1/2, 1/2); at x = 2 the mean is 1, the variance 4/2 + 1.
    mean, deviation = bayes(np.array([[[1.0], [2.0]]]), np.array([[1.0, 0.0]]), (1.0,), 0.0)
    assert mean.tolist() == [[0, 1]]
    assert (deviation**2).tolist()[0] == pytest.approx([2, 3])


def test_one_value_of_the_noise_is_ridge_regression() -> None:
    points = LinearRegression(examples_each=9, noise=(0.5,)).draw(np.random.default_rng(0), 3, 4)
    x, y = points.inputs[:, ::2, 2:].astype(float), points.targets[:, ::2].astype(float)
    mean, _ = bayes(x, y, (0.5,), 0.0)
    for row in range(4):
        for place in range(1, 9):
            before = x[row, :place]
            w = np.linalg.solve(before.T @ before + 0.25 * np.eye(3), before.T @ y[row, :place])
            assert mean[row, place] == pytest.approx(x[row, place] @ w)
    assert np.allclose(ridge(x, y, 0.25)[0], mean)


def test_the_bayes_rule_agrees_with_integration_over_weights() -> None:
    x, y, noise = np.array([0.7, -1.2, 0.4]), np.array([1.0, -0.8, 0.0]), (0.3, 1.0)

    def moment(power: int) -> float:
        def inside(w: float) -> float:
            total = 0.0
            for sigma in noise:
                law = stats.norm.pdf(w, 1.5) * np.prod(stats.norm.pdf(y[:2], w * x[:2], sigma))
                total += law * (1, w * x[2], (w * x[2]) ** 2 + sigma**2)[power]
            return total

        return integrate.quad(inside, -8, 8, limit=200)[0]

    mean, deviation = bayes(x[None, :, None], y[None], noise, 1.5)
    expected = moment(1) / moment(0)
    assert mean[0, 2] == pytest.approx(expected, rel=1e-5)
    assert deviation[0, 2] ** 2 == pytest.approx(moment(2) / moment(0) - expected**2, rel=1e-5)


def test_order_does_not_matter_and_much_data_tells_all() -> None:
    points = LinearRegression(examples_each=200).draw(np.random.default_rng(0), 2, 20)
    x, y = points.inputs[:, ::2, 2:].astype(float), points.targets[:, ::2].astype(float)
    swapped = _reordered(points.inputs, 3)
    assert np.array_equal(swapped[:, -2:], points.inputs[:, -2:])
    assert not np.array_equal(swapped, points.inputs)
    x2, y2 = swapped[:, ::2, 2:].astype(float), swapped[:, 1::2, 0].astype(float)
    one, other = (bayes(a, b, (0.2, 0.5, 1.0), 0.0) for a, b in ((x, y), (x2, y2)))
    assert np.allclose(one[0][:, -1], other[0][:, -1])
    assert np.allclose(one[1][:, -1], other[1][:, -1])
    w = np.linalg.lstsq(x.reshape(-1, 400)[:1].reshape(200, 2), y[0], rcond=None)[0]
    residual = (y[0] - x[0] @ w).std()
    assert one[1][0, -1] == pytest.approx(residual, rel=0.15)
    assert ridge(x, y)[1][0, -1] == pytest.approx(residual, rel=0.15)


def test_divergence_is_the_expected_excess_loss() -> None:
    one, other = (np.array([0.3]), np.array([0.7])), (np.array([-0.2]), np.array([1.1]))
    y = 0.3 + 0.7 * np.random.default_rng(0).standard_normal(400_000)
    excess = loss((other[0], other[1]), y).mean() - loss((one[0], one[1]), y).mean()
    assert divergence(one, other)[0] == pytest.approx(excess, abs=0.003)
    assert divergence(one, one)[0] == 0
