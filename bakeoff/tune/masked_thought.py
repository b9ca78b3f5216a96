"""Masked thought: part of the answer's tokens are hidden in the input, and all of them are still to be predicted."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from bakeoff import lm
from bakeoff.method import Range
from bakeoff.training.batches import IGNORED, Batch
from bakeoff.training.objectives import cross_entropy, predicted
from bakeoff.training.run import Run
from bakeoff.tune.contest import TuneData, tune


def mask_rate(spent: float, budget: float, highest: float, warm_up: float) -> float:
    """The masking rate when `spent` units of the budget are used: linear from 0 until `warm_up` of it and one unit."""
    return min(highest, highest * spent / (warm_up * budget + 1))


def masked_positions(labels: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """[rows, length], boolean: each response token with probability `rate`, drawn on the CPU.

    Response tokens are those with a label; a row's first token, which nothing predicts, is not one.
    """
    response = labels.cpu() != IGNORED
    response[:, 0] = False
    return response & (torch.rand(response.shape, generator=generator) < rate)


def masked_embeddings(embedding: nn.Embedding, mask_row: Tensor, input_ids: Tensor, masked: Tensor) -> Tensor:
    """[rows, length, width]: what the embedding would give with `mask_row` [1, width] as one more row.

    That row is read where `masked` [rows, length]. What the embedding does to its rows, such as scaling, it does to it.
    """
    weight = torch.cat([embedding.weight, mask_row])
    embedded: Tensor = functional_call(embedding, {"weight": weight}, input_ids.masked_fill(masked, len(weight) - 1))
    return embedded


@tune.method(
    paper="masked-thought",
    source="Chen et al. 2024, arXiv:2403.02178; the authors' repository MaskedThought",
    changes="data",
    departures="The embedding's row for the mask exists only while training and no output row is added, so that the "
    "returned model is an ordinary one with its tokenizer's vocabulary. Each token is drawn on its own, where the code "
    "for GSM8K draws a binomial count and then the places, to the same effect. Optimizer, schedule and length of "
    "training are the contest's.",
)
def masked_thought(
    model: PreTrainedModel,
    data: TuneData,
    run: Run,
    *,
    rate: Annotated[float, Range(0, 1)] = 0.4,
    replacement: Literal["mask", "random"] = "mask",
    warm_up: Annotated[float, Range(0, 1)] = 0.66,
    learning_rate: Annotated[float, Range(1e-6, 1e-1, log=True)] = 3e-4,
) -> nn.Module:
    """Part of the answer's tokens are hidden in the input, and all of them are still to be predicted.

    loss = -log P(x_i | x'_1 ... x'_{i-1}), mean over labelled i;  x'_i = mask with probability p if i is labelled,
    else x_i;  p rises linearly from 0 to `rate`, then stays

    Source: Chen et al. 2024, arXiv:2403.02178, and the authors' training code.
    Args:
        rate: highest probability that a token of the answer is replaced; the authors take 0.4 for GSM8K and 0.2 for
            MATH.
        replacement: "mask" is a learned embedding that starts at the mean of all rows; "random" is a token drawn
            uniformly from the tokenizer's vocabulary, as in the authors' script for GSM8K.
        warm_up: share of the budget over which p rises.
        learning_rate: peak of AdamW's, after a warm-up over 5% of the budget and before a linear decay to 0.
    Departures: the mask's embedding is dropped after training and has no output row, where the authors append a token
        to the vocabulary.
    Limits: plain text has no prompt: all of it but a row's first token counts as answer. With "mask", a step copies the
        input embedding once. p follows the budget spent: in seconds, an interrupted training may draw other masks.
    """
    student = lm.clone(model)
    embedding = student.get_input_embeddings()
    mask_row = nn.Parameter(embedding.weight.detach().mean(0, keepdim=True))
    if replacement == "mask":
        student.mask_row = mask_row

    def objective(model: nn.Module, batch: Batch, step: int) -> Tensor:
        generator = run.generator("mask", step)
        now = mask_rate(run.meter.spent(run.budget.unit), run.budget.amount, rate, warm_up)
        masked = masked_positions(batch.labels, now, generator)
        if not masked.any():
            return cross_entropy(model, batch, step)
        if replacement == "random":
            drawn = torch.randint(data.tokenizer.vocab_size, masked.shape, generator=generator)
            chosen = torch.where(masked.to(run.device), drawn.to(run.device), batch.input_ids)
            return cross_entropy(model, replace(batch, input_ids=chosen), step)
        embedded = masked_embeddings(embedding, mask_row, batch.input_ids, masked.to(run.device))
        logits, labels = predicted(model(inputs_embeds=embedded, use_cache=False).logits, batch.labels)
        return nn.functional.cross_entropy(logits.float(), labels)

    trained = run.train(student, data.batches(run), objective=objective, learning_rate=learning_rate)
    if replacement == "mask":
        del trained.mask_row
    return trained
