"""Which examples a step takes from which set, questions for every divisor, and how many divisors are known."""

from __future__ import annotations

import numpy as np
import pytest

from bakeoff.studies import repeated_examples as study
from bakeoff.text.tasks.divisors import Gcd

TASK = Gcd(base=30)


def sets(
    rows: int = 1000, limited: int = 0, small: int = 100, chance: float = 0.25, mixed: bool = True
) -> study.TwoSets:
    return study.TwoSets(TASK, 2, rows, 7, limited, small, chance, mixed)


def test_the_small_set_comes_with_its_chance() -> None:
    places = np.concatenate([sets(100_000, small=1000).chosen(step) for step in range(10)])
    counts = np.bincount(places[places >= 0], minlength=1000)
    # A million draws: 250,000 give or take three deviations of 433, each item 250 times give or take five of 16.
    assert abs(counts.sum() - 250_000) < 1300
    assert len(counts) == 1000
    assert np.abs(counts - 250).max() < 80


def test_a_single_set_repeats_evenly() -> None:
    counts = np.bincount(sets(100_000, limited=500, small=0, chance=0.0).chosen(3), minlength=500)
    assert len(counts) == 500
    assert np.abs(counts - 200).max() < 75


def test_chance_in_proportion_to_size_is_a_single_set() -> None:
    counts = np.bincount(sets(100_000, limited=400, small=100, chance=0.25).chosen(3), minlength=400)
    assert np.abs(counts - 250).max() < 80


def test_chances_of_zero_and_one_leave_one_set() -> None:
    assert (sets(chance=0.0).chosen(0) == -1).all()
    assert 0 <= sets(chance=1.0).chosen(0).min() <= sets(chance=1.0).chosen(0).max() < 100
    assert sets(limited=300, chance=0.0).chosen(0).min() >= 100


def test_batches_are_mixed_or_of_one_set() -> None:
    shares = [float((sets(64).chosen(step) >= 0).mean()) for step in range(400)]
    assert all(0 < share < 1 for share in shares)
    whole = [float((sets(64, mixed=False).chosen(step) >= 0).mean()) for step in range(400)]
    assert set(whole) == {0.0, 1.0}
    assert np.mean(whole) == pytest.approx(0.25, abs=0.07)


def test_small_set_stays_and_new_examples_do_not_come_back() -> None:
    made = sets(64)
    known = {tuple(question) for question, _ in made.fixed.rows()}
    assert len(made.fixed) == 100
    seen: list[tuple[int, ...]] = []
    for step in range(20):
        batch = made(step)
        assert len(batch.input_ids) == 64
        rows = [tuple(r[: r.index(TASK.vocabulary.id(">")) + 1]) for r in batch.input_ids.tolist()]
        count = int((made.chosen(step) >= 0).sum())
        assert set(rows[:count]) <= known
        seen += rows[count:]
    assert len(set(seen)) > 0.99 * len(seen)
    assert made(3).input_ids.equal(sets(64)(3).input_ids)


def test_no_test_question_is_trained_on() -> None:
    asked = set(study.stratified(Gcd(base=30, strata=30), 2, "test", 10).key.tolist())
    assert not asked & set(sets(limited=20_000).fixed.key.tolist())


@pytest.mark.parametrize(("base", "digits", "strata"), [(30, 2, 30), (10, 3, 20), (2, 9, 5)])
def test_every_divisor_is_asked_for_equally_often(base: int, digits: int, strata: int) -> None:
    task = Gcd(base=base, strata=strata)
    asked = study.stratified(task, digits, "test", 12)
    answers = []
    for _, answer in asked.rows():
        value = 0
        for digit in task.vocabulary.words(answer)[1:-1]:
            value = base * value + int(digit)
        answers.append(value)
    assert answers == list(range(1, strata + 1)) * 12


def test_a_divisor_is_known_from_95_percent_on() -> None:
    assert study.known(np.array([[20.0, 19.0, 18.0, 0.0, 20.0, 20.0, 20.0, 20.0]])).tolist() == [2.0]
