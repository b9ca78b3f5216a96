"""Minifinetuning: the student learns the starting model's own predictions, corrected until the label leads."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bakeoff import lm
from bakeoff.method import Range
from bakeoff.training.batches import Batch
from bakeoff.training.objectives import logits_of, predicted
from bakeoff.training.run import Run
from bakeoff.tune.contest import TuneData, tune


@torch.no_grad()
def corrected(
    teacher_logits: Tensor,
    labels: Tensor,
    threshold: float,
    *,
    temperature: float = 1.0,
    correct_everywhere: bool = True,
    mixing: Literal["corrective", "constant"] = "corrective",
) -> Tensor:
    """The teacher's distributions p mixed with the labels y: q = (1 - a) p + a onehot(y), one weight a per token.

    p_m is the teacher's greatest probability. Where it belongs to another token than y,
    a = (p_m - p_y + threshold) / (1 + p_m - p_y), so that q_y - q_m = threshold. Where it is the label's own,
    a = (min(1, p_y + threshold) - p_y) / (1 - p_y), so that q_y = p_y + threshold, at most 1.
    The ratios of all tokens but the label stay as they were.

    Args:
        teacher_logits: [tokens, vocabulary].
        labels: [tokens].
        threshold: in [0, 1]; 1 makes every q one-hot.
        temperature: divides the logits before p is computed.
        correct_everywhere: whether tokens that the teacher already puts first are corrected too; otherwise q = p there.
        mixing: "constant" gives every token the mean of these weights.

    Returns:
        q: [tokens, vocabulary], float32.
    """
    p = (teacher_logits.float() / temperature).softmax(-1)
    p_label = p.gather(1, labels[:, None]).squeeze(1)
    p_first, first = p.max(-1)
    gap = p_first - p_label
    weight = (gap + threshold) / (gap + 1)
    wanted = torch.clamp(p_label + threshold, max=1.0) if correct_everywhere else p_label
    to_one = (1 - p_label).clamp_min(torch.finfo(p.dtype).tiny)
    weight = torch.where(first == labels, (wanted - p_label) / to_one, weight)
    if mixing == "constant":
        weight = weight.mean().expand_as(weight)
    q = p * (1 - weight)[:, None]
    return q.scatter_add_(1, labels[:, None], weight[:, None])


def divergence(student_logits: Tensor, q: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(q || softmax(student / T)), nats, mean over tokens; both [tokens, vocabulary]."""
    log_s = (student_logits.float() / temperature).log_softmax(-1)
    return temperature**2 * nn.functional.kl_div(log_s, q, reduction="batchmean")


@tune.method(
    paper="minifinetuning",
    source="Belcak et al. 2025, arXiv:2506.15702, corrective self-distillation; MFTLoss of NVIDIA's ModelOpt",
    changes="weights",
    departures="All weights learn: the paper's combinations with adapters and with replay are left out. Optimizer, "
    "schedule and length of training are the contest's. The released code's 1e-7 in the denominators is left out.",
)
def minifinetuning(
    model: PreTrainedModel,
    data: TuneData,
    run: Run,
    *,
    threshold: Annotated[float, Range(0, 1)] = 0.2,
    temperature: Annotated[float, Range(0.1, 10, log=True)] = 1.0,
    correct_everywhere: bool = True,
    mixing: Literal["corrective", "constant"] = "corrective",
    learning_rate: Annotated[float, Range(1e-6, 1e-1, log=True)] = 3e-4,
) -> nn.Module:
    """The student learns what the starting model predicts, corrected per token until the label leads by a threshold.

    loss = T^2 KL(q || softmax(student / T)), mean over labelled tokens; q: `corrected`

    Source: Belcak et al. 2025, arXiv:2506.15702; the loss as NVIDIA's ModelOpt releases it (MFTLoss).
    Args:
        threshold: lead of the label's probability over the teacher's first choice, tau in the paper; 1 is ordinary
            fine-tuning (with correct_everywhere).
        temperature: T, of teacher and student alike.
        correct_everywhere: also raise labels that the teacher already puts first, as the released loss does; with False
            the student keeps the teacher's distribution there.
        mixing: "constant" is a control, not the paper's method: all tokens of a step get the mean of the step's
            weights, so that as much label is mixed in, but regardless of what the teacher got wrong.
        learning_rate: peak of AdamW's, after a warm-up over 5% of the budget and before a linear decay to 0.
    Departures: adapters and replay, with which the paper combines it, are left out.
    Limits: the starting model reads every batch too, counted in forward tokens and FLOPs but not in a budget of steps
        or tokens. The training loss is a divergence, whose floor is 0: it is not comparable with a cross-entropy.
    """

    teacher = model

    def objective(model: nn.Module, batch: Batch, step: int) -> Tensor:
        with torch.no_grad():
            teacher_logits, labels = predicted(logits_of(teacher, batch.input_ids), batch.labels)
        run.meter.forward_tokens += batch.tokens
        q = corrected(
            teacher_logits, labels, threshold,
            temperature=temperature, correct_everywhere=correct_everywhere, mixing=mixing,
        )  # fmt: skip
        student_logits, _ = predicted(logits_of(model, batch.input_ids), batch.labels)
        return divergence(student_logits, q, temperature)

    return run.train(lm.clone(model), data.batches(run), objective=objective, learning_rate=learning_rate)
