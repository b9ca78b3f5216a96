"""What a model is trained on from scratch: a stream of text, or a synthetic task, and the pieces of the exam."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bakeoff import files
from bakeoff.errors import UsageError
from bakeoff.lm.words import word_tokenizer
from bakeoff.store import address
from bakeoff.text import tasks
from bakeoff.text.read import TASK
from bakeoff.text.tasks import TokenTask
from bakeoff.text.tasks import task as task_module
from bakeoff.text.tokenise import Item
from bakeoff.training.batches import Batches, Windows
from bakeoff.training.run import Run
from bakeoff.training.worlds import Fresh, longest


@dataclass(frozen=True)
class Piece:
    """A piece of held-out text: its rows, in which each of its tokens is predicted once, and its length in bytes.

    Of a task: one example, of which the answer's tokens are predicted.
    """

    rows: tuple[Item, ...]
    size: int


@dataclass(frozen=True)
class PretrainData(ABC):
    """What a pretrain method may learn from. The exam is not in it.

    validation: pieces on which a method may choose. rows, length: of a training batch, the length at most.
    """

    validation: Sequence[Piece]
    tokenizer: PreTrainedTokenizerBase
    rows: int
    length: int

    @abstractmethod
    def batches(self, run: Run) -> Batches:
        """The training batches, `rows` rows a step, in the order that every method gets for this seed."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What it holds, for the report."""


@dataclass(frozen=True)
class TextData(PretrainData):
    """tokens: int32 [n], all training text, each document followed by the end-of-text token."""

    tokens: Tensor

    def batches(self, run: Run) -> Windows:
        return Windows(self.tokens, self.rows, self.length, run.seed)

    def facts(self) -> dict[str, Any]:
        return {"rows": Windows(self.tokens, self.rows, self.length, 0).windows, "tokens": len(self.tokens)}


@dataclass(frozen=True)
class TaskData(PretrainData):
    """A synthetic task, of which every step sees new examples; only the answers are learned."""

    task: TokenTask
    difficulties: tuple[int, ...]

    def batches(self, run: Run) -> Fresh:
        return Fresh(self.task, self.difficulties, self.rows, run.seed)

    def facts(self) -> dict[str, Any]:
        return {"task": str(self.task), self.task.unit: list(self.difficulties)}

    def fingerprint(self) -> str:
        """SHA-256 of the task, its difficulties and the code that draws it."""
        code = [files.digest(Path(inspect.getfile(place))) for place in (type(self.task), task_module)]
        return address({"task": repr(self.task), "difficulties": self.difficulties, "code": code})


def open_task(
    text: str, difficulty: str | None, exam: str | None, items: int, rows: int
) -> tuple[TaskData, dict[str, list[Piece]]]:
    """The task that `task:name(options)` names, to learn and to be examined in.

    The exam's pieces are by name: `held_out` of the difficulties that are learned, and one for each difficulty asked for.
    UsageError where task, options or difficulties are not known.
    """
    task = tasks.make(text.removeprefix(TASK))
    if not isinstance(task, TokenTask):
        raise UsageError(f"{task.name} is made of vectors, not of tokens: pretrain takes tasks such as {_written()}.")
    if not difficulty:
        raise UsageError(f"{text} needs the {task.unit} to learn: give --difficulty, as in 3, 1-5 or 1-5,10.")
    learned = tasks.difficulties(difficulty)
    asked = tasks.difficulties(exam) if exam else learned
    for difficulties in (learned, asked):
        task.check(difficulties)
    some = task.examples("train", learned, 64)
    ends = {int(row[length - 1]) for row, length in zip(some.tokens, some.length, strict=True)}
    end = task.vocabulary[min(ends)] if len(ends) == 1 else task.vocabulary[tasks.PAD]
    data = TaskData(
        validation=_pieces(task, "validation", learned, items),
        tokenizer=word_tokenizer(task.vocabulary, task.joiner, end),
        rows=rows,
        length=longest(task, (*learned, *asked)),
        task=task,
        difficulties=learned,
    )
    pieces = {"held_out": _pieces(task, "test", learned, items)}
    pieces |= {f"{task.unit} {d}": _pieces(task, "test", (d,), items) for d in asked}
    return data, pieces


def _pieces(task: TokenTask, split: str, difficulties: tuple[int, ...], count: int) -> list[Piece]:
    examples = task.examples(split, difficulties, count)
    labels = examples.labels()
    return [
        Piece((Item(torch.from_numpy(row[:n]).long(), torch.from_numpy(wanted[:n]), f"{task.name} {i}"),), int(n))
        for i, (row, wanted, n) in enumerate(zip(examples.tokens, labels, examples.length, strict=True))
    ]


def _written() -> str:
    return ", ".join(sorted(name for name, kind in tasks.found().items() if issubclass(kind, TokenTask))[:3])
