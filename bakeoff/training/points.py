"""Batches of sequences of vectors, and what a model says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bakeoff.text.tasks.task import IGNORED, Points, Task
from bakeoff.training.batches import Batch, derived_seed


@dataclass(frozen=True)
class FreshPoints:
    """Every step `rows` new sequences of the tasks' train splits, taken from each task in equal parts.

    `extra` holds inputs and targets as in Points; input_ids and labels are zeros that only count places.
    """

    tasks: Sequence[Task[Points]]
    difficulty: int
    rows: int
    seed: int

    def __call__(self, step: int) -> Batch:
        part = self.rows // len(self.tasks)
        drawn = [
            task.examples("train", self.difficulty, part, derived_seed(self.seed, "points", step))
            for task in self.tasks
        ]
        points = Points.joined(drawn)
        places = torch.zeros(points.inputs.shape[:2], dtype=torch.long)
        extra = {"inputs": torch.from_numpy(points.inputs), "targets": torch.from_numpy(points.targets)}
        return Batch(places, places, places.numel(), extra=extra)


def classification(model: nn.Module, batch: Batch, step: int) -> Tensor:
    """Mean cross-entropy (nats) of the targets, which are classes, over the places that have one."""
    logits, targets = model(batch.extra["inputs"]), batch.extra["targets"]
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)


@torch.no_grad()
def outputs(model: nn.Module, inputs: NDArray[np.float32], *, rows: int = 256) -> NDArray[np.float32]:
    """What the model says of sequences [n, places, width], in evaluation: [n, places, outputs]."""
    device, training = next(model.parameters()).device, model.training
    model.eval()
    found = [
        model(torch.from_numpy(inputs[begin : begin + rows]).to(device)).float().cpu()
        for begin in range(0, len(inputs), rows)
    ]
    model.train(training)
    return torch.cat(found).numpy()
