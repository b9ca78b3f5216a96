"""Lists of nouns that are told a second time, for verbatim recall in context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from bakeoff.errors import UsageError
from bakeoff.text.tasks.task import Examples, TokenTask, Vocabulary, hashed

NOUNS = (
    "anchor", "apple", "arrow", "basket", "beach", "bell", "bench", "bird", "boat", "book", "bottle", "bridge",
    "brush", "bucket", "button", "candle", "carpet", "castle", "chair", "cherry", "circle", "clock", "cloud", "coat",
    "coin", "corner", "cup", "curtain", "desk", "dish", "doctor", "door", "dress", "drum", "eagle", "engine", "farmer",
    "feather", "fence", "field", "finger", "flag", "floor", "flower", "forest", "fork", "garden", "gate", "glass",
    "glove", "goat", "guitar", "hammer", "harbour", "hat", "hill", "honey", "horse", "house", "island", "jacket",
    "jar", "kettle", "key", "king", "kitchen", "ladder", "lake", "lamp", "leaf", "lemon", "letter", "lion", "map",
    "market", "meadow", "mirror", "mountain", "needle", "oven", "paper", "pencil", "piano", "pillow", "plate",
    "pocket", "queen", "rabbit", "ribbon", "river", "road", "roof", "rope", "sailor", "school", "shadow", "shirt",
    "spoon", "stone", "street",
)  # fmt: skip
_ASKED = ("all", "one")


@dataclass(frozen=True)
class NounList(TokenTask):
    """the list : lamp , river , goat . the list again : lamp , river , goat .

    The difficulty is how many nouns the list has. asked: "all", the whole list in its order; or "one", the noun at a place
    that is drawn, as in: the list : lamp , river , goat . number 2 of the list : river . nouns: how many different ones there
    are, the first of NOUNS. unique: whether a list has none of them twice. To the splits, a list is one question whatever is
    asked about it.

    Source: after Armeni, Honey and Linzen 2022, arXiv:2210.13569, with nouns and sentences of our own.
    """

    asked: str = "all"
    nouns: int = 100
    unique: bool = True

    name: ClassVar[str] = "noun-list"
    unit: ClassVar[str] = "length"
    greatest: ClassVar[int] = 100

    def __post_init__(self) -> None:
        if self.asked not in _ASKED:
            raise UsageError(f"asked of {self.name} is {self.asked!r}: choose all or one.")
        if not 1 <= self.nouns <= len(NOUNS):
            raise UsageError(f"nouns of {self.name} is {self.nouns}: give a number from 1 to {len(NOUNS)}.")

    @cached_property
    def vocabulary(self) -> Vocabulary:
        words = ("the", "list", ":", ",", ".", "again", "number", "of")
        return Vocabulary([*words, *NOUNS[: self.nouns], *map(str, range(1, self.greatest + 1))])

    def check(self, difficulty: int | Sequence[int], split: str = "train") -> None:
        super().check(difficulty, split)
        longest = difficulty if isinstance(difficulty, int) else max(difficulty)
        if self.unique and longest > self.nouns:
            raise UsageError(
                f"{self.name} has {self.nouns} nouns, too few for a list of {longest} different ones: give more nouns, "
                "unique=False or a smaller length."
            )

    def draw(self, draw: np.random.Generator, difficulty: int, count: int) -> Examples:
        words = self.vocabulary
        if self.unique:
            chosen = draw.random((count, self.nouns), dtype=np.float32).argpartition(difficulty - 1, 1)[:, :difficulty]
            chosen = draw.permuted(chosen, axis=1)
        else:
            chosen = draw.integers(self.nouns, size=(count, difficulty))
        nouns = chosen + words.id(NOUNS[0])
        listed = np.full((count, 2 * difficulty), words.id(","))
        listed[:, ::2] = nouns
        listed[:, -1] = words.id(".")
        begun = np.tile(words.ids(("the", "list", ":")), (count, 1))
        if self.asked == "all":
            again = np.tile(words.ids(("the", "list", "again", ":")), (count, 1))
            return Examples.of(np.hstack([begun, listed, again]), listed, hashed(nouns))
        place = draw.integers(difficulty, size=(count, 1))
        which = np.tile(words.ids(("number", "1", "of", "the", "list", ":")), (count, 1))
        which[:, 1:2] += place
        answer = np.hstack([np.take_along_axis(nouns, place, 1), np.full((count, 1), words.id("."))])
        return Examples.of(np.hstack([begun, listed, which]), answer, hashed(nouns))

    def solve(self, question: Sequence[str]) -> list[str]:
        told = " ".join(question).split(" . ")
        nouns = told[0].removeprefix("the list : ").split(" , ")
        if self.asked == "all":
            return [*" , ".join(nouns).split(), "."]
        return [nouns[int(told[1].split()[1]) - 1], "."]
