"""Learning-rate sensitivity, z-loss, independent weight decay, muParam and qk-norm on numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bakeoff.budget import Budget
from bakeoff.lm import DecoderConfig, DecoderForCausalLM
from bakeoff.lm.attention import watch_attention
from bakeoff.studies.instability_proxies import DEFAULT, _sweep
from bakeoff.training.along import Along
from bakeoff.training.batches import Batch, Windows
from bakeoff.training.objectives import cross_entropy
from bakeoff.training.optimizers import adamw, hidden_matrices
from bakeoff.training.run import Run
from bakeoff.training.schedules import constant
from bakeoff.training.stability import breaking_rate, extrapolate, penalized, sensitivity, z_loss


def decoder(seed: int = 0, **changed: Any) -> DecoderForCausalLM:
    torch.manual_seed(seed)
    shape = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, **changed}
    return DecoderForCausalLM(DecoderConfig(tie_word_embeddings=False, initialization="fan_in", **shape))


@pytest.mark.parametrize(
    ("losses", "initial", "expected"),
    [
        # Excess over 2.9, each loss at most 10.4: .3 + .1 + 0 + .05 + .5 + 6.1 + 7.5 = 14.55, over 7 rates.
        ([3.2, 3.0, 2.9, 2.95, 3.4, 9.0, 20.0], 10.4, 14.55 / 7),
        ([3.0] * 7, 10.4, 0.0),
        ([3.0] + [math.inf] * 6, 10.4, 6 / 7 * 7.4),
        ([3.0, math.nan], 4.0, 0.5),
        ([math.nan, math.inf], 4.0, 0.0),
    ],
)
def test_sensitivity(losses: list[float], initial: float, expected: float) -> None:
    assert sensitivity(losses, initial) == pytest.approx(expected)


def test_breaking_rate() -> None:
    # The loss passes 2.2 halfway between the rates 0.01 and 1: at 0.1. The rise below the best rate does not count.
    assert breaking_rate([1e-4, 1e-2, 1.0], [5.0, 2.0, 2.4], 0.2) == pytest.approx(0.1)
    assert breaking_rate([1e-4, 1e-2, 1.0], [5.0, 2.0, 2.1], 0.2) == 1.0
    assert breaking_rate([1e-4, 1e-2, 1.0], [5.0, 4.0, 3.0], 0.2) == 1.0


def test_z_loss_of_two_equal_logits() -> None:
    logits = torch.zeros(1, 2, requires_grad=True)
    loss = penalized(logits, torch.tensor([0]), 1e-4)
    # log Z = ln 2, so the penalty is 1e-4 * 0.480453 = 4.80e-5 and its gradient 2e-4 ln 2 * 1/2 for each logit.
    assert loss.item() - math.log(2) == pytest.approx(4.80453e-5, rel=1e-2)
    (gradient,) = torch.autograd.grad(loss, logits)
    push = 2e-4 * math.log(2) / 2
    assert gradient[0].tolist() == pytest.approx([push - 0.5, push + 0.5])


def test_z_loss_punishes_a_shift_that_cross_entropy_does_not_see() -> None:
    logits, labels = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).double(), torch.arange(5)
    log_z = logits.logsumexp(-1, keepdim=True)
    plain, punished = (penalized(logits - log_z + 3, labels, coefficient).item() for coefficient in (0.0, 0.1))
    assert plain == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)
    assert punished - plain == pytest.approx(0.9, rel=1e-5)
    assert penalized(logits - log_z, labels, 0.1).item() == pytest.approx(plain, rel=1e-6)


def test_z_loss_without_coefficient_is_the_cross_entropy() -> None:
    model = decoder()
    tokens = torch.randint(32, (3, 9), generator=torch.Generator().manual_seed(0))
    labels = tokens.clone()
    labels[1, 4:] = -100
    batch = Batch(tokens, labels, tokens.numel())
    assert z_loss(0.0)(model, batch, 0).item() == pytest.approx(cross_entropy(model, batch, 0).item(), rel=1e-6)


@pytest.mark.parametrize("rate", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize(("independent", "shrunk"), [(True, 1e-4), (False, None)])
def test_decay_with_no_gradient(rate: float, independent: bool, shrunk: float | None) -> None:
    parameter = nn.Parameter(torch.tensor([3.0], dtype=torch.float64))
    optimizer = adamw(decay=1e-4, independent=independent)([parameter], rate)
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    # Coupled: at a rate of 0.1 a tenth of the coefficient, 1e-5.
    assert 1 - parameter.item() / 3 == pytest.approx(shrunk or 1e-4 * rate)


def test_independent_decay_follows_the_schedule_and_no_multiplier() -> None:
    one, other = (nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2))
    optimizer = adamw(decay=1e-2, multipliers={other: 0.25})([one, other], 0.5)
    for group in optimizer.param_groups:
        group["lr"] *= 0.5
    one.grad, other.grad = torch.zeros_like(one), torch.zeros_like(other)
    optimizer.step()
    assert [1 - one.item(), 1 - other.item()] == pytest.approx([5e-3, 5e-3])


@pytest.mark.parametrize(("epsilon", "share"), [(1e-8, 1 / 11), (1e-15, 1.0)])
def test_epsilon_shrinks_the_steps_of_small_gradients(epsilon: float, share: float) -> None:
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = adamw(epsilon=epsilon)([parameter], 1e-2)
    for step in range(1, 4):
        parameter.grad = torch.full_like(parameter, 1e-9)
        optimizer.step()
        # Bias-corrected: g / (g + epsilon) of the rate in every step.
        assert -parameter.item() == pytest.approx(step * 1e-2 * share, rel=1e-4)


def test_hidden_matrices_are_all_but_embedding_head_and_norms() -> None:
    model = decoder(qk_norm=True)
    found = hidden_matrices(model)
    others = {name for name, p in model.named_parameters() if not any(p is matrix for matrix in found)}
    # Two layers of queries, keys and values; output; gate and up; down.
    assert len(found) == 2 * 4
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} < others
    assert all("norm" in name for name in others - {"lm_head.weight", "model.embed_tokens.weight"})


def test_hidden_matrices_learn_at_their_own_rate(tmp_path: Path) -> None:
    model = decoder()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    hidden = hidden_matrices(model)

    def slope(model: nn.Module, batch: Batch, step: int) -> torch.Tensor:
        return sum(p.sum() for p in model.parameters())  # type: ignore[return-value]

    Run(Budget.parse("1steps"), 0, tmp_path).train(
        model, Windows(torch.arange(32), 2, 8, 0), learning_rate=1e-2, objective=slope, clip=0, schedule=constant,
        optimizer=adamw(multipliers=dict.fromkeys(hidden, 0.25)),
    )  # fmt: skip
    # The first step of Adam is the rate, against the gradient's sign.
    for name, parameter in model.named_parameters():
        own = 0.25e-2 if any(parameter is matrix for matrix in hidden) else 1e-2
        assert (before[name] - parameter).mean().item() == pytest.approx(own, rel=1e-3), name


@pytest.mark.parametrize("qk_norm", [True, False])
def test_qk_norm_undoes_the_scale_of_the_queries(qk_norm: bool) -> None:
    model = decoder(hidden_size=128, qk_norm=qk_norm, norm="layer", num_hidden_layers=1)
    tokens = torch.randint(32, (2, 12), generator=torch.Generator().manual_seed(0))
    greatest = []
    for _ in range(2):
        with torch.no_grad(), watch_attention(model) as watch:
            model(input_ids=tokens)
        greatest.append(watch.greatest)
        with torch.no_grad():
            model.model.layers[0].mixer.qkv.weight.view(2, 3, 64, 128)[:, 0] *= 1000
    assert greatest[1] / greatest[0] == pytest.approx(1 if qk_norm else 1000, rel=1e-2)
    # Vectors of 64 entries of unit variance: |q| |k| / sqrt(64) is at most 8.
    assert not qk_norm or 0 < max(greatest) <= 8 * (1 + 1e-5)


def test_extrapolation_finds_a_planted_law() -> None:
    sizes, rates = [1e4, 3e4, 1e5], [1e-3, 1e-2, 1e-1]

    def law(n: float, r: float) -> float:
        a, b = math.log(n), math.log(r)
        return math.exp(1 + 0.3 * a - 0.5 * b + 0.05 * b * b + 0.02 * a * a - 0.1 * a * b)

    grid = [(n, r, law(n, r)) for n in sizes for r in rates]
    found = extrapolate(*(list(column) for column in zip(*grid, strict=True)), 1e6, rates)
    assert found == pytest.approx([law(1e6, r) for r in rates], rel=1e-6)
    two = [point for point in grid if point[0] < 1e5]
    assert extrapolate(*(list(column) for column in zip(*two, strict=True)), 3e4, rates)[1] > 0


def test_diverged_run_counts_as_the_loss_at_initialisation(tmp_path: Path) -> None:
    text = torch.randint(32, 64, (400,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    values = {
        **DEFAULT, "rates": (1e-3, 1e30), "steps": 4, "early": 2, "warm_up": 1, "rows": 2, "length": 16, "windows": 3,
        "layers": 1, "head_width": 4, "width": 8, "base_width": 8, "decay": 1e-3,
    }  # fmt: skip
    run = Run(Budget.parse("8steps"), 0, tmp_path)
    found = _sweep(run, text, text, values)
    initial = run.notes["loss at initialisation"]
    assert found["diverged"][:, 0].tolist() == [0, 1]
    assert found["loss"][1, 0] == initial > found["loss"][0, 0]
    assert found["sensitivity"][0, 0] == pytest.approx((initial - found["loss"][0, 0]) / 2)
    assert found["log_z"][:, 1].tolist() == [1, 0]
    assert "step" in run.notes["diverged"]["1e+30"]
    assert all(np.isfinite(values).all() for values in found.values())


def test_what_was_measured_along_the_way_survives_a_kill(tmp_path: Path) -> None:
    values = iter([1.0, math.inf])
    killed = Along(tmp_path / "along.json", [2, 4], lambda: [next(values)])
    for step in range(3):
        killed(step)
    resumed = Along(tmp_path / "along.json", [2, 4], lambda: [next(values)])
    for step in range(3, 5):
        resumed(step)
    assert resumed.read() == {2: [1.0], 4: [None]}
