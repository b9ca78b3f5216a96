"""One sentence hidden among others, and a question about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from bakeoff.errors import UsageError
from bakeoff.text.tasks.task import Examples, TokenTask, Vocabulary

_WORDS = ("the", "code", "of", "is", ".", "what", "?")


@dataclass(frozen=True)
class Needle(TokenTask):
    """w3 w8 . the code of k5 is v2 . w1 w1 w7 ... what is the code of k5 ? v2 .

    Sentences of random words, and among them one that gives a key a value; the question comes at the end. The difficulty is
    the number of words before the question, the hidden sentence's among them.

    keys, values, words: how many different ones there are. sentence: words of a sentence of filler, its full stop among them;
    the last one may be shorter. depth: the share of the filler that stands before the hidden sentence, from
    0 to 1, rounded to a whole number of sentences; -1 draws it for each example, all places having the same chance.

    Source: the test is Kamradt 2023 (needle in a haystack); keys, values and filler out of words of our own.
    """

    keys: int = 100
    values: int = 100
    words: int = 100
    sentence: int = 8
    depth: float = -1.0

    name: ClassVar[str] = "needle"
    least: ClassVar[int] = 7
    greatest: ClassVar[int] = 1 << 17

    def __post_init__(self) -> None:
        if min(self.keys, self.values, self.words) < 1 or self.sentence < 2:
            raise UsageError(f"{self.name} needs at least one key, value and word, and sentences of 2 words or more.")
        if self.depth != -1 and not 0 <= self.depth <= 1:
            raise UsageError(f"depth of {self.name} is {self.depth}: give a share from 0 to 1, or -1 to draw it.")

    @cached_property
    def vocabulary(self) -> Vocabulary:
        numbered = (
            f"{kind}{i}" for kind, n in (("k", self.keys), ("v", self.values), ("w", self.words)) for i in range(n)
        )
        return Vocabulary([*_WORDS, *numbered])

    def draw(self, draw: np.random.Generator, difficulty: int, count: int) -> Examples:
        words = self.vocabulary
        needle = np.tile(words.ids(("the", "code", "of", "k0", "is", "v0", ".")), (count, 1))
        asked = np.tile(words.ids(("what", "is", "the", "code", "of", "k0", "?")), (count, 1))
        needle[:, 3] += draw.integers(self.keys, size=count)
        needle[:, 5] += draw.integers(self.values, size=count)
        asked[:, 5] = needle[:, 3]
        room = difficulty - needle.shape[1]
        filler = draw.integers(words.id("w0"), words.id("w0") + self.words, size=(count, room), dtype=np.int32)
        filler[:, self.sentence - 1 :: self.sentence] = words.id(".")
        filler[:, -1:] = words.id(".")
        sentences = room // self.sentence
        drawn = draw.integers(sentences + 1, size=(count, 1))
        before = drawn if self.depth < 0 else round(self.depth * sentences)
        place = np.arange(difficulty) - before * self.sentence + np.zeros((count, 1), np.int64)
        hidden = (place >= 0) & (place < needle.shape[1])
        text = np.empty((count, difficulty), np.int32)
        text[~hidden] = filler.ravel()
        text[hidden] = needle.ravel()
        return Examples.of(np.hstack([text, asked]), needle[:, [5, 6]])

    def solve(self, question: Sequence[str]) -> list[str]:
        words = list(question)
        key = words[-2]
        told = words[: words.index("what")]
        at = next(i for i in range(len(told)) if told[i : i + 3] == ["the", "code", "of"] and told[i + 3] == key)
        return [told[at + 5], "."]
