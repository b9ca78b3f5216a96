"""What a method is handed besides model and data: budget, randomness, device, progress, and the one training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bakeoff.budget import Budget, Meter
from bakeoff.errors import TrainingDiverged, UsageError
from bakeoff.training import checkpoint
from bakeoff.training.batches import Batches, derived_seed
from bakeoff.training.objectives import Objective, cross_entropy, no_labels
from bakeoff.training.schedules import Schedule, linear_decay

Hook = Callable[[int], None]
MakeOptimizer = Callable[[list[nn.Parameter], float], torch.optim.Optimizer]


def adamw(parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """AdamW without weight decay, PyTorch's other defaults."""
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)


@dataclass
class Run:
    """One trial's surroundings. All randomness comes from `seed`; all spending is counted by `meter`.

    `folder` holds the unfinished trial's checkpoints: a method that is run again after a kill finds every training
    that it had finished done, and the one that was interrupted goes on to the same bits. `notes` is what a method wants to
    be read beside its result: plain JSON values by name.
    """

    budget: Budget
    seed: int
    folder: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    meter: Meter = field(default_factory=Meter)
    checkpoint_seconds: float = 30.0
    progress: Callable[[float, float], None] = lambda fraction, loss: None
    curve: list[tuple[int, int, float]] = field(default_factory=list)
    trained_parameters: int = 0
    notes: dict[str, Any] = field(default_factory=dict)
    step_seconds: list[float] = field(default_factory=list)
    _calls: int = 0
    _ticked: float = field(default_factory=time.monotonic)

    def generator(self, *names: object) -> torch.Generator:
        """A CPU generator that depends on the trial's seed and the names alone, not on what was drawn before."""
        return torch.Generator().manual_seed(derived_seed(self.seed, *names))

    @property
    def fraction(self) -> float:
        """How much of the budget is spent, from 0 to 1."""
        return min(self.meter.spent(self.budget.unit) / self.budget.amount, 1.0) if self.budget.amount else 1.0

    def tick(self) -> float:
        """Count the wall time since the last call, or since the run began, as spent, and return it (seconds)."""
        now = time.monotonic()
        passed, self._ticked = now - self._ticked, now
        self.meter.seconds += passed
        return passed

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute in `dtype` where that is safe; weights stay as they are."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            yield

    def train(
        self,
        model: nn.Module,
        batches: Batches,
        *,
        learning_rate: float,
        objective: Objective = cross_entropy,
        parameters: Iterable[str] | Mapping[str, Tensor | None] | None = None,
        optimizer: MakeOptimizer = adamw,
        schedule: Schedule = linear_decay,
        share: float = 1.0,
        clip: float = 1.0,
        before_step: Hook | None = None,
        after_step: Hook | None = None,
    ) -> nn.Module:
        """Train `model` in place on `batches` until `share` of the whole budget has been spent here, and return it.

        Args:
            parameters: names of those that learn, or name -> boolean mask of the entries that learn (None: all of it).
                Default: all that require a gradient. Every other parameter and masked entry keeps its bits.
            optimizer: makes the optimizer of (parameters, learning rate).
            schedule: factor on the learning rate as a function of the spent fraction of this share.
            clip: greatest norm of the gradient over what learns; 0 means no clipping.
            before_step, after_step: called with the step; whatever they do must follow from the step alone.

        Raises:
            TrainingDiverged: the loss or the gradient is infinite or not a number.
        """
        learning = _learning(model, parameters)
        index, self._calls = self._calls, self._calls + 1
        self.trained_parameters = max(
            self.trained_parameters, sum(p.numel() if m is None else int(m.sum()) for p, m in learning.values())
        )
        folder = self.folder / f"train-{index}"
        torch.manual_seed(derived_seed(self.seed, "train", index))
        made = optimizer([p for p, _ in learning.values()], learning_rate) if learning else None
        frozen = {name: p.detach().clone() for name, (p, mask) in learning.items() if mask is not None}
        share_begin, share_size, step, flops_per_token = (
            self.meter.spent(self.budget.unit),
            self.budget.amount * share,
            0,
            0.0,
        )

        if saved := checkpoint.read(folder):
            step, flops_per_token, share_begin = saved["step"], saved["flops_per_token"], saved["share_begin"]
            self.tick()
            self.meter, self.curve = Meter(**saved["meter"]), [tuple(point) for point in saved["curve"]]
            with torch.no_grad():
                for name, (p, _) in learning.items():
                    p.copy_(saved["parameters"][name])
            if saved["done"]:
                return model.eval()
            assert made
            made.load_state_dict(saved["optimizer"])
            torch.set_rng_state(saved["generator"])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(saved["device_generator"], self.device)

        def save(done: bool) -> None:
            state = {
                "step": step, "done": done, "flops_per_token": flops_per_token, "share_begin": share_begin,
                "meter": self.meter.as_dict(), "curve": self.curve,
                "parameters": {name: p for name, (p, _) in learning.items()},
                "optimizer": made.state_dict() if made and not done else {},
                "generator": torch.get_rng_state(),
            }  # fmt: skip
            if self.device.type == "cuda":
                state["device_generator"] = torch.cuda.get_rng_state(self.device)
            checkpoint.write(folder, step, state)

        last_saved = time.monotonic()
        self.tick()
        model.train()
        while made:
            batch = batches(step)
            spent = self.meter.spent(self.budget.unit) - share_begin
            cost = {"steps": 1, "tokens": batch.tokens, "seconds": 0}[self.budget.unit]
            if spent + cost > share_size + 1e-9 or spent >= share_size:
                break
            batch = batch.to(self.device)
            if before_step:
                before_step(step)
            for group in made.param_groups:
                group["lr"] = learning_rate * schedule((spent + cost / 2) / share_size)
            made.zero_grad(set_to_none=True)
            if no_labels(batch):
                raise UsageError(
                    "A training batch has no token to learn: give completions that are not cut off by --max-length."
                )
            with FlopCounterMode(display=False) if step == 0 else _nothing() as counter, self.autocast():
                loss = objective(model, batch, step)
                loss.backward()
            if counter is not None:
                flops_per_token = counter.get_total_flops() / batch.tokens
            norm = self._mask_and_clip(learning, clip)
            value = float(loss.detach())
            if not (math.isfinite(value) and math.isfinite(norm)):
                raise TrainingDiverged(
                    f"Training stopped at step {step}: the loss is {value:g} and the gradient norm {norm:g}; lower the learning rate."
                )
            made.step()
            with torch.no_grad():
                for name, kept in frozen.items():
                    p, mask = learning[name]
                    assert mask is not None
                    p.copy_(torch.where(mask.to(p.device), p, kept))
            if after_step:
                after_step(step)
            self.step_seconds.append(self.tick())
            self.meter.steps += 1
            self.meter.tokens += batch.tokens
            self.meter.flops += flops_per_token * batch.tokens
            step += 1
            self.curve.append((self.meter.steps, self.meter.tokens, value))
            self.progress(self.fraction, value)
            if time.monotonic() - last_saved >= self.checkpoint_seconds:
                save(done=False)
                last_saved = time.monotonic()
        if made:
            made.zero_grad(set_to_none=True)
        model.eval()
        save(done=True)
        return model

    def _mask_and_clip(self, learning: Mapping[str, tuple[nn.Parameter, Tensor | None]], clip: float) -> float:
        for p, mask in learning.values():
            if mask is not None and p.grad is not None:
                p.grad.mul_(mask.to(p.grad.device))
        gradients = [p for p, _ in learning.values() if p.grad is not None]
        return float(nn.utils.clip_grad_norm_(gradients, clip or math.inf))


def _learning(
    model: nn.Module, parameters: Iterable[str] | Mapping[str, Tensor | None] | None
) -> dict[str, tuple[nn.Parameter, Tensor | None]]:
    """What learns, by name, with its mask; sets `requires_grad` of every parameter of the model to match."""
    named = dict(model.named_parameters())
    if parameters is None:
        masks: dict[str, Tensor | None] = {name: None for name, p in named.items() if p.requires_grad}
    else:
        masks = dict(parameters) if isinstance(parameters, Mapping) else dict.fromkeys(parameters)
    if missing := sorted(set(masks) - set(named)):
        raise KeyError(f"the model has no parameter {missing[0]}")
    masks = {name: None if mask is not None and bool(mask.all()) else mask for name, mask in masks.items()}
    masks = {name: mask for name, mask in masks.items() if mask is None or bool(mask.any())}
    for name, p in named.items():
        p.requires_grad_(name in masks)
    return {name: (named[name], masks[name]) for name in named if name in masks}


@contextmanager
def _nothing() -> Iterator[None]:
    yield None
