"""Greatest common divisors, modular products, and chains of operations: the papers' numbers, strata, formats."""

from __future__ import annotations

import numpy as np
import pytest

from bakeoff.errors import UsageError
from bakeoff.text import tasks
from bakeoff.text.tasks.chains import ModularChain
from bakeoff.text.tasks.divisors import Gcd, ModularMultiplication


def numbers(
    task: Gcd | ModularMultiplication, count: int, difficulty: int = 3
) -> tuple[list[int], list[int], list[int]]:
    """First operands, second operands and answers of examples for the test."""
    found: list[list[int]] = []
    for question, answer in task.text(task.examples("test", difficulty, count)):
        row: list[int] = []
        for part in f"{question} {answer}".replace(">", "").replace(".", "").split("+")[1:]:
            value = 0
            for digit in part.split():
                value = task.base * value + int(digit)
            row.append(value)
        found.append(row)
    first, second, answers = map(list, zip(*found, strict=True))
    return first, second, answers


def test_numbers_are_written_in_their_base() -> None:
    task = Gcd(limit=10**6)
    assert task._written(np.array([123456, 7]))[0].tolist() == task.vocabulary.ids(["+", "123", "456"])
    assert task.solve(["+", "123", "456", "+", "12", ">"]) == ["+", "12", "."]
    assert task.solve(["+", "1", "0", "0", "+", "1", "0", ">"]) == ["+", "1", "0", "."]
    assert Gcd(base=2).solve(["+", "1", "1", "0", "+", "1", "0", "0", ">"]) == ["+", "1", "0", "."]


def test_products_are_those_of_the_paper() -> None:
    task = ModularMultiplication(limit=10**6)
    assert task.solve(["+", "67", "+", "3", ">"]) == ["+", "0", "."]
    # 999999 = 24 modulo 67, and 24^2 = 576 = 40.
    assert task.solve(["+", "999", "999", "+", "999", "999", ">"]) == ["+", "40", "."]
    assert task.solve(["+", "123", "456", "+", "12", ">"]) == ["+", "35", "."]
    assert task.made(np.array([999_999]), np.array([999_999])) == 40
    # A product is 0 where either operand is: 1 - (1 - 14925 / 10^6)^2 = 0.0296, give or take 0.0024.
    drawn = task.examples("train", 3, 50_000)
    zero = drawn.tokens[np.arange(50_000), drawn.answer + 1] == task.vocabulary.id("0")
    assert zero.mean() == pytest.approx(0.0296, abs=0.0024)


def test_greatest_common_divisors_have_their_natural_shares() -> None:
    first, second, answers = numbers(Gcd(limit=10**6), 20_000)
    assert min(*first, *second) >= 1
    assert 990_000 < max(*first, *second) <= 10**6
    for divisor in (1, 2, 5):
        share = 6 / (np.pi * divisor) ** 2
        assert np.mean(np.array(answers) == divisor) == pytest.approx(share, abs=4 * (share / 20_000) ** 0.5)


def test_strata_are_equally_frequent() -> None:
    first, second, answers = numbers(Gcd(limit=10**6, strata=100), 20_000)
    assert np.array_equal(np.gcd(first, second), answers)
    counts = np.bincount(answers, minlength=101)
    assert counts[0] == 0
    assert len(counts) == 101
    assert np.abs(counts[1:] - 200).max() < 5 * 200**0.5
    assert set(Gcd(base=10, strata=9).examples("train", 1, 500).key) <= set(Gcd(base=10).examples("train", 1, 5000).key)


def test_a_pair_the_other_way_round_is_the_same_question() -> None:
    task = Gcd(base=10)
    sets = [
        {tuple(sorted(pair)) for pair in zip(*numbers(task, 300, 1)[:2], strict=True)},
        {tuple(sorted((int(q.split()[1]), int(q.split()[3])))) for q, _ in task.text(task.examples("train", 1, 3000))},
    ]
    assert not sets[0] & sets[1]
    assert len(sets[0]) + len(sets[1]) < 45


def test_chains_tell_their_running_values() -> None:
    task = ModularChain(format="chain_of_thought")
    assert task.solve(["3", "+4", "*7", "+2", "."]) == ["7", "9", ".", "1", "."]
    assert ModularChain().solve(["3", "+4", "*7", "+2", "."]) == [".", "1", "."]
    assert task.vocabulary == ModularChain().vocabulary


def test_formats_of_a_chain_share_their_splits() -> None:
    plain, told = (ModularChain(format=form) for form in ("plain", "chain_of_thought"))
    seen = {tuple(question) for question, _ in told.examples("train", 2, 5000).rows()}
    assert len(seen) > 1000
    assert not seen & {tuple(question) for question, _ in plain.examples("test", 2, 2000).rows()}


def test_multiplications_can_be_undone_and_are_half_of_the_steps() -> None:
    task = ModularChain()
    drawn = task.examples("train", 8, 2000)
    assert {word for word in task.vocabulary if word[0] == "*"} == {"*1", "*3", "*7", "*9"}
    shares = np.isin(drawn.tokens[:, 1:9], task.vocabulary.ids(["*1", "*3", "*7", "*9"])).mean()
    assert shares == pytest.approx(0.5, abs=0.02)
    answers = np.bincount(drawn.tokens[np.arange(2000), drawn.answer + 1], minlength=14)
    assert np.abs(answers[2:12] - 200).max() < 60


@pytest.mark.parametrize(
    ("text", "difficulty", "sentence"),
    [
        ("gcd(base=1)", 1, "base from 2"),
        ("gcd(base=1000)", 7, "fewer digits or a smaller base"),
        ("gcd(base=10, strata=10)", 1, "10 strata and operands up to 9"),
        ("gcd(limit=-1)", 1, "limit from 0"),
        ("modular-multiplication(modulus=1)", 1, "from 2 to 2"),
        ("modular-chain(operations='-')", 1, "'\\+' or"),
        ("modular-chain(format='long')", 1, "plain, chain_of_thought"),
        ("modular-chain(modulus=1)", 1, "modulus from 2"),
    ],
)
def test_options_that_cannot_be_get_one_sentence(text: str, difficulty: int, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        tasks.make(text).examples("train", difficulty, 1)
