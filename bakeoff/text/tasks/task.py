"""What a synthetic task is: examples without end, exact answers, a declared vocabulary, splits that share no question."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from bakeoff.errors import DataError, UsageError

SPLITS = ("train", "validation", "test")
PAD = 0
NOTHING = -1
"""Where a row of parts has no token; `Examples.of` closes the gaps."""
IGNORED = -100

_TENTHS = (8, 1, 1)
_PATIENCE = 200


class Vocabulary(tuple[str, ...]):
    """The words that a task writes with; a word's id is its place. The first one is padding."""

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self)}

    def __new__(cls, words: Iterable[str]) -> Self:
        return super().__new__(cls, ("<pad>", *words))

    def id(self, word: str) -> int:
        return self._ids[word]

    def ids(self, words: Iterable[str]) -> list[int]:
        return [self._ids[word] for word in words]

    def words(self, ids: Iterable[int]) -> list[str]:
        return [self[int(i)] for i in ids]


class Drawn(ABC):
    """Arrays whose first axis counts examples."""

    key: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))  # type: ignore[arg-type]

    def __getitem__(self, rows: Any) -> Self:
        """The chosen rows: a slice, a mask or indices."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})  # type: ignore[arg-type]

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The examples of all parts, one part after the other; shorter ones are padded with zeros on the right."""
        if len(parts) == 1:
            return parts[0]
        made = {}
        for f in fields(cls):  # type: ignore[arg-type]
            arrays = [getattr(part, f.name) for part in parts]
            shape = np.max([a.shape[1:] for a in arrays], axis=0, initial=0).astype(int)
            made[f.name] = np.concatenate([
                np.pad(a, [(0, 0), *((0, s - n) for s, n in zip(shape, a.shape[1:], strict=True))]) for a in arrays
            ])  # fmt: skip
        return cls(**made)


@dataclass(frozen=True, eq=False)
class Examples(Drawn):
    """Questions and answers as token ids.

    tokens: int32 [n, longest], PAD after the end. answer: [n], where the answer begins; what is before it is the question.
    length: [n], tokens without padding. key: uint64 [n], alike for questions that no two splits may share.
    """

    tokens: NDArray[np.int32]
    answer: NDArray[np.int64]
    length: NDArray[np.int64]
    key: NDArray[np.uint64]

    @classmethod
    def of(cls, question: NDArray[Any], answer: NDArray[Any], key: NDArray[np.uint64] | None = None) -> Self:
        """From ids [n, any] of questions and answers, in which NOTHING marks places without a token.

        `key`, default made of the question's tokens, is given where questions that look different are the same: one sum
        in two formats, or its operands the other way round.
        """
        both = np.concatenate([question, answer], 1)
        there = both != NOTHING
        length = there.sum(1)
        places = np.arange(int(length.max(initial=0)))
        tokens = np.full((len(both), len(places)), PAD, np.int32)
        tokens[places < length[:, None]] = both[there]
        begin = (question != NOTHING).sum(1)
        return cls(tokens, begin, length, hashed(tokens, begin) if key is None else key)

    def labels(self, *, question: bool = False) -> NDArray[np.int64]:
        """[n, longest]: what is to be learned, -100 elsewhere: the answer, or with `question` every token."""
        place = np.arange(self.tokens.shape[1])
        learned = place < self.length[:, None]
        if not question:
            learned &= place >= self.answer[:, None]
        return np.where(learned, self.tokens, IGNORED).astype(np.int64)

    def rows(self) -> list[tuple[list[int], list[int]]]:
        """Question and answer of each example, without padding."""
        return [
            (row[:begin].tolist(), row[begin:end].tolist())
            for row, begin, end in zip(self.tokens, self.answer, self.length, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Points(Drawn):
    """Sequences of vectors, each with a value to predict at every place.

    inputs: float32 [n, places, width]. targets: [n, places], classes (integer) or numbers. key: uint64 [n], alike for what
    no two splits may share, as a rule the function that a sequence is of.
    """

    inputs: NDArray[np.float32]
    targets: NDArray[Any]
    key: NDArray[np.uint64]


D = TypeVar("D", bound=Drawn)


class Task(ABC, Generic[D]):
    """A family of questions. Its fields are its options; it is immutable.

    name: of the task. unit: what its difficulty counts. least, greatest: the difficulties that it has. vocabulary: of
    tasks that are written in tokens. A subclass draws examples; which split one belongs to follows from its question.
    """

    name: ClassVar[str]
    unit: ClassVar[str] = "length"
    least: ClassVar[int] = 1
    greatest: ClassVar[int] = 512
    joiner: ClassVar[str] = " "

    @property
    @abstractmethod
    def vocabulary(self) -> Vocabulary: ...

    @abstractmethod
    def draw(self, draw: np.random.Generator, difficulty: int, count: int) -> D:
        """`count` examples of this difficulty, of whatever split."""

    def solve(self, question: Sequence[str]) -> list[str]:
        """The right answer to one question, computed plainly."""
        raise NotImplementedError(f"{self.name} has no answer to a question in words")

    def check(self, difficulty: int | Sequence[int], split: str = "train") -> None:
        """Raise UsageError for a difficulty or a split that the task does not have."""
        for one in _several(difficulty):
            if not self.least <= one <= self.greatest:
                raise UsageError(
                    f"{self.name} has no {self.unit} of {one}: choose from {self.least} to {self.greatest}."
                )
        if split not in SPLITS:
            raise UsageError(f"There is no split {split!r}: choose one of {', '.join(SPLITS)}.")

    def examples(self, split: str, difficulty: int | Sequence[int], count: int, seed: int = 0) -> D:
        """`count` examples of a split, the same ones for the same arguments.

        With several difficulties each example's is drawn, all with equal chance. A question belongs to one split,
        whatever the seed; eight tenths of all belong to train.

        Raises:
            UsageError: a difficulty or split that the task does not have.
            DataError: the split has no question of this difficulty.
        """
        self.check(difficulty, split)
        draw = np.random.default_rng((seed, SPLITS.index(split), zlib.crc32(repr(self).encode())))
        if isinstance(difficulty, int):
            return self._of_split(draw, split, difficulty, count)
        places = draw.integers(len(difficulty), size=count)
        numbers = [int((places == i).sum()) for i in range(len(difficulty))]
        parts = [self._of_split(draw, split, d, n) for d, n in zip(difficulty, numbers, strict=True) if n]
        joined = type(parts[0]).joined(parts)
        order = np.argsort(np.argsort(places, kind="stable"))
        return joined[order]

    def _of_split(self, draw: np.random.Generator, split: str, difficulty: int, count: int) -> D:
        tenths, kept, missing = _TENTHS[SPLITS.index(split)], [], count
        for _ in range(_PATIENCE):
            drawn = self.draw(draw, difficulty, min(missing * 10 // tenths + 32, 1 << 16))
            mine = np.flatnonzero(split_of(drawn.key) == SPLITS.index(split))[:missing]
            kept.append(drawn[mine])
            missing -= len(mine)
            if not missing:
                return type(drawn).joined(kept)
        if count - missing > count // 2:
            return type(kept[0]).joined([*kept, self._of_split(draw, split, difficulty, missing)])
        raise DataError(
            f"{self.name} has too few questions with a {self.unit} of {difficulty} for its {split} split: choose a greater one."
        )


class TokenTask(Task[Examples]):
    """A task that is written in tokens."""

    def text(self, examples: Examples) -> list[tuple[str, str]]:
        """Questions and answers as text, words put together with `joiner`."""
        words = self.vocabulary
        return [(self.joiner.join(words.words(q)), self.joiner.join(words.words(a))) for q, a in examples.rows()]


def hashed(values: NDArray[Any], length: NDArray[np.int64] | None = None) -> NDArray[np.uint64]:
    """[n]: a number for each row of integers [n, any], of the first `length` of them."""
    found = np.full(len(values), 0x9E3779B97F4A7C15, np.uint64)
    for place in range(values.shape[1]):
        mixed = _mixed(found ^ values[:, place].astype(np.int64).view(np.uint64))
        found = mixed if length is None else np.where(place < length, mixed, found)
    return found


def split_of(key: NDArray[np.uint64]) -> NDArray[np.int64]:
    """[n]: the place in SPLITS of questions with these numbers."""
    return np.searchsorted(np.cumsum(_TENTHS), _mixed(key) % np.uint64(10), side="right")


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer (Steele, Lea and Flood 2014), in which every bit depends on every other."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _several(difficulty: int | Sequence[int]) -> Sequence[int]:
    return (difficulty,) if isinstance(difficulty, int) else difficulty
