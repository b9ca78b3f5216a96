"""Functions to be learned in context: Boolean classes, linear regression, and classification after a random permutation."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bakeoff import registry
from bakeoff.errors import UsageError
from bakeoff.text.tasks.task import IGNORED, SPLITS, Points, Task, Vocabulary, hashed, split_of

_FEW = 1000
"""Where a class has fewer functions than so many, splits hold different sequences, not different functions."""


@dataclass(frozen=True)
class _Class:
    """A class of Boolean functions of signs, by its weights w in {-1, 0, 1}: literals, or which variables count.

    rule: "and", "or" of the literals, "dnf", "cnf" of several clauses, "above" a threshold, "odd". chance: that a variable
    is in a clause. signed: whether literals may be negative. chosen: as many positive literals, or 0. forced: share of
    the inputs that are overwritten to satisfy a favoured clause, with "or" and "cnf" to falsify it.
    """

    rule: str
    chance: float = 0.3
    signed: bool = False
    chosen: int = 0
    clauses: int = 1
    forced: float = 0.0


CLASSES = {
    "conjunction": _Class("and", signed=True, forced=0.3),
    "monotone conjunction": _Class("and", forced=0.3),
    "disjunction": _Class("or", signed=True, forced=0.3),
    "sparse disjunction": _Class("or", chosen=4, forced=0.3),
    "majority": _Class("above"),
    "half-space": _Class("above"),
    "threshold": _Class("above", signed=True),
    "3-dnf": _Class("dnf", 0.2, signed=True, clauses=3, forced=0.35),
    "3-cnf": _Class("cnf", 0.2, signed=True, clauses=3, forced=0.3),
    "parity": _Class("odd", 0.5),
    "sparse parity": _Class("odd", chosen=2),
    "nearest neighbour": _Class("nearest"),
}
TAUGHT = {"conjunction": 0.4, "monotone conjunction": 0.4, "3-dnf": 0.35}
"""Classes that have teaching sequences, and the forced share of the inputs after one."""


@dataclass(frozen=True)
class _InContext(Task[Points]):
    """A task of sequences of vectors, which has no words. `shares` names the options that lie between 0 and 1."""

    unit: ClassVar[str] = "dimension"
    least: ClassVar[int] = 4
    greatest: ClassVar[int] = 64
    shares: ClassVar[tuple[str, ...]] = ()

    examples_each: int = 30

    def __post_init__(self) -> None:
        if self.examples_each < 1:
            raise UsageError(f"examples_each is {self.examples_each}: give at least 1.")
        for name in self.shares:
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}: give a share from 0 to 1.")

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(())


@dataclass(frozen=True)
class Boolean(_InContext):
    """Inputs x in {-1, 1}^dimension, each followed by its label: x_1, y_1, x_2, y_2 ...; a label y is (y, 0, ..., 0).

    A target stands at each x: 1 where the function is true, else 0; IGNORED at the labels. The functions and the inputs
    that balance their labels are those of the paper. "majority" is that of a random part of the variables, where half is
    not enough; "half-space" has weights from -3 to 3 and the threshold 0.5, "threshold" weights from -1 to 1 and one of
    -2.5, -1.5 ... 2.5. Of "nearest neighbour" the first labels are random, and not learned; every later one is that of
    the earlier input that is most like it, the first of several.

    Splits hold different functions; where a class has fewer than 1000, or none, different sequences.

    Args:
        function: one of CLASSES. examples_each: inputs of a sequence.
        chance: that a variable is in the function or the clause, where that is random; 0 means the paper's.
        teaching: share of sequences that begin with a teaching sequence, of "conjunction", "monotone conjunction" and
            "3-dnf" (then of monotone clauses). It is, a clause after the other, all literals true and the other variables
            false, with "conjunction" also the others true, then each literal falsified alone, positive ones first.
        start: of "nearest neighbour": how many labels are random.
    Raises:
        UsageError: an unknown function; teaching of one without teaching sequences, or with too few examples for them.

    Source: Bhattamishra, Patel, Blunsom and Kanade 2023, arXiv:2310.03016; the laws as in its authors' program.
    """

    name: ClassVar[str] = "boolean"
    shares: ClassVar[tuple[str, ...]] = ("chance", "teaching")

    function: str = "conjunction"
    chance: float = 0.0
    teaching: float = 0.0
    start: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        registry.pick(self.function, CLASSES, "Boolean function")
        if self.teaching and self.function not in TAUGHT:
            raise UsageError(f"There is no teaching sequence of {self.function}: choose {', '.join(TAUGHT)}.")

    def check(self, difficulty: int | Sequence[int], split: str = "train") -> None:
        super().check(difficulty, split)
        longest = difficulty if isinstance(difficulty, int) else max(difficulty)
        needed = CLASSES[self.function].clauses * (longest + 1) + (self.function == "conjunction")
        if self.teaching and needed > self.examples_each:
            raise UsageError(
                f"Teaching a {self.function} of dimension {longest} may take {needed} examples: give examples_each={needed} "
                "or a smaller dimension."
            )

    def draw(self, draw: np.random.Generator, difficulty: int, count: int) -> Points:
        x = 2 * draw.integers(2, size=(count, self.examples_each, difficulty), dtype=np.int8) - 1
        if self.function == "nearest neighbour":
            y, function = self._nearest(draw, x), np.zeros((count, 0), np.int8)
        else:
            w = self._weights(draw, count, difficulty)
            self._balance(draw, x, w)
            y, function = self._labels(draw, x, w)
        inputs = np.zeros((count, 2 * self.examples_each, difficulty), np.float32)
        inputs[:, ::2], inputs[:, 1::2, 0] = x, 2 * y - 1
        targets = np.full(inputs.shape[:2], IGNORED)
        targets[:, ::2] = y
        if self.function == "nearest neighbour":
            targets[:, : 2 * self.start] = IGNORED
        if _functions(self.function, difficulty) < _FEW:
            function = np.hstack([function, np.packbits(x.reshape(count, -1) > 0, axis=1).astype(np.int16), y])
        return Points(inputs, targets, hashed(function))

    def _weights(self, draw: np.random.Generator, count: int, dimension: int) -> NDArray[np.int8]:
        """[count, clauses, dimension]."""
        kind = CLASSES[self.function]
        shape = (count, kind.clauses, dimension)
        if kind.chosen:
            w = np.zeros(shape, np.int8)
            places = draw.random(shape, dtype=np.float32).argpartition(kind.chosen - 1, 2)[..., : kind.chosen]
            np.put_along_axis(w, places, 1, 2)
            return w
        if self.function == "half-space":
            return draw.integers(-3, 4, shape, np.int8)
        w = (draw.random(shape, dtype=np.float32) < (self.chance or kind.chance)).astype(np.int8)
        if kind.signed and not (self.function == "3-dnf" and self.teaching):
            w *= 2 * draw.integers(2, size=shape, dtype=np.int8) - 1
        return w

    def _balance(self, draw: np.random.Generator, x: NDArray[np.int8], w: NDArray[np.int8]) -> None:
        """Overwrite inputs in place, those of teaching sequences too."""
        kind, count = CLASSES[self.function], len(x)
        taught = draw.random(count) < self.teaching
        if kind.forced:
            share = np.where(taught, TAUGHT.get(self.function, 0.0), kind.forced)
            forced = draw.random(x.shape[:2], dtype=np.float32) < share[:, None]
            favoured = w[np.arange(count), draw.integers(kind.clauses, size=count)]
            if kind.rule in ("or", "cnf"):
                favoured = -favoured
            np.copyto(x, favoured[:, None], where=forced[..., None] & (favoured != 0)[:, None])
        if self.teaching:
            begin = np.zeros(count, np.int64)
            for clause in w.transpose(1, 0, 2):
                begin = self._teach(x, clause, begin, np.flatnonzero(taught))

    def _teach(
        self, x: NDArray[np.int8], w: NDArray[np.int8], begin: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Write a clause's teaching sequence into these rows of x from `begin` on, and return where it ends, [count]."""
        satisfied = np.where(w != 0, w, np.int8(-1))
        x[rows, begin[rows]] = satisfied[rows]
        first = begin + 1
        if self.function == "conjunction":
            x[rows, first[rows]] = np.where(w != 0, w, np.int8(1))[rows]
            first = first + 1
        positive, negative = w > 0, w < 0
        rank = np.where(positive, positive.cumsum(1), positive.sum(1, keepdims=True) + negative.cumsum(1)) - 1
        taught = np.zeros(len(w), bool)
        taught[rows] = True
        row, variable = np.nonzero((w != 0) & taught[:, None])
        place = first[row] + rank[row, variable]
        x[row, place] = satisfied[row]
        x[row, place, variable] *= -1
        first += (w != 0).sum(1)
        return first

    def _labels(
        self, draw: np.random.Generator, x: NDArray[np.int8], w: NDArray[np.int8]
    ) -> tuple[NDArray[np.int8], NDArray[Any]]:
        """Labels [count, examples], and what tells the functions apart, [count, any]."""
        product = x.astype(np.float32) @ w.transpose(0, 2, 1).astype(np.float32)
        literals = np.abs(w).sum(2, dtype=np.float32)[:, None]
        function = w.reshape(len(w), -1)
        rule = CLASSES[self.function].rule
        if rule == "odd":
            return ((product + literals)[..., 0] % 4 == 2).astype(np.int8), function
        if rule == "above":
            threshold = np.full(len(w), 0.5)
            if self.function == "threshold":
                threshold = draw.integers(-3, 3, len(w)) + 0.5
                function = np.hstack([function, (2 * threshold[:, None]).astype(np.int8)])
            return (product[..., 0] > threshold[:, None]).astype(np.int8), function
        true = (product != -literals).all(2) if rule in ("or", "cnf") else (product == literals).any(2)
        return true.astype(np.int8), function

    def _nearest(self, draw: np.random.Generator, x: NDArray[np.int8]) -> NDArray[np.int8]:
        y = draw.integers(2, size=x.shape[:2], dtype=np.int8)
        signs = x.astype(np.float32)
        alike = signs @ signs.transpose(0, 2, 1)
        row = np.arange(len(x))
        for place in range(1, self.examples_each):
            nearest = alike[:, place, :place].argmax(1)
            copied = alike[row, place, nearest] == x.shape[2]
            y[:, place] = np.where(copied | (place >= self.start), y[row, nearest], y[:, place])
        return y


def _functions(function: str, dimension: int) -> float:
    """How many functions a class has, at the most."""
    kind = CLASSES[function]
    if kind.rule == "nearest":
        return 0
    if kind.chosen:
        return math.comb(dimension, kind.chosen)
    if function == "half-space":
        return 7.0**dimension
    return (3.0 if kind.signed else 2.0) ** (kind.clauses * dimension) * (6 if function == "threshold" else 1)


@dataclass(frozen=True)
class LinearRegression(_InContext):
    """Inputs x and numbers y = w x + sigma e with normal x and e; w and sigma are a sequence's own.

    Tokens are of width 2 + dimension: a question (0, 0, x), then the pair (y, 1, x), and so on. Pairs repeat their x, so
    that which y belongs to which x does not depend on positions. The target is y at both; what is to be learned is that of
    the questions. Splits hold different w.

    Args:
        examples_each: pairs of a sequence.
        noise: the values that sigma takes, with equal chance. weight_mean: mean of each entry of w, with deviation 1.
        input_scale: standard deviation of each entry of x.

    Source: after Garg et al. 2022, arXiv:2208.01066, and Liu et al. 2024, arXiv:2405.15115; the tokens are our own.
    """

    name: ClassVar[str] = "linear-regression"
    least: ClassVar[int] = 1

    noise: tuple[float, ...] = (0.2, 0.5, 1.0)
    weight_mean: float = 0.0
    input_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.noise or min(self.noise) < 0:
            raise UsageError(f"noise is {self.noise}: give standard deviations of at least 0, such as (0.5,).")

    def draw(self, draw: np.random.Generator, difficulty: int, count: int) -> Points:
        w = self.weight_mean + draw.standard_normal((count, difficulty), dtype=np.float32)
        sigma = np.array(self.noise, np.float32)[draw.integers(len(self.noise), size=count)]
        x = self.input_scale * draw.standard_normal((count, self.examples_each, difficulty), dtype=np.float32)
        y = (x @ w[:, :, None])[..., 0]
        y += sigma[:, None] * draw.standard_normal(y.shape, dtype=np.float32)
        inputs = np.zeros((count, 2 * self.examples_each, difficulty + 2), np.float32)
        inputs[:, ::2, 2:] = inputs[:, 1::2, 2:] = x
        inputs[:, 1::2, 0], inputs[:, 1::2, 1] = y, 1
        return Points(inputs, y.repeat(2, 1), hashed(w.view(np.int32)))


@dataclass(frozen=True)
class PermutedClassification(_InContext):
    """Images, or points, under a random linear projection A, their classes under a random permutation: a task is both.

    A token is (the class of x_{t-1} as one of `classes` bits, none at first; A x_t); its target is the class of x_t. The
    entries of A are normal with variance 1 / (entries of x), the difficulty is the number of rows of A, and x is scaled
    so that its entries have variance 1. Splits hold different tasks.

    Args:
        examples_each: points of a sequence. classes: how many there are, at most 10 with digits.
        data: "clusters", 100 points around each of `classes` centres in as many dimensions as A has rows, or "digits", the
            8 x 8 images of scikit-learn, of which there are about 90 a class.
        world: another number gives other clusters.
        pool: how many tasks there are in the train split; 0 means without end. A smaller pool is part of a greater one.
        fixed: share of sequences whose classes are not permuted.
        new: whether sequences are of points that are not in those of new=False: other draws, or the other half of the images.
    Raises:
        UsageError: unknown data; more classes than there are digits.

    Source: Kirsch et al. 2022, arXiv:2212.04458, section 3.1; clusters and digits in place of MNIST are our own.
    """

    name: ClassVar[str] = "permuted-classification"
    shares: ClassVar[tuple[str, ...]] = ("fixed",)

    classes: int = 5
    data: str = "clusters"
    world: int = 0
    pool: int = 0
    fixed: float = 0.0
    new: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        registry.pick(self.data, ("clusters", "digits"), "data set")
        if self.data == "digits" and self.classes > 10:
            raise UsageError(f"There are 10 digits, not {self.classes}: give classes=10 or fewer.")

    def draw(self, draw: np.random.Generator, difficulty: int, count: int) -> Points:
        base = _base(self.data, self.world, self.classes, difficulty, self.new)
        matrix, order = _tasks(draw, count, base.shape[2], difficulty, self.classes)
        key = _task_key(matrix, order)
        if self.pool:
            known = _pool(self.pool, base.shape[2], difficulty, self.classes)
            row = np.flatnonzero(split_of(key) == SPLITS.index("train"))
            chosen = draw.integers(self.pool, size=len(row))
            matrix[row], order[row], key[row] = (part[chosen] for part in known)
        fixed = draw.random(count) < self.fixed
        order[fixed] = np.arange(self.classes)
        kind = draw.integers(self.classes, size=(count, self.examples_each))
        x = base[kind, draw.integers(base.shape[1], size=kind.shape)]
        y = np.take_along_axis(order, kind, 1)
        inputs = np.zeros((count, self.examples_each, self.classes + difficulty), np.float32)
        inputs[..., self.classes :] = x @ matrix
        inputs[:, 1:, : self.classes] = np.eye(self.classes, dtype=np.float32)[y[:, :-1]]
        return Points(inputs, y, key)


def _tasks(
    draw: np.random.Generator, count: int, entries: int, rows: int, classes: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Transposed projections [count, entries, rows] and permutations [count, classes]."""
    matrix = draw.standard_normal((count, entries, rows), dtype=np.float32) / np.float32(math.sqrt(entries))
    return matrix, draw.random((count, classes), dtype=np.float32).argsort(1)


def _task_key(matrix: NDArray[np.float32], order: NDArray[np.int64]) -> NDArray[np.uint64]:
    return hashed(np.hstack([matrix[:, 0].view(np.int32), order]))


@functools.lru_cache(maxsize=8)
def _pool(
    count: int, entries: int, rows: int, classes: int
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.uint64]]:
    """The first `count` tasks of the train split of an endless series: projections, permutations and keys."""
    draw, parts, found = np.random.default_rng((entries, rows, classes)), [], 0
    while found < count:
        matrix, order = _tasks(draw, 64, entries, rows, classes)
        key = _task_key(matrix, order)
        mine = split_of(key) == SPLITS.index("train")
        parts.append((matrix[mine], order[mine], key[mine]))
        found += int(mine.sum())
    matrix, order, key = (np.concatenate(part)[:count] for part in zip(*parts, strict=True))
    return matrix, order, key


@functools.lru_cache(maxsize=16)
def _base(data: str, world: int, classes: int, dimension: int, new: bool) -> NDArray[np.float32]:
    """Points of mean 0 and variance 1, [classes, points, entries]."""
    if data == "digits":
        from sklearn.datasets import load_digits

        images, kinds = load_digits(return_X_y=True)
        images = (images - images.mean()) / images.std()
        halves = [images[kinds == kind][new::2] for kind in range(classes)]
        return np.stack([half[: min(map(len, halves))] for half in halves]).astype(np.float32)
    centres = np.random.default_rng((world, classes, dimension)).standard_normal((classes, 1, dimension))
    noise = np.random.default_rng((world, classes, dimension, 1 + new)).standard_normal((classes, 100, dimension))
    return ((centres + _SPREAD * noise) / math.sqrt(1 + _SPREAD**2)).astype(np.float32)


_SPREAD = 0.5
"""Deviation of a cluster's points from its centre, in deviations of the centres."""


def nearest_neighbour(x: NDArray[np.float32], y: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n, examples]: the label of the earlier input that is nearest to each one, the first of several; 0 at the first place.

    x: [n, examples, entries]. y: labels [n, examples].
    """
    squares = (x**2).sum(2)
    distance = squares[:, :, None] + squares[:, None] - 2 * x @ x.transpose(0, 2, 1)
    said = np.zeros_like(y)
    for place in range(1, x.shape[1]):
        said[:, place] = np.take_along_axis(y, distance[:, place, :place].argmin(1)[:, None], 1)[:, 0]
    return said


def right(said: NDArray[np.int64], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """[n, 2 * examples]: whether each answer is right, then whether it counts, which IGNORED ones do not."""
    counts = targets != IGNORED
    return np.hstack([(said == targets) & counts, counts]).astype(float)


def share_right(sums: NDArray[np.float64], begin: int = 0, end: int | None = None) -> NDArray[np.float64]:
    """Of what `right` returns, summed over sequences, [..., 2 * examples]: right answers over those that count, [...], at
    the places from `begin` to before `end`."""
    hits, counts = np.split(sums, 2, axis=-1)
    return np.asarray(hits[..., begin:end].sum(-1) / counts[..., begin:end].sum(-1))
