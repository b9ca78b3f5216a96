"""Whether a batch fits into memory, predicted from one row, and what an exhausted memory looks like."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from bakeoff.errors import UsageError
from bakeoff.training.batches import Batch

_USABLE = 0.8


def available(device: torch.device) -> int:
    """Bytes that are free on the device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else ():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return 1 << 62


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory could not be had."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def rows_that_fit(model: nn.Module, loss: Callable[[Batch], Tensor], batch: Batch, rows: int) -> int:
    """How many of `rows` rows can be learned at a time: all, or half of them, or half of those, and so on.

    What one row keeps for its backward pass is measured where a rough upper bound does not already show that all fit.
    Errors: UsageError if not even one row fits.
    """
    free = _USABLE * available(batch.input_ids.device)
    if rows * _bound(model, batch.input_ids.shape[1]) < free:
        return rows
    needed = _kept_for_backward(model, loss, batch.rows(0, 1))
    while rows > 1 and rows * needed > free:
        rows = (rows + 1) // 2
    if rows * needed > free:
        raise UsageError(
            f"One row of {batch.input_ids.shape[1]} tokens needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: give a "
            "smaller --max-length or --gradient-checkpointing."
        )
    return rows


def _bound(model: nn.Module, length: int) -> float:
    """Bytes for a row of this length, surely more than it takes; infinite where the shape is unknown."""
    config = getattr(model, "config", None)
    layers, width, heads, words = (
        getattr(config, name, None)
        for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
    )
    if not (layers and width and heads and words):
        return float("inf")
    return 4.0 * length * (layers * (64 * width + 6 * heads * length) + 6 * words)


def _kept_for_backward(model: nn.Module, loss: Callable[[Batch], Tensor], row: Batch) -> int:
    """Bytes of the distinct tensors that one row's forward pass keeps, the model's own left out; nothing is changed."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    buffers = {name: b.clone() for name, b in model.named_buffers()}
    states = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = loss(row)
    del held
    torch.set_rng_state(states[0])
    torch.cuda.set_rng_state_all(states[1])
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return sum(seen.values())
