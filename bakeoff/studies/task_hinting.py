"""Sorting lists longer than those of training: a second task on the same lists, and attention that knows how much it sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bakeoff.metric import Metric
from bakeoff.study import Arm, Lab, study

if TYPE_CHECKING:
    from bakeoff.training.run import Run

PLAIN, MORE, DENSE, SUCCESSOR, COUNT, UNRELATED, PLAIN_SCALED, SUCCESSOR_SCALED = (
    "plain", "plain, equal tokens", "plain, dense lists", "successor", "count", "unrelated", "plain, length scale",
    "successor, length scale",
)  # fmt: skip
_SUCCESSOR = "successor(symbols={symbols}, unique={unique})"
ARMS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    MORE: {"equal_to": _SUCCESSOR},
    DENSE: {"dense": True},
    SUCCESSOR: {"hint": _SUCCESSOR},
    COUNT: {"hint": "occurrences(symbols={symbols}, narrow=True)"},
    UNRELATED: {"hint": "length-parity(symbols={symbols}, unique={unique})"},
    PLAIN_SCALED: {"length_scale": True},
    SUCCESSOR_SCALED: {"hint": _SUCCESSOR, "length_scale": True},
}


@study(
    slug="task-hinting",
    claim="A transformer that learns to sort short lists sorts much longer ones if it also learns to name the successor of a "
    "list's element; not every second task helps.",
    source="Awasthi and Gupta 2023, arXiv:2310.00726; sizes, mixing share, bounds and the form of the length scale are our own",
    expectation="Small decoders without positions learn to sort short lists, all from equally many sorting examples; half of "
    "a hinted arm's examples are of a second task. On lists five times as long as the longest of training, the "
    "successor hint sorts at least 20 points (gpu: 80) more of them without a mistake than sorting alone, than sorting "
    "alone with as many tokens, and than an unrelated second task (the parity of the length). Attention logits that are "
    "multiplied by a learned function of the number of visible tokens help further: with them plain and hinted sorting "
    "together are better than without. The laptop scale shows this on 2 to 6 different ones of 64 symbols, tested to 30; "
    "the gpu scale holds the paper's claim, 2 to 20 out of 100 symbols with repeats, tested to 100. Reported without an "
    "expectation: a hint that counts occurrences, and sorting alone learned on lists whose symbols lie close together.",
    scales={
        "smoke": {
            "seeds": 1, "steps": 4, "rows": 4, "symbols": 12, "unique": True, "longest": 4, "tested": (4, 8), "items": 8,
            "width": 16, "layers": 1, "heads": 1, "rate": 3e-3, "gain": 0.2,
        },
        "laptop": {
            "seeds": 3, "steps": 2500, "rows": 32, "symbols": 64, "unique": True, "longest": 6,
            "tested": (6, 12, 18, 24, 30), "items": 256, "width": 64, "layers": 2, "heads": 2, "rate": 5e-3, "gain": 0.2,
        },
        "gpu": {
            "seeds": 5, "steps": 20_000, "rows": 256, "symbols": 100, "unique": False, "longest": 20,
            "tested": (10, 20, 40, 60, 80, 100), "items": 1024, "width": 256, "layers": 2, "heads": 4, "rate": 1e-3, "gain": 0.8,
        },
    },
    parts=("text/tasks/counting.py", "text/tasks/sequences.py"),
)  # fmt: skip
def task_hinting(
    lab: Lab, *, steps: int, tested: tuple[int, ...], symbols: int, unique: bool, gain: float, **conditions: Any
) -> None:
    """The last of the tested lengths is the one that counts; `gain` is what the hint must bring there.

    Departures: our sizes, one learning rate for all arms; the factor of the logits is s log(n) + t with n visible tokens.
    Limits: neighbours in a long list are closer to each other than in a short one, and repeats are more frequent, so that
    more than the length is new there; the arm with dense lists shows how much of the failure that makes. The counting
    hint has such lists too, since without repeats there is nothing to count.
    """
    metrics = [
        Metric(name, "share", "higher", description)
        for length in tested
        for name, description in ((_exact(length), "lists without a mistake"), (_symbols(length), "right symbols"))
    ]
    arms: dict[str, Arm] = {}
    for label, own in ARMS.items():
        hint, equal_to = (own.get(key, "").format(symbols=symbols, unique=unique) for key in ("hint", "equal_to"))
        arms[label] = lab.measured(
            label, metrics, learn, f"{steps}steps", dtype="bfloat16", steps=steps, tested=list(tested), symbols=symbols,
            unique=unique, hint=hint, equal_to=equal_to, dense=own.get("dense", False),
            length_scale=own.get("length_scale", False), **conditions,
        )  # fmt: skip

    longest = _exact(tested[-1])
    for other in (PLAIN, MORE, UNRELATED):
        effect = lab.contrast(longest, {arms[SUCCESSOR]: 1, arms[other]: -1})
        lab.expect(f"{longest}, {SUCCESSOR} less {other}", effect, above=gain)
    scaled = {
        arms[PLAIN_SCALED]: 0.5,
        arms[SUCCESSOR_SCALED]: 0.5,
        arms[PLAIN]: -0.5,
        arms[SUCCESSOR]: -0.5,
    }
    effect = lab.contrast(longest, scaled)
    lab.expect(f"{longest}, {PLAIN} and {SUCCESSOR} with length scale less those without", effect, above=0)
    lab.notes["training tokens, first seed"] = {label: arm.records[0]["cost"]["tokens"] for label, arm in arms.items()}
    lab.notes[f"{longest}, less that of {PLAIN}"] = {
        label: lab.contrast(longest, {arm: 1, arms[PLAIN]: -1}).effect for label, arm in arms.items() if label != PLAIN
    }
    for title, named in (("Lists sorted without a mistake", _exact), ("Symbols at their place", _symbols)):
        lines = {label: {float(n): _by_seed(arm, named(n)) for n in tested} for label, arm in arms.items()}
        lab.curve(title, "symbols in the list", "share", lines)


def _exact(length: int) -> str:
    return f"sorted of {length}"


def _symbols(length: int) -> str:
    return f"symbols of {length}"


def _by_seed(arm: Arm, metric: str) -> list[float]:
    values: list[float] = arm.metric(metric).reduce(arm.arrays[metric].sum(axis=1)).tolist()
    return values


def learn(
    run: Run, folder: Path, *, steps: int, hint: str, equal_to: str, dense: bool, length_scale: bool, rows: int, symbols: int,
    unique: bool, longest: int, tested: Sequence[int], items: int, width: int, layers: int, heads: int, rate: float,
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """Train on `rows` sorting examples a step, and as many of the hint, all of them new; sort the test lists.

    equal_to: a hint in place of whose examples there are so many more sorting examples that the tokens are as many.
    dense: lists of training lie in ranges of random width, so that short ones have close neighbours as long ones do.
    """
    from bakeoff.text import tasks
    from bakeoff.text.tasks.task import Examples
    from bakeoff.training.batches import Batch, derived_seed
    from bakeoff.training.worlds import answered, batch_of, from_scratch

    sorting, lengths = f"sorting(symbols={symbols}, unique={unique}, narrow={dense})", range(2, longest + 1)

    def drawn(task: str, rows: int) -> Examples:
        examples: Examples = tasks.make(task).examples("train", lengths, steps * rows, run.seed)
        return examples

    examples = drawn(sorting, rows)
    if hint:
        examples, rows = Examples.joined([examples, drawn(hint, rows)]), 2 * rows
    if equal_to:
        rows = math.ceil(rows * (1 + drawn(equal_to, rows).length.sum() / examples.length.sum()))
        examples = drawn(sorting, rows)
    order = np.random.default_rng(derived_seed(run.seed, "order")).permutation(len(examples))

    def batches(step: int) -> Batch:
        return batch_of(examples[order[step * rows : (step + 1) * rows]])

    model = from_scratch(
        run, batches, learning_rate=rate, vocab_size=len(tasks.make(sorting).vocabulary), hidden_size=width,
        intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=heads, positions="none",
        length_scale=length_scale, initialization="fan_in", max_position_embeddings=2 * max(tested) + 2,
    )  # fmt: skip
    found: dict[str, NDArray[np.float64]] = {}
    for length in tested:
        test = tasks.make(f"sorting(symbols={symbols}, unique={unique})").examples("test", length, items)
        results = answered(model, test)
        found |= {_exact(length): np.stack([results[:, 0], np.ones(items)], 1), _symbols(length): results[:, [1, 2]]}
    return found
