"""Chains of small operations: a value and what is done to it, one step after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from bakeoff.errors import UsageError
from bakeoff.text.tasks.task import Examples, TokenTask, Vocabulary

END = "."
FORMATS = ("plain", "chain_of_thought")


@dataclass(frozen=True)
class ModularChain(TokenTask):
    """A digit, as many operations on it as the difficulty says, ".", perhaps a chain of thought, ".", the last value, ".".

    With "chain_of_thought" 3 +4 *7 +2 . 7 9 . 1 . where the running values but the last are told, else 3 +4 *7 +2 . . 1 .

    modulus: values are from 0 to below it. operations: "+" for additions only, "+*" for additions and multiplications with
    equal chance; numbers that are multiplied by have an inverse, so that no step forgets the value. format: one of FORMATS.
    """

    name: ClassVar[str] = "modular-chain"
    unit: ClassVar[str] = "number of steps"
    greatest: ClassVar[int] = 128

    modulus: int = 10
    operations: str = "+*"
    format: str = "plain"

    @cached_property
    def vocabulary(self) -> Vocabulary:
        values, factors = range(self.modulus), self._factors
        return Vocabulary([END, *map(str, values), *(f"+{v}" for v in values), *(f"*{v}" for v in factors)])

    @property
    def _factors(self) -> list[int]:
        return [v for v in range(self.modulus) if "*" in self.operations and math.gcd(v, self.modulus) == 1]

    def check(self, difficulty: int | Sequence[int], split: str = "train") -> None:
        super().check(difficulty, split)
        if self.modulus < 2 or self.operations not in ("+", "+*") or self.format not in FORMATS:
            raise UsageError(
                f"{self.name} has modulus {self.modulus}, operations {self.operations!r} and format {self.format!r}: give a "
                f"modulus from 2, '+' or '+*', and one of {', '.join(FORMATS)}."
            )

    def draw(self, draw: np.random.Generator, difficulty: int, count: int) -> Examples:
        added = draw.integers(self.modulus, size=(count, difficulty))
        factors, which = np.array(self._factors or [1]), np.zeros((count, difficulty), np.int64)
        multiplied = np.zeros((count, difficulty), bool)
        if self._factors:
            which = draw.integers(len(factors), size=which.shape)
            multiplied = draw.random(which.shape, dtype=np.float32) < 0.5
        value = draw.integers(self.modulus, size=count)
        first, values = value, np.empty((count, difficulty), np.int64)
        for step in range(difficulty):
            changed = np.where(multiplied[:, step], value * factors[which[:, step]], value + added[:, step])
            value = values[:, step] = changed % self.modulus
        zero, size, end = self.vocabulary.id("0"), self.modulus, np.full((count, 1), self.vocabulary.id(END))
        operations = zero + np.where(multiplied, 2 * size + which, size + added)
        question = np.hstack([zero + first[:, None], operations, end])
        told = zero + values[:, : -1 if self.format == "chain_of_thought" else 0]
        return Examples.of(question, np.hstack([told, end, zero + values[:, -1:], end]))

    def solve(self, question: Sequence[str]) -> list[str]:
        values = [int(question[0])]
        for word in question[1:-1]:
            number = int(word[1:])
            values.append((values[-1] + number if word[0] == "+" else values[-1] * number) % self.modulus)
        told = map(str, values[1:-1]) if self.format == "chain_of_thought" else ()
        return [*told, END, str(values[-1]), END]
