"""Greatest common divisors from few examples that come again, from many that come once, and from both at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bakeoff.metric import Metric
from bakeoff.study import Arm, Lab, study
from bakeoff.text.tasks import Examples
from bakeoff.text.tasks.divisors import Gcd

if TYPE_CHECKING:
    from bakeoff.training.batches import Batch
    from bakeoff.training.run import Run

Floats = NDArray[np.float64]

ENOUGH = 0.95


def known(sums: Floats) -> Floats:
    """How many divisors are known; sums [..., 2 * divisors] are right answers, then questions, of each divisor."""
    right, asked = np.split(sums, 2, axis=-1)
    return np.asarray((right >= ENOUGH * asked).sum(-1), float)


KNOWN = Metric("known divisors", "", "higher", "divisors that 95% of the questions with this answer get", known)
ACCURACY = Metric("accuracy", "share", "higher", "right answers, all divisors equally frequent")
VALIDATION = Metric("validation accuracy", "share", "higher", "the same on other questions, for choosing")
METRICS = (KNOWN, ACCURACY, VALIDATION)


@study(
    slug="repeated-examples",
    claim="At equal steps a transformer learns more of the greatest common divisor from a small set of examples that is "
    "repeated, alone or among new ones, than from examples that come once.",
    source="Charton and Kempe 2024, arXiv:2410.07041; model, base and sizes of the scales smoke and laptop are our own",
    expectation="Small transformers learn greatest common divisors of even draws in equal steps, each arm at the rate that "
    "is best for it on validation questions. What counts is how many divisors are known: 95% of the test questions "
    "with this answer are answered. More are known after training on a limited set whose examples repeat, of the size that is "
    "best on validation questions, than on new examples only (the paper: 38 against 27 of 100), and more with two sets, where "
    "each example of a batch is with chance p one of a small fixed set and otherwise new (69). With whole batches "
    "from one of the two sets fewer are known than with mixed ones.",
    scales={
        "smoke": {
            "seeds": 1, "base": 10, "limit": 0, "digits": 2, "strata": 5, "steps": 4, "rows": 4, "sets": (8, 16), "small": 4,
            "chance": 0.25, "layers": 1, "width": 16, "heads": 2, "rates": (1e-2,), "each": 4,
        },
        "laptop": {
            "seeds": 10, "base": 30, "limit": 0, "digits": 2, "strata": 30, "steps": 1400, "rows": 64, "sets": (2048, 8192),
            "small": 512, "chance": 0.25, "layers": 1, "width": 64, "heads": 4, "rates": (2e-3, 5e-3), "each": 40,
        },
        "gpu": {
            "seeds": 10, "base": 1000, "limit": 10**6, "digits": 3, "strata": 100, "steps": 1_000_000, "rows": 256,
            "sets": (10**6, 5 * 10**6, 25 * 10**6), "small": 50_000, "chance": 0.25, "layers": 4, "width": 512, "heads": 8,
            "rates": (1e-5, 3e-5, 1e-4), "each": 200,
        },
    },
    parts=("text/tasks/divisors.py",),
)  # fmt: skip
def repeated_examples(
    lab: Lab, *, base: int, limit: int, digits: int, strata: int, steps: int, rows: int, sets: Sequence[int], small: int,
    chance: float, layers: int, width: int, heads: int, rates: Sequence[float], each: int,
) -> None:  # fmt: skip
    """`sets` are the sizes of limited sets; `each` is the number of test questions for each divisor up to `strata`.

    Departures: a decoder, not encoder and decoder; at scale laptop one layer, base 30, numbers below 900, and 90 thousand
    examples in place of hundreds of millions.
    """
    shared: dict[str, Any] = {
        "base": base, "limit": limit, "digits": digits, "strata": strata, "rows": rows, "layers": layers, "width": width,
        "heads": heads, "each": each,
    }  # fmt: skip
    first = replace(lab, seeds=lab.seeds[:1], arms={})

    def learn_at_best_rate(name: str, limited: int, small: int, chance: float, mixed: bool = True) -> Arm:
        def trained(own: Lab, rate: float) -> Arm:
            given = {"limited": limited, "small": small, "chance": chance, "mixed": mixed, "rate": rate, **shared}
            return own.measured(f"{name} at {rate:g}", METRICS, learn, f"{steps}steps", dtype="bfloat16", **given)

        tried = {rate: trained(first, rate).mean(VALIDATION.name) for rate in rates}
        lab.notes.setdefault("validation accuracy by rate, first seed", {})[name] = {
            f"{r:g}": v for r, v in tried.items()
        }
        return trained(lab, max(tried, key=lambda rate: tried[rate]))

    new = learn_at_best_rate("new examples", 0, 0, 0.0)
    single = {size: learn_at_best_rate(f"{size} examples", size, 0, 0.0) for size in sets}
    mixed = learn_at_best_rate("two sets", 0, small, chance)
    apart = learn_at_best_rate("two sets, batches of one", 0, small, chance, mixed=False)

    best = max(sets, key=lambda size: single[size].mean(VALIDATION.name))
    lab.notes["best size of a limited set"] = best
    more = lab.contrast(KNOWN.name, {single[best]: 1, new: -1})
    lab.expect("known divisors, limited set less new examples", more, above=0)
    lab.expect("known divisors, two sets less new examples", lab.contrast(KNOWN.name, {mixed: 1, new: -1}), above=0)
    lab.expect(
        "known divisors, batches of one set less mixed ones", lab.contrast(KNOWN.name, {apart: 1, mixed: -1}), below=0
    )
    by_size = {**single, steps * rows: new}
    for metric in (KNOWN, ACCURACY):
        lab.curve(
            f"{metric.name} by size of the set, the greatest being new examples", "examples", metric.unit,
            {
                "one set": {size: _by_seed(arm, metric) for size, arm in by_size.items()},
                "two sets, large one of new examples": {steps * rows: _by_seed(mixed, metric)},
            },
        )  # fmt: skip


def _by_seed(arm: Arm, metric: Metric) -> list[float]:
    return [float(value) for value in metric.reduce(arm.arrays[metric.name].sum(1))]


@dataclass(frozen=True)
class TwoSets:
    """Every step `rows` examples, each with the `chance` out of a `small` fixed set, otherwise out of the rest.

    limited: examples of both sets together, which come with repetition; 0 for a rest of new examples. mixed: whether the
    coin is thrown for each example or for the whole batch.
    """

    task: Gcd
    digits: int
    rows: int
    seed: int
    limited: int
    small: int
    chance: float
    mixed: bool = True

    @cached_property
    def fixed(self) -> Examples:
        """The small set and, where the rest is limited, the rest after it."""
        from bakeoff.training.batches import derived_seed

        return self.task.examples("train", self.digits, self.limited or self.small, derived_seed(self.seed, "sets"))

    def chosen(self, step: int) -> NDArray[np.int64]:
        """[rows], places in `fixed`, -1 for a new example."""
        from bakeoff.training.batches import derived_seed

        draw = np.random.default_rng(derived_seed(self.seed, "chosen", step))
        again = np.broadcast_to(draw.random(self.rows if self.mixed else 1) < self.chance, self.rows)
        rest = draw.integers(self.small, self.limited, self.rows) if self.limited else np.full(self.rows, -1)
        return np.where(again, draw.integers(max(1, self.small), size=self.rows), rest)

    def __call__(self, step: int) -> Batch:
        from bakeoff.training.batches import derived_seed
        from bakeoff.training.worlds import batch_of

        places = self.chosen(step)
        parts = [self.fixed[places[places >= 0]]] if (places >= 0).any() else []
        if missing := int((places < 0).sum()):
            parts.append(self.task.examples("train", self.digits, missing, derived_seed(self.seed, "new", step)))
        return batch_of(Examples.joined(parts))


def learn(
    run: Run, folder: Path, *, limited: int, small: int, chance: float, mixed: bool, rate: float, base: int, limit: int,
    digits: int, strata: int, rows: int, layers: int, width: int, heads: int, each: int,
) -> dict[str, Floats]:  # fmt: skip
    """Train a decoder and ask it for all divisors equally often."""
    from bakeoff.training.worlds import answered, from_scratch

    task = Gcd(base, limit)
    model = from_scratch(
        run, TwoSets(task, digits, rows, run.seed, limited, small, chance, mixed), learning_rate=rate,
        vocab_size=len(task.vocabulary), hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        initialization="fan_in",
    )  # fmt: skip
    found: dict[str, Floats] = {}
    for split, metric in (("test", ACCURACY), ("validation", VALIDATION)):
        asked = stratified(Gcd(base, limit, strata), digits, split, each)
        right = answered(model, asked)[:, 0].reshape(each, strata)
        found[metric.name] = np.stack([right.sum(1), np.full(each, float(strata))], 1)
        if split == "test":
            found[KNOWN.name] = np.concatenate([right, np.ones_like(right)], 1)
    return found


def stratified(task: Gcd, digits: int, split: str, each: int) -> Examples:
    """[each * strata] questions of a split: one of every divisor from 1, then another of each, and so on."""
    drawn, zero = task.examples(split, digits, 4 * each * task.strata), task.vocabulary.id("0")
    answers = np.zeros(len(drawn), np.int64)
    # The answer's first token is its sign, its last one the end.
    for place in range(int((drawn.length - drawn.answer).max()) - 2):
        at = drawn.answer + 1 + place
        digit = drawn.tokens[np.arange(len(drawn)), np.minimum(at, drawn.length - 1)] - zero
        answers = np.where(at < drawn.length - 1, task.base * answers + digit, answers)
    return drawn[np.stack([np.flatnonzero(answers == k)[:each] for k in range(1, task.strata + 1)], 1).ravel()]
