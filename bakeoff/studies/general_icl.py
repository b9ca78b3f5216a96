"""Learning to learn from many tasks: what a model has memorised, recognises, or learns from examples, and what its state allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bakeoff.metric import Metric, ratio
from bakeoff.study import Arm, Lab, study
from bakeoff.text.tasks.in_context import PermutedClassification, nearest_neighbour, right, share_right
from bakeoff.text.tasks.task import Points

if TYPE_CHECKING:
    from bakeoff.training.run import Run

KINDS = ("seen tasks", "unseen tasks", "unseen data")
STEPS = Metric(
    "steps to learn",
    "steps",
    "lower",
    "until late accuracy on unseen validation tasks is 20 points above chance",
    ratio,
)
TUNED = "validation accuracy"
EVERY = 20
"""Steps from one look at the validation tasks to the next."""


@study(
    slug="general-icl",
    claim="A transformer trained on one task memorises it, on some recognises them, and on many learns to learn unseen ones; "
    "a bias towards one task family speeds that up, and the size of the state bounds it.",
    source="Kirsch, Harrison, Sohl-Dickstein and Metz 2022, arXiv:2212.04458; clusters and scikit-learn's digits in place of "
    "MNIST, sizes and bounds are our own",
    expectation="Transformers read sequences of points under a task's random projection and permutation of classes. "
    "Improvement is accuracy over the last five places less that at the first. On unseen tasks it is less than 5 points with "
    "one task trained on, and more than 20 with the greatest number; with that number it is more than 10 points on unseen "
    "data. With the middle number it is at least 10 points greater on tasks that were trained on than on unseen ones. If half "
    "of the sequences have one fixed permutation, fewer steps are needed until unseen tasks are learned. An LSTM of as many "
    "parameters, whose state is smaller, is less accurate on unseen tasks at the last places. Learning rates are chosen with "
    "the greatest number of tasks, for each architecture, on validation tasks.",
    scales={
        "smoke": {
            "seeds": 1, "data": "clusters", "other": "digits", "pools": (1, 2, 4), "dimension": 4, "classes": 2, "examples": 6,
            "width": 16, "layers": 1, "steps": 2, "rows": 8, "items": 20, "rates": (3e-3,),
        },
        "laptop": {
            "seeds": 4, "data": "clusters", "other": "digits", "pools": (1, 64, 16384), "dimension": 8, "classes": 4,
            "examples": 20, "width": 64, "layers": 2, "steps": 800, "rows": 64, "items": 400, "rates": (4e-3, 8e-3),
        },
        "gpu": {
            "seeds": 5, "data": "digits", "other": "clusters", "pools": (1, 16, 256, 4096, 16384), "dimension": 64,
            "classes": 10, "examples": 100, "width": 256, "layers": 4, "steps": 50000, "rows": 512, "items": 2000,
            "rates": (1e-4, 3e-4),
        },
    },
    parts=("text/tasks/in_context.py", "lm/points.py", "training/points.py"),
)  # fmt: skip
def general_icl(
    lab: Lab, *, data: str, other: str, pools: tuple[int, ...], dimension: int, classes: int, examples: int, width: int,
    layers: int, steps: int, rows: int, items: int, rates: tuple[float, ...],
) -> None:  # fmt: skip
    """Reported without an expectation: the nearest neighbour and a linear probe on the same examples, and the accuracy that
    the fixed permutation costs or gains. The LSTM differs from the transformer in more than the size of its state.

    Departures: the pools of tasks are the same for all seeds; positions are rotary, queries and keys normalised; where the
    data are clusters, "unseen data" are digits.
    """
    late = max(1, examples - 5)
    metrics = [
        *(Metric(k, "share", "higher", f"right classes after {late} examples", lambda s: share_right(s, late)) for k in KINDS),
        *(
            Metric(f"improvement, {k}", "share", "higher", "late accuracy less that at the first place",
                   lambda s: share_right(s, late) - share_right(s, 0, 1))
            for k in KINDS
        ),
        Metric(TUNED, "share", "higher", f"right classes of unseen tasks after {late} examples", lambda s: share_right(s, late)),
    ]  # fmt: skip
    task = {"data": data, "examples_each": examples, "classes": classes}

    def trained(own: Lab, label: str, pool: int, rate: float, *, fixed: float = 0.0, model: str = "transformer") -> Arm:
        return own.measured(
            label, [*metrics, STEPS], learn, f"{steps}steps", dtype="bfloat16", model=model, task={**task, "pool": pool},
            fixed=fixed, other=other, dimension=dimension, width=width, layers=layers, rows=rows, items=items, rate=rate,
            late=late,
        )  # fmt: skip

    def on_most(own: Lab, model: str, rate: float) -> Arm:
        return trained(own, f"{pools[-1]} tasks, {model}", pools[-1], rate, model=model)

    best: dict[str, float] = {}
    first = replace(lab, seeds=lab.seeds[:1], arms={})
    for model in ("transformer", "lstm"):
        tried = {rate: on_most(first, model, rate).mean(TUNED) for rate in rates}
        best[model] = max(tried, key=lambda rate: tried[rate])
        lab.notes.setdefault(f"{TUNED} by rate, first seed", {})[model] = {f"{r:g}": a for r, a in tried.items()}

    rate = best["transformer"]
    fewer = [trained(lab, f"{pool} tasks", pool, rate) for pool in pools[:-1]]
    most, recurrent = (on_most(lab, model, best[model]) for model in best)
    least, middle = fewer[0], fewer[len(pools) // 2]
    biased = trained(lab, f"{pools[-1]} tasks, half with a fixed permutation", pools[-1], rate, fixed=0.5)
    for label, rule in (("nearest neighbour", nearest_neighbour), ("linear probe", linear_probe)):
        _baseline(lab, label, rule, metrics[:-1], _questions(task, other), dimension, items)

    unseen = "improvement, unseen tasks"

    def over(arm: Arm, metric: str) -> Arm:
        """The arm with this improvement under the name of that on unseen tasks."""
        return Arm(arm.label, metrics, [], {unseen: arm.arrays[metric]})

    nothing = np.zeros_like(most.arrays[unseen])
    nothing[..., examples:] = 1
    zero = Arm("no improvement", metrics, [], dict.fromkeys((unseen, "improvement, unseen data"), nothing))
    lab.expect(f"{unseen}, {pools[0]} task", lab.contrast(unseen, {least: 1, zero: -1}), below=0.05)
    lab.expect(f"{unseen}, {pools[-1]} tasks", lab.contrast(unseen, {most: 1, zero: -1}), above=0.2)
    name = "improvement, unseen data"
    lab.expect(f"{name}, {pools[-1]} tasks", lab.contrast(name, {most: 1, zero: -1}), above=0.1)
    lab.expect(
        f"improvement, seen less unseen tasks, {middle.label}",
        lab.contrast(unseen, {over(middle, "improvement, seen tasks"): 1, over(middle, unseen): -1}), above=0.1,
    )  # fmt: skip
    lab.expect(
        f"{STEPS.name}, with a fixed permutation less without", lab.contrast(STEPS.name, {biased: 1, most: -1}), below=0
    )
    lab.expect(
        "late accuracy, unseen tasks, transformer less lstm",
        lab.contrast("unseen tasks", {most: 1, recurrent: -1}),
        above=0,
    )
    every = [*fewer, most, biased, recurrent]
    lab.notes["state size and parameters"] = {
        label: [numbers["state size"], numbers["parameters"]]
        for label, numbers in ((arm.label, arm.records[0]["notes"]) for arm in every)
    }
    for kind in KINDS[:2]:
        lab.curve(
            f"Accuracy on {kind}", "examples seen", "accuracy",
            {arm.label: _by_place(arm.arrays[kind]) for arm in every},
        )  # fmt: skip
    lab.curve(
        "Learning to learn", "steps", f"accuracy on unseen validation tasks after {late} examples",
        {
            arm.label: {
                float(step): [record["notes"]["validation"][step] for record in arm.records]
                for step in arm.records[0]["notes"]["validation"]
            }
            for arm in (most, biased, recurrent)
        },
    )  # fmt: skip


def _by_place(array: NDArray[np.float64]) -> dict[float, list[float]]:
    hits, counts = np.split(array.sum(1), 2, axis=-1)
    return {float(place): (hits[:, place] / counts[:, place]).tolist() for place in range(hits.shape[1])}


def _questions(task: dict[str, Any], other: str) -> dict[str, tuple[PermutedClassification, str]]:
    """What is asked, and of which split: always of points that were not trained on."""
    return {
        "seen tasks": (PermutedClassification(**task, new=True), "train"),
        "unseen tasks": (PermutedClassification(**{**task, "pool": 0}, new=True), "test"),
        "unseen data": (PermutedClassification(**{**task, "data": other, "pool": 0}), "test"),
    }


def _baseline(
    lab: Lab, label: str, rule: Callable[[Any, Any], NDArray[np.int64]], metrics: Sequence[Metric],
    questions: dict[str, tuple[PermutedClassification, str]], dimension: int, items: int,
) -> None:  # fmt: skip
    arrays: dict[str, NDArray[np.float64]] = {}
    for kind, (task, split) in questions.items():
        points = task.examples(split, dimension, items)
        array = right(rule(points.inputs[..., task.classes :], points.targets), points.targets)
        arrays |= dict.fromkeys((kind, f"improvement, {kind}"), np.stack([array] * len(lab.seeds)))
    arm = Arm(label, metrics, [], arrays)
    lab.arms[label] = {metric.name: arm.mean(metric.name) for metric in metrics}


def learn(
    run: Run, folder: Path, *, model: str, task: dict[str, Any], fixed: float, other: str, dimension: int, width: int, layers: int,
    rows: int, items: int, rate: float, late: int,
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """Train a model on the tasks of a pool, and ask it new points of seen tasks, unseen tasks and unseen data."""
    from bakeoff.lm.points import PointsDecoder, PointsLSTM
    from bakeoff.training.batches import derived_seed
    from bakeoff.training.optimizers import matrices_decay
    from bakeoff.training.points import FreshPoints, classification, outputs
    from bakeoff.training.schedules import cosine

    seed, classes, examples = derived_seed(run.seed, "weights"), task["classes"], task["examples_each"]
    made: Any = PointsDecoder(
        seed, dimension + classes, classes, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        max_position_embeddings=examples, qk_norm=True,
    )  # fmt: skip
    size = sum(p.numel() for p in made.parameters() if p.requires_grad)
    if model == "lstm":
        made = PointsLSTM.of_size(size, seed, dimension + classes, classes, layers=layers)
        size = sum(p.numel() for p in made.parameters())
    run.notes |= {"state size": made.state_size(examples), "parameters": size}

    def answered(points: Points) -> NDArray[np.float64]:
        return right(outputs(made, points.inputs).argmax(-1), points.targets)

    validation = PermutedClassification(**{**task, "pool": 0}).examples("validation", dimension, 128)

    def look(step: int) -> None:
        if step % EVERY == 0:
            seen = run.notes.setdefault("validation", {})
            seen[str(step + 1)] = float(share_right(answered(validation).sum(0), late))

    run.train(
        made.to(run.device), FreshPoints([PermutedClassification(**task, fixed=fixed)], dimension, rows, run.seed),
        learning_rate=rate, objective=classification, optimizer=matrices_decay(0.0), schedule=cosine(0.05, least=0.1),
        after_step=look,
    )  # fmt: skip
    looks = run.notes.setdefault("validation", {})
    learned = [int(step) for step, accuracy in looks.items() if accuracy > 1 / classes + 0.2]
    found = {STEPS.name: np.array([[float(min(learned, default=run.meter.steps)), 1.0]]), TUNED: answered(validation)}
    for kind, (question, split) in _questions(task, other).items():
        found |= dict.fromkeys((kind, f"improvement, {kind}"), answered(question.examples(split, dimension, items)))
    return found


def linear_probe(x: NDArray[np.float32], y: NDArray[np.int64], penalty: float = 1.0) -> NDArray[np.int64]:
    """[n, examples]: classes by ridge regression, with an intercept, on the classes of the examples before; 0 at the first."""
    count, length, _ = x.shape
    inputs = np.concatenate([x, np.ones((count, length, 1), x.dtype)], 2).astype(float)
    classes = np.eye(int(y.max()) + 1)[y]
    said = np.zeros_like(y)
    for place in range(1, length):
        before = inputs[:, :place]
        gram = before.transpose(0, 2, 1) @ before + penalty * np.eye(inputs.shape[2])
        weights = np.linalg.solve(gram, before.transpose(0, 2, 1) @ classes[:, :place])
        said[:, place] = (inputs[:, place, None] @ weights)[:, 0].argmax(1)
    return said
