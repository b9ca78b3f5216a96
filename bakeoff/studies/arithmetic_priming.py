"""Sums and products longer than those of training: relative positions, and a few long problems among the short ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bakeoff import stats
from bakeoff.metric import Metric
from bakeoff.study import Arm, Lab, study
from bakeoff.text.tasks.arithmetic import Addition, Multiplication, lengths
from bakeoff.text.tasks.task import IGNORED, SPLITS, Examples, Vocabulary, hashed, split_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bakeoff.training.batches import Batch
    from bakeoff.training.run import Run

Array = NDArray[np.int64]
BLANK, SLOT = "_", "?"
KINDS = {"addition": Addition, "multiplication": Multiplication}


@study(
    slug="arithmetic-priming",
    claim="Relative positions carry addition beyond the lengths of training. Multiplication needs a few long problems among "
    "the short ones, and hardly more of them among many more short ones.",
    source="Jelassi et al. 2023, arXiv:2306.15400; sizes, number base, controls and bounds are our own",
    expectation="Encoders learn to read all digits of an answer at once, from numbers aligned at their right end; every row, in "
    "training too, has room for the longest problems. Having learned sums of short numbers, one with relative positions adds "
    "numbers half as long again (gpu: three times as long), wholly right in at least 50 points more of them than one with "
    "learned absolute positions. Having learned products of short numbers with one digit (gpu: three), it gets fewer than 10% "
    "right of those of numbers twice as long (gpu: seven times). A few long problems among the short ones, 30 of 330 (gpu: 50 "
    "of 5,050), raise that by at least 50 points over as many further short ones, and above what the long ones alone bring. "
    "With ten times the short problems, the long ones that bring half of the products right are fewer than ten times as many.",
    scales={
        "smoke": {
            "seeds": 1, "steps": 2, "rows": 8, "sums": 40, "sum_digits": (2, 3, 4), "extended": 3, "short": (20, 40),
            "primers": ((3, 6), (6, 9)), "trained": 2, "digits": (2, 4), "factor": 1, "base": 4, "items": 6, "width": 16,
            "layers": 1, "heads": 2, "rate": 5e-3,
        },
        "laptop": {
            "seeds": 5, "steps": 1600, "rows": 32, "sums": 25_600, "sum_digits": (4, 5, 6, 7), "extended": 6, "short": (300, 3000),
            "primers": ((10, 30), (30, 100)), "trained": 4, "digits": (4, 6, 8), "factor": 1, "base": 4, "items": 300, "width": 48,
            "layers": 2, "heads": 4, "rate": 5e-3,
        },
        "gpu": {
            "seeds": 5, "steps": 100_000, "rows": 512, "sums": 50_000, "sum_digits": (5, 6, 8, 10, 15, 16), "extended": 15,
            "short": (5000, 50_000), "primers": ((10, 25, 50), (25, 50, 100, 500)), "trained": 5,
            "digits": (5, 8, 10, 15, 20, 35), "factor": 3, "base": 10, "items": 1000, "width": 512, "layers": 6, "heads": 8,
            "rate": 1e-4,
        },
    },
    parts=("text/tasks/arithmetic.py",),
)  # fmt: skip
def arithmetic_priming(
    lab: Lab, *, steps: int, sums: int, sum_digits: tuple[int, ...], extended: int, short: tuple[int, int],
    primers: tuple[tuple[int, ...], tuple[int, ...]], digits: tuple[int, ...], **conditions: Any,
) -> None:  # fmt: skip
    """Sums are judged at `extended` digits, products at the last of `digits`.

    short: numbers of short problems. primers: for each of them, the numbers of long problems to add. The last of both
    `sum_digits` and `digits` is the length of the rows, and that of the primers. All arms take equally many steps.

    Departures: our sizes, and constants of our own at the gpu scale beyond lengths and numbers of problems. Relative
    positions have a vector for every distance in a row, all of which training has. Problems are drawn with replacement: at
    the laptop scale, in base 4, whose tables small models learn in seconds, 3,000 short products are some 500 different
    ones, 300 some 150.
    """
    few, many = short

    def arm(label: str, kind: str, tested: Sequence[int], positions: str = "relative", **data: int) -> Arm:
        metrics = [Metric(_exact(n), "share", "higher", "answers right in every digit") for n in tested]
        return lab.measured(
            label, metrics, learn, f"{steps}steps", dtype="bfloat16", kind=kind, positions=positions, tested=list(tested), **data,
            **conditions,
        )  # fmt: skip

    added = {
        name: arm(f"sums, {name} positions", "addition", sum_digits, name, short=sums, primers=0)
        for name in ("relative", "learned")
    }
    multiplied = {
        (size, count): arm(
            f"{count} long among {size} short products", "multiplication", digits, short=size, primers=count
        )
        for size, counts in zip(short, primers, strict=True)
        for count in counts
    }
    most = primers[0][-1]
    unprimed = arm(f"{few + most} short products", "multiplication", digits, short=few + most, primers=0)
    alone = arm(f"{most} long products", "multiplication", digits, short=0, primers=most)

    longest, primed = _exact(digits[-1]), multiplied[few, most]
    further = lab.contrast(_exact(extended), {added["relative"]: 1, added["learned"]: -1})
    lab.expect(f"sums {_exact(extended)}, relative less learned positions", further, above=0.5)
    before = np.array(_by_seed(unprimed, longest))
    lab.expect(
        f"products {longest}, {unprimed.label}", stats.paired_effect_by_seed(before, np.zeros_like(before)), below=0.1
    )
    for other, gain in ((unprimed, 0.5), (alone, 0.0)):
        effect = lab.contrast(longest, {primed: 1, other: -1})
        lab.expect(f"products {longest}, {primed.label} less {other.label}", effect, above=gain)

    # What the grid leaves open counts against the expectation: a small need among few is looked for down to one problem, a
    # small one among many is the grid's least; a great need among few is the grid's greatest, one among many ten of those.
    shares = {
        size: np.array([_by_seed(multiplied[key], longest) for key in multiplied if key[0] == size]).T for size in short
    }
    needs = {
        few: [needed((1, *primers[0]), [b, *row], most) for b, row in zip(before, shares[few], strict=True)],
        many: [needed(primers[1], row.tolist(), primers[1][-1] * many / few) for row in shares[many]],
    }
    lab.notes["long problems for half of the products"] = {str(size): need for size, need in needs.items()}
    lab.expect(
        f"decimal logarithm of the long problems needed among {many} short ones over those among {few}",
        stats.paired_effect_by_seed(np.log10(needs[many]), np.log10(needs[few])), below=float(np.log10(many / few)),
    )  # fmt: skip
    for title, arms, tested in (
        ("Sums wholly right", added.values(), sum_digits), ("Products wholly right", (unprimed, alone, *multiplied.values()), digits),
    ):  # fmt: skip
        lab.curve(title, "digits", "share", {one.label: {n: _by_seed(one, _exact(n)) for n in tested} for one in arms})


def needed(counts: Sequence[int], shares: Sequence[float], beyond: float, level: float = 0.5) -> float:
    """The count at which the shares first reach `level`, on lines over the counts' logarithms.

    The least of the counts where its share is as high already, `beyond` where none is.
    """
    at = next((i for i, share in enumerate(shares) if share >= level), len(shares))
    if at in (0, len(shares)):
        return float(counts[0] if at == 0 else beyond)
    return float(np.exp(np.interp(level, shares[at - 1 : at + 1], np.log(counts[at - 1 : at + 1]))))


def vocabulary(base: int) -> Vocabulary:
    """Digits, a blank, the operator, "=", and the slot in which a digit of the answer is to be read."""
    return Vocabulary([*map(str, range(base)), BLANK, "*", "=", SLOT])


def problems(
    kind: str, digits: Sequence[int], longest: int, factor: int, base: int, count: int, split: str, seed: int
) -> Examples:
    """`count` problems of a split, in rows of one length.

    Numbers are aligned at their right end and filled with blanks on the left: the first to `longest` digits, the second to
    as many in a sum and to `factor` in a product, whose second number has exactly so many. The others have one of `digits`
    digits each, all with equal chance, and no leading zero.
    """
    words, task = vocabulary(base), KINDS[kind](base=base)
    draw = np.random.default_rng((seed, SPLITS.index(split), len(digits), digits[0]))
    product = kind == "multiplication"
    found: list[Examples] = []
    while sum(map(len, found)) < count:
        first, second = (
            _numbers(draw, draw.choice(np.asarray(own), 4096), longest, base)
            for own in (digits, [factor] if product else digits)
        )
        made = task.result(first, second)[:, : longest + (factor if product else 1)]
        second = second[:, : factor if product else longest]
        key = hashed(np.hstack([first, second]))

        def shown(number: Array) -> Array:
            there = np.arange(number.shape[1]) < lengths(number)[:, None]
            return np.where(there, number + words.id("0"), words.id(BLANK))[:, ::-1]

        operator, equals = (np.full((len(first), 1), words.id(word)) for word in "*=")
        examples = Examples.of(np.hstack([shown(first), operator, shown(second), equals]), shown(made), key)
        found.append(examples[split_of(key) == SPLITS.index(split)])
    return Examples.joined(found)[:count]


def _numbers(draw: np.random.Generator, sizes: Array, width: int, base: int) -> Array:
    """Digits [n, width], the least significant first, of numbers of `sizes` [n] digits without leading zeros."""
    digits = draw.integers(base, size=(len(sizes), width)) * (np.arange(width) < sizes[:, None])
    digits[np.arange(len(sizes)), sizes - 1] = draw.integers(1, base, len(sizes))
    return np.asarray(digits)


def asked(batch: Batch, slot: int) -> tuple[Tensor, Tensor]:
    """Tokens with a slot in place of each token of the answer, and a mask that lets every token see all: an encoder's."""
    import torch

    ids = torch.where(batch.labels == IGNORED, batch.input_ids, slot)
    return ids, torch.ones(1, 1, *[ids.shape[1]] * 2, dtype=torch.bool, device=ids.device)


def read_at_once(model: nn.Module, batch: Batch, step: int) -> Tensor:
    """The mean negative log-likelihood of the answers' tokens, each read in its own slot."""
    from torch.nn import functional

    ids, mask = asked(batch, int(model.config.vocab_size) - 1)  # type: ignore[union-attr, arg-type]
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    chosen = batch.labels != IGNORED
    return functional.cross_entropy(logits[chosen].float(), batch.labels[chosen])


def exactly_read(model: Any, examples: Examples, rows: int = 256) -> NDArray[np.bool_]:
    """[n]: whether every token of the answer is the likeliest in its slot."""
    import torch

    from bakeoff.training.worlds import batch_of

    found = []
    with torch.no_grad():
        for begin in range(0, len(examples), rows):
            batch = batch_of(examples[begin : begin + rows]).to(model.device)
            ids, mask = asked(batch, int(model.config.vocab_size) - 1)
            likely = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.argmax(-1)
            found.append(((likely == batch.labels) | (batch.labels == IGNORED)).all(1).cpu().numpy())
    return np.concatenate(found)


def learn(
    run: Run, folder: Path, *, kind: str, positions: str, short: int, primers: int, trained: int, factor: int, base: int,
    tested: Sequence[int], items: int, rows: int, rate: float, width: int, layers: int, heads: int,
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """Train an encoder on `short` problems, of up to `trained` digits, and `primers` of the most of `tested`; test it."""
    from bakeoff.training.worlds import Again, from_scratch

    longest = tested[-1]

    def drawn(digits: Sequence[int], count: int, split: str, seed: int) -> Examples:
        return problems(kind, digits, longest, factor, base, count, split, seed)

    parts = ((range(1, trained + 1), short), ([longest], primers))
    examples = Examples.joined([drawn(digits, count, "train", run.seed) for digits, count in parts if count])
    length = examples.tokens.shape[1]
    model: Any = from_scratch(
        run, Again(examples, rows, run.seed), learning_rate=rate, objective=read_at_once, vocab_size=len(vocabulary(base)),
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, positions=positions, relative_distance=length - 1,
        max_position_embeddings=length, tie_word_embeddings=False,
    )  # fmt: skip
    model.eval()
    return {
        _exact(digits): np.stack([exactly_read(model, drawn([digits], items, "test", 0)), np.ones(items)], 1)
        for digits in tested
    }


def _exact(digits: int) -> str:
    return f"exact at {digits} digits"


def _by_seed(arm: Arm, metric: str) -> list[float]:
    return [float(value) for value in arm.metric(metric).reduce(arm.arrays[metric].sum(axis=1))]
