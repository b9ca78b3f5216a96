"""What a training step lowers: a function of model, batch and step that returns one loss."""

from __future__ import annotations

import weakref
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bakeoff.training.attention import apart
from bakeoff.training.batches import IGNORED, Batch

_CHUNK = 1 << 23
"""Logits that exist at once in `cross_entropy`."""

_TINY = 1e-30


class Objective(Protocol):
    """A mean loss over the batch's labelled tokens. It may draw from torch's global generator, which the loop seeds."""

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> Tensor: ...


def logits_of(model: nn.Module, input_ids: Tensor) -> Tensor:
    """[rows, length, vocabulary]. Rows are padded on the right, where causal attention needs no mask."""
    output: Any = model(input_ids=input_ids, use_cache=False, **apart(model, input_ids))
    return output.logits  # type: ignore[no-any-return]


def predicted(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and labels of the labelled positions only, shifted: ([tokens, vocabulary], [tokens])."""
    labels = labels[:, 1:]
    chosen = labels != IGNORED
    return logits[:, :-1][chosen], labels[chosen]


def labelled(batch: Batch) -> int:
    """How many tokens of the batch are learned."""
    return int((batch.labels[:, 1:] != IGNORED).sum())


def cross_entropy(model: nn.Module, batch: Batch, step: int, *, whole: bool = False) -> Tensor:
    """Mean negative log-likelihood (nats) of the labelled tokens, in float32.

    Where the logits are the last hidden states times a matrix, they are made and used up a chunk at a time, unless the
    model is to be called as a `whole`. An auxiliary loss that the model itself brings (mixtures, routing) is added.
    """
    if not whole and (parts := trunk_and_head(model)):
        trunk, head = parts
        hidden = trunk(input_ids=batch.input_ids, use_cache=False, **apart(model, batch.input_ids)).last_hidden_state
        states, labels = predicted(hidden, batch.labels)
        return linear_cross_entropy(states, head.weight, labels)
    output: Any = model(input_ids=batch.input_ids, use_cache=False, **apart(model, batch.input_ids))
    logits, labels = predicted(output.logits, batch.labels)
    loss = nn.functional.cross_entropy(logits.float(), labels)
    auxiliary = getattr(output, "auxiliary_loss", None)
    return loss if auxiliary is None else loss + auxiliary


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int | None = None) -> Tensor:
    """The mean cross-entropy of softmax(hidden weight^T) without the logits ever being whole.

    Args:
        hidden: [tokens, width]. weight: [vocabulary, width]. labels: [tokens].
        chunk: tokens at a time. Default: as many as make 8 million logits.

    The gradient is computed in the forward pass, where each chunk's softmax is at hand. Products are in the autocast
    dtype, softmax and the sum over chunks in float32.
    """
    chunk = chunk or max(64, _CHUNK // len(weight))
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, labels, chunk)  # type: ignore[no-untyped-call]
    return loss


def _log_likelihood(logits: Tensor, wanted: Tensor) -> Tensor:
    """Summed, also where a probability is too small for a number of its own."""
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), 1).gather(1, wanted).sum()


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        with torch.autocast(kind, enabled=False):
            matrix, count = weight.to(dtype), len(labels)
            hidden_gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
            weight_gradient = (
                torch.zeros(weight.shape, device=weight.device, dtype=torch.promote_types(dtype, torch.float32))
                if ctx.needs_input_grad[1] else None
            )  # fmt: skip
            total = torch.zeros((), device=hidden.device, dtype=torch.promote_types(dtype, torch.float32))
            for begin in range(0, count, chunk):
                states, wanted = hidden[begin : begin + chunk].to(dtype), labels[begin : begin + chunk, None]
                logits = states @ matrix.T
                share = torch.softmax(logits, 1, dtype=total.dtype)
                likely = share.gather(1, wanted)
                total -= likely.log().sum() if bool(likely.min() > _TINY) else _log_likelihood(logits, wanted)
                if hidden_gradient is None and weight_gradient is None:
                    continue
                share.scatter_(1, wanted, likely - 1)
                share = share.div_(count).to(dtype)
                if hidden_gradient is not None:
                    hidden_gradient[begin : begin + chunk] = share @ matrix
                if weight_gradient is not None:
                    weight_gradient += share.T @ states
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.weight_dtype = weight.dtype
        return total / count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return (
            None if hidden_gradient is None else hidden_gradient * gradients[0].to(hidden_gradient.dtype),
            None if weight_gradient is None else (weight_gradient * gradients[0]).to(ctx.weight_dtype),
            None,
            None,
        )


_known: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def trunk_and_head(model: nn.Module) -> tuple[nn.Module, nn.Linear] | None:
    """The model without its head, and the head, where the logits are nothing but the one's hidden states times the other."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # peft puts its adapters inside
    trunk = getattr(inner, getattr(inner, "base_model_prefix", "") or "-", None)
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if not isinstance(trunk, nn.Module) or type(head) is not nn.Linear or head.bias is not None:
        return None
    if any(m._forward_hooks or m._forward_pre_hooks for m in (head, inner, model)):
        return None
    if model not in _known:
        _known[model] = _is_product(model, trunk, head)
    return (trunk, head) if _known[model] else None


@torch.no_grad()
def _is_product(model: nn.Module, trunk: nn.Module, head: nn.Linear) -> bool:
    modes = {module: module.training for module in model.modules()}
    probe = torch.arange(1, 6, device=head.weight.device)[None] % head.weight.shape[0]
    kind = head.weight.device.type
    try:
        model.eval()
        with torch.autocast(kind, enabled=False):
            output: Any = model(input_ids=probe, use_cache=False)
            hidden = trunk(input_ids=probe, use_cache=False).last_hidden_state
            made = head(hidden)
            same = made.shape == output.logits.shape and torch.allclose(made, output.logits, rtol=1e-4, atol=1e-5)
        return (
            bool(same) and getattr(output, "auxiliary_loss", None) is None and getattr(output, "aux_loss", None) is None
        )
    except (AttributeError, TypeError):
        return False
    finally:
        for module, mode in modes.items():
            module.training = mode
