"""Every synthetic task: the same examples for the same arguments, splits that share nothing, exact answers, clear errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bakeoff.errors import DataError, UsageError
from bakeoff.text import tasks
from bakeoff.text.tasks.task import IGNORED, NOTHING, Examples, Points, Task, TokenTask, hashed, split_of

ALL = sorted(tasks.found())
WRITTEN = [name for name in ALL if issubclass(tasks.found()[name], TokenTask)]


def some(task: Task[Any]) -> list[int]:
    """Difficulties of a task: small ones, and one in the middle."""
    return sorted({task.least, min(task.least + 2, task.greatest), min(task.least + 5, task.greatest)})


def drawn(task: Task[Any], split: str, count: int, seed: int = 0) -> Any:
    """Examples of the most difficult of `some`, which has questions enough for every split."""
    return task.examples(split, some(task)[-1], count, seed)


@pytest.mark.parametrize("name", ALL)
def test_same_arguments_give_same_examples_and_other_seeds_others(name: str) -> None:
    task = tasks.make(name)
    one, same, other = (drawn(task, "train", 40, seed) for seed in (1, 1, 2))
    for field in vars(one):
        assert np.array_equal(getattr(one, field), getattr(same, field))
    assert not np.array_equal(one.key, other.key)
    assert len(one) == 40


@pytest.mark.parametrize("name", ALL)
def test_splits_share_no_question(name: str) -> None:
    task = tasks.make(name)
    found = {split: [drawn(task, split, 200, seed) for seed in (0, 1)] for split in tasks.SPLITS}
    keys = {split: {int(k) for part in parts for k in part.key} for split, parts in found.items()}
    assert not keys["train"] & keys["validation"]
    assert not keys["train"] & keys["test"]
    assert not keys["validation"] & keys["test"]
    if isinstance(task, TokenTask):
        asked = {
            split: {tuple(question) for part in parts for question, _ in part.rows()} for split, parts in found.items()
        }
        assert not asked["train"] & (asked["validation"] | asked["test"])
        assert not asked["validation"] & asked["test"]
    else:
        seen = {split: {row.tobytes() for part in parts for row in part.inputs} for split, parts in found.items()}
        assert not seen["train"] & (seen["validation"] | seen["test"])


@pytest.mark.parametrize("name", WRITTEN)
def test_answers_are_those_of_the_plain_solution(name: str) -> None:
    task = tasks.make(name)
    assert isinstance(task, TokenTask)
    words = task.vocabulary
    assert len(set(words)) == len(words)
    for difficulty in some(task):
        examples = task.examples("train", difficulty, 50)
        assert examples.tokens.min() >= 0
        assert examples.tokens.max() < len(words)
        for question, answer in examples.rows():
            assert question, "an example asks something"
            assert answer, "an example has an answer"
            assert tasks.PAD not in question + answer
            assert words.words(answer) == task.solve(words.words(question))


@pytest.mark.parametrize("name", ALL)
def test_several_difficulties_come_about_equally_often_and_the_same_each_time(name: str) -> None:
    task = tasks.make(name)
    several = some(task)[-2:]
    mixed, again = (task.examples("train", several, 60, 3) for _ in range(2))
    assert len(mixed) == 60
    assert np.array_equal(mixed.key, again.key)


@pytest.mark.parametrize("name", ALL)
def test_what_a_task_does_not_have_gets_one_sentence(name: str) -> None:
    task = tasks.make(name)
    for wrong in (task.least - 1, task.greatest + 1):
        with pytest.raises(UsageError, match=f"{task.unit} of {wrong}: choose from {task.least} to {task.greatest}"):
            task.examples("train", wrong, 2)
    with pytest.raises(UsageError, match="no split 'dev'"):
        task.examples("dev", task.least, 2)


def test_a_task_is_made_from_text() -> None:
    assert tasks.make("sorting(symbols=7, unique=True)") == tasks.found()["sorting"](symbols=7, unique=True)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="sorting"):
        tasks.make("sortng")
    with pytest.raises(UsageError, match="symbols"):
        tasks.make("sorting(symbol=7)")
    with pytest.raises(UsageError, match="give a int"):
        tasks.make("sorting(symbols='many')")
    with pytest.raises(UsageError, match="too few for 8 different ones"):
        tasks.make("sorting(symbols=7, unique=True)").examples("train", 8, 1)


def test_difficulties_are_read_from_text() -> None:
    assert tasks.difficulties("3") == (3,)
    assert tasks.difficulties("1-3, 7,2") == (1, 2, 3, 7)
    for wrong in ("", "a", "3-1", "-2"):
        with pytest.raises(UsageError):
            tasks.difficulties(wrong)


def test_a_split_without_a_question_says_so() -> None:
    task = tasks.make("copying(symbols=1)")
    own = tasks.SPLITS[int(split_of(task.draw(np.random.default_rng(0), 1, 1).key)[0])]
    assert len(task.examples(own, 1, 3)) == 3
    other = next(split for split in tasks.SPLITS if split != own)
    with pytest.raises(DataError, match=f"too few questions with a length of 1 for its {other} split"):
        task.examples(other, 1, 3)


def test_examples_close_gaps_pad_and_label() -> None:
    made = Examples.of(np.array([[5, NOTHING, 6], [7, NOTHING, NOTHING]]), np.array([[8, 9], [NOTHING, 8]]))
    assert made.tokens.tolist() == [[5, 6, 8, 9], [7, 8, 0, 0]]
    assert made.rows() == [([5, 6], [8, 9]), ([7], [8])]
    assert made.labels().tolist() == [[IGNORED, IGNORED, 8, 9], [IGNORED, 8, IGNORED, IGNORED]]
    assert made.labels(question=True).tolist() == [[5, 6, 8, 9], [7, 8, IGNORED, IGNORED]]
    assert made[[1]].rows() == [([7], [8])]
    longer = Examples.of(np.array([[1, 2, 3, 4, 5]]), np.array([[6]]))
    assert Examples.joined([made, longer]).rows() == [*made.rows(), *longer.rows()]


def test_the_key_does_not_depend_on_padding_or_gaps() -> None:
    tight = Examples.of(np.array([[5, 6]]), np.array([[8]]))
    loose = Examples.of(np.array([[5, NOTHING, 6, NOTHING]]), np.array([[9, 9]]))
    assert tight.key == loose.key
    assert tight.key != Examples.of(np.array([[6, 5]]), np.array([[8]])).key


def test_splits_have_their_shares() -> None:
    shares = np.bincount(split_of(hashed(np.arange(100_000)[:, None]))) / 100_000
    assert np.allclose(shares, [0.8, 0.1, 0.1], atol=0.005)


def test_points_take_rows_like_examples() -> None:
    points = Points(np.zeros((3, 2, 4), np.float32), np.arange(6).reshape(3, 2), np.arange(3, dtype=np.uint64))
    assert points[1:].targets.tolist() == [[2, 3], [4, 5]]
    assert len(Points.joined([points, points[:1]])) == 4


def test_sorting_with_repeats_and_without() -> None:
    assert tasks.make("sorting").solve(["3", "1", "3", "2", ">"]) == ["1", "2", "3", "3", "."]
    unique = tasks.make("sorting(symbols=12, unique=True)").examples("test", 12, 30)
    assert all(sorted(q[:-1]) == a[:-1] and len(set(a)) == 13 for q, a in unique.rows())
