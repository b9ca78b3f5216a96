"""How many sums a small transformer needs to add, by the format that they are written in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from bakeoff.errors import UsageError
from bakeoff.metric import Metric
from bakeoff.study import Arm, Lab, study
from bakeoff.text.tasks.arithmetic import Addition
from bakeoff.text.tasks.task import split_of

if TYPE_CHECKING:
    from bakeoff.training.run import Run

EXACT = Metric("exact sums", "share", "higher", "test sums whose whole answer is right")
DIGITS = Metric(
    "right tokens", "share", "higher", "tokens of test answers that are right after the right ones before them"
)
NEEDED = Metric(
    "logarithm of the examples needed", "", "lower", "examples from which on 95% are right", lambda sums: sums[..., 0]
)
RISE = Metric("rise", "share", "higher", "gain in exact sums from four times the examples", lambda sums: sums[..., 0])

_BLOCKS = 16


@study(
    slug="teaching-arithmetic",
    claim="Sums with their digits reversed teach a small transformer to add with at most a third of the examples.",
    source="Lee et al. 2023, arXiv:2307.03381; sizes are our own",
    expectation="Decoders learn to add numbers of up to three digits from N different sums, balanced by digits and carries, and "
    "are asked other sums. All take equal steps at one rate; the answers of both formats stand between delimiters. Written "
    "with the answer's digits reversed, at most a third of the sums suffices for 95% exact answers (N by interpolation over "
    "its logarithm; a format that does not get there counts with the greatest N of all, which is plain's). Where both formats "
    "learn from the same N, the reversed one has more exact answers, taken over these N. And the ability comes suddenly: four "
    "times the sums, from some N on, raise the reversed format's exact answers by more than half. "
    "At scale gpu also: a simplified scratchpad needs fewer sums than the reversed format.",
    scales={
        "smoke": {
            "seeds": 1, "steps": 3, "rows": 8, "base": 4, "digits": 2, "test": 20, "layers": 1, "width": 16, "heads": 2,
            "rate": 1e-3, "examples": {"plain": (20, 80), "reversed": (20, 80), "simplified_scratchpad": (20,)},
        },
        "laptop": {
            "seeds": 4, "steps": 1500, "rows": 48, "base": 5, "digits": 3, "test": 1000, "layers": 2, "width": 64, "heads": 4,
            "rate": 4e-3, "examples": {"plain": (1000, 4000, 10000), "reversed": (250, 1000, 2000, 4000)},
        },
        "gpu": {
            "seeds": 5, "steps": 5000, "rows": 256, "base": 10, "digits": 3, "test": 10000, "layers": 6, "width": 384,
            "heads": 6, "rate": 1e-3,
            "examples": {
                "plain": (500, 1000, 2000, 4000, 10000, 20000), "reversed": (500, 1000, 2000, 4000, 10000),
                "simplified_scratchpad": (250, 500, 1000, 2000), "scratchpad": (250, 500, 1000, 2000),
            },
        },
    },
    parts=("text/tasks/arithmetic.py",),
)  # fmt: skip
def teaching_arithmetic(
    lab: Lab, *, steps: int, base: int, digits: int, examples: Mapping[str, Sequence[int]], **size: Any
) -> None:
    """With two digits of base ten, where only one column can carry into the answer's first digits, pilots of this size needed
    about 1.4 times the sums in plain format; hence three digits as in the paper, in a base whose sums are learned in time.

    Departures: base five, small decoders without dropout, untied embeddings and few steps at scale laptop; a row is one sum,
    not a window of a text, and only answers are learned, so that plain sums lack no context; a test of other sums whose
    operands are no training sum's either way round.
    """
    arms = {
        form: {
            n: lab.measured(
                f"{form}, {n} sums", [EXACT, DIGITS], learn, f"{steps}steps", dtype="bfloat16", form=form, examples=n,
                base=base, digits=digits, **size,
            )
            for n in grid
        }
        for form, grid in examples.items()
    }  # fmt: skip
    exact = {
        form: np.stack([arm.arrays[EXACT.name][..., 0].mean(1) for arm in grid.values()], 1)
        for form, grid in arms.items()
    }
    most = max(max(grid) for grid in examples.values())
    logs = {form: np.array([np.log(enough(grid, y, most)) for y in exact[form]]) for form, grid in examples.items()}
    ratio = lab.contrast(NEEDED.name, {_arm(NEEDED, logs["plain"]): 1, _arm(NEEDED, logs["reversed"]): -1})
    lab.expect("logarithm of the sums that plain needs over those that reversed needs", ratio, above=math.log(3))
    both = [n for n in examples["plain"] if n in examples["reversed"]]
    weights = {arms["reversed"][n]: 1 / len(both) for n in both} | {arms["plain"][n]: -1 / len(both) for n in both}
    lab.expect(f"exact sums, reversed less plain, from {both} examples", lab.contrast(EXACT.name, weights), above=0)
    rises = np.array([rise(examples["reversed"], y) for y in exact["reversed"]])
    effect = lab.contrast(RISE.name, {_arm(RISE, rises): 1, _arm(RISE, 0 * rises): -1})
    lab.expect("greatest gain in exact sums of reversed from four times the examples", effect, above=0.5)
    if lab.scale == "gpu":
        effect = lab.contrast(
            NEEDED.name, {_arm(NEEDED, logs["simplified_scratchpad"]): 1, _arm(NEEDED, logs["reversed"]): -1}
        )
        lab.expect(
            "logarithm of the sums that a simplified scratchpad needs over those that reversed needs", effect, below=0
        )
    lines = {
        form: {math.log10(n): y.tolist() for n, y in zip(examples[form], values.T, strict=True)}
        for form, values in exact.items()
    }
    lines["completion of the table of sums"] = {
        math.log10(n): [completed(known(n, base, digits, seed), base) for seed in lab.seeds]
        for n in (most >> halvings for halvings in range(7))
    }
    lab.curve("Sums from examples", "logarithm of the examples, base 10", "share of exact sums", lines)
    lab.notes["examples needed for 95%"] = {form: np.exp(values).round().tolist() for form, values in logs.items()}


def _arm(metric: Metric, values: NDArray[np.float64]) -> Arm:
    """An arm of one value a seed."""
    return Arm(metric.name, [metric], [], {metric.name: values[:, None, None]})


def enough(grid: Sequence[int], exact: NDArray[np.float64], most: int, share: float = 0.95) -> float:
    """Examples from which on so many are right, on a line between their logarithms; `most` where that is never so."""
    above = exact >= share
    if not above[-1]:
        return float(most)
    last = len(above) - int(above[::-1].cumprod().sum())
    if last == 0:
        return float(grid[0])
    part = (share - exact[last - 1]) / (exact[last] - exact[last - 1])
    return float(grid[last - 1] * (grid[last] / grid[last - 1]) ** part)


def rise(grid: Sequence[int], exact: NDArray[np.float64]) -> float:
    """The greatest gain between two sizes of which one is at most four times the other."""
    gains = [exact[j] - exact[i] for i in range(len(grid)) for j in range(i, len(grid)) if grid[j] <= 4 * grid[i]]
    return float(max(gains))


def completed(operands: NDArray[np.int64], base: int) -> float:
    """The share of all sums that follow from the known ones' being entries a_i + b_j of a table of unknown a and b.

    Known are sums of operands [2, n, digits]. An entry follows where its row and its column are connected by known ones.
    """
    size = base ** operands.shape[2]
    first, second = (operands * base ** np.arange(operands.shape[2])).sum(2)
    links = sparse.coo_array((np.ones(len(first)), (first, size + second)), shape=(2 * size, 2 * size))
    component = sparse.csgraph.connected_components(links, directed=False)[1]
    rows, columns = (np.bincount(part, minlength=component.max() + 1) for part in (component[:size], component[size:]))
    return float((rows * columns).sum() / size**2)


def known(examples: int, base: int, digits: int, seed: int) -> NDArray[np.int64]:
    """Digits of the operands of different training sums, in an order whose every beginning is a training set.

    All pairs of single digits stand first; of the others 9% are of at most two digits and the rest of at most `digits`, with
    balanced numbers of carries. What belongs to the other splits is left out. Array [2, examples, digits], least significant
    first.

    Raises:
        UsageError: there are not so many.
    """
    task = Addition(base=base, operands="numbers", balance=True)
    pairs = np.zeros((2, base**2, digits), np.int64)
    pairs[:, :, 0] = np.divmod(np.arange(base**2), base)
    for block in range(_BLOCKS):
        draw = np.random.default_rng((seed, block))
        sizes = np.where(draw.random(1 << 14) < 0.09, 2, digits)
        further = np.zeros((2, len(sizes), digits), np.int64)
        for size in {2, digits}:
            chosen = np.flatnonzero(sizes == size)
            further[:, chosen, :size] = task.pairs(draw, size, len(chosen))
        pairs = np.concatenate([pairs, further], 1)
        pairs = pairs[:, split_of(task.written(draw, *pairs).key) == 0]
        whole = (pairs * base ** np.arange(digits)).sum(2)
        pairs = pairs[:, np.sort(np.unique(whole, axis=1, return_index=True)[1])]
        if pairs.shape[1] >= examples:
            return pairs[:, :examples]
    raise UsageError(
        f"{pairs.shape[1]} training sums of {digits} digits were found, not {examples}: choose fewer examples or more digits."
    )


def learn(
    run: Run, folder: Path, *, form: str, examples: int, base: int, digits: int, rows: int, rate: float, test: int, layers: int,
    width: int, heads: int,
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """Train on so many sums in this format, and add sums of the test split."""
    from bakeoff.training.worlds import Again, answered, from_scratch

    task = Addition(base=base, operands="numbers", format=form, delimited=True)
    taught = task.written(np.random.default_rng(0), *known(examples, base, digits, run.seed))
    asked = task.examples("test", digits, test)
    model = from_scratch(
        run, Again(taught, rows, run.seed), learning_rate=rate, weight_decay=0.1, vocab_size=len(task.vocabulary),
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, positions="learned",
        tie_word_embeddings=False, initializer_range=0.1,
        max_position_embeddings=max(taught.tokens.shape[1], asked.tokens.shape[1]),
    )  # fmt: skip
    with run.autocast():
        found = answered(model, asked)
    return {EXACT.name: np.column_stack([found[:, 0], np.ones(test)]), DIGITS.name: found[:, 1:3]}
