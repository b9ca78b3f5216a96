"""String edits: each function by hand, the grammar's bounds, options that cannot be."""

from __future__ import annotations

import re

import numpy as np
import pytest

from bakeoff.errors import UsageError
from bakeoff.text import tasks
from bakeoff.text.tasks.grammar import _FUNCTIONS, _MARK, _STRING, BINARY, UNARY, Pcfg, _evaluated

BY_HAND = {
    "copy A B C": "A B C", "reverse A B C": "C B A", "shift A B C": "B C A", "swap A B C": "C B A", "swap A B C D": "D B C A",
    "swap A": "A", "shift A": "A", "repeat A B": "A B A B", "echo A B": "A B B", "append A B , C": "A B C",
    "prepend A B , C": "C A B", "remove_first A B , C": "C", "remove_second A B , C": "A B",
    "append swap A B C , repeat D": "C B A D D", "reverse prepend A B , remove_first C , shift D E": "B A D E",
    "append append A , B , append C , D": "A B C D", "echo echo A": "A A A",
}  # fmt: skip


@pytest.mark.parametrize(("asked", "answer"), BY_HAND.items())
def test_expressions_by_hand(asked: str, answer: str) -> None:
    assert Pcfg().solve([*asked.split(), ">"]) == [*answer.split(), "."]


@pytest.mark.parametrize("asked", BY_HAND)
def test_many_at_once_as_by_hand(asked: str) -> None:
    words, kinds, symbols, lengths = asked.split(), [], [], []
    for word in words:
        if word in _FUNCTIONS or word == ",":
            kinds.append(_FUNCTIONS.index(word) if word != "," else _MARK)
            symbols.append([])
        elif kinds[-1] != _STRING:
            kinds.append(_STRING)
            symbols.append([ord(word)])
        else:
            symbols[-1].append(ord(word))
    lengths = [len(s) for s in symbols]
    table = np.array([[s + [0] * (4 - len(s)) for s in symbols]] * 2)
    made = _evaluated(np.array([kinds] * 2), table, np.array([lengths] * 2))
    assert [" ".join(map(chr, row)) for row in made] == [BY_HAND[asked]] * 2


@pytest.mark.parametrize("functions", [1, 4, 8])
def test_there_are_as_many_functions_as_asked_for(functions: int) -> None:
    task = Pcfg(longest=3)
    for question, _ in task.examples("train", functions, 100).rows():
        words = task.vocabulary.words(question)
        assert sum(word in _FUNCTIONS for word in words) == functions
        assert words.count(",") == sum(word in BINARY for word in words)
        strings = [part.split() for part in re.split("|".join([*_FUNCTIONS, ","]), " ".join(words[:-1]))]
        lengths = [len(symbols) for symbols in strings if symbols]
        assert len(lengths) == words.count(",") + 1
        assert max(lengths) <= 3


def test_all_functions_come_equally_often_at_the_beginning() -> None:
    task = Pcfg()
    drawn = task.draw(np.random.default_rng(0), 3, 20_000)
    shares = np.bincount(drawn.tokens[:, 0])[task.vocabulary.ids((*UNARY, *BINARY))] / 20_000
    assert shares == pytest.approx(np.full(10, 0.1), abs=0.01)


def test_more_symbols_have_numbers() -> None:
    task = tasks.make("pcfg(symbols=60, longest=1)")
    assert {"A", "Z", "A1", "H2"} <= set(task.vocabulary)
    assert task.solve(["append", "A1", ",", "H2", ">"]) == ["A1", "H2", "."]
    for wrong in ("symbols=1", "longest=0"):
        with pytest.raises(UsageError, match="at least"):
            tasks.make(f"pcfg({wrong})")
