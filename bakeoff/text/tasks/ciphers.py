"""Ciphers on letters: shifts of the alphabet and substitutions."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bakeoff.errors import UsageError
from bakeoff.text.tasks.task import Examples, TokenTask, Vocabulary, hashed

LETTERS = string.ascii_lowercase
COUNT = len(LETTERS)
SEPARATOR, END = ">", "."


@dataclass(frozen=True)
class _Cipher(TokenTask):
    """A key, random letters, ">", and the letters enciphered, "."; the difficulty is how many letters there are.

    key: one key for all, which the question then leaves out; 0 draws a key for each. decode: ask for the plain letters
    instead. The splits are those of the plain letters together with the key.
    """

    key: int = 0
    decode: bool = False

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary([SEPARATOR, END, *self.key_words, *LETTERS])

    @property
    def key_words(self) -> Sequence[str]:
        """What keys are written with, besides letters."""
        return ()

    def keys(self, draw: np.random.Generator, count: int) -> NDArray[np.int64]:
        """[count, 26]: for each example the places of the letters that stand for a to z."""
        raise NotImplementedError

    def told(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """[count, any]: the keys as token ids."""
        raise NotImplementedError

    def key_of(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """The letters that stand for a to z, and the rest of the question."""
        raise NotImplementedError

    def draw(self, draw: np.random.Generator, difficulty: int, count: int) -> Examples:
        keys, first = self.keys(draw, count), self.vocabulary.id(LETTERS[0])
        plain = draw.integers(COUNT, size=(count, difficulty))
        enciphered = np.take_along_axis(keys, plain, 1)
        asked, answered = (enciphered, plain) if self.decode else (plain, enciphered)
        column = np.ones((count, 1), np.int64)
        told = column[:, :0] if self.key else self.told(keys)
        question = np.hstack([told, asked + first, column * self.vocabulary.id(SEPARATOR)])
        answer = np.hstack([answered + first, column * self.vocabulary.id(END)])
        return Examples.of(question, answer, hashed(np.hstack([told, plain])))

    def solve(self, question: Sequence[str]) -> list[str]:
        key, letters = self.key_of(question[:-1])
        told = dict(zip(key, LETTERS, strict=True)) if self.decode else dict(zip(LETTERS, key, strict=True))
        return [*(told[letter] for letter in letters), END]


@dataclass(frozen=True)
class ShiftCipher(_Cipher):
    """3 a b z > d e c . (Caesar's cipher). key: 1 to 25, or 0 to draw one of these for each."""

    name: ClassVar[str] = "shift-cipher"

    def check(self, difficulty: int | Sequence[int], split: str = "train") -> None:
        super().check(difficulty, split)
        if not 0 <= self.key < COUNT:
            raise UsageError(f"{self.name} has no key {self.key}: choose 1 to {COUNT - 1}, or 0 to draw one.")

    @property
    def key_words(self) -> Sequence[str]:
        return [str(shift) for shift in range(1, COUNT)]

    def keys(self, draw: np.random.Generator, count: int) -> NDArray[np.int64]:
        shifts = np.full(count, self.key) if self.key else draw.integers(1, COUNT, size=count)
        return (np.arange(COUNT) + shifts[:, None]) % COUNT

    def told(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        return keys[:, :1] - 1 + self.vocabulary.id("1")

    def key_of(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        shift, letters = (self.key, words) if self.key else (int(words[0]), words[1:])
        return [chr(ord("a") + (ord(letter) - ord("a") + shift) % COUNT) for letter in LETTERS], list(letters)


@dataclass(frozen=True)
class SubstitutionCipher(_Cipher):
    """q w e ... m , a b z > q w m . (the letters that stand for a to z come first). key: a seed, or 0 to draw anew for each."""

    name: ClassVar[str] = "substitution-cipher"

    @property
    def key_words(self) -> Sequence[str]:
        return [","]

    def keys(self, draw: np.random.Generator, count: int) -> NDArray[np.int64]:
        if self.key:
            return np.tile(self._fixed, (count, 1))
        return draw.random((count, COUNT), dtype=np.float32).argsort(1)

    def told(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        comma = np.full((len(keys), 1), self.vocabulary.id(","))
        return np.hstack([keys + self.vocabulary.id(LETTERS[0]), comma])

    def key_of(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        if self.key:
            return [LETTERS[place] for place in self._fixed], list(words)
        return list(words[:COUNT]), list(words[COUNT + 1 :])

    @property
    def _fixed(self) -> NDArray[Any]:
        return np.random.default_rng(self.key).permutation(COUNT)
