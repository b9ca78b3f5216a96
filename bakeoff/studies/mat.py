"""Memorisation-aware training on a shortcut that most examples share, where spare inputs let a model memorise the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bakeoff import stats
from bakeoff.metric import Metric
from bakeoff.study import Arm, Lab, study

if TYPE_CHECKING:
    from bakeoff.training.run import Run

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

CLASSES = 2
KNOBS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "ERM": ("weight decay", (0.0, 1e-2, 1e-1)),
    "MAT": ("temperature", (0.001, 0.01, 0.1)),
    "mean shift": ("temperature", (0.001, 0.01, 0.1)),
    "held-in shift": ("temperature", (0.001, 0.01, 0.1)),
    "logit adjustment": ("strength", (0.5, 1.0, 2.0)),
    "reweighting": ("weight of held-out errors", (10.0, 30.0, 100.0)),
    "group DRO": ("rate of the groups' weights", (0.01, 0.1, 1.0)),
}
"""Each arm, and what is searched for it besides the learning rate, with as many values for every arm."""


def _worst(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.minimum(sums[..., 0] / sums[..., 1], sums[..., 2] / sums[..., 3]))


WORST = Metric(
    "worst group", "share", "higher", "right answers in the group that has fewer, minority or majority", _worst
)
LEARNED = Metric(
    "training minority", "share", "higher", "right answers on training examples that the shortcut misleads"
)
MAJORITY = Metric("majority", "share", "higher", "right answers on new examples that the shortcut helps")


@study(
    slug="mat",
    claim="Memorising the exceptions keeps a model on its shortcut; shifting logits by calibrated held-out predictions while "
    "it learns takes it to the robust feature",
    source="Bayat et al. 2024, arXiv:2412.07684: its linear example, its held-out predictions and its shift; the baselines, "
    "the search and the bounds are our own",
    expectation="Two classes are told by a weak feature that is always right and by one five times as strong that is wrong for "
    "a tenth of the training examples. With 1798 noisy inputs beside them a linear model fits the exceptions but not new ones: "
    "accuracy on its training minority exceeds that in the worst group of new examples by over 0.5, and without the noise its "
    "worst group is better by over 0.5. Memorisation-aware training raises the worst group by over 0.5 over plain training, "
    "over the same shift averaged over the examples or made of predictions on examples that a model had learned, and over logit "
    "adjustment. It is no more than 0.05 worse than the better of reweighting by held-out error and of group DRO over groups "
    "told by held-out error. All arms have as many configurations, chosen by the worst group on validation examples at the "
    "first seed.",
    scales={
        "smoke": {
            "seeds": 1, "examples": 60, "inputs": 20, "noise": 0.5, "steps": 10, "first_rate": 1e-2, "rates": (3e-3, 1e-2),
            "test": 40,
        },
        "laptop": {
            "seeds": 5, "examples": 1000, "inputs": 1800, "noise": 0.5, "steps": 1000, "first_rate": 1e-2,
            "rates": (3e-3, 1e-2, 3e-2), "test": 1000,
        },
        "gpu": {
            "seeds": 20, "examples": 4000, "inputs": 7200, "noise": 0.5, "steps": 4000, "first_rate": 1e-2,
            "rates": (1e-3, 3e-3, 1e-2, 3e-2), "test": 4000,
        },
    },
)  # fmt: skip
def mat(
    lab: Lab, *, examples: int, inputs: int, noise: float, steps: int, first_rate: float,
    rates: tuple[float, ...], test: int,
) -> None:  # fmt: skip
    """Departures: the test examples are the same for all seeds. The rates around the example's are searched for the second
    stage; the first keeps the example's."""
    shape = {"examples": examples, "inputs": inputs, "steps": steps, "test": test}

    def arm(kind: str, noise: float, label: str) -> Arm:
        knob, values = KNOBS[kind]
        conditions: dict[str, Any] = {"arm": kind, "noise": noise, "first_rate": first_rate, **shape}
        names = {f"{rate:g}, {value:g}": (rate, value) for rate in rates for value in values}
        tried = [replace(WORST, name=name) for name in names]
        first = replace(lab, seeds=lab.seeds[:1], arms={})
        searched = first.measured(
            f"{label}, searched", tried, learn, f"{steps}steps", split="validation",
            rates=list(rates), values=list(values), **conditions,
        )  # fmt: skip
        found = {name: searched.mean(name) for name in names}
        best = max(found, key=lambda name: found[name])
        lab.notes.setdefault(f"worst group on validation by rate and {knob}, first seed", {})[label] = found
        rate, value = names[best]
        return lab.measured(
            f"{label} ({best})", [WORST, LEARNED, MAJORITY], learn, f"{steps}steps", split="test",
            rates=[rate], values=[value], **conditions,
        )  # fmt: skip

    arms = {kind: arm(kind, noise, kind) for kind in KNOBS}
    without = arm("ERM", 0.0, "ERM without noise")
    erm, robust = arms["ERM"], arms["MAT"]
    gap = stats.paired_effect_by_seed(_by_seed(erm, LEARNED), _by_seed(erm, WORST))
    lab.expect("ERM: training minority less worst group of new examples", gap, above=0.5)
    lab.expect(
        "worst group of ERM without noise less with noise", lab.contrast(WORST.name, {without: 1, erm: -1}), above=0.5
    )
    lab.expect("worst group of MAT less ERM", lab.contrast(WORST.name, {robust: 1, erm: -1}), above=0.5)
    for name, others, bound in (
        ("the best of the other shifts", ("mean shift", "held-in shift", "logit adjustment"), 0.5),
        ("the better of reweighting and group DRO", ("reweighting", "group DRO"), -0.05),
    ):
        best = max((arms[other] for other in others), key=lambda rival: rival.mean(WORST.name))
        lab.expect(f"worst group of MAT less {name}", lab.contrast(WORST.name, {robust: 1, best: -1}), above=bound)
    lab.notes["labels flipped by seed, of them in the minority"] = [r["notes"]["flipped"] for r in robust.records]
    lines: dict[str, dict[float, list[float]]] = {
        one.label: {int(at): [r["notes"]["along"][at] for r in one.records] for at in one.records[0]["notes"]["along"]}
        for one in [*arms.values(), without]
    }
    lab.curve("Worst group of new examples", "steps", "accuracy", lines)


def _by_seed(arm: Arm, metric: Metric) -> NDArray[np.float64]:
    return metric.reduce(arm.arrays[metric.name].sum(axis=1))


@dataclass(frozen=True)
class Sample:
    """x: [n, inputs]. y: [n], classes. majority: [n], whether the shortcut points to the class."""

    x: Floats
    y: Integers
    majority: NDArray[np.bool_]


def sample(draw: np.random.Generator, count: int, inputs: int, noise: float, minority: float) -> Sample:
    """The paper's example: inputs 0 and 1 are the core feature and the shortcut, the others Gaussian noise.

    With s = 1 or -1 for the classes 1 and 0: core = s (0.12 g - 1), shortcut = 5 s (0.12 g - 1), its sign turned for a share
    `minority` of the examples, g standard normal.
    """
    y = draw.integers(CLASSES, size=count)
    sign = 2 * y - 1
    core, shortcut = (sign * (0.12 * draw.standard_normal(count) - 1) for _ in range(2))
    shortcut[draw.permutation(count)[: round(minority * count)]] *= -1
    rest = noise * draw.standard_normal((count, inputs - 2), dtype=np.float32)
    x = np.concatenate([core[:, None], 5 * shortcut[:, None], rest], 1).astype(np.float32)
    return Sample(x, y, core * shortcut > 0)


def softmax(logits: Floats) -> Floats:
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(-1, keepdims=True))


def calibrated_shift(logits: Floats, y: Integers, temperature: float) -> Floats:
    """[n, K]: log sum_k q_k(x) C[k, c] + 1e-6, with q = softmax(logits / temperature) and C[k, c] the share of class c
    among the examples of predicted class k, J[k, c] / sum_c J[k, c], J[k, c] = mean_i q_k(x_i) [y_i = c]."""
    q = softmax(logits / np.float32(temperature))
    joint = q.T @ np.eye(logits.shape[1], dtype=np.float32)[y] / len(y)
    conditional = joint / np.maximum(joint.sum(1, keepdims=True), np.finfo(np.float32).tiny)
    return np.asarray(np.log(q @ conditional + np.float32(1e-6)))


def flip_probability(probability: Floats, classes: int) -> Floats:
    """(p - 1/K) K / (K - 1): 0 where the likeliest class has no more than its share, 1 where it is certain."""
    return np.asarray((probability - 1 / classes) * classes / (classes - 1))


class Linear:
    """Linear softmax models without bias under full-batch gradient descent, `count` of them side by side.

    Their weights W = s W_0 + x^T A stay in the span of the start and of the examples, so that steps need the examples' inner
    products only: logits = s x W_0 + x x^T A.
    """

    def __init__(self, x: Floats, gram: Floats, start: Floats, count: int) -> None:
        """x: [n, inputs]. gram: x x^T. start: [inputs, K], the weights that all models begin with."""
        self.gram, self.beginning, self.scale = gram, x @ start, np.ones(count, np.float32)
        self.parts = np.zeros((len(x), count, start.shape[1]), np.float32)

    def logits(self, gram: Floats | None = None, beginning: Floats | None = None) -> Floats:
        """[n, models, K], of the training examples, or of others by their inner products with these and their x W_0."""
        gram, beginning = self.gram if gram is None else gram, self.beginning if beginning is None else beginning
        made = gram @ self.parts.reshape(len(self.parts), -1)
        return np.asarray(made.reshape(len(gram), *self.parts.shape[1:]) + self.scale[:, None] * beginning[:, None])

    def step(self, slopes: Floats, rates: Floats, decay: Floats | float = 0.0) -> None:
        """One step along the loss's slopes in the logits, [n, models, K]."""
        kept = 1 - rates * np.float32(decay)
        self.scale = self.scale * kept
        self.parts = self.parts * kept[:, None] - rates[:, None] * slopes


def held_out_logits(
    training: Sample, gram: Floats, starts: Sequence[Floats], rate: float, steps: int, draw: np.random.Generator
) -> tuple[Floats, NDArray[np.bool_]]:
    """XRM (Pezeshki et al. 2023): logits [n, K] of the twin that did not learn from an example, and whose labels flipped.

    Each example belongs to one of two twins by a fair coin. At every step the label of an example becomes the class that the
    other twin holds for likeliest with `flip_probability`.
    """
    twins = [Linear(training.x, gram, start, 1) for start in starts]
    own = (draw.random(len(training.y)) < 0.5)[:, None, None]
    labels = training.y.copy()
    for _ in range(steps):
        first, second = (twin.logits() for twin in twins)
        slopes = _slopes(np.where(own, first, second), labels) / np.float32(len(labels))
        for twin, mine in zip(twins, (own, ~own), strict=True):
            twin.step(slopes * mine, np.array([rate], np.float32))
        other = softmax(np.where(own, second, first))[:, 0]
        flips = draw.random(len(labels)) < flip_probability(other.max(-1), CLASSES)
        labels = np.where(flips, other.argmax(-1), labels)
    first, second = (twin.logits() for twin in twins)
    return np.where(own, second, first)[:, 0], labels != training.y


@dataclass(frozen=True)
class Treatment:
    """What is done to the loss: shifts of the logits [n or 1, models, K]; weights of the examples [n, models], or a function
    of their losses that makes them; weight decay [models]."""

    shifts: Floats | float = 0.0
    weights: Floats | Callable[[Floats], Floats] | None = None
    decay: Floats | float = 0.0


def learn(
    run: Run, folder: Path, *, arm: str, noise: float, examples: int, inputs: int, steps: int, test: int, split: str,
    rates: Sequence[float], values: Sequence[float], first_rate: float,
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """Train the arm's models of all rates and knob values at once, and see how many answers are right."""
    from bakeoff.training.batches import derived_seed

    training = sample(np.random.default_rng(derived_seed(run.seed, "train")), examples, inputs, noise, 0.1)
    new = sample(np.random.default_rng(derived_seed(0, split)), test, inputs, noise, 0.5)
    draw = np.random.default_rng(derived_seed(run.seed, "weights"))
    gram, across = training.x @ training.x.T, new.x @ training.x.T
    starts = [draw.uniform(-1, 1, (inputs, CLASSES)).astype(np.float32) / np.float32(inputs**0.5) for _ in range(3)]
    each = [(rate, value) for rate in rates for value in values]
    knobs, logits = np.array([value for _, value in each], np.float32), np.zeros((examples, CLASSES), np.float32)
    if arm == "held-in shift":
        memorising = Linear(training.x, gram, starts[1], 1)
        descend(memorising, training.y, np.array([first_rate], np.float32), steps, Treatment())
        logits = memorising.logits()[:, 0]
    elif arm not in ("ERM", "logit adjustment"):
        logits, flipped = held_out_logits(training, gram, starts[1:], first_rate, steps, draw)
        run.notes["flipped"] = [int(flipped.sum()), int(flipped[~training.majority].sum())]
    run.meter.steps += 0 if arm in ("ERM", "logit adjustment") else steps
    treatment = treated(arm, logits, training.y, knobs)
    model = Linear(training.x, gram, starts[0], len(each))
    beginning, along, every = new.x @ starts[0], {}, max(1, steps // 20)
    for done in range(0, steps, every):
        few = min(every, steps - done)
        descend(model, training.y, np.array([rate for rate, _ in each], np.float32), few, treatment)
        run.meter.steps += few
        run.progress(run.meter.steps / (2 * steps), 0.0)
        right = model.logits(across, beginning).argmax(-1) == new.y[:, None]
        along[str(done + few)] = float(min(right[new.majority, 0].mean(), right[~new.majority, 0].mean()))
    run.notes["along"] = along
    minority, majority = right[~new.majority].astype(float), right[new.majority].astype(float)
    count = min(len(minority), len(majority))
    one = np.ones(count)
    worst = [np.stack([minority[:count, i], one, majority[:count, i], one], 1) for i in range(len(each))]
    if split == "validation":
        return {f"{rate:g}, {value:g}": found for (rate, value), found in zip(each, worst, strict=True)}
    exceptions = (model.logits()[:, 0].argmax(-1) == training.y)[~training.majority].astype(float)
    return {
        WORST.name: worst[0],
        LEARNED.name: np.stack([exceptions, np.ones_like(exceptions)], 1),
        MAJORITY.name: np.stack([majority[:count, 0], one], 1),
    }


def treated(arm: str, logits: Floats, y: Integers, knobs: Floats) -> Treatment:
    """The arm's treatment, a model for each value of its knob, by the first stage's logits [n, K]."""
    if arm in ("MAT", "mean shift", "held-in shift"):
        shifts = np.stack([calibrated_shift(logits, y, value) for value in knobs], 1)
        return Treatment(shifts.mean(0, keepdims=True) if arm == "mean shift" else shifts)
    if arm == "logit adjustment":
        prior = np.bincount(y, minlength=CLASSES) / len(y)
        return Treatment((knobs[:, None] * np.log(prior)).astype(np.float32))
    if arm == "ERM":
        return Treatment(decay=knobs)
    wrong = logits.argmax(1) != y
    if arm == "reweighting":
        weights = np.where(wrong[:, None], knobs, np.float32(1))
        return Treatment(weights=weights / weights.sum(0))
    return Treatment(weights=group_weights(wrong, knobs))


def descend(model: Linear, y: Integers, rates: Floats, steps: int, treatment: Treatment) -> None:
    """Steps on the weighted cross-entropy of the shifted logits."""
    for _ in range(steps):
        logits = model.logits() + treatment.shifts
        slopes, weights = _slopes(logits, y), treatment.weights
        if callable(weights):
            mine = np.take_along_axis(softmax(logits), y[:, None, None], 2)[..., 0]
            weights = weights(-np.log(np.maximum(mine, 1e-12)))
        model.step(slopes * (np.float32(1 / len(y)) if weights is None else weights[..., None]), rates, treatment.decay)


def _slopes(logits: Floats, y: Integers) -> Floats:
    """Of each example's cross-entropy in its logits [n, models, K]."""
    return softmax(logits) - np.eye(CLASSES, dtype=np.float32)[y][:, None]


def group_weights(wrong: NDArray[np.bool_], rates: Floats) -> Callable[[Floats], Floats]:
    """Group DRO (Sagawa et al. 2020, algorithm 1): weights of the two groups grow with exp(rate * their mean losses)."""
    members = np.stack([wrong, ~wrong]).astype(np.float32)
    members /= np.maximum(members.sum(1, keepdims=True), 1)
    shares = np.full((2, len(rates)), 0.5, np.float32)

    def weigh(losses: Floats) -> Floats:
        shares[:] = softmax((np.log(np.maximum(shares, 1e-30)) + rates * (members @ losses)).T).T
        return members.T @ shares

    return weigh
