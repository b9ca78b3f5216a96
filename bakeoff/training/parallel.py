"""Several processes of one launcher (`accelerate launch`, `torchrun`) doing one piece of work together.

Every process runs the same program on the same data. What only one of them may do, such as writing to the store, is done
`on_first`; training is shared out (`Sharing`). One process needs none of this, and torch.distributed is not even imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Literal, TypeVar

from bakeoff.errors import UsageError

T = TypeVar("T")
Kind = Literal["alone", "data", "fsdp", "tensor"]
PATIENCE = 120.0
"""Seconds that a process waits for the others to come."""

_alone: ContextVar[bool] = ContextVar("alone", default=False)


def processes() -> int:
    """How many processes work together here."""
    return 1 if _alone.get() else int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this one is, from 0."""
    return 0 if _alone.get() else int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    return rank() == 0


def kind() -> Kind:
    """How training is shared out, as the launcher's flags say.

    data: every process holds the whole model and a part of each batch (the default).
    fsdp: weights, gradients and optimizer states are spread as well (`--use_fsdp --fsdp_version 2`).
    tensor: every matrix is spread, the batch is whole (`--use_parallelism_config --parallelism_config_tp_size N`).
    """
    if processes() == 1:
        return "alone"
    if int(os.environ.get("PARALLELISM_CONFIG_TP_SIZE", "1")) > 1:
        if int(os.environ["PARALLELISM_CONFIG_TP_SIZE"]) != processes():
            raise UsageError(
                f"The tensor parallel size {os.environ['PARALLELISM_CONFIG_TP_SIZE']} is not the number of processes, "
                f"{processes()}: launch with the same number for both."
            )
        return "tensor"
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise UsageError("FSDP version 1 is not supported: launch with --fsdp_version 2.")
        return "fsdp"
    return "data"


def join() -> None:
    """Meet the other processes, once; UsageError where they do not come."""
    import torch.distributed as dist

    if dist.is_initialized():
        return
    import torch

    on_device = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() != "true"
    if on_device:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        store, number, count = next(iter(dist.rendezvous("env://", timeout=timedelta(seconds=PATIENCE))))
        backend = "cpu:gloo,cuda:nccl" if on_device else "gloo"
        # One process may examine a model for long while the others wait.
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=timedelta(days=1))
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"The {processes()} processes of the launcher did not all come within {PATIENCE:g} seconds "
            f"({type(error).__name__}): check --num_processes, --main_process_ip and --main_process_port."
        ) from None


def leave() -> None:
    """Part from the other processes, where they had met."""
    if "WORLD_SIZE" in os.environ:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Within it this process works as if it were the only one."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def on_first(work: Callable[[], T]) -> T:
    """What `work` returns, or raises, in the first process; it runs nowhere else, and all the others wait for it."""
    if processes() == 1:
        return work()
    outcome: list[Any] = [None, None]
    if is_first():
        try:
            with alone():
                outcome[0] = work()
        except Exception as error:
            outcome[1] = error
    outcome = agreed(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def agreed(value: T) -> T:
    """The first process's value, in every process."""
    if processes() == 1:
        return value
    import torch.distributed as dist

    join()
    holder = [value]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]


def gathered(value: T) -> list[T]:
    """Every process's value, in the order of their ranks."""
    if processes() == 1:
        return [value]
    import torch.distributed as dist

    join()
    holder: list[Any] = [None] * processes()
    dist.all_gather_object(holder, value)
    return holder
