"""Small worlds: batches of synthetic tasks, and a decoder trained on them from scratch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bakeoff.lm.decoder import DecoderConfig, DecoderForCausalLM
from bakeoff.text.tasks.task import Examples, TokenTask
from bakeoff.training.batches import Batch, Batches, derived_seed
from bakeoff.training.objectives import Objective, cross_entropy
from bakeoff.training.optimizers import matrices_decay
from bakeoff.training.run import Run
from bakeoff.training.schedules import cosine

_ROWS = 512
"""Rows of one forward pass when answers are read."""


def batch_of(examples: Examples, *, question: bool = False) -> Batch:
    """The examples as one batch; answers are learned, with `question` also what is asked."""
    input_ids = torch.from_numpy(examples.tokens.astype(np.int64))
    return Batch(input_ids, torch.from_numpy(examples.labels(question=question)), int(examples.length.sum()))


@dataclass(frozen=True)
class Fresh:
    """Every step `rows` new examples of a task's train split, each of one of the difficulties."""

    task: TokenTask
    difficulty: int | Sequence[int]
    rows: int
    seed: int
    question: bool = False

    def __call__(self, step: int) -> Batch:
        seed = derived_seed(self.seed, "examples", step)
        return batch_of(self.task.examples("train", self.difficulty, self.rows, seed), question=self.question)


@dataclass(frozen=True)
class Again:
    """`rows` a step out of the same examples, in an order drawn anew for each pass over them."""

    examples: Examples
    rows: int
    seed: int
    question: bool = False

    def __call__(self, step: int) -> Batch:
        places = np.arange(step * self.rows, (step + 1) * self.rows)
        count = len(self.examples)
        chosen = [_order(self.seed, int(place) // count, count)[place % count] for place in places]
        return batch_of(_cut(self.examples[np.array(chosen)]), question=self.question)


@functools.lru_cache(maxsize=8)
def _order(seed: int, passed: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng(derived_seed(seed, "order", passed)).permutation(count)


def _cut(examples: Examples) -> Examples:
    return Examples(examples.tokens[:, : examples.length.max()], examples.answer, examples.length, examples.key)


def from_scratch(
    run: Run,
    batches: Batches,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    objective: Objective = cross_entropy,
    **shape: Any,
) -> DecoderForCausalLM:
    """A decoder of this `shape` (fields of DecoderConfig), its weights drawn from the run's seed, trained on the batches.

    AdamW with betas 0.9 and 0.95, no weight decay of vectors, and a cosine down to a tenth of the rate after a warm-up of 5%.
    """
    model = decoder(run.seed, **shape).to(run.device)  # type: ignore[arg-type]
    run.train(
        model, batches, learning_rate=learning_rate, optimizer=matrices_decay(weight_decay),
        schedule=cosine(0.05, least=0.1), objective=objective,
    )  # fmt: skip
    return model


def decoder(seed: int, **shape: Any) -> DecoderForCausalLM:
    """A decoder with the random weights of a seed. Default shape: layer norms, GELU, as small worlds are quickest with."""
    torch.manual_seed(derived_seed(seed, "weights"))
    return DecoderForCausalLM(DecoderConfig(**{"mlp": "gelu", "norm": "layer", **shape}))


def longest(task: TokenTask, difficulties: Sequence[int]) -> int:
    """Tokens of the longest of some examples of each difficulty."""
    return max(int(task.examples("train", d, 1024).length.max()) for d in set(difficulties))


@torch.no_grad()
def answered(model: nn.Module, examples: Examples) -> NDArray[np.float64]:
    """[n, 4]: whether the whole answer is right, right tokens of it, its tokens, its negative log-likelihood (nats).

    An answer is right if each of its tokens is the likeliest after the question and the right tokens before it, which is
    the same as being generated greedily. Sums over examples make shares: of exact answers, sums 0 over n.
    """
    device = next(model.parameters()).device
    found = np.zeros((len(examples), 4))
    order = np.argsort(examples.length, kind="stable")
    for begin in range(0, len(order), _ROWS):
        chosen = order[begin : begin + _ROWS]
        batch = batch_of(_cut(examples[chosen])).to(device)
        output: Any = model(input_ids=batch.input_ids, use_cache=False)
        logits, labels = output.logits[:, :-1].float(), batch.labels[:, 1:]
        there = labels >= 0
        likelihood = logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
        right = (logits.argmax(-1) == labels) & there
        columns = [right.sum(1) == there.sum(1), right.sum(1), there.sum(1), -(likelihood * there).sum(1)]
        found[chosen] = torch.stack([c.double() for c in columns], 1).cpu().numpy()
    return found
