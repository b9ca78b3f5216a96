"""Tiny random models of every known architecture, and a tokenizer for them: made in memory, seeded, in milliseconds.

They break what a method may silently assume: Conv1D and fused projections (GPT-2, GPT-NeoX, our decoder, whose gate and
up are fused too), heads that are not d_model wide together (Qwen3, Gemma), grouped key and value heads, tied and untied
heads, biases or none, parallel residuals, learned and rotary positions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from bakeoff.errors import UsageError

END = "<|endoftext|>"
VOCAB_SIZE = 260
LENGTH = 512
_END_ID = 256
_WIDTH = 32
_SPREAD = 0.1

_GATED: dict[str, Any] = {
    "hidden_size": _WIDTH,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
    "tie_word_embeddings": False,
}

_ROWS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": _WIDTH, "n_head": 4, "n_positions": LENGTH, "tie_word_embeddings": True},
    "gpt_neox": {
        "hidden_size": _WIDTH,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
        "tie_word_embeddings": False,
    },
    "opt": {
        "hidden_size": _WIDTH,
        "word_embed_proj_dim": _WIDTH,
        "ffn_dim": 64,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
        "tie_word_embeddings": True,
    },
    "llama": _GATED,
    "mistral": {**_GATED, "sliding_window": None},
    "qwen2": {**_GATED, "tie_word_embeddings": True},
    "qwen3": {**_GATED, "head_dim": 16},
    "gemma": {**_GATED, "head_dim": 16, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "decoder": {**_GATED, "model_type": "bakeoff_decoder", "bias": True, "qk_norm": True},
}

FAMILIES: tuple[str, ...] = tuple(_ROWS)


def tiny(
    family: str, seed: int = 0, dtype: torch.dtype = torch.float32, vocab_size: int = VOCAB_SIZE, layers: int = 2
) -> PreTrainedModel:
    """A random model, 32 wide with 4 heads, in eval mode on the CPU; no two parts are equal and no bias is zero.

    The same arguments give the same bits; another dtype gives the float32 weights rounded. The caller's random state
    is left as it was.

    Args:
        family: one of `FAMILIES`.
        vocab_size: rows of the embedding; at least 257 for `tiny_tokenizer`.

    Raises:
        UsageError: the family is unknown.
    """
    if family not in _ROWS:
        raise UsageError(f"There is no tiny model of {family!r}; use one of {', '.join(FAMILIES)}.")
    config = AutoConfig.for_model(
        vocab_size=vocab_size,
        num_hidden_layers=layers,
        bos_token_id=_END_ID,
        eos_token_id=_END_ID,
        # A padding token would freeze its row of the embedding.
        pad_token_id=None,
        **{"model_type": family, **_ROWS[family]},
    )
    # Only the CPU's generator is seeded: torch.manual_seed would also reach those of accelerators, which stay unforked.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(_SPREAD * torch.randn_like(parameter))
    model.to(dtype)  # type: ignore[arg-type]
    model.train(False)
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: 256 bytes, then `END`, which ends texts and pads; decoding gives the text back exactly.

    Its chat template writes each message as `role: content` and a line end.
    """
    vocabulary = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytewise = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytewise.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bytewise,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=LENGTH,
        clean_up_tokenization_spaces=False,
        chat_template=(
            "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}"
        ),
    )


def save_tiny(folder: str | Path, family: str, seed: int = 0) -> None:
    """Write a tiny model and its tokenizer as an ordinary model folder, with safetensors.

    Limits: from a qwen2 folder transformers reads the tokenizer as Qwen2's, which composes Unicode (NFC) first.
    """
    tiny(family, seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
