"""Letters in a word and words in a sentence."""

from __future__ import annotations

import numpy as np
import pytest

from bakeoff.errors import UsageError
from bakeoff.text.tasks.letters import LetterCount, WordCount


def test_counts_by_hand() -> None:
    assert LetterCount().solve(["how", "many", "r", "in", "s", "t", "r", "a", "w", "b", "e", "r", "r", "y", "?"]) == [
        "3",
        ".",
    ]
    assert LetterCount().solve(["how", "many", "w", "in", "w", "i", "n", "?"]) == ["1", "."]
    assert WordCount().solve(
        ["how", "many", "words", "in", "t", "h", "e", "_", "o", "l", "d", "_", "s", "e", "a", "?"]
    ) == ["3", "."]


@pytest.mark.parametrize("task", [LetterCount(), WordCount()])
def test_all_answers_have_the_same_chance(task: LetterCount | WordCount) -> None:
    drawn = task.draw(np.random.default_rng(0), 5, 12_000)
    answers = drawn.tokens[np.arange(len(drawn)), drawn.answer] - task.vocabulary.id("0")
    least = 0 if isinstance(task, LetterCount) else 1
    shares = np.bincount(answers, minlength=6) / 12_000
    assert shares[least:] == pytest.approx(np.full(6 - least, 1 / (6 - least)), abs=0.02)
    assert shares[:least].sum() == 0


def test_the_letter_asked_for_stands_at_any_place() -> None:
    task = LetterCount()
    drawn = task.draw(np.random.default_rng(0), 6, 6000).tokens
    assert (drawn[:, 4:10] == drawn[:, 2:3]).mean(0) == pytest.approx(np.full(6, 0.5), abs=0.03)
    others = drawn[:, 4:10][drawn[:, 4:10] != drawn[:, 2:3]]
    assert len(set(others)) == 26


def test_words_have_all_lengths() -> None:
    task = WordCount(longest=3)
    lengths: set[int] = set()
    for question, _ in task.text(task.examples("train", 4, 100)):
        lengths |= {len(word.split()) for word in question.removeprefix("how many words in ")[:-2].split("_")}
    assert lengths == {1, 2, 3}


def test_options_that_cannot_be() -> None:
    for letters in (1, 27):
        with pytest.raises(UsageError, match="from 2 to 26"):
            LetterCount(letters=letters)
    with pytest.raises(UsageError, match="at least 1"):
        WordCount(longest=0)
