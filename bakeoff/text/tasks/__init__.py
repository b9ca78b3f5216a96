"""Synthetic tasks, found by walking the folder: each file is a family, each class with a name of its own a task."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
from typing import Any

from bakeoff import registry
from bakeoff.errors import UsageError
from bakeoff.method import Spec
from bakeoff.text.tasks.task import PAD, SPLITS, Examples, Points, Task, TokenTask, Vocabulary

__all__ = ["PAD", "SPLITS", "Examples", "Points", "Task", "TokenTask", "Vocabulary", "difficulties", "found", "make"]


@functools.cache
def found() -> dict[str, type[Task[Any]]]:
    """All tasks by name."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    classes = [c for module in modules for c in vars(module).values() if inspect.isclass(c) and issubclass(c, Task)]
    return {c.name: c for c in classes if "name" in vars(c)}


def make(text: str) -> Task[Any]:
    """The task that `name` or `name(option=value, ...)` describes; UsageError where there is none or an option is wrong."""
    spec = Spec.parse(text)
    kind = found()[registry.pick(spec.name, found(), "task")]
    options = inspect.signature(kind).parameters
    for option, value in spec.arguments.items():
        registry.pick(option, options, f"option of {spec.name}")
        expected = type(options[option].default)
        if type(value) is not expected and not (expected is float and isinstance(value, int)):
            raise UsageError(f"{option} of {spec.name} is {value!r}: give a {expected.__name__}.")
    return kind(**spec.arguments)


def difficulties(text: str) -> tuple[int, ...]:
    """The difficulties that "3", "1-5" or "1-5,10,20" names."""
    named: list[int] = []
    for part in text.split(","):
        if not (match := re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)):
            raise UsageError(f"{text!r} names no difficulties: write them as 3, 1-5 or 1-5,10.")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            raise UsageError(f"{text!r} runs from {first} down to {last}: write the smaller difficulty first.")
        named += range(first, last + 1)
    return tuple(dict.fromkeys(named))
