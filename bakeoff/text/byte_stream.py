"""One long sequence of bytes, for models that are too small to afford a vocabulary."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

BYTES = 256


def byte_stream(texts: Iterable[str]) -> Tensor:
    """The UTF-8 bytes of all texts, each followed by a byte 0: int32 of shape [n], values in [0, 256)."""
    encoded = b"".join(text.encode("utf-8") + b"\0" for text in texts)
    return torch.from_numpy(np.frombuffer(encoded, np.uint8).astype(np.int32))


def evenly(tokens: Tensor, windows: int, length: int) -> Tensor:
    """[windows, length], int64: windows of a text, spread evenly over all of it; they overlap where it is short."""
    begins = np.linspace(0, len(tokens) - length, windows).astype(int)
    return torch.stack([tokens[begin : begin + length] for begin in begins]).long()
