"""When a model is compiled for training, and that it is no longer once the training is over."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bakeoff.errors import UsageError
from bakeoff.training.batches import Batches
from bakeoff.training.objectives import trunk_and_head

_GAIN = 0.15
"""Share of the time of a step that compilation saves on a processor, at the least that benchmarks/train.py showed."""

_WARM_UP = (12.0, 7.0)
"""Seconds that the first compiled step takes on 2 cores: so many, and so many more for each layer."""

_RATE = 1e11
"""FLOP/s that one thread reaches at least, on a processor."""


def has_compiler() -> bool:
    return any(map(shutil.which, ("c++", "g++", "clang++")))


def worth_compiling(model: nn.Module, batches: Batches, flops: float | None, seconds: float) -> bool:
    """Whether a training is so long, and its batches of so constant a shape, that compiling saves twice what it takes.

    Args:
        flops: what the whole training takes; None where its length is given in `seconds`.

    It follows from the model, the batches and the budget alone, not from a clock, so that a run can be repeated.
    """
    if not getattr(batches, "fixed_length", False) or not has_compiler():
        return False
    expected = seconds if flops is None else flops / (_RATE * torch.get_num_threads())
    layers = getattr(getattr(model, "config", None), "num_hidden_layers", None) or 12
    return _GAIN * expected > 2 * (_WARM_UP[0] + _WARM_UP[1] * layers)


@contextmanager
def compiled(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Yields a function that compiles the model's trunk; on leaving, the model is as it was.

    Every trial of a process, and later ones through the compiler's own cache on disk, reuse what was compiled for the same
    code and shapes.
    """
    parts: list[nn.Module] = []

    def compile_now() -> None:
        if not parts:
            if not has_compiler():
                raise UsageError(
                    "--compile always needs a C++ compiler such as g++: install one or give --compile never."
                )
            parts.append((trunk_and_head(model) or (model,))[0])
            parts[0].compile()

    try:
        yield compile_now
    finally:
        for part in parts:
            part._compiled_call_impl = None
