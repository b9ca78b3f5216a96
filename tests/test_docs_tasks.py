"""The page on tasks: it names every task, its examples are right, its code runs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from bakeoff.text import tasks
from bakeoff.text.tasks.task import Examples, TokenTask, Vocabulary

PAGE = (Path(__file__).parent.parent / "docs" / "tasks.md").read_text("utf-8")
ROWS = {m[1]: m[0] for m in re.finditer(r"^\| `([\w-]+)` \|.*$", PAGE, re.M)}


def test_the_page_names_every_task() -> None:
    assert sorted(ROWS) == sorted(tasks.found())


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_true(name: str) -> None:
    task, kind = tasks.make(name), tasks.found()[name]
    assert f"| {task.unit}, {task.least} to {task.greatest} |" in ROWS[name]
    assert all(f"{f.name}={f.default!r}" in ROWS[name] for f in dataclasses.fields(kind))  # type: ignore[arg-type]
    if isinstance(task, TokenTask):
        shown = re.search(r"`([^`]+)` → `([^`]+)`", ROWS[name].replace("\\|", "|"))
        assert shown
        assert task.joiner.join(task.solve(shown[1].split(task.joiner))) == shown[2]


def test_the_example_of_a_new_task_works() -> None:
    code = re.search(r"```python\n(@dataclass.*?)```", PAGE, re.S)
    assert code
    space: dict[str, Any] = {
        "dataclass": dataclasses.dataclass, "TokenTask": TokenTask, "ClassVar": ClassVar, "Vocabulary": Vocabulary,
        "cached_property": cached_property, "np": np, "Examples": Examples, "Sequence": Sequence,
    }  # fmt: skip
    exec(code[1], space)
    task = space["Doubling"]()
    for question, answer in task.examples("test", 4, 20).rows():
        words = task.vocabulary.words(question)
        assert task.vocabulary.words(answer) == task.solve(words)
        assert words[-1] == ">"
