"""Counting, mode, parity and the helpers of sorting: worked examples, and what makes each of them the task it is."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from bakeoff.errors import UsageError
from bakeoff.text import tasks
from bakeoff.text.tasks.task import TokenTask

HINTS = ("successor", "occurrences", "fill", "length-parity")


def made(text: str) -> TokenTask:
    task = tasks.make(text)
    assert isinstance(task, TokenTask)
    return task


def words(task: TokenTask, difficulty: int, count: int) -> list[tuple[list[str], list[str]]]:
    rows = task.examples("train", difficulty, count).rows()
    return [(task.vocabulary.words(question), task.vocabulary.words(answer)) for question, answer in rows]


@pytest.mark.parametrize(
    ("task", "question", "answer"),
    [
        ("counting", "5 8 >", "5 6 7 8 ."),
        ("counting", "7 7 >", "7 ."),
        ("mode", "1 2 2 3 >", "2 ."),
        ("parity", "1 0 1 1 >", "- ."),
        ("parity", "0 0 >", "+ ."),
        ("parity(hints=True)", "#7 1 #8 0 #9 1 >", "+ ."),
        ("parity(hints=True, scratchpad=True)", "#7 1 #8 0 #9 1 #10 1 >", "+ #7 - #9 + #10 - ."),
        ("parity(hints=True, scratchpad=True)", "#0 0 >", "+ ."),
        ("sorting", "3 1 3 2 >", "1 2 3 3 ."),
        ("successor", "3 1 3 2 successor 2", "3"),
        ("successor", "3 1 3 2 successor 3", "."),
        ("successor", "9 10 100 successor 9", "10"),
        ("occurrences", "3 1 3 2 occurrences 3", "2"),
        ("fill", "3 1 3 2 fill 1 ? 3 3", "2"),
        ("length-parity", "3 1 3 2 parity", "0"),
        ("length-parity", "3 1 3 parity", "1"),
    ],
)
def test_worked_examples(task: str, question: str, answer: str) -> None:
    assert made(task).solve(question.split()) == answer.split()


def test_counting_reaches_every_first_number_that_there_is_room_for() -> None:
    asked = [question for question, _ in words(made("counting(greatest_number=15)"), 10, 300)]
    assert all(int(last) - int(first) == 9 for first, last, _ in asked)
    assert {int(first) for first, _, _ in asked} <= set(range(7))
    with pytest.raises(UsageError, match="no 17 numbers in a row"):
        made("counting(greatest_number=15)").examples("train", 17, 1)


@pytest.mark.parametrize("length", [1, 2, 5, 20])
def test_a_list_has_one_mode_and_no_more_kinds_than_asked(length: int) -> None:
    counts = [Counter(question[:-1]) for question, _ in words(made("mode(symbols=9, kinds=4)"), length, 200)]
    for count in counts:
        assert len(count) <= 4
        assert len(count) == 1 or count.most_common(2)[0][1] > count.most_common(2)[1][1]
    assert length < 5 or {symbol for count in counts for symbol in count} == set(map(str, range(9)))


def test_the_mode_is_any_symbol_anywhere() -> None:
    found = words(made("mode(symbols=4, kinds=4)"), 12, 2000)
    share = Counter(answer[0] for _, answer in found)
    assert all(abs(share[str(symbol)] / 2000 - 0.25) < 0.05 for symbol in range(4))
    places = Counter(place for question, (mode, _) in found for place, word in enumerate(question) if word == mode)
    assert min(places.values()) > 0.85 * max(places.values())


def test_hints_follow_one_another_from_anywhere() -> None:
    task = made("parity(hints=True, marks=20)")
    firsts = set()
    for question, _ in words(task, 6, 500):
        marks = [int(word[1:]) for word in question[:-1:2]]
        assert marks == list(range(marks[0], marks[0] + 6))
        firsts.add(marks[0])
    assert firsts == set(range(15))


def test_one_question_of_parity_is_in_the_same_split_in_every_format() -> None:
    formats = [
        made(f"parity(hints={hints}, scratchpad={pad})") for hints, pad in ((False, False), (True, False), (True, True))
    ]
    split = [
        {"".join(word for word in q if word in "01") for q, _ in words(task, 8, 3000)} for task in formats
    ]  # fmt: skip
    # 3000 draws out of about 205 questions of the train split miss hardly any of them.
    assert split[0] == split[1] == split[2]


def test_hints_cost_nothing_where_there_are_none() -> None:
    assert "#0" not in made("parity").vocabulary
    with pytest.raises(UsageError, match="give hints=True"):
        made("parity(scratchpad=True)").examples("train", 3, 1)
    with pytest.raises(UsageError, match="too few for 9 bits"):
        made("parity(hints=True, marks=8)").examples("train", 9, 1)


@pytest.mark.parametrize("hint", HINTS)
def test_hints_of_sorting_share_its_vocabulary_and_differ_in_their_mark(hint: str) -> None:
    assert made(hint).vocabulary == made("sorting").vocabulary
    marks = {name: next(w for w in words(made(name), 4, 1)[0][0] if not w.isdigit()) for name in (*HINTS, "sorting")}
    assert len(set(marks.values())) == len(marks)


def test_successors_and_occurrences_sort() -> None:
    successor, occurrences, draw = made("successor"), made("occurrences"), np.random.default_rng(0)
    for _ in range(10_000):
        symbols = list(map(str, draw.integers(100, size=draw.integers(1, 12))))
        element, ordered = min(symbols, key=int), list[str]()
        while element != ".":
            ordered += [element] * int(occurrences.solve([*symbols, "occurrences", element])[0])
            element = successor.solve([*symbols, "successor", element])[0]
        assert ordered == sorted(symbols, key=int)


def test_narrow_lists_have_repeats_and_neighbours_and_cover_all_symbols() -> None:
    plain, narrow = (
        np.array([[int(w) for w in q[:-1]] for q, _ in words(made(f"sorting(narrow={flag})"), 10, 2000)])
        for flag in (False, True)
    )
    distinct = [np.mean([len(set(row)) for row in lists]) for lists in (plain, narrow)]
    assert distinct[0] == pytest.approx(100 * (1 - 0.99**10), abs=0.1)
    assert distinct[1] < distinct[0] - 0.5
    assert set(narrow.ravel()) == set(range(100))
    assert np.quantile(np.ptp(narrow, axis=1), 0.1) < 20 < np.quantile(np.ptp(plain, axis=1), 0.01)
    unique = words(made("sorting(symbols=12, unique=True, narrow=True)"), 8, 300)
    assert all(len(set(q)) == 9 for q, _ in unique)
    assert {int(a[0]) for _, a in unique} == set(range(5))


def test_what_cannot_be_gets_one_sentence() -> None:
    with pytest.raises(UsageError, match="no symbol for 7"):
        made("occurrences(symbols=7)").examples("train", 7, 1)
    with pytest.raises(UsageError, match="at least 2 symbols"):
        made("length-parity(symbols=1)").examples("train", 2, 1)
    with pytest.raises(UsageError, match="from 1 to 3 kinds"):
        made("mode(symbols=3, kinds=4)").examples("train", 2, 1)
