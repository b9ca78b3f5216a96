"""Attention of transformers' own models in training: which way is faster, and documents packed into one row kept apart."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

LONGEST = 512
"""Up to this length, plain products in bfloat16 on a processor beat scaled_dot_product_attention (benchmarks/train.py)."""

_NAME = "bakeoff_products"
_documents: ContextVar[Tensor | None] = ContextVar("documents", default=None)


def product_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, is_causal: bool | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """softmax(scaling Q K^T + mask) V as matrix products, in the signature of transformers' attention functions.

    query: [rows, heads, length, width]; key and value may have fewer heads. Returns [rows, length, heads, width].
    """
    groups, length, seen = query.shape[1] // key.shape[1], query.shape[2], key.shape[2]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query * (scaling or 1 / math.sqrt(query.shape[-1]))) @ key.transpose(2, 3)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is None and causal and length > 1:
        attention_mask = torch.ones(length, seen, dtype=torch.bool, device=query.device).tril(seen - length)
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            allowed = attention_mask[..., :seen]
            attention_mask = torch.zeros(allowed.shape, dtype=scores.dtype, device=scores.device)
            attention_mask = attention_mask.masked_fill_(~allowed, torch.finfo(scores.dtype).min)
        scores = scores + attention_mask[..., :seen]
    weights = nn.functional.dropout(scores.softmax(-1), dropout, training=dropout > 0)
    return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(_NAME, product_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, sdpa_mask)


@contextmanager
def quick_attention(model: nn.Module, dtype: torch.dtype, length: int) -> Iterator[None]:
    """Let a model of transformers use `product_attention` where that is the faster way; as it was before on leaving."""
    inner = next((m for m in model.modules() if isinstance(m, PreTrainedModel)), None)
    before = getattr(inner.config, "_attn_implementation", None) if inner is not None else None
    on_processor = all(p.device.type == "cpu" for p in model.parameters())
    if inner is None or before != "sdpa" or dtype != torch.bfloat16 or length > LONGEST or not on_processor:
        yield
        return
    inner.config._attn_implementation = _NAME
    try:
        yield
    finally:
        inner.config._attn_implementation = before


@contextmanager
def packed(documents: Tensor | None) -> Iterator[None]:
    """Within it, `apart` keeps these documents ([rows, length], numbered along each row) from seeing one another."""
    token = _documents.set(documents)
    try:
        yield
    finally:
        _documents.reset(token)


def apart(model: nn.Module, input_ids: Tensor) -> dict[str, Tensor]:
    """What a forward pass over `input_ids` needs besides them, so that packed documents stay apart; empty where none are."""
    documents = _documents.get()
    if documents is None or documents.shape != input_ids.shape:
        return {}
    if getattr(getattr(model, "config", None), "model_type", "") == "bakeoff_decoder":
        return {"documents": documents}
    return {"attention_mask": document_mask(documents), "position_ids": document_positions(documents)}


def document_positions(documents: Tensor) -> Tensor:
    """[rows, length]: the place of each token within its document, from 0."""
    place = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return place - torch.where(begins, place, 0).cummax(1).values


def document_mask(documents: Tensor) -> Tensor:
    """[rows, 1, length, length], true where a token may attend: to those before it and itself, in its own document."""
    length = documents.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    return ((documents[:, :, None] == documents[:, None, :]) & causal)[:, None]
