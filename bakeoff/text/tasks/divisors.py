"""Questions on two whole numbers: their greatest common divisor, and their product modulo a number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bakeoff.errors import UsageError
from bakeoff.text.tasks.task import NOTHING, Examples, TokenTask, Vocabulary, hashed

PLUS, SEPARATOR, END = "+", ">", "."


@dataclass(frozen=True)
class _OnPairs(TokenTask):
    """Two numbers, ">", and a third, "."; each is a "+" and its digits, the most significant first.

    The operands are even draws from 1 to the greatest number of as many digits as the difficulty says. A pair and the same
    pair the other way round are one question.

    Source of the form: Charton and Kempe 2024, arXiv:2410.07041, and Charton 2023, arXiv:2308.15594.
    base: of the digits, from 2. limit: the greatest operand where that is less than the digits allow; 0 for none.
    """

    unit: ClassVar[str] = "number of digits"
    greatest: ClassVar[int] = 62

    base: int = 1000
    limit: int = 0

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary([PLUS, SEPARATOR, END, *map(str, range(self.base))])

    def check(self, difficulty: int | Sequence[int], split: str = "train") -> None:
        super().check(difficulty, split)
        if self.base < 2 or self.limit < 0:
            raise UsageError(
                f"{self.name} has base {self.base} and limit {self.limit}: give a base from 2 and a limit from 0."
            )
        most = max([difficulty] if isinstance(difficulty, int) else difficulty)
        if self.base**most > 2**62:
            raise UsageError(
                f"{most} digits in base {self.base} make numbers above 2^62: give {self.name} fewer digits or a smaller base."
            )

    def largest(self, difficulty: int) -> int:
        """The greatest operand."""
        most = int(self.base**difficulty) - 1
        return min(most, self.limit) if self.limit else most

    def draw(self, draw: np.random.Generator, difficulty: int, count: int) -> Examples:
        pairs = self.pairs(draw, self.largest(difficulty), count)
        ends = [np.full((count, 1), self.vocabulary.id(word)) for word in (SEPARATOR, END)]
        question = np.hstack([self._written(pairs[:, 0]), self._written(pairs[:, 1]), ends[0]])
        answer = np.hstack([self._written(self.made(*pairs.T)), ends[1]])
        return Examples.of(question, answer, hashed(np.sort(pairs, 1)))

    def pairs(self, draw: np.random.Generator, largest: int, count: int) -> NDArray[np.int64]:
        """[count, 2], from 1 to `largest`."""
        return draw.integers(1, largest + 1, size=(count, 2))

    def made(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
        raise NotImplementedError

    def solve(self, question: Sequence[str]) -> list[str]:
        numbers: list[int] = []
        for word in question[:-1]:
            if word == PLUS:
                numbers.append(0)
            else:
                numbers[-1] = numbers[-1] * self.base + int(word)
        left = self.plainly(*numbers)
        digits: list[str] = []
        while left or not digits:
            left, digit = divmod(left, self.base)
            digits.append(str(digit))
        return [PLUS, *reversed(digits), END]

    def plainly(self, first: int, second: int) -> int:
        raise NotImplementedError

    def _written(self, values: NDArray[np.int64]) -> NDArray[Any]:
        """[n, 1 + places]: sign and digits as ids, NOTHING in place of leading zeros."""
        places, most = 1, int(values.max(initial=0))
        while self.base**places <= most:
            places += 1
        powers = self.base ** np.arange(places - 1, -1, -1)
        digits = values[:, None] // powers % self.base + self.vocabulary.id("0")
        shown = (values[:, None] >= powers) | (powers == 1)
        signs = np.full((len(values), 1), self.vocabulary.id(PLUS))
        return np.hstack([signs, np.where(shown, digits, NOTHING)])


@dataclass(frozen=True)
class Gcd(_OnPairs):
    """In base 1000, + 123 456 + 12 > + 12 .

    strata: where above 0, the greatest common divisors are even draws from 1 to so many and the operands those of the pairs
    that have them; else six of ten pairs have no common divisor but 1.
    """

    name: ClassVar[str] = "gcd"

    strata: int = 0

    def check(self, difficulty: int | Sequence[int], split: str = "train") -> None:
        super().check(difficulty, split)
        smallest = self.largest(min([difficulty] if isinstance(difficulty, int) else difficulty))
        if not 0 <= self.strata <= smallest:
            raise UsageError(
                f"{self.name} has {self.strata} strata and operands up to {smallest}: give strata from 0 to that many."
            )

    def pairs(self, draw: np.random.Generator, largest: int, count: int) -> NDArray[np.int64]:
        if not self.strata:
            return super().pairs(draw, largest, count)
        divisor = draw.integers(1, self.strata + 1, size=(count, 1))
        rest = draw.integers(1, largest // divisor + 1, size=(count, 2))
        while len(common := np.flatnonzero(np.gcd(*rest.T) > 1)):
            rest[common] = draw.integers(1, largest // divisor[common] + 1, size=(len(common), 2))
        return divisor * rest

    def made(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.gcd(first, second)

    def plainly(self, first: int, second: int) -> int:
        return math.gcd(first, second)


@dataclass(frozen=True)
class ModularMultiplication(_OnPairs):
    """With modulus 67 in base 1000, + 123 456 + 12 > + 35 .

    modulus: from 2 to 2^31.
    """

    name: ClassVar[str] = "modular-multiplication"

    modulus: int = 67

    def check(self, difficulty: int | Sequence[int], split: str = "train") -> None:
        super().check(difficulty, split)
        if not 2 <= self.modulus <= 2**31:
            raise UsageError(f"{self.name} has modulus {self.modulus}: give one from 2 to 2^31.")

    def made(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
        return (first % self.modulus) * (second % self.modulus) % self.modulus

    def plainly(self, first: int, second: int) -> int:
        return first * second % self.modulus
