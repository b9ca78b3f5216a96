"""Permuted digits: the images are all there, splits hold under every permutation, permutations are fixed."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from bakeoff.text import tasks
from bakeoff.text.tasks.digits import PIXELS, images, permutation


def test_splits_hold_every_image_once() -> None:
    parts = [images(split) for split in tasks.SPLITS]
    assert sum(len(digits) for _, digits in parts) == 1797
    assert all(abs(len(part[1]) / 1797 - share) < 0.03 for part, share in zip(parts, (0.8, 0.1, 0.1), strict=True))
    assert all(set(digits) == set(range(10)) for _, digits in parts)
    assert all(pixels.min() == 0 and pixels.max() == 1 for pixels, _ in parts)
    seen = [{row.tobytes() for row in pixels} for pixels, _ in parts]
    assert not seen[0] & seen[1] | seen[0] & seen[2] | seen[1] & seen[2]


def test_permutations_are_fixed_and_differ() -> None:
    assert np.array_equal(permutation(0, 0), np.arange(PIXELS))
    made = [tuple(permutation(series, number)) for series in (0, 1) for number in (1, 2, 3)]
    assert len(set(made)) == 6
    assert all(sorted(order) == list(range(PIXELS)) for order in made)
    assert tuple(permutation(0, 1)) == made[0]


def test_a_permuted_image_is_the_image_in_another_order() -> None:
    task = tasks.make("permuted-digits(series=4)")
    pixels, digits = images("test")
    known = {row.tobytes(): digit for row, digit in zip(pixels, digits, strict=True)}
    drawn = task.examples("test", 3, 100)
    assert drawn.inputs.shape == (100, 1, PIXELS)
    back = np.empty((100, PIXELS), np.float32)
    back[:, permutation(4, 3)] = drawn.inputs[:, 0]
    assert [known[row.tobytes()] for row in back] == drawn.targets[:, 0].tolist()
    assert not np.array_equal(back, drawn.inputs[:, 0])


def test_scikit_learn_is_imported_only_when_used() -> None:
    code = "import sys; from bakeoff.text import tasks; tasks.found(); sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
