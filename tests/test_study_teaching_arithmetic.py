"""Training sums, the examples that a format needs, and what completing the table of sums can know."""

from __future__ import annotations

import numpy as np
import pytest

from bakeoff.errors import UsageError
from bakeoff.studies.teaching_arithmetic import completed, enough, known, rise
from bakeoff.text.tasks.arithmetic import Addition, added
from bakeoff.text.tasks.task import split_of


def test_training_sums_are_different_nested_and_of_the_train_split() -> None:
    operands = known(3000, 10, 3, seed=4)
    assert operands.shape == (2, 3000, 3)
    assert np.array_equal(operands[:, :700], known(700, 10, 3, seed=4))
    assert not np.array_equal(operands, known(3000, 10, 3, seed=5))
    whole = operands @ [1, 10, 100]
    assert len({tuple(pair) for pair in whole.T.tolist()}) == 3000
    assert (split_of(Addition().written(np.random.default_rng(0), *operands).key) == 0).all()


def test_training_sums_are_balanced_by_digits_and_carries() -> None:
    operands = known(10_000, 10, 3, seed=0)
    whole = operands @ [1, 10, 100]
    single = (whole < 10).all(0)
    # About eight tenths of the hundred pairs of single digits belong to train, and they stand first.
    count = int(single[:100].cumprod().sum())
    assert 65 <= count <= 95
    assert np.mean((whole[:, count:] < 100).all(0)) == pytest.approx(0.09, abs=0.02)
    carries = added(*operands[:, count:], 10)[1].sum(1)
    large = (whole[:, count:] >= 100).any(0)
    assert np.allclose(np.bincount(carries[large]) / large.sum(), 1 / 4, atol=0.03)


def test_too_many_training_sums_get_one_sentence() -> None:
    with pytest.raises(UsageError, match="choose fewer examples or more digits"):
        known(20, 2, 2, seed=0)


def test_examples_needed_lie_on_a_line_between_logarithms() -> None:
    grid = (1000, 2000, 4000)
    assert enough(grid, np.array([0.2, 0.9, 1.0]), 9000) == pytest.approx(2000 * 2**0.5)
    assert enough(grid, np.array([0.2, 0.95, 1.0]), 9000) == pytest.approx(2000)
    assert enough(grid, np.array([0.96, 0.97, 1.0]), 9000) == 1000
    assert enough(grid, np.array([0.2, 0.5, 0.9]), 9000) == 9000
    # What falls below 95% again has not got there.
    assert enough(grid, np.array([0.96, 0.9, 1.0]), 9000) == pytest.approx(2000 * 2**0.5)


def test_the_rise_is_over_four_times_the_examples_at_most() -> None:
    assert rise((500, 1000, 2000, 16000), np.array([0.1, 0.3, 0.8, 1.0])) == pytest.approx(0.7)
    assert rise((500, 4000), np.array([0.0, 1.0])) == 0


def of_cells(cells: list[tuple[int, int]], base: int) -> np.ndarray:
    return np.array(cells).T[:, :, None] % base


def test_completion_knows_what_linear_algebra_knows() -> None:
    draw, size = np.random.default_rng(2), 5
    unit = np.eye(2 * size)

    def row(i: int, j: int) -> np.ndarray:
        return unit[i] + unit[size + j]

    for known_cells in range(1, 21):
        cells = [divmod(int(cell), size) for cell in draw.permutation(size**2)[:known_cells]]
        matrix = np.array([row(*cell) for cell in cells])
        rank = np.linalg.matrix_rank(matrix)
        follows = [np.linalg.matrix_rank(np.vstack([matrix, row(*divmod(at, size))])) == rank for at in range(size**2)]
        assert completed(of_cells(cells, size), size) == pytest.approx(np.mean(follows))


def test_a_row_and_a_column_complete_the_table() -> None:
    size = 9
    cells = [(i, 0) for i in range(size)] + [(0, j) for j in range(1, size)]
    assert len(cells) == 2 * size - 1
    assert completed(of_cells(cells, size), size) == 1
    assert completed(of_cells(cells[1:], size), size) < 1


def test_random_cells_complete_a_table_of_a_hundred_half_of_the_time_from_567() -> None:
    # Isolated rows and columns are Poisson with mean 2 n exp(-m / n) = ln 2 at m = n (ln n + ln(2 / ln 2)) = 567.
    draw, size, whole = np.random.default_rng(0), 100, 0
    for _ in range(300):
        cells = draw.permutation(size**2)[:567]
        whole += completed(np.stack(np.divmod(cells, size))[:, :, None], size) == 1
    assert whole / 300 == pytest.approx(0.5, abs=0.1)
