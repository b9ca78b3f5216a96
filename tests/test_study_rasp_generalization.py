"""The RASP study: programs of a few RASP-L operations are exact at any length, and all positions are trained alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bakeoff.studies.rasp_generalization import TASKS, placed
from bakeoff.text import tasks

Array = Any
FAR = 10**6


def kqv(
    key: Array, query: Array, value: Array, match: Callable[[Array, Array], Array], default: int, reduce: str
) -> Array:
    """RASP-L's attention: at each place the mean (towards 0), max or min of the values at this and earlier places whose key
    matches the place's query, `default` where there is none."""
    seen = match(np.array(key)[None, :], np.array(query)[:, None]) & np.tri(len(key), dtype=bool)
    beyond = {"mean": 0, "max": -FAR, "min": FAR}[reduce]
    chosen = np.where(seen, np.array(value)[None, :], beyond)
    found = chosen.sum(1) / np.maximum(seen.sum(1), 1) if reduce == "mean" else getattr(chosen, reduce)(1)
    return np.where(seen.any(1), found, default).astype(int)


def width(key: Array, query: Array, match: Callable[[Array, Array], Array]) -> Array:
    return (match(np.array(key)[None, :], np.array(query)[:, None]) & np.tri(len(key), dtype=bool)).sum(1)


def shifted(x: Array) -> Array:
    """Each place's predecessor, 0 at the first one: keys are places, queries places less 1."""
    places = np.arange(len(x))
    return kqv(places, places - 1, x, np.equal, 0, "mean")


# Each program names the next token at the last place of a sequence; END and the separator are negative, so that symbols
# are greater than both.
END, SEPARATOR = -1, -2


def copy_different(x: Array) -> Array:
    # What stands after the token that was written last; symbols count from 1, so that 0 stands before the first place.
    following = kqv(shifted(x), np.where(x == SEPARATOR, 0, x), x, np.equal, END, "min")
    return np.where(following == SEPARATOR, END, following)


def most_frequent(x: Array) -> Array:
    often = width(x, x, np.equal)
    most = kqv(np.zeros_like(x), np.zeros_like(x), np.where(x >= 0, often, 0), np.equal, 0, "max")
    mode = kqv(np.where(x >= 0, often, 0), most, x, np.equal, END, "max")
    return np.where(x == SEPARATOR, mode, END)


def sort_different(x: Array) -> Array:
    # The smallest symbol greater than the last token; the separator is less than all symbols.
    return kqv(x, x, x, np.greater, END, "min")


def count_on(x: Array) -> Array:
    separator = kqv(x, np.full_like(x, SEPARATOR), np.arange(len(x)), np.equal, 0, "min")
    first, last = (kqv(np.arange(len(x)), separator - back, x, np.equal, 0, "min") for back in (2, 1))
    return np.where(x == SEPARATOR, first, np.where(x == last, END, x + 1))


PROGRAMS = {
    "counting(greatest_number=255)": count_on,
    "mode(symbols=30)": most_frequent,
    "copying(symbols=150, unique=True)": copy_different,
    "sorting(symbols=150, unique=True)": sort_different,
}


@pytest.mark.parametrize("text", PROGRAMS)
@pytest.mark.parametrize("length", [5, 20, 100])
def test_short_programs_are_exact_at_any_length(text: str, length: int) -> None:
    task, program = tasks.make(text), PROGRAMS[text]
    for question, answer in task.examples("test", length, 3).rows():
        marks = {".": END, ">": SEPARATOR}
        row, wanted = (
            [marks[word] if word in marks else int(word) + 1 for word in task.vocabulary.words(part)]
            for part in (question, answer)
        )
        for token in wanted:
            made = program(np.array(row))[-1]
            assert made == token
            row.append(token)


def test_the_seven_tasks_of_the_paper_and_two_with_hints_are_there() -> None:
    assert len(TASKS) == 9
    for text in TASKS.values():
        assert len(tasks.make(text.format(size=64, numbers=256)).examples("train", range(2, 9), 20)) == 20


class Places(nn.Module):
    def forward(self, input_ids: Tensor, position_ids: Tensor, use_cache: bool) -> Tensor:
        return position_ids.expand_as(input_ids)


def test_every_position_of_a_test_row_is_trained_at_least_half_as_often_as_any() -> None:
    trained, tested = 10, 30
    model = placed(Places(), trained + tested, trained // 2)
    torch.manual_seed(0)
    places = model(torch.zeros(20_000, trained, dtype=torch.long))
    assert (places.diff(dim=1) == 1).all()
    often = torch.bincount(places.flatten(), minlength=trained + tested)
    model.eval()
    used = model(torch.zeros(2, tested, dtype=torch.long))
    assert torch.equal(used[0], torch.arange(trained // 2, trained // 2 + tested))
    assert often[used[0]].min() > 0.45 * often.max()
