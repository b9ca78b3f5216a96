"""Batches as a function of the step alone: any step can be made again, so a killed run goes on where it was."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bakeoff.errors import UsageError
from bakeoff.text.tokenise import Item

IGNORED = -100


def derived_seed(seed: int, *names: object) -> int:
    """A seed in [0, 2**63) that depends on every name, so that independent draws have independent generators."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right. `input_ids` and `labels`: [rows, length], labels unshifted, -100 where nothing is learned.

    `documents`, of the same shape, numbers the documents of each row where several are packed into it: no token then sees
    one of another document, and positions begin anew with each. Absent where a row is one document. `where` says where
    each row came from, if that is known. `extra` is what else an objective reads, each tensor of as many rows.
    """

    input_ids: Tensor
    labels: Tensor
    tokens: int
    documents: Tensor | None = None
    where: tuple[str, ...] = ()
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        documents = None if self.documents is None else self.documents.to(device)
        extra = {name: value.to(device) for name, value in self.extra.items()}
        return Batch(self.input_ids.to(device), self.labels.to(device), self.tokens, documents, self.where, extra)

    def rows(self, begin: int, end: int) -> Batch:
        """The rows from `begin` to before `end`; tokens are shared out by rows."""
        count, total = len(self.input_ids[begin:end]), len(self.input_ids)
        documents = None if self.documents is None else self.documents[begin:end]
        return Batch(
            self.input_ids[begin:end],
            self.labels[begin:end],
            self.tokens * count // total,
            documents,
            self.where[begin:end],
            {name: value[begin:end] for name, value in self.extra.items()},
        )


class Batches(Protocol):
    """Anything that makes the batch of a step."""

    def __call__(self, step: int) -> Batch: ...


def collate(items: Sequence[Item]) -> Batch:
    """Pad items on the right to the longest. Padding holds token 0 and is never learned; causal attention never sees it."""
    length = max(len(item.input_ids) for item in items)
    input_ids = torch.zeros(len(items), length, dtype=torch.long)
    labels = torch.full((len(items), length), IGNORED, dtype=torch.long)
    for row, item in enumerate(items):
        input_ids[row, : len(item.input_ids)] = item.input_ids
        labels[row, : len(item.labels)] = item.labels
    documents = None
    if any(item.documents is not None for item in items):
        documents = torch.full((len(items), length), -1)
        for row, item in enumerate(items):
            documents[row, : len(item.input_ids)] = 0 if item.documents is None else item.documents
    tokens = sum(len(item.input_ids) for item in items)
    return Batch(input_ids, labels, tokens, documents, tuple(item.where for item in items))


def pack(items: Sequence[Item], length: int) -> list[Item]:
    """Sequences put together into rows of at most `length` tokens, the longest first, each into the fullest row it fits.

    No token of a sequence sees another sequence (`Batch.documents`), and each one's first token stays unlearned. A
    sequence that is longer than `length` keeps a row of its own.
    """
    free: list[list[int]] = [[] for _ in range(length + 1)]  # rows by the tokens still free in them
    rows: list[list[Item]] = []
    for item in sorted(items, key=lambda item: -len(item.input_ids)):
        size = len(item.input_ids)
        room = next((room for room in range(size, length + 1) if free[room]), None)
        if room is None:
            rows.append([item])
            row, room = len(rows) - 1, max(length, size)
        else:
            row = free[room].pop()
            rows[row].append(item)
        free[room - size].append(row)
    return [_packed(row) for row in rows]


def _packed(row: Sequence[Item]) -> Item:
    if len(row) == 1:
        return row[0]
    labels = [item.labels.clone() for item in row]
    for own in labels:
        own[0] = IGNORED
    documents = torch.cat([torch.full_like(item.input_ids, i) for i, item in enumerate(row)])
    return Item(torch.cat([i.input_ids for i in row]), torch.cat(labels), row[0].where, documents)


@dataclass(frozen=True)
class Shuffled:
    """Items in an order drawn anew for each pass over them; the same seed gives every method the same batches."""

    items: Sequence[Item]
    rows: int
    seed: int

    def __call__(self, step: int) -> Batch:
        return collate(self.draw(step, self.rows))

    def draw(self, step: int, rows: int) -> list[Item]:
        """The `rows` items of a step, when every step takes that many."""
        return [self.items[self._at(position)] for position in range(step * rows, (step + 1) * rows)]

    def _at(self, position: int) -> int:
        passed, place = divmod(position, len(self.items))
        cache = self.__dict__.setdefault("_orders", {})
        if passed not in cache:
            while len(cache) > 2:
                cache.pop(next(iter(cache)))
            cache[passed] = np.random.default_rng(derived_seed(self.seed, "order", passed)).permutation(len(self.items))
        return int(cache[passed][place])


@dataclass(frozen=True)
class Windows:
    """Windows of `length` tokens of one long text, in an order drawn anew for each pass; every token is learned.

    tokens: [n] of any integer type. The windows do not overlap, and begin at an offset drawn for each pass, so that no
    two passes cut the text at the same places. Position 0 of a window is not learned.
    """

    tokens: Tensor
    rows: int
    length: int
    seed: int
    fixed_length: ClassVar[bool] = True

    @property
    def windows(self) -> int:
        """How many windows one pass holds."""
        return (len(self.tokens) - self.length + 1) // self.length if len(self.tokens) >= 2 * self.length else 1

    def __call__(self, step: int) -> Batch:
        rows = [self._at(position) for position in range(step * self.rows, (step + 1) * self.rows)]
        input_ids = torch.stack(rows).long()
        return Batch(input_ids, input_ids, input_ids.numel())

    def _at(self, position: int) -> Tensor:
        passed, place = divmod(position, self.windows)
        offset, order = _pass(self.seed, passed, self.windows, len(self.tokens) - self.windows * self.length + 1)
        begin = offset + int(order[place]) * self.length
        return self.tokens[begin : begin + self.length]


@functools.lru_cache(maxsize=8)
def _pass(seed: int, passed: int, windows: int, offsets: int) -> tuple[int, NDArray[np.int64]]:
    draw = np.random.default_rng(derived_seed(seed, "windows", passed))
    return int(draw.integers(offsets)), draw.permutation(windows)


@dataclass(frozen=True)
class Stream:
    """The windows of `length` tokens of one long text in the order in which they stand, each once; every token is learned.

    tokens: [n] of any integer type, read at each step anew, so that what lies ahead may still be changed. Step s holds
    the tokens from s * rows * length on. Position 0 of a window is not learned.
    """

    tokens: Tensor
    rows: int
    length: int
    fixed_length: ClassVar[bool] = True

    @property
    def steps(self) -> int:
        """How many steps the text is enough for."""
        return len(self.tokens) // (self.rows * self.length)

    def __call__(self, step: int) -> Batch:
        if step >= self.steps:
            raise UsageError(f"The text is enough for {self.steps} steps: give more, or a budget of no more steps.")
        size = self.rows * self.length
        input_ids = self.tokens[step * size : (step + 1) * size].view(self.rows, self.length).long()
        where = tuple(f"window {step * self.rows + row}" for row in range(self.rows))
        return Batch(input_ids, input_ids, input_ids.numel(), where=where)
