"""What a training step lowers: a function of model, batch and step that returns one loss."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bakeoff.training.batches import IGNORED, Batch


class Objective(Protocol):
    """A mean loss over the batch's labelled tokens. It may draw from torch's global generator, which the loop seeds."""

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> Tensor: ...


def logits_of(model: nn.Module, input_ids: Tensor) -> Tensor:
    """[rows, length, vocabulary]. Rows are padded on the right, where causal attention needs no mask."""
    output: Any = model(input_ids=input_ids, use_cache=False)
    return output.logits  # type: ignore[no-any-return]


def predicted(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and labels of the labelled positions only, shifted: ([tokens, vocabulary], [tokens])."""
    labels = labels[:, 1:]
    chosen = labels != IGNORED
    return logits[:, :-1][chosen], labels[chosen]


def cross_entropy(model: nn.Module, batch: Batch, step: int) -> Tensor:
    """Mean negative log-likelihood (nats) of the labelled tokens, in float32."""
    logits, labels = predicted(logits_of(model, batch.input_ids), batch.labels)
    return nn.functional.cross_entropy(logits.float(), labels)


def no_labels(batch: Batch) -> bool:
    """Whether nothing in the batch is learned."""
    return not bool(torch.any(batch.labels[:, 1:] != IGNORED))
