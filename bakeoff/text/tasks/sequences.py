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


@dataclass(frozen=True)
class _OnSymbols(TokenTask):
    """A list of symbols, ">", and what is to be made of it, "."; the difficulty is how many symbols there are.

    symbols: how many different ones there are; they are the numbers from 0. unique: whether a list has none of them twice.
    """

    symbols: int = 100
    unique: bool = False

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary([SEPARATOR, END, *map(str, range(self.symbols))])

    def check(self, difficulty: int | Sequence[int], split: str = "train") -> None:
        super().check(difficulty, split)
        longest = difficulty if isinstance(difficulty, int) else max(difficulty)
        if self.unique and longest > self.symbols:
            raise UsageError(
                f"{self.name} has {self.symbols} symbols, too few for {longest} different ones: give more symbols or a smaller length."
            )

    def draw(self, draw: np.random.Generator, difficulty: int, count: int) -> Examples:
        if self.unique:
            values = draw.random((count, self.symbols), dtype=np.float32).argpartition(difficulty - 1, 1)[
                :, :difficulty
            ]
            values = draw.permuted(values, axis=1)
        else:
            values = draw.integers(self.symbols, size=(count, difficulty))
        column = np.ones((count, 1), np.int64)
        first = self.vocabulary.id("0")
        question = np.hstack([values + first, column * self.vocabulary.id(SEPARATOR)])
        return Examples.of(question, np.hstack([self.made(values) + first, column * self.vocabulary.id(END)]))

    def made(self, values: NDArray[Any]) -> NDArray[Any]:
        raise NotImplementedError

    def solve(self, question: Sequence[str]) -> list[str]:
        return [*self.plainly(list(question[:-1])), END]

    def plainly(self, symbols: list[str]) -> list[str]:
        raise NotImplementedError


@dataclass(frozen=True)
class Copying(_OnSymbols):
    """3 1 2 > 3 1 2 ."""

    name: ClassVar[str] = "copying"

    def made(self, values: NDArray[Any]) -> NDArray[Any]:
        return values

    def plainly(self, symbols: list[str]) -> list[str]:
        return symbols


@dataclass(frozen=True)
class Reversing(_OnSymbols):
    """3 1 2 > 2 1 3 ."""

    name: ClassVar[str] = "reversing"

    def made(self, values: NDArray[Any]) -> NDArray[Any]:
        return values[:, ::-1]

    def plainly(self, symbols: list[str]) -> list[str]:
        return symbols[::-1]


@dataclass(frozen=True)
class Sorting(_OnSymbols):
    """3 1 3 2 > 1 2 3 3 ."""

    name: ClassVar[str] = "sorting"

    def made(self, values: NDArray[Any]) -> NDArray[Any]:
        return np.sort(values, 1)

    def plainly(self, symbols: list[str]) -> list[str]:
        return sorted(symbols, key=int)
