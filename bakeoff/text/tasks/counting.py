"""Counting, the most frequent symbol, parity, and what helps to sort: successors, occurrences, gaps in a sorted list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bakeoff.errors import UsageError
from bakeoff.text.tasks.sequences import BLANK, END, FILL, OCCURRENCES, PARITY, SEPARATOR, SUCCESSOR, OnSymbols
from bakeoff.text.tasks.task import NOTHING, Examples, TokenTask, Vocabulary, hashed

SIGNS = EVEN, ODD = "+", "-"


@dataclass(frozen=True)
class Counting(TokenTask):
    """3 6 > 3 4 5 6 . ; the difficulty is how many numbers the answer has.

    greatest_number: numbers run from 0 to this one.
    """

    name: ClassVar[str] = "counting"
    greatest_number: int = 255

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary([SEPARATOR, END, *map(str, range(self.greatest_number + 1))])

    def check(self, difficulty: int | Sequence[int], split: str = "train") -> None:
        super().check(difficulty, split)
        longest = difficulty if isinstance(difficulty, int) else max(difficulty)
        if longest > self.greatest_number + 1:
            raise UsageError(
                f"counting to {self.greatest_number} has no {longest} numbers in a row: give a smaller length or a greater greatest_number."
            )

    def draw(self, draw: np.random.Generator, difficulty: int, count: int) -> Examples:
        words = self.vocabulary
        first = draw.integers(self.greatest_number + 2 - difficulty, size=(count, 1)) + words.id("0")
        separator, end = (np.full((count, 1), words.id(word)) for word in (SEPARATOR, END))
        counted = first + np.arange(difficulty)
        return Examples.of(np.hstack([first, first + difficulty - 1, separator]), np.hstack([counted, end]))

    def solve(self, question: Sequence[str]) -> list[str]:
        return [*map(str, range(int(question[0]), int(question[1]) + 1)), END]


@dataclass(frozen=True)
class Mode(TokenTask):
    """3 1 3 2 > 3 . : the symbol that is there most often, of which there is one only; the difficulty is the list's length.

    symbols: how many different ones there are. kinds: how many different ones a list has at most.
    """

    name: ClassVar[str] = "mode"
    symbols: int = 100
    kinds: int = 5

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary([SEPARATOR, END, *map(str, range(self.symbols))])

    def check(self, difficulty: int | Sequence[int], split: str = "train") -> None:
        super().check(difficulty, split)
        if not 1 <= self.kinds <= self.symbols:
            raise UsageError(
                f"mode has {self.symbols} symbols, but lists of {self.kinds} kinds: give from 1 to {self.symbols} kinds."
            )

    def draw(self, draw: np.random.Generator, difficulty: int, count: int) -> Examples:
        kinds, row = self.kinds, np.arange(count)
        local = draw.integers(kinds, size=(count, difficulty))
        often = np.stack([(local == kind).sum(1) for kind in range(kinds)], 1)
        # Of several most frequent symbols one takes another's place, so that it is the only one.
        mode = (often + draw.random(often.shape)).argmax(1)
        tied = (often == often.max(1, keepdims=True)).sum(1) > 1
        other = np.where(local != mode[:, None], draw.random(local.shape), -1).argmax(1)
        local[row[tied], other[tied]] = mode[tied]
        drawn = draw.random((count, self.symbols), dtype=np.float32).argpartition(kinds - 1, 1)[:, :kinds]
        chosen = draw.permuted(drawn, axis=1) + self.vocabulary.id("0")
        separator, end = (np.full((count, 1), self.vocabulary.id(word)) for word in (SEPARATOR, END))
        question = np.hstack([chosen[row[:, None], local], separator])
        return Examples.of(question, np.hstack([chosen[row, mode][:, None], end]))

    def solve(self, question: Sequence[str]) -> list[str]:
        symbols = list(question[:-1])
        return [max(symbols, key=symbols.count), END]


@dataclass(frozen=True)
class Parity(TokenTask):
    """1 0 1 1 > - . : whether the ones are even (+) or odd (-) in number; the difficulty is how many bits there are.

    hints: before each bit stands a mark for its place, #7 1 #8 0 #9 1 #10 1 > - . ; the marks follow one another, from
    one that is drawn. scratchpad: the answer goes through the marks of the ones, with the parity so far after each:
    + #7 - #9 + #10 - . marks: how many there are.

    Source: the scratchpad's form from memory of Zhou et al. 2023, arXiv:2310.16028.
    """

    name: ClassVar[str] = "parity"
    hints: bool = False
    scratchpad: bool = False
    marks: int = 64

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary([SEPARATOR, END, *SIGNS, "0", "1", *(f"#{mark}" for mark in range(self.marks) if self.hints)])

    def check(self, difficulty: int | Sequence[int], split: str = "train") -> None:
        super().check(difficulty, split)
        longest = difficulty if isinstance(difficulty, int) else max(difficulty)
        if self.scratchpad and not self.hints:
            raise UsageError("The scratchpad of parity lists hints: give hints=True as well.")
        if self.hints and longest > self.marks:
            raise UsageError(
                f"parity has {self.marks} marks, too few for {longest} bits: give more marks or a smaller length."
            )

    def draw(self, draw: np.random.Generator, difficulty: int, count: int) -> Examples:
        words = self.vocabulary
        bits = draw.integers(2, size=(count, difficulty))
        separator, end = (np.full((count, 1), words.id(word)) for word in (SEPARATOR, END))
        signs, question = bits.cumsum(1) % 2 + words.id(EVEN), bits + words.id("0")
        answer = signs[:, -1:]
        if self.hints:
            hints = draw.integers(self.marks - difficulty + 1, size=(count, 1)) + np.arange(difficulty) + words.id("#0")
            question = _alternating(hints, question)
            if self.scratchpad:
                steps = _alternating(np.where(bits, hints, NOTHING), np.where(bits, signs, NOTHING))
                answer = np.hstack([np.full((count, 1), words.id(EVEN)), steps])
        return Examples.of(np.hstack([question, separator]), np.hstack([answer, end]), hashed(bits))

    def solve(self, question: Sequence[str]) -> list[str]:
        ones = [place for place, word in enumerate(question) if word == "1"]
        if not self.scratchpad:
            return [SIGNS[len(ones) % 2], END]
        steps = [(question[place - 1], SIGNS[number % 2]) for number, place in enumerate(ones, 1)]
        return [EVEN, *(word for step in steps for word in step), END]


def _alternating(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    return np.stack([one, other], 2).reshape(len(one), -1)


@dataclass(frozen=True)
class _OnElement(OnSymbols):
    """A list, a mark, one of the list's symbols; the answer is a single word."""

    mark: ClassVar[str]

    def asked(self, draw: np.random.Generator, ids: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        element = np.take_along_axis(ids, draw.integers(ids.shape[1], size=(len(ids), 1)), 1)
        return np.hstack([self.column(self.mark, len(ids)), element]), self.found(ids, element)

    def found(self, ids: NDArray[Any], element: NDArray[Any]) -> NDArray[Any]:
        raise NotImplementedError


@dataclass(frozen=True)
class Successor(_OnElement):
    """3 1 3 2 successor 2: 3, the smallest of the list that is greater than the element; "." where there is none."""

    name: ClassVar[str] = "successor"
    mark: ClassVar[str] = SUCCESSOR

    def found(self, ids: NDArray[Any], element: NDArray[Any]) -> NDArray[Any]:
        beyond = len(self.vocabulary)
        least = np.where(ids > element, ids, beyond).min(1, keepdims=True)
        return np.where(least < beyond, least, self.vocabulary.id(END))

    def solve(self, question: Sequence[str]) -> list[str]:
        *symbols, _, element = question
        return [min((s for s in symbols if int(s) > int(element)), key=int, default=END)]


@dataclass(frozen=True)
class Occurrences(_OnElement):
    """3 1 3 2 occurrences 3: 2, how often the list has the element."""

    name: ClassVar[str] = "occurrences"
    mark: ClassVar[str] = OCCURRENCES

    def check(self, difficulty: int | Sequence[int], split: str = "train") -> None:
        super().check(difficulty, split)
        longest = difficulty if isinstance(difficulty, int) else max(difficulty)
        if longest >= self.symbols:
            raise UsageError(f"occurrences has no symbol for {longest}: give more symbols or a smaller length.")

    def found(self, ids: NDArray[Any], element: NDArray[Any]) -> NDArray[Any]:
        often: NDArray[Any] = (ids == element).sum(1, keepdims=True)
        return often + self.vocabulary.id("0")

    def solve(self, question: Sequence[str]) -> list[str]:
        return [str(question[:-2].count(question[-1]))]


@dataclass(frozen=True)
class Fill(OnSymbols):
    """3 1 3 2 fill 1 ? 3 3: 2, what is missing from the sorted list."""

    name: ClassVar[str] = "fill"

    def asked(self, draw: np.random.Generator, ids: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        place, ordered = draw.integers(ids.shape[1], size=(len(ids), 1)), np.sort(ids, 1)
        missing = np.take_along_axis(ordered, place, 1)
        np.put_along_axis(ordered, place, self.vocabulary.id(BLANK), 1)
        return np.hstack([self.column(FILL, len(ids)), ordered]), missing

    def solve(self, question: Sequence[str]) -> list[str]:
        length = len(question) // 2
        ordered = sorted(question[:length], key=int)
        return [ordered[question.index(BLANK) - length - 1]]


@dataclass(frozen=True)
class LengthParity(OnSymbols):
    """3 1 3 2 parity: 0, whether the list's length is even (0) or odd (1); of no use for sorting."""

    name: ClassVar[str] = "length-parity"

    def check(self, difficulty: int | Sequence[int], split: str = "train") -> None:
        super().check(difficulty, split)
        if self.symbols < 2:
            raise UsageError("length-parity answers with 0 or 1: give at least 2 symbols.")

    def asked(self, draw: np.random.Generator, ids: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        return self.column(PARITY, len(ids)), self.column(str(ids.shape[1] % 2), len(ids))

    def solve(self, question: Sequence[str]) -> list[str]:
        return [str((len(question) - 1) % 2)]
