"""How one training is shared out among the processes of a launcher: by rows, by FSDP2, or by tensor parallelism."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from bakeoff.errors import Unsupported, UsageError
from bakeoff.training import parallel
from bakeoff.training.batches import Batch
from bakeoff.training.objectives import Objective, cross_entropy


class _Step(nn.Module):
    """A model's objective as a module, so that what wraps a forward pass wraps the whole of it."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch, step: int) -> Tensor:
        return self.objective(self.model, batch, step)


class Sharing:
    """One training's share in this process.

    `model` is what is trained here: the given model itself, or, where its weights are spread, a spread copy, from which
    `collect` writes back. Rows and gradients are shared so that every step equals that of one process.
    """

    def __init__(self, model: nn.Module, objective: Objective, device: torch.device, names: Mapping[str, Any]) -> None:
        self.kind, self.processes, self.given = parallel.kind(), parallel.processes(), model
        self.model, self.loss = model, objective
        if self.kind == "alone":
            return
        parallel.join()
        if self.kind == "data":
            from torch.nn.parallel import DistributedDataParallel

            step = DistributedDataParallel(
                _Step(model, objective),
                device_ids=[device] if device.type == "cuda" else None,
            )
            self.loss = lambda model, batch, number: step(batch, number)
            return
        from torch.distributed.device_mesh import init_device_mesh

        from bakeoff import lm

        mesh = init_device_mesh(device.type, (self.processes,))
        self.model = lm.clone(model)  # type: ignore[arg-type]
        if self.kind == "fsdp":
            from torch.distributed.fsdp import fully_shard

            for block in _blocks(self.model):
                fully_shard(block, mesh=mesh)
            fully_shard(self.model, mesh=mesh)
            self.loss = _whole_model(objective)
        else:
            from bakeoff.training import tensor_parallel

            if objective is not cross_entropy:
                raise Unsupported(
                    "Tensor parallel training knows the cross-entropy only: train this method with data parallelism or FSDP."
                )
            tensor_parallel.tensor_parallel(self.model, mesh)  # type: ignore[arg-type]
            self.loss = tensor_parallel.cross_entropy
        for name, p in self.model.named_parameters():
            p.requires_grad_(name in names)

    @property
    def replicas(self) -> int:
        """Over how many processes gradients are averaged."""
        return 1 if self.kind in ("alone", "tensor") else self.processes

    def part(self, batch: Batch) -> Batch:
        """The rows of a batch that this process learns from."""
        if self.replicas == 1:
            return batch
        rows = len(batch.input_ids)
        if rows < self.replicas:
            raise UsageError(
                f"A step has {rows} rows for {self.replicas} processes: launch at most {rows}, or give a larger "
                "--per-device-train-batch-size."
            )
        begin, end = (rows * (parallel.rank() + i) // self.replicas for i in (0, 1))
        return batch.rows(begin, end)

    def largest(self, batch: Batch) -> int:
        """The most rows of a batch that a process learns from."""
        return -(-len(batch.input_ids) // self.replicas)

    def total(self, value: float) -> float:
        """The sum over the processes that average gradients."""
        if self.replicas == 1:
            return value
        import torch.distributed as dist

        held = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(held)
        return float(held)

    def to_keep(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by parameter name, shaped like the parameters, as a checkpoint keeps them: whole, or as FSDP's parts."""
        if self.kind != "tensor":
            return dict(values)
        from bakeoff.training.tensor_parallel import gathered

        return gathered(self.model, values)

    def to_hold(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors by parameter name, shaped like the plain model's parameters, as this process holds them."""
        if self.kind == "tensor":
            from bakeoff.training.tensor_parallel import scattered

            return scattered(self.model, values)
        mine = dict(self.model.named_parameters())
        return {name: _like(value, mine[name]) for name, value in values.items()}

    def collect(self) -> None:
        """Write what was learned back into the given model, the same in every process."""
        if self.model is self.given:
            return
        whole = {name: full(value) for name, value in self.to_keep(self.model.state_dict()).items()}
        self.given.load_state_dict(whole, strict=False)


def full(value: Tensor) -> Tensor:
    """A tensor that may be spread over processes, as a whole; every process calls it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _like(whole: Tensor, pattern: Tensor) -> Tensor:
    if isinstance(pattern, DTensor):
        return distribute_tensor(whole.to(pattern.device), pattern.device_mesh, pattern.placements)
    return whole.to(pattern.device)


def _whole_model(objective: Objective) -> Objective:
    """FSDP gathers weights when the model itself is called, so its parts must not be called on their own."""

    def loss(model: nn.Module, batch: Batch, step: int) -> Tensor:
        if objective is cross_entropy:
            return cross_entropy(model, batch, step, whole=True)
        return objective(model, batch, step)

    return loss


def _blocks(model: nn.Module) -> list[nn.Module]:
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]
