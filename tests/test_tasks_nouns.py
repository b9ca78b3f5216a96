"""Repeated noun lists: the whole list, one of it, options that cannot be."""

from __future__ import annotations

import pytest

from bakeoff.errors import UsageError
from bakeoff.text import tasks
from bakeoff.text.tasks.nouns import NOUNS, NounList


def test_a_list_is_told_again() -> None:
    task = NounList()
    question, answer = task.text(task.examples("test", 4, 1))[0]
    begun, rest = question.split(" . ")
    assert rest == "the list again :"
    assert begun == "the list : " + answer.removesuffix(" .")
    assert task.solve(["the", "list", ":", "lamp", ",", "river", ".", "the", "list", "again", ":"]) == [
        "lamp",
        ",",
        "river",
        ".",
    ]


def test_one_of_a_list_is_asked_for() -> None:
    task = NounList(asked="one")
    asked = set()
    for question, answer in task.text(task.examples("train", 5, 100)):
        nouns = question.split(" . ")[0].removeprefix("the list : ").split(" , ")
        place = int(question.split()[-5])
        assert answer == f"{nouns[place - 1]} ."
        asked.add(place)
    assert asked == set(range(1, 6))


def test_nouns_are_different_where_asked_for() -> None:
    assert len(set(NOUNS)) == len(NOUNS) == 100
    for unique in (True, False):
        task = NounList(nouns=12, unique=unique)
        lists = [answer.split()[:-1:2] for _, answer in task.text(task.examples("train", 10, 50))]
        assert {len(nouns) for nouns in lists} == {10}
        assert all(len(set(nouns)) == 10 for nouns in lists) == unique


def test_a_list_belongs_to_one_split_however_it_is_asked_for() -> None:
    lists = {}
    for asked in ("all", "one"):
        task = NounList(asked=asked, nouns=6)
        for split in tasks.SPLITS:
            drawn = task.text(task.examples(split, 2, 60))
            lists[asked, split] = {question.split(" . ")[0] for question, _ in drawn}
    for split in tasks.SPLITS[1:]:
        assert not lists["all", "train"] & lists["one", split]
        assert not lists["one", "train"] & lists["all", split]


def test_options_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="too few for a list of 8"):
        NounList(nouns=5).examples("train", 8, 1)
    with pytest.raises(UsageError, match="choose all or one"):
        NounList(asked="some")
    with pytest.raises(UsageError, match="from 1 to 100"):
        NounList(nouns=101)
