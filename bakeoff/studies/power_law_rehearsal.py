"""Tasks that come back the less often the longer ago they came up: how much of them is kept, against other rehearsals and EWC."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bakeoff.metric import Metric
from bakeoff.study import Arm, Lab, study

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bakeoff.training.batches import Batch
    from bakeoff.training.run import Run

Floats = NDArray[np.float64]
NONE, EWC, UNIFORM, EXPONENTIAL, POWER = "none", "ewc", "uniform", "exponential", "power law"
AVERAGE, OLDEST, NEEDED, FORGETTING = "average accuracy", "oldest task", "need-weighted accuracy", "forgetting"


@study(
    slug="power-law-rehearsal",
    claim="A network that meets old tasks again as often as a power law of their age says forgets them less than one that is "
    "regularised, or that rehearses in other proportions.",
    source="Gandhi et al. 2024, arXiv:2401.10393; digits of 8x8 pixels, sizes, phases and bounds are our own",
    expectation="A small network learns one permutation of the pixels of handwritten digits after another, with one output "
    "for all. All arms take equally many steps and examples; the rehearsing arms spend the same share of them on old tasks. "
    "The average accuracy over all tasks at the end is at least 10 points higher with power-law rehearsal than with none, "
    "higher than with EWC, whose weight was tuned on other permutations, and higher than with exponentially decaying "
    "rehearsal; it is not more than 2 points below that with uniform rehearsal.",
    scales={
        "smoke": {"seeds": 1, "phases": 2, "steps": 4, "rows": 8, "width": 8, "rate": 1e-3, "exponent": 1.0, "decay": 1.0,
                  "strengths": (10.0,), "fisher": 8},
        "laptop": {"seeds": 8, "phases": 8, "steps": 300, "rows": 32, "width": 128, "rate": 1e-3, "exponent": 1.0,
                   "decay": 1.0, "strengths": (1.0, 1e1, 1e2, 1e3, 1e4), "fisher": 256},
        "gpu": {"seeds": 10, "phases": 10, "steps": 1000, "rows": 128, "width": 256, "rate": 1e-3, "exponent": 1.0,
                "decay": 1.0, "strengths": (1.0, 1e1, 1e2, 1e3, 1e4), "fisher": 1024},
    },
    parts=("text/tasks/digits.py",),
)  # fmt: skip
def power_law_rehearsal(
    lab: Lab, *, phases: int, steps: int, exponent: float, decay: float, strengths: tuple[float, ...], **conditions: Any
) -> None:
    """Phase t brings task t. Ages are counted in phases, from 1 for the new task.

    Departures: the paper's text beyond its abstract was not at hand, so network, sizes and shares are our own; digits of
    8x8 pixels instead of MNIST; ages count from a task's introduction, shares are fixed rather than drawn; forward
    facilitation and combinations with other methods are not looked at. EWC sees no old example, which rehearsal does; the
    comparison on equal terms is that of the rehearsing arms.
    """
    conditions |= {"phases": phases, "steps": steps, "exponent": exponent, "decay": decay}
    metrics = [
        Metric(AVERAGE, "share", "higher", "right answers of all tasks at the end"),
        Metric(OLDEST, "share", "higher", "right answers of the first task at the end"),
        Metric(NEEDED, "share", "higher", "right answers at the end, tasks weighted by the power law of their age"),
        Metric(FORGETTING, "share", "lower", "mean of an old task's best accuracy less that at the end", forgotten),
    ]

    def measured(own: Lab, arm: str, **special: Any) -> Arm:
        label = f"{arm} of {special['strength']:g} on validation" if "series" in special else arm
        return own.measured(
            label, metrics, learn, f"{phases * steps}steps", arm=arm,
            **{"strength": 0.0, "series": 0, "split": "test", **conditions, **special},
        )  # fmt: skip

    first = replace(lab, seeds=lab.seeds[:1], arms={})
    tried = {
        s: measured(first, EWC, strength=s, series=1, split="validation").mean(AVERAGE) for s in strengths
    }  # fmt: skip
    lab.notes["average accuracy by strength of EWC, other permutations, first seed"] = {
        f"{s:g}": v for s, v in tried.items()
    }
    best = max(tried, key=lambda s: tried[s])
    arms = {
        arm: measured(lab, arm, **({"strength": best} if arm == EWC else {}))
        for arm in (NONE, EWC, UNIFORM, EXPONENTIAL, POWER)
    }

    for other, bound in ((NONE, 0.1), (EWC, 0.0), (EXPONENTIAL, 0.0), (UNIFORM, -0.02)):
        effect = lab.contrast(AVERAGE, {arms[POWER]: 1, arms[other]: -1})
        lab.expect(f"{AVERAGE}, {POWER} less {other}", effect, above=bound)
    lab.notes[f"{POWER} less the others"] = {
        metric.name: {other: lab.contrast(metric.name, {arms[POWER]: 1, arms[other]: -1}).effect for other in arms if other != POWER}
        for metric in metrics
    }  # fmt: skip

    # [seeds, phases, tasks]
    tables = {label: accuracies(arm.arrays[FORGETTING].sum(axis=1)) for label, arm in arms.items()}
    lab.curve("Accuracy of the tasks after the last phase", "age of the task in phases", "share", {
        label: {age: table[:, -1, phases - age].tolist() for age in range(1, phases + 1)} for label, table in tables.items()
    })  # fmt: skip
    lab.curve("Accuracy of all tasks so far", "phase", "share", {
        label: {phase: table[:, phase - 1, :phase].mean(-1).tolist() for phase in range(1, phases + 1)}
        for label, table in tables.items()
    })  # fmt: skip


def accuracies(sums: Floats) -> Floats:
    """[..., phases, tasks] out of sums over images [..., 1 + phases * tasks]: how many, then right answers."""
    phases = math.isqrt(sums.shape[-1])
    return np.asarray(sums[..., 1:].reshape(*sums.shape[:-1], phases, phases) / sums[..., :1, None])


def forgotten(sums: Floats) -> Floats:
    """Mean over all tasks but the last of the best accuracy, from the task's own phase on, less that after all phases."""
    accuracy = accuracies(sums)[..., :-1]
    known = np.tri(*accuracy.shape[-2:]) > 0
    return np.asarray((np.where(known, accuracy, 0)[..., :-1, :].max(-2) - accuracy[..., -1, :]).mean(-1))


def need(ages: NDArray[Any], exponent: float) -> Floats:
    """age^-exponent: how likely a task is to come up again."""
    return np.asarray(ages.astype(float) ** -exponent)


def counts(arm: str, phase: int, total: int, exponent: float, decay: float) -> NDArray[np.int64]:
    """[phase]: how many of a phase's `total` examples are of tasks 1 to `phase`.

    The power law gives a task of age a a^-exponent of what the new one gets. The exponential (exp(-decay (a - 1))) and
    the uniform arm give the new task, and old ones together, as much as the power law does.
    """
    ages = np.arange(phase, 0, -1)
    power = need(ages, exponent)
    old = {
        UNIFORM: np.ones(phase - 1), EXPONENTIAL: np.exp(-decay * (ages[:-1] - 1.0)), POWER: power[:-1],
    }.get(arm, np.zeros(phase - 1))  # fmt: skip
    if old.any():
        old = old / old.sum() * power[:-1].sum() / power.sum()
    many = np.round(total * old).astype(np.int64)
    return np.append(many, total - many.sum())


@dataclass(frozen=True)
class Phase:
    """The batches of a phase: examples of all tasks so far, new draws of each, shuffled together."""

    pixels: Mapping[int, NDArray[np.float32]]
    digits: NDArray[np.int64]
    counts: NDArray[np.int64]
    rows: int
    seed: int

    def __call__(self, step: int) -> Batch:
        import torch

        from bakeoff.training.batches import IGNORED, Batch, derived_seed

        draw = np.random.default_rng(derived_seed(self.seed, "phase", len(self.counts)))
        tasks = draw.permutation(np.repeat(np.arange(1, len(self.counts) + 1), self.counts))
        chosen = draw.integers(len(self.digits), size=len(tasks))
        mine = slice(step * self.rows, (step + 1) * self.rows)
        rows = np.stack([self.pixels[task][image] for task, image in zip(tasks[mine], chosen[mine], strict=True)])
        labels = np.stack([np.full(len(rows), IGNORED), self.digits[chosen[mine]]], 1)
        return Batch(
            torch.zeros(labels.shape, dtype=torch.long), torch.from_numpy(labels), len(rows),
            extra={"pixels": torch.from_numpy(rows)},
        )  # fmt: skip


class Consolidation:
    """strength / 2 * sum over learned tasks and parameters of F (theta - theta*)^2, as elastic weight consolidation has it.

    F: mean squared gradient of the log-likelihood of answers drawn from the network itself, at theta*, the weights when
    the task had been learned. Source: Kirkpatrick et al. 2017, arXiv:1612.00796, with a penalty for each task.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.anchors: list[dict[str, tuple[Tensor, Tensor]]] = []

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        from torch.nn import functional

        loss = functional.cross_entropy(model(batch.extra["pixels"]), batch.labels[:, 1])
        for anchor in self.anchors:
            for name, p in model.named_parameters():
                fisher, old = anchor[name]
                loss = loss + self.strength / 2 * (fisher * (p - old) ** 2).sum()
        return loss

    def keep(self, model: nn.Module, pixels: Tensor, uniform: Tensor) -> None:
        """Hold the weights as they are; pixels [n, 64], `uniform` [n] from 0 to 1 draws each answer."""
        import torch
        from torch.func import functional_call, grad, vmap
        from torch.nn import functional

        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        with torch.no_grad():
            likely = model(pixels).softmax(-1).cumsum(-1)
        answers = (uniform[:, None] > likely).sum(-1).clamp(max=likely.shape[1] - 1)

        def loss(weights: dict[str, Tensor], image: Tensor, answer: Tensor) -> Tensor:
            return functional.cross_entropy(functional_call(model, weights, (image[None],)), answer[None])

        gradients = vmap(grad(loss), (None, 0, 0))(weights, pixels, answers)
        self.anchors.append({name: ((gradients[name] ** 2).mean(0), p) for name, p in weights.items()})


def learn(
    run: Run, folder: Path, *, arm: str, strength: float, series: int, split: str, phases: int, steps: int, rows: int,
    width: int, rate: float, exponent: float, decay: float, fisher: int,
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """Learn the tasks one phase after the other by Adam, which begins anew with each; after each phase answer the images of all tasks.

    Every seed has permutations of its own.
    """
    import torch
    from torch import nn

    from bakeoff.text.tasks.digits import PIXELS, images, permutation
    from bakeoff.training.batches import derived_seed
    from bakeoff.training.schedules import constant

    order = {task: permutation(2 * run.seed + series, task) for task in range(1, phases + 1)}
    (shown, digits), (tested, expected) = images("train"), images(split)
    pixels = {task: shown[:, own] for task, own in order.items()}
    questions = torch.from_numpy(np.stack([tested[:, own] for own in order.values()])).to(run.device)
    torch.manual_seed(derived_seed(run.seed, "weights"))
    model = nn.Sequential(nn.Linear(PIXELS, width), nn.ReLU(), nn.Linear(width, 10)).to(run.device)
    objective, right = Consolidation(strength), []
    for phase in range(1, phases + 1):
        batches = Phase(pixels, digits, counts(arm, phase, steps * rows, exponent, decay), rows, run.seed)
        run.train(
            model, batches, learning_rate=rate, objective=objective, schedule=constant, share=1 / phases, spike=np.inf,
        )  # fmt: skip
        if arm == EWC:
            drawn = run.generator("fisher", phase)
            chosen = torch.randint(len(digits), (fisher,), generator=drawn)
            shown_again = torch.from_numpy(pixels[phase])[chosen].to(run.device)
            objective.keep(model, shown_again, torch.rand(fisher, generator=drawn).to(run.device))
        with torch.no_grad():
            right.append((model(questions).argmax(-1).cpu().numpy() == expected).T)
    table = np.stack(right, 1).astype(float)  # [images, phases, tasks]
    last, weights = table[:, -1], need(np.arange(phases, 0, -1), exponent)
    one = np.ones(len(table))
    return {
        AVERAGE: np.stack([last.sum(1), phases * one], 1),
        OLDEST: np.stack([last[:, 0], one], 1),
        NEEDED: np.stack([last @ weights, weights.sum() * one], 1),
        FORGETTING: np.hstack([one[:, None], table.reshape(len(table), -1)]),
    }
