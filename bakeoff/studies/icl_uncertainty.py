"""Mean and variance predicted in context: near the Bayes rule where trained, another rule under shifts, and longer prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bakeoff.metric import Metric
from bakeoff.study import Arm, Lab, study
from bakeoff.text.tasks.in_context import LinearRegression
from bakeoff.text.tasks.task import Points

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bakeoff.training.batches import Batch
    from bakeoff.training.run import Run

Floats = NDArray[np.float64]
Normal = tuple[Floats, Floats]
"""Means and standard deviations, each [n, examples]."""

NOISE = (0.5, 1.0, 2.0)
SHIFTS: dict[str, dict[str, Any]] = {
    "no shift": {}, "noise of 6": {"noise": (6.0,)}, "weights around 2": {"weight_mean": 2.0}, "inputs twice as wide": {"input_scale": 2.0},
}  # fmt: skip
LEAST = 0.01
"""Smallest standard deviation that a model predicts."""


@study(
    slug="icl-uncertainty",
    claim="A transformer that predicts mean and variance in context is near the Bayes optimum in distribution, is not Bayesian "
    "under a shift of the task, and works on longer prompts only without positions.",
    source="Liu, Cai, Chen and Li 2024, arXiv:2405.15115; sizes, the discrete law of the noise, which makes the Bayes rule "
    "exact, distances and bounds are our own",
    expectation="Transformers are trained by Gaussian likelihood on linear regression, whose weights and noise are each "
    "sequence's own. With learned positions, from twice as many examples as there are dimensions on, the loss is less than "
    "0.1 nats above that of the Bayes rule. With noise of three times the greatest it was trained on, its predictions are at "
    "least 0.1 nats (Kullback-Leibler divergence) farther than without the shift from the Bayes rule of the training law, "
    "and also from that of the shifted law. At places beyond the trained length, its excess over the Bayes rule is greater "
    "than that of a transformer without positions, and the latter's is less than 0.1 nats above its own over the second half "
    "of the trained length.",
    scales={
        "smoke": {
            "seeds": 1, "dimension": 1, "examples": 6, "width": 16, "layers": 1, "steps": 2, "rows": 8, "items": 20,
            "rate": 3e-3,
        },
        "laptop": {
            "seeds": 4, "dimension": 2, "examples": 20, "width": 64, "layers": 2, "steps": 1800, "rows": 48, "items": 1000,
            "rate": 3e-3,
        },
        "gpu": {
            "seeds": 5, "dimension": 8, "examples": 100, "width": 256, "layers": 12, "steps": 100000, "rows": 64, "items": 4000,
            "rate": 1e-4,
        },
    },
    parts=("text/tasks/in_context.py", "lm/points.py", "training/points.py"),
)  # fmt: skip
def icl_uncertainty(
    lab: Lab, *, dimension: int, examples: int, width: int, layers: int, steps: int, rows: int, items: int, rate: float
) -> None:
    """Reported without an expectation: shifted weights, wider inputs, ridge regression with the residuals' variance, and
    how much a prediction changes when the examples before it are reordered.

    Departures: the pairs' tokens repeat their x; finite pools of tasks and mixtures of covariate laws are left out.
    """
    begin = min(2 * dimension, examples - 1)
    metrics = [
        Metric(EXCESS, "nats", "lower", f"of the trained length, after {begin} examples"),
        Metric(HALF, "nats", "lower", "over the second half of the trained length"),
        Metric(BEYOND, "nats", "lower", "at places from the trained length to its double"),
        *(Metric(name, "nats", "lower", "Kullback-Leibler divergence after so many examples") for s in SHIFTS for name in _names(s)),
    ]  # fmt: skip
    arms = {
        positions: lab.measured(
            f"positions {positions}", metrics, learn, f"{steps}steps", dtype="bfloat16", positions=positions,
            dimension=dimension, examples=examples, width=width, layers=layers, rows=rows, items=items, rate=rate, begin=begin,
        )
        for positions in ("learned", "none")
    }  # fmt: skip
    learned, none = arms["learned"], arms["none"]

    nothing = learned.arrays[EXCESS].copy()
    nothing[..., 0] = 0
    zero = Arm("the Bayes rule", metrics, [], {EXCESS: nothing})

    def of(arm: Arm, metric: str) -> Arm:
        """The arm with this metric under the name of `EXCESS`, to be set against others."""
        return Arm(arm.label, metrics, [], {EXCESS: arm.arrays[metric]})

    lab.expect(f"{EXCESS}, positions learned", lab.contrast(EXCESS, {learned: 1, zero: -1}), below=0.1)
    for name, still in zip(_names("noise of 6"), _names("no shift"), strict=True):
        effect = lab.contrast(EXCESS, {of(learned, name): 1, of(learned, still): -1})
        lab.expect(f"{name}, less that without a shift", effect, above=0.1)
    lab.expect(f"{BEYOND}, positions learned less none", lab.contrast(BEYOND, {learned: 1, none: -1}), above=0)
    lab.expect(
        f"{BEYOND} less that over the second half of it, positions none",
        lab.contrast(EXCESS, {of(none, BEYOND): 1, of(none, HALF): -1}), below=0.1,
    )  # fmt: skip
    lab.notes["by arm and seed"] = {
        label: [{k: v for k, v in record["notes"].items() if k != "excess by place"} for record in arm.records]
        for label, arm in arms.items()
    }
    lab.curve(
        "Gaussian loss above that of the Bayes rule", "examples seen", "nats",
        {
            arm.label: {
                float(place): [record["notes"]["excess by place"][place] for record in arm.records]
                for place in range(2 * examples)
            }
            for arm in arms.values()
        },
    )  # fmt: skip


EXCESS = "loss above Bayes"
HALF = "loss above Bayes, second half"
BEYOND = "loss above Bayes, beyond the trained length"


def _names(shift: str) -> tuple[str, str]:
    return f"{shift}, to Bayes of training", f"{shift}, to Bayes of its law"


def gaussian_loss(outputs: Tensor, y: Tensor) -> Tensor:
    """log s + (y - m)^2 / (2 s^2), without the constant, at each place; outputs [..., 2] are m and what gives s."""
    mean, deviation = predicted(outputs)
    return deviation.log() + (y - mean).square() / (2 * deviation.square())


def predicted(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Means and deviations, LEAST + softplus."""
    import torch

    mean, raw = outputs.float().unbind(-1)
    return mean, LEAST + torch.nn.functional.softplus(raw)


def objective(model: nn.Module, batch: Batch, step: int) -> Tensor:
    """The mean Gaussian loss over the questions."""
    return gaussian_loss(model(batch.extra["inputs"])[:, ::2], batch.extra["targets"][:, ::2]).mean()


def learn(
    run: Run, folder: Path, *, positions: str, dimension: int, examples: int, width: int, layers: int, rows: int, items: int,
    rate: float, begin: int,
) -> dict[str, Floats]:  # fmt: skip
    """Train a decoder on the training law, and set its predictions against the Bayes rules on test sequences."""
    import torch

    from bakeoff.lm.points import PointsDecoder
    from bakeoff.training.batches import derived_seed
    from bakeoff.training.optimizers import matrices_decay
    from bakeoff.training.points import FreshPoints, outputs
    from bakeoff.training.schedules import cosine

    model = PointsDecoder(
        derived_seed(run.seed, "weights"), dimension + 2, 2, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=2, positions=positions, max_position_embeddings=4 * examples,
    ).to(run.device)  # fmt: skip
    law: dict[str, Any] = {"examples_each": examples, "noise": NOISE}
    run.train(
        model, FreshPoints([LinearRegression(**law)], dimension, rows, run.seed), learning_rate=rate, objective=objective,
        optimizer=matrices_decay(0.0), schedule=cosine(0.05, least=0.1),
    )  # fmt: skip

    def normal(inputs: NDArray[np.float32]) -> Normal:
        mean, deviation = predicted(torch.from_numpy(outputs(model, inputs)[:, ::2]))
        return mean.double().numpy(), deviation.double().numpy()

    def drawn(**law: Any) -> Points:
        return LinearRegression(**law).examples("test", dimension, items)

    found: dict[str, Floats] = {}
    for shift, other in SHIFTS.items():
        points = drawn(**{**law, **other})
        x, y = _pairs(points)
        said = normal(points.inputs)
        trained, own = bayes(x, y, NOISE, 0.0), bayes(x, y, other.get("noise", NOISE), other.get("weight_mean", 0.0))
        for name, rule in zip(_names(shift), (trained, own), strict=True):
            found[name] = _sums(divergence(rule, said)[:, begin:])
        if not other:
            swapped = _reordered(points.inputs, run.seed)
            run.notes["change of the last mean when the examples are reordered"] = float(
                np.sqrt(np.mean((said[0][:, -1] - normal(swapped)[0][:, -1]) ** 2))
            )
            run.notes["correlation of log deviations with Bayes"] = float(
                np.corrcoef(np.log(said[1][:, begin:]).ravel(), np.log(own[1][:, begin:]).ravel())[0, 1]
            )
            run.notes["ridge's loss above Bayes, second half"] = float(
                (loss(ridge(x, y), y) - loss(own, y))[:, examples // 2 :].mean()
            )
    points = drawn(**{**law, "examples_each": 2 * examples})
    x, y = _pairs(points)
    excess = loss(normal(points.inputs), y) - loss(bayes(x, y, NOISE, 0.0), y)
    run.notes["excess by place"] = excess.mean(0).tolist()
    return found | {
        EXCESS: _sums(excess[:, begin:examples]),
        HALF: _sums(excess[:, examples // 2 : examples]),
        BEYOND: _sums(excess[:, examples:]),
    }


def _pairs(points: Points) -> tuple[Floats, Floats]:
    """Inputs [n, examples, dimension] and numbers [n, examples] of sequences."""
    return points.inputs[:, ::2, 2:].astype(float), points.targets[:, ::2].astype(float)


def _reordered(inputs: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """The same sequences with all examples but the last in another order, the same one for all."""
    count = inputs.shape[1] // 2
    order = np.append(np.random.default_rng(seed).permutation(count - 1), count - 1)
    return inputs.reshape(len(inputs), count, 2, -1)[:, order].reshape(inputs.shape)


def _sums(values: Floats) -> Floats:
    """[n, 2]: sums over places, and how many."""
    return np.stack([values.sum(1), np.full(len(values), values.shape[1])], 1)


def loss(normal: Normal, y: Floats) -> Floats:
    """The Gaussian loss of predictions, [n, examples], without the constant."""
    mean, deviation = normal
    return np.log(deviation) + (y - mean) ** 2 / (2 * deviation**2)


def divergence(one: Normal, other: Normal) -> Floats:
    """KL(one || other) of normal laws (nats): what predicting the other costs where the one is true."""
    (m, s), (n, t) = one, other
    return np.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5


def bayes(x: Floats, y: Floats, noise: Sequence[float], weight_mean: float) -> Normal:
    """Mean and deviation of y_t given x_1, y_1 ... x_t under w ~ N(weight_mean, I) and sigma one of `noise`, all as likely.

    Given sigma the posterior of w is normal, with precision I + X'X / sigma^2. That of sigma is the product of the
    predictive densities so far. The law of y_t is a mixture; returned are its two first moments, the optimum of the
    Gaussian loss.
    """
    count, length, dimension = x.shape
    means, variances, evidence = np.zeros((3, len(noise), count, length))
    for index, sigma in enumerate(noise):
        precision = np.broadcast_to(np.eye(dimension), (count, dimension, dimension)).copy()
        shift = np.full((count, dimension), weight_mean)
        for place in range(length):
            now = x[:, place]
            solved = np.linalg.solve(precision, np.stack([now, shift], -1))
            means[index, :, place] = (now * solved[..., 1]).sum(-1)
            variances[index, :, place] = (now * solved[..., 0]).sum(-1) + sigma**2
            precision += now[:, :, None] * now[:, None, :] / sigma**2
            shift += now * y[:, place, None] / sigma**2
        likelihood = -0.5 * (np.log(variances[index]) + (y - means[index]) ** 2 / variances[index])
        evidence[index, :, 1:] = likelihood[:, :-1].cumsum(1)
    weight = np.exp(evidence - evidence.max(0))
    weight /= weight.sum(0)
    mean = (weight * means).sum(0)
    return mean, np.sqrt((weight * (variances + means**2)).sum(0) - mean**2)


def ridge(x: Floats, y: Floats, penalty: float = 0.1) -> Normal:
    """Ridge regression on the examples before each, with the residuals' variance; without a prior law of the noise.

    sigma^2 = (1 + residual sum of squares) / (1 + t), and a prediction's variance is sigma^2 (1 + x' (X'X + penalty)^-1 x).
    """
    count, length, dimension = x.shape
    mean, deviation = np.zeros((2, count, length))
    for place in range(length):
        before, seen, now = x[:, :place], y[:, :place], x[:, place]
        gram = before.transpose(0, 2, 1) @ before + penalty * np.eye(dimension)
        right = np.stack([(before * seen[..., None]).sum(1), now], -1)
        w, direction = np.moveaxis(np.linalg.solve(gram, right), -1, 0)
        residual = seen - (before @ w[..., None])[..., 0]
        sigma = (1 + (residual**2).sum(1)) / (1 + place)
        mean[:, place] = (w * now).sum(1)
        deviation[:, place] = np.sqrt(sigma * (1 + (direction * now).sum(1)))
    return mean, deviation
