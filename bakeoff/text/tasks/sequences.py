"""Sequences of symbols to be copied, reversed or sorted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bakeoff.errors import UsageError
from bakeoff.text.tasks.task import Examples, TokenTask, Vocabulary

SEPARATOR, END = ">", "."
SUCCESSOR, OCCURRENCES, FILL, PARITY, BLANK = "successor", "occurrences", "fill", "parity", "?"


@dataclass(frozen=True)
class OnSymbols(TokenTask):
    """A list of symbols, a mark that says what is asked about it, and the answer; the difficulty is the list's length.

    symbols: how many different ones there are; they are the numbers from 0. unique: whether a list has none of them twice.
    narrow: whether a list's symbols lie in a range of its own, as wide as is drawn from 1 to all (if unique, from the
    list's length on), so that short lists too have repeats and neighbours. All tasks on symbols have one vocabulary.
    """

    symbols: int = 100
    unique: bool = False
    narrow: bool = False

    @cached_property
    def vocabulary(self) -> Vocabulary:
        marks = SEPARATOR, SUCCESSOR, OCCURRENCES, FILL, PARITY, BLANK, END
        return Vocabulary([*marks, *map(str, range(self.symbols))])

    def check(self, difficulty: int | Sequence[int], split: str = "train") -> None:
        super().check(difficulty, split)
        longest = difficulty if isinstance(difficulty, int) else max(difficulty)
        if self.unique and longest > self.symbols:
            raise UsageError(
                f"{self.name} has {self.symbols} symbols, too few for {longest} different ones: give more symbols or a smaller length."
            )

    def draw(self, draw: np.random.Generator, difficulty: int, count: int) -> Examples:
        ids = self._lists(draw, difficulty, count) + self.vocabulary.id("0")
        asked, answer = self.asked(draw, ids)
        return Examples.of(np.hstack([ids, asked]), answer)

    def _lists(self, draw: np.random.Generator, length: int, count: int) -> NDArray[Any]:
        width, begin = np.full((count, 1), self.symbols), np.zeros((count, 1), np.int64)
        if self.narrow:
            width = draw.integers(length if self.unique else 1, self.symbols + 1, (count, 1))
            begin = draw.integers(0, self.symbols - width + 1)
        if not self.unique:
            return begin + draw.integers(0, width, (count, length))
        order = draw.random((count, self.symbols), dtype=np.float32)
        order[np.arange(self.symbols) >= width] = 2
        lists: NDArray[Any] = begin + draw.permuted(order.argpartition(length - 1, 1)[:, :length], axis=1)
        return lists

    def asked(self, draw: np.random.Generator, ids: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """What follows the lists [n, length] in the question, and the answers: ids [n, any]. Symbols' ids are ordered."""
        raise NotImplementedError

    def column(self, word: str, count: int) -> NDArray[Any]:
        """[count, 1]: the word's id."""
        return np.full((count, 1), self.vocabulary.id(word))


@dataclass(frozen=True)
class _Rearranging(OnSymbols):
    """A list, ">", and the same symbols in another order, "."."""

    def asked(self, draw: np.random.Generator, ids: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        return self.column(SEPARATOR, len(ids)), np.hstack([self.made(ids), self.column(END, len(ids))])

    def made(self, ids: NDArray[Any]) -> NDArray[Any]:
        raise NotImplementedError

    def solve(self, question: Sequence[str]) -> list[str]:
        return [*self.plainly(list(question[:-1])), END]

    def plainly(self, symbols: list[str]) -> list[str]:
        raise NotImplementedError


@dataclass(frozen=True)
class Copying(_Rearranging):
    """3 1 2 > 3 1 2 ."""

    name: ClassVar[str] = "copying"

    def made(self, ids: NDArray[Any]) -> NDArray[Any]:
        return ids

    def plainly(self, symbols: list[str]) -> list[str]:
        return symbols


@dataclass(frozen=True)
class Reversing(_Rearranging):
    """3 1 2 > 2 1 3 ."""

    name: ClassVar[str] = "reversing"

    def made(self, ids: NDArray[Any]) -> NDArray[Any]:
        return ids[:, ::-1]

    def plainly(self, symbols: list[str]) -> list[str]:
        return symbols[::-1]


@dataclass(frozen=True)
class Sorting(_Rearranging):
    """3 1 3 2 > 1 2 3 3 ."""

    name: ClassVar[str] = "sorting"

    def made(self, ids: NDArray[Any]) -> NDArray[Any]:
        return np.sort(ids, 1)

    def plainly(self, symbols: list[str]) -> list[str]:
        return sorted(symbols, key=int)
