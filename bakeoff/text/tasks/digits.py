"""Handwritten digits whose pixels are permuted: tasks that share their labels and nothing else."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bakeoff.text.tasks.task import SPLITS, Points, Task, Vocabulary, hashed, split_of

PIXELS = 64


@functools.cache
def _images() -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.uint64]]:
    # Scikit-learn takes a second to import.
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    return (pixels / 16).astype(np.float32), digits.astype(np.int64), hashed(pixels.astype(np.int64))


def images(split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All images of a split, [n, 64] from 0 to 1, and what they show, [n] from 0 to 9.

    Source: scikit-learn's bundled 1797 images of 8x8 pixels, the test part of the Optical Recognition of Handwritten
    Digits data of the UCI repository (Alpaydin and Kaynak 1998).
    """
    pixels, digits, key = _images()
    mine = split_of(key) == SPLITS.index(split)
    return pixels[mine], digits[mine]


def permutation(series: int, number: int) -> NDArray[np.int64]:
    """[64], the pixels' new order: always the same one for a number of a series; number 0 leaves them as they are."""
    if number == 0:
        return np.arange(PIXELS)
    return np.random.default_rng((series, number)).permutation(PIXELS)


@dataclass(frozen=True)
class PermutedDigits(Task[Points]):
    """Images as vectors [1, 64] whose pixels are in another order for each difficulty; the target [1] is the digit.

    An image is in the same split in every order. series: which of many series of permutations.
    """

    name: ClassVar[str] = "permuted-digits"
    unit: ClassVar[str] = "number of the permutation"
    least: ClassVar[int] = 0
    series: int = 0

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(())

    def draw(self, draw: np.random.Generator, difficulty: int, count: int) -> Points:
        pixels, digits, key = _images()
        chosen = draw.integers(len(pixels), size=count)
        inputs: NDArray[Any] = pixels[chosen][:, None, permutation(self.series, difficulty)]
        return Points(inputs, digits[chosen, None], key[chosen])
