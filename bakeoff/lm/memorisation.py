"""What a model has kept of single training texts: loss, extraction, membership, and traces of noise on its input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from bakeoff.lm.score import IGNORED, TokenStatistics, token_statistics

Tokens = Sequence[int]


def continuations(model: PreTrainedModel, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[TokenStatistics]:
    """What the model makes of the second part of each pair of token sequences after the first, which is not empty.

    Greedy decoding of the first part writes the second just where every token of it is `correct`.
    """
    items = []
    for before, after in pairs:
        input_ids = torch.tensor([*before, *after])
        labels = input_ids.clone()
        labels[: len(before)] = IGNORED
        items.append((input_ids, labels))
    return token_statistics(model, items)


def membership(members: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """AUROC of telling members from others by their losses: the chance that a member's is lower, ties counting half."""
    difference = members[:, None] - others[None, :]
    return float(np.mean((difference < 0) + 0.5 * (difference == 0)))


def noisy_logits(model: PreTrainedModel, rows: Tensor, noise: Tensor) -> Tensor:
    """Logits [rows, length, vocabulary] for int64 rows [rows, length] whose embeddings have noise [rows, length, width] added."""
    embedded = model.get_input_embeddings()(rows)
    logits: Tensor = model(inputs_embeds=embedded + noise.to(embedded), use_cache=False).logits
    return logits


def noise_correlation(model: PreTrainedModel, rows: Tensor, noise: Tensor) -> Tensor:
    """z = -<gradient, noise> / (|gradient| * deviation of the noise) of each row, float32 of shape [rows].

    The gradient is that of the row's loss in its input embeddings, without noise. A model that has not seen the noise
    gives z of mean 0 and deviation 1; training on the noisy row makes the loss fall in the noise's direction, so that z
    rises.

    Args:
        rows: int64 [rows, length].
        noise: [rows, length, width] of normal values with one deviation.

    Source: the Gaussian data poisoning of Pawelczyk et al. 2024, arXiv:2406.17216.
    """
    with torch.enable_grad():
        still = torch.zeros_like(noise, device=rows.device, requires_grad=True)
        logits = noisy_logits(model, rows, still)[:, :-1]
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten(), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, still)
    gradient, noise = gradient.flatten(1).float().cpu(), noise.flatten(1).float().cpu()
    z: Tensor = -(gradient * noise).sum(1) / (gradient.norm(dim=1) * noise.std())
    return z
