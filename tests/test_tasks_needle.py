"""The hidden sentence: where it stands, how long the text is, options that cannot be."""

from __future__ import annotations

import numpy as np
import pytest

from bakeoff.errors import UsageError
from bakeoff.text.tasks.needle import Needle


def places(task: Needle, length: int, count: int) -> list[int]:
    """Where the hidden sentence begins in each of the examples, each of which is looked through."""
    found = []
    for question, answer in task.examples("train", length, count).rows():
        words = task.vocabulary.words(question)
        assert len(words) == length + 7
        text, asked = words[:length], words[length:]
        assert asked[:5] == ["what", "is", "the", "code", "of"]
        assert text.count("code") == 1
        begin = text.index("the")
        key, value = text[begin + 3], text[begin + 5]
        assert asked[5] == key
        assert task.vocabulary.words(answer) == [value, "."]
        assert text[begin + 6] == "."
        assert text[-1] == "."
        assert begin == 0 or text[begin - 1] == ".", "the sentence stands between sentences"
        found.append(begin)
    return found


def test_depths_between_the_ends() -> None:
    # 47 words less the 7 of the hidden sentence are 5 sentences of 8.
    assert {*places(Needle(depth=0.0), 47, 30)} == {0}
    assert {*places(Needle(depth=1.0), 47, 30)} == {40}
    assert {*places(Needle(depth=0.4), 47, 30)} == {16}


def test_depths_that_are_drawn_have_the_same_chance() -> None:
    counts = np.bincount(np.array(places(Needle(), 47, 1200)) // 8, minlength=6)
    assert counts / 1200 == pytest.approx(np.full(6, 1 / 6), abs=0.05)


def test_lengths_that_sentences_do_not_fill() -> None:
    for length in (7, 8, 9, 14, 15, 16, 40):
        places(Needle(sentence=4), length, 5)


def test_options_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="depth of needle is 1.5"):
        Needle(depth=1.5)
    with pytest.raises(UsageError, match="at least one key"):
        Needle(keys=0)
