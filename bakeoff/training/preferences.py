"""Five objectives of pretraining with preferences, on text whose segments carry scores: the greater, the less it is wanted.

Maximum likelihood is `cross_entropy`. Filtering and conditional training change the text; unlikelihood, reward-weighted and
advantage-weighted regression change the loss of each token, by the score of the segment that it belongs to.

Source: Korbak et al. 2023, arXiv:2302.08582, section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bakeoff.errors import UsageError
from bakeoff.training.batches import Batch, derived_seed
from bakeoff.training.objectives import logits_of, predicted

Segment = tuple[Sequence[int], float]
"""The tokens of a sentence or a line, and its score."""
Document = Sequence[Segment]

_LEAST = 1e-20
_GREATEST_WEIGHT = 1000.0


def stream(documents: Sequence[Document], end: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """All documents as one text, `end` before each, and the score of every token, that of its segment; 0 for `end`."""
    tokens, scores = [], []
    for document in documents:
        for ids, score in [((end,), 0.0), *document]:
            tokens.extend(ids)
            scores.extend([score] * len(ids))
    return np.array(tokens, np.int64), np.array(scores, np.float32)


def filtered(documents: Sequence[Document], threshold: float) -> list[Document]:
    """The documents whose segments have a mean score of at most the threshold."""
    return [document for document in documents if np.mean([score for _, score in document]) <= threshold]


def conditioned(
    documents: Sequence[Document], threshold: float, good: int, bad: int, *, omitted: float = 0.01, seed: int = 0
) -> list[Document]:
    """Before each segment `good` if its score is at most the threshold, else `bad`; a share `omitted`, drawn, has neither."""
    draw = np.random.default_rng(seed)
    return [
        [
            (ids if draw.random() < omitted else [good if score <= threshold else bad, *ids], score)
            for ids, score in document
        ]
        for document in documents
    ]


@dataclass(frozen=True)
class Blocks:
    """Blocks of `length` tokens cut from one text, the rest dropped, in an order drawn anew for each pass.

    `Batch.extra["score"]` [rows, length] is the score of every token. All tokens of a block but its first are learned.
    """

    tokens: NDArray[np.int64]
    scores: NDArray[np.float32]
    rows: int
    length: int
    seed: int
    fixed_length: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if len(self.tokens) < self.length:
            raise UsageError(
                f"The text has {len(self.tokens)} tokens, less than one block of {self.length}: give more text or shorter blocks."
            )

    @property
    def blocks(self) -> int:
        """How many blocks one pass holds."""
        return len(self.tokens) // self.length

    def __call__(self, step: int) -> Batch:
        places = [divmod(place, self.blocks) for place in range(step * self.rows, (step + 1) * self.rows)]
        orders = {
            p: np.random.default_rng(derived_seed(self.seed, "blocks", p)).permutation(self.blocks) for p, _ in places
        }
        begins = np.array([orders[p][place] for p, place in places]) * self.length
        cut = begins[:, None] + np.arange(self.length)
        ids = torch.from_numpy(self.tokens[cut])
        return Batch(ids, ids, ids.numel(), extra={"score": torch.from_numpy(self.scores[cut])})


def _shifted(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probability and score of each learned token, [tokens] both, in float32."""
    chosen, labels = predicted(logits, batch.labels)
    scores, _ = predicted(torch.cat([batch.extra["score"][:, 1:], batch.extra["score"][:, :1]], 1), batch.labels)
    return chosen.float().log_softmax(-1).gather(1, labels[:, None])[:, 0], scores.float()


@dataclass(frozen=True)
class Unlikelihood:
    """-log p of tokens with a score of at most the threshold, -alpha log(1 - p) of the others; the mean over all.

    Args: alpha: at least 0.
    """

    threshold: float = 0.0
    alpha: float = 1.0

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        likelihood, scores = _shifted(logits_of(model, batch.input_ids), batch)
        against = (-torch.expm1(likelihood)).clamp(min=_LEAST).log()
        return -torch.where(scores <= self.threshold, likelihood, self.alpha * against).mean()


@dataclass(frozen=True)
class RewardWeighted:
    """The mean of -exp(-score / beta) log p, the weight at most 1000.

    Args: beta: above 0; the greater, the nearer to maximum likelihood.
    """

    beta: float = 10.0

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        likelihood, scores = _shifted(logits_of(model, batch.input_ids), batch)
        return -(_weights(-scores, self.beta) * likelihood).mean()


class WithValues(nn.Module):
    """A causal LM and the value V = -sigmoid(w h) of each state h, in [-1, 0]; w begins at 0. Returns (logits, values)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.value = nn.Linear(model.config.hidden_size, 1, bias=False, device=next(model.parameters()).device)
        nn.init.zeros_(self.value.weight)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(input_ids=input_ids, use_cache=False, output_hidden_states=True)
        return output.logits, -torch.sigmoid(self.value(output.hidden_states[-1])[..., 0].float())


@dataclass(frozen=True)
class AdvantageWeighted:
    """alpha times the mean of -exp((R - V) / beta) log p, plus 1 - alpha times the mean of (V - R)^2, for `WithValues`.

    R = -score of the token, V the value of the state before it, which learns from the second term alone. The weight is at
    most 1000.

    Args: alpha: in [0, 1]. beta: above 0.
    """

    alpha: float = 0.5
    beta: float = 10.0

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        logits, values = model(batch.input_ids)
        likelihood, scores = _shifted(logits, batch)
        value, _ = predicted(values, batch.labels)
        policy = -(_weights(-scores - value.detach(), self.beta) * likelihood).mean()
        return self.alpha * policy + (1 - self.alpha) * (value + scores).square().mean()


def _weights(advantage: Tensor, beta: float) -> Tensor:
    return (advantage / beta).exp().clamp(max=_GREATEST_WEIGHT)
