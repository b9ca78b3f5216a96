"""Counting in text that is spelled in letters: one letter in a word, the words of a sentence."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from bakeoff.errors import UsageError
from bakeoff.text.tasks.task import NOTHING, Examples, TokenTask, Vocabulary

_SPACE = "_"


@dataclass(frozen=True)
class _Spelled(TokenTask):
    """letters: how many different ones there are, from a. The answer is one token, a number."""

    letters: int = 26

    greatest: ClassVar[int] = 64

    def __post_init__(self) -> None:
        if not 2 <= self.letters <= 26:
            raise UsageError(f"letters of {self.name} is {self.letters}: give a number from 2 to 26.")

    @cached_property
    def vocabulary(self) -> Vocabulary:
        numbers = map(str, range(self.greatest + 1))
        return Vocabulary(
            ["how", "many", "in", "words", "?", ".", _SPACE, *numbers, *string.ascii_lowercase[: self.letters]]
        )


@dataclass(frozen=True)
class LetterCount(_Spelled):
    """how many r in s t r a w b e r r y ? 3 .

    A word of random letters, in which the one that is asked for stands at random places; every number of them, from none to
    the whole word, has the same chance. The difficulty is the length of the word.
    """

    name: ClassVar[str] = "letter-count"

    def draw(self, draw: np.random.Generator, difficulty: int, count: int) -> Examples:
        words = self.vocabulary
        asked = draw.integers(self.letters, size=(count, 1))
        # A step of 1 to letters - 1 from the letter that is asked for leads to any other one.
        word = (asked + draw.integers(1, self.letters, (count, difficulty))) % self.letters
        times = draw.integers(difficulty + 1, size=(count, 1))
        chosen = draw.random((count, difficulty), dtype=np.float32).argsort(1) < times
        word = np.where(chosen, asked, word)
        column = np.ones((count, 1), np.int64)
        question = [
            column * words.id("how"), column * words.id("many"), asked + words.id("a"), column * words.id("in"),
            word + words.id("a"), column * words.id("?"),
        ]  # fmt: skip
        return Examples.of(np.hstack(question), np.hstack([times + words.id("0"), column * words.id(".")]))

    def solve(self, question: Sequence[str]) -> list[str]:
        return [str(list(question[4:-1]).count(question[2])), "."]


@dataclass(frozen=True)
class WordCount(_Spelled):
    """how many words in t h e _ o l d _ s e a ? 3 .

    Words of random letters; the difficulty is the greatest number of words, and every number from 1 on has the same chance.
    longest: the greatest length of a word; lengths have the same chance, too.
    """

    longest: int = 6

    name: ClassVar[str] = "word-count"
    unit: ClassVar[str] = "words"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.longest < 1:
            raise UsageError(f"longest of {self.name} is {self.longest}: give at least 1.")

    def draw(self, draw: np.random.Generator, difficulty: int, count: int) -> Examples:
        words = self.vocabulary
        number = draw.integers(1, difficulty + 1, (count, 1))
        spelled = draw.integers(self.letters, size=(count, difficulty, self.longest)) + words.id("a")
        length = draw.integers(1, self.longest + 1, (count, difficulty, 1))
        there = np.arange(difficulty)[:, None] < number[..., None]
        place = np.arange(self.longest)
        spaces = np.where((np.arange(difficulty)[:, None] > 0) & there, words.id(_SPACE), NOTHING)
        sentence = np.concatenate([spaces, np.where(there & (place < length), spelled, NOTHING)], 2)
        column = np.ones((count, 1), np.int64)
        question = [
            np.tile(words.ids(("how", "many", "words", "in")), (count, 1)),
            sentence.reshape(count, -1),
            column * words.id("?"),
        ]
        return Examples.of(np.hstack(question), np.hstack([number + words.id("0"), column * words.id(".")]))

    def solve(self, question: Sequence[str]) -> list[str]:
        return [str(len("".join(question[4:-1]).split(_SPACE))), "."]
