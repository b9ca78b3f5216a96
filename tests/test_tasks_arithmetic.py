"""Arithmetic in digits: the papers' own examples, balance of carries, keys that formats share, long numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bakeoff.errors import UsageError
from bakeoff.text import tasks
from bakeoff.text.tasks.arithmetic import Addition, Multiplication, Subtraction, added, digits_of, in_digits, lengths

EVERY = [
    kind(base=base, operands=operands, format=form, delimited=base == 2)
    for kind in (Addition, Subtraction, Multiplication)
    for form in kind.formats
    for base in (2, 10, 16)
    for operands in ("exact", "lengths", "numbers")
] + [
    Addition(format=form, hints=True, balance=balance, delimited=balance)
    for form in ("plain", "reversed")
    for balance in (False, True)
]  # fmt: skip


def of(task: Any, first: int, second: int, width: int = 0) -> tuple[str, str]:
    """The question on two numbers and its answer, as text."""
    width = width or max(len(in_digits(n, task.base)) for n in (first, second))
    pair = [digits_of(np.array([n]), task.base, width) for n in (first, second)]
    return tuple(task.text(task.written(np.random.default_rng(0), *pair))[0])  # type: ignore[return-value]


@pytest.mark.parametrize("task", EVERY, ids=str)
def test_every_format_agrees_with_integers(task: Any) -> None:
    words = task.vocabulary
    for difficulty in (1, 2, 4):
        for question, answer in task.examples("train", difficulty, 12).rows():
            assert words.words(answer) == task.solve(words.words(question))


@pytest.mark.parametrize(
    ("task", "question", "answer"),
    [
        (Addition(), "1 2 8 + 3 6 7 =", "4 9 5 ."),
        (Addition(format="reversed", delimited=True), "$ 1 2 8 + 3 6 7 =", "5 9 4 $"),
        (Addition(format="padded"), "1 2 8 + 3 6 7 =", "0 4 9 5 ."),
        (Addition(format="padded_reversed"), "1 2 8 + 3 6 7 =", "5 9 4 0 ."),
        (
            Addition(format="simplified_scratchpad"),
            "1 2 8 + 3 6 7 =",
            "<scratch> \n A -> 5 , C -> 1 \n A -> 9 , C -> 0 \n A -> 4 , C -> 0 \n </scratch> \n 4 9 5 .",
        ),
        (
            Addition(format="scratchpad"),
            "1 2 8 + 3 6 7 =",
            "<scratch> \n [ 1 , 2 , 8 ] has 3 digits \n [ 3 , 6 , 7 ] has 3 digits \n "
            "[ 1 , 2 , 8 ] + [ 3 , 6 , 7 ] , A = [ ] , C = 0 , 8 + 7 + 0 = 1 5 , A -> 5 , C -> 1 \n "
            "[ 1 , 2 ] + [ 3 , 6 ] , A = [ 5 ] , C = 1 , 2 + 6 + 1 = 9 , A -> 9 , C -> 0 \n "
            "[ 1 ] + [ 3 ] , A = [ 9 , 5 ] , C = 0 , 1 + 3 + 0 = 4 , A -> 4 , C -> 0 \n "
            "[ ] + [ ] , A = [ 4 , 9 , 5 ] , C = 0 , END \n </scratch> \n 4 9 5 .",
        ),
    ],
)
def test_formats_of_128_and_367(task: Addition, question: str, answer: str) -> None:
    assert of(task, 128, 367) == (question, answer)


def test_padded_and_reversed_products() -> None:
    assert of(Multiplication(format="padded_reversed"), 13, 24, 4) == ("0 0 1 3 * 0 0 2 4 =", "2 1 3 0 0 0 0 0 .")
    assert of(Multiplication(format="padded_reversed"), 999, 999)[1] == "1 0 0 8 9 9 ."
    question, answer = of(Multiplication(format="padded"), 1, 2, 12)
    # Four times the digits, an operator and an equals sign; and the end.
    assert len((question + " " + answer).split(" ")) == 4 * 12 + 2 + 1


def test_chain_of_3719_times_3349() -> None:
    question, answer = of(Multiplication(format="chain"), 3719, 3349)
    assert question == "9 1 7 3 * 9 4 3 3 ="
    assert answer == (
        "1 7 4 3 3 + 0 6 7 8 4 1 ( 1 3 2 2 8 1 ) + 0 0 7 5 1 1 1 ( 1 3 9 7 9 2 1 ) + 0 0 0 7 5 1 1 1 #### 1 3 9 4 5 4 2 1 ."
    )


@pytest.mark.parametrize(("digits", "tokens"), [(4, 46), (5, 74), (7, 148), (9, 246), (11, 368)])
def test_chains_have_their_lengths(digits: int, tokens: int) -> None:
    answer = of(Multiplication(format="chain"), 10**digits - 1, 10**digits - 1)[1].split(" ")
    assert answer.index("####") == tokens


@pytest.mark.parametrize(
    ("first", "second", "digits"),
    [(88, 842, "0 3 9 0"), (999, 1, "0 0 0 1"), (900, 99, "9 9 9 0")],
)
def test_hints_count_from_the_most_significant_digit(first: int, second: int, digits: str) -> None:
    question, answer = of(Addition(format="reversed", hints=True, hint_words=4), first, second)
    padded = [f"{n:04d}" for n in (first, second)]
    assert question == " + ".join(" ".join(f"h{i} {d}" for i, d in enumerate(n)) for n in padded) + " ="
    reversed_ = " ".join(f"h{3 - i} {d}" for i, d in enumerate(digits.split()))
    assert answer == f"{reversed_} ."
    forward = of(Addition(hints=True, hint_words=4), first, second)[1]
    assert forward == " ".join(f"h{i} {d}" for i, d in enumerate(reversed(digits.split()))) + " ."


def test_hints_begin_anywhere_and_all_occur() -> None:
    task = Addition(hints=True, hint_words=12)
    examples = task.examples("train", 5, 3000)
    begins = np.bincount(examples.tokens[:, 0] - task.vocabulary.id("h0"), minlength=12)
    # Six places of twelve hints can begin at h0 to h6.
    assert np.allclose(begins[:7] / 3000, 1 / 7, atol=0.03)
    assert not begins[7:].any()
    assert {task.vocabulary.id(f"h{i}") for i in range(12)} <= set(examples.tokens.ravel().tolist())


def test_carries() -> None:
    for first, second, carries in ((47, 38, 1), (999, 1, 3), (12, 34, 0)):
        found = added(*(digits_of(np.array([n]), 10, 3) for n in (first, second)), 10)[1].sum()
        assert found == carries == (sum(map(int, f"{first}{second}")) - sum(map(int, str(first + second)))) // 9


@pytest.mark.parametrize("operands", ["numbers", "exact"])
def test_balanced_carries_are_equally_likely_and_operands_uniform_among_their_own(operands: str) -> None:
    draw = np.random.default_rng(1)
    first, second = Addition(operands=operands, balance=True).pairs(draw, 2, 60_000)
    carries = added(first, second, 10)[1].sum(1)
    assert np.allclose(np.bincount(carries) / 60_000, 1 / 3, atol=0.01)
    least = 10 if operands == "exact" else 0
    pairs = [(a, b) for a in range(least, 100) for b in range(least, 100)]
    # Within a class of m pairs a pair's count has a mean and a variance of about draws/m.
    whole = first @ [1, 10] * 100 + second @ [1, 10]
    for carry in range(3):
        counts = np.bincount(whole[carries == carry], minlength=10_000)
        size = sum(1 for a, b in pairs if (sum(map(int, f"{a}{b}")) - sum(map(int, str(a + b)))) // 9 == carry)
        present = counts[counts > 0]
        expected = (carries == carry).sum() / size
        assert len(present) <= size
        assert ((counts**2).sum() / size - expected**2) / expected == pytest.approx(1, abs=0.15)


def test_without_balance_a_carry_is_as_likely_as_by_chance() -> None:
    first, second = Addition(operands="numbers").pairs(np.random.default_rng(0), 1, 50_000)
    assert added(first, second, 10)[1].mean() == pytest.approx(0.45, abs=0.01)


def test_formats_and_orders_of_a_pair_share_a_key() -> None:
    draw = np.random.default_rng(3)
    first, second = Addition(operands="lengths").pairs(draw, 4, 200)
    wide = [np.pad(digits, ((0, 0), (0, 3))) for digits in (first, second)]
    key = Addition().written(draw, first, second).key
    tasks_ = [
        *(Addition(format=form) for form in Addition.formats),
        Addition(hints=True),
        Multiplication(format="chain"),
    ]
    for task in tasks_:
        assert np.array_equal(task.written(draw, first, second).key, key)
        assert np.array_equal(task.written(draw, *wide).key, key)
        assert np.array_equal(task.written(draw, second, first).key, key)
    assert len(np.unique(key)) == len(
        {tuple(sorted((a.tobytes(), b.tobytes()))) for a, b in zip(first, second, strict=True)}
    )
    greater, smaller = Subtraction().pairs(draw, 4, 200)
    keys = [Subtraction().written(draw, *pair).key for pair in ((greater, smaller), (smaller, greater))]
    assert not np.array_equal(*keys)


def test_without_its_spaces_a_question_is_plain() -> None:
    spaced, plain = Addition(format="random_space"), Addition()
    draw = np.random.default_rng(5)
    pair = plain.pairs(draw, 6, 4000)
    texts = spaced.text(spaced.written(draw, *pair))
    assert [(" ".join(q.replace("_", " ").split()), a) for q, a in texts] == plain.text(plain.written(draw, *pair))
    # Thirteen tokens before "=" have twelve gaps.
    tokens = [len(question.split()) - 1 for question, _ in texts]
    assert np.mean(tokens) == pytest.approx(13 + 12 * (0.2 + 2 * 0.1), abs=0.2)


def test_operands_have_the_digits_that_are_asked_for() -> None:
    draw = np.random.default_rng(0)
    assert (lengths(Addition().pairs(draw, 5, 500)[0]) == 5).all()
    drawn = lengths(Addition(operands="lengths").pairs(draw, 4, 8000)[0])
    assert np.allclose(np.bincount(drawn)[1:] / 8000, 1 / 4, atol=0.03)
    numbers = Addition(operands="numbers").pairs(draw, 2, 8000)[0] @ [1, 10]
    assert (numbers.min(), numbers.max()) == (0, 99)
    assert np.mean(numbers < 10) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
    "task", [Addition(), Addition(hints=True, format="reversed"), Subtraction(), Addition(balance=True)]
)
def test_hundred_digits_are_exact(task: Any) -> None:
    words = task.vocabulary
    for question, answer in task.examples("test", 100, 5).rows():
        assert words.words(answer) == task.solve(words.words(question))


def test_differences_are_not_negative() -> None:
    first, second = Subtraction(operands="numbers").pairs(np.random.default_rng(0), 3, 2000)
    assert (first @ [1, 10, 100] >= second @ [1, 10, 100]).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("addition(base=17)", "choose from 2 to 16"),
        ("addition(format='chain')", "choose one of plain"),
        ("multiplication(operands='any')", "choose one of exact"),
        ("addition(balance=True, operands='lengths')", "choose one of them"),
        ("addition(hints=True, format='padded')", "choose plain or reversed"),
    ],
)
def test_options_that_cannot_be_get_one_sentence(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tasks.make(text)


def test_digits_that_a_format_cannot_hold_get_one_sentence() -> None:
    with pytest.raises(UsageError, match="give more hint_words"):
        Addition(hints=True, hint_words=6).examples("train", 6, 1)
    with pytest.raises(UsageError, match="choose at most 20"):
        Addition(format="scratchpad").examples("train", 21, 1)
