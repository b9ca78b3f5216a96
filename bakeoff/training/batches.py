"""Batches as a function of the step alone: any step can be made again, so a killed run goes on where it was."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bakeoff.text.tokenise import Item

IGNORED = -100


def derived_seed(seed: int, *names: object) -> int:
    """A seed in [0, 2**63) that depends on every name, so that independent draws have independent generators."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right. `input_ids` and `labels`: [rows, length], labels unshifted, -100 where nothing is learned."""

    input_ids: Tensor
    labels: Tensor
    tokens: int

    def to(self, device: torch.device) -> Batch:
        return Batch(self.input_ids.to(device), self.labels.to(device), self.tokens)


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
    return Batch(input_ids, labels, sum(len(item.input_ids) for item in items))


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
