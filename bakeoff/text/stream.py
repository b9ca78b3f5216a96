"""One long sequence of tokens, as training from scratch reads it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bakeoff.errors import ModelError


def stream(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The tokens of all texts, each followed by the tokenizer's end-of-text token: int32 of shape [n].

    Errors: ModelError for a tokenizer without an end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError("The tokenizer has no end-of-text token to set documents apart: set its eos_token.")
    found = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor([i for ids in found for i in (*ids, tokenizer.eos_token_id)], dtype=torch.int32)
