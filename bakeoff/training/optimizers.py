"""Optimizers for `Run.train`: functions of (parameters, learning rate) that set each group's rate relative to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def adamw(
    *,
    decay: float = 0.0,
    independent: bool = True,
    betas: tuple[float, float] = (0.9, 0.95),
    epsilon: float = 1e-8,
    multipliers: Mapping[nn.Parameter, float] | None = None,
) -> Callable[[list[nn.Parameter], float], torch.optim.Optimizer]:
    """AdamW whose weight decay does not depend on the learning rate, and whose parameters may have rates of their own.

        independent:  theta <- theta - s (m alpha Delta + lambda theta)
        coupled:      theta <- theta - s m alpha (Delta + lambda theta)

    with the schedule s in [0, 1], the greatest learning rate alpha, a parameter's multiplier m and Adam's direction Delta.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2; the names as in arXiv:2309.14322.
    Args:
        decay: lambda, at least 0: a share of the weights a step where independent, else a coefficient as in PyTorch.
        multipliers: m above 0 of the parameters that do not learn at the rate itself.
    """
    factors = dict(multipliers or {})

    def make(parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
        groups: dict[float, list[nn.Parameter]] = {}
        for parameter in parameters:
            groups.setdefault(factors.get(parameter, 1.0), []).append(parameter)
        return torch.optim.AdamW(
            [
                {
                    "params": members,
                    "lr": factor * learning_rate,
                    # PyTorch multiplies the coefficient by the group's rate.
                    "weight_decay": decay / (factor * learning_rate) if independent else decay,
                }
                for factor, members in groups.items()
            ],
            betas=betas,
            eps=epsilon,
        )

    return make


def matrices_decay(weight_decay: float) -> Callable[[list[nn.Parameter], float], torch.optim.Optimizer]:
    """AdamW with betas 0.9 and 0.95 that decays matrices (coupled, as in PyTorch), not vectors such as biases and gains."""

    def make(parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
        matrices, others = ([p for p in parameters if (p.ndim >= 2) == chosen] for chosen in (True, False))
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        fused = not any(isinstance(p, DTensor) for p in parameters)
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, betas=(0.9, 0.95), fused=fused)

    return make


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights of the linear layers between a causal LM's embedding and its head: both their sides grow with the width."""
    head = model.get_output_embeddings().weight  # type: ignore[operator]
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    return [weight for weight in weights if weight is not head and isinstance(weight, nn.Parameter)]
