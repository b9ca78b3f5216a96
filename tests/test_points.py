"""Models of sequences of vectors, and their batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bakeoff.lm.points import PointsDecoder, PointsLSTM
from bakeoff.text.tasks.in_context import Boolean
from bakeoff.text.tasks.task import IGNORED
from bakeoff.training.points import FreshPoints, classification, outputs


def decoder(seed: int = 0, **shape: Any) -> PointsDecoder:
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "positions": "learned"} | shape
    return PointsDecoder(seed, 3, 2, **shape).eval()


def lstm(seed: int = 0) -> PointsLSTM:
    return PointsLSTM(seed, 3, 2, hidden_size=8, layers=2).eval()


@pytest.mark.parametrize("make", [decoder, lstm])
def test_weights_follow_from_the_seed_and_leave_the_global_generator_alone(make: Any) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (list(make(seed).parameters()) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("make", [decoder, lstm])
@torch.no_grad()
def test_no_place_sees_a_later_one(make: Any) -> None:
    model, x = make(), torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0))
    said, x2 = model(x), x.clone()
    x2[:, 4] += 1
    changed = (model(x2) - said).abs().amax((0, 2)) > 1e-6
    assert said.shape == (2, 7, 2)
    assert changed.tolist() == [False] * 4 + [True] * 3


@torch.no_grad()
def test_without_positions_the_order_before_a_place_does_not_matter_to_one_layer() -> None:
    x = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 1, 4, 0, 2, 5])
    none, learned = (decoder(positions=p, num_hidden_layers=1) for p in ("none", "learned"))
    assert torch.allclose(none(x)[:, -1], none(x[:, order])[:, -1], atol=1e-6)
    assert not torch.allclose(learned(x)[:, -1], learned(x[:, order])[:, -1], atol=1e-3)


def test_state_sizes_are_what_a_prediction_can_read() -> None:
    # 2 layers, keys and values of width 16 for each of 10 places.
    assert decoder().state_size(10) == 2 * 2 * 16 * 10
    assert lstm().state_size(10) == lstm().state_size(20) == 2 * 2 * 8


@pytest.mark.parametrize("parameters", [500, 5000, 20000])
def test_an_lstm_is_made_of_a_size(parameters: int) -> None:
    made = PointsLSTM.of_size(parameters, 0, 3, 2, layers=2)
    sizes = [
        sum(
            p.numel() for p in PointsLSTM(0, 3, 2, hidden_size=made.recurrent.hidden_size + more, layers=2).parameters()
        )
        for more in (-1, 0, 1)
    ]
    assert min(sizes, key=lambda size: abs(size - parameters)) == sizes[1] == sum(p.numel() for p in made.parameters())


def test_batches_are_those_of_the_tasks_in_equal_parts() -> None:
    tasks = [Boolean(examples_each=8), Boolean(examples_each=8, teaching=1.0)]
    batches = FreshPoints(tasks, 5, 6, seed=1)
    batch, again, other = batches(3), batches(3), batches(4)
    assert batch.extra["inputs"].shape == (6, 16, 5)
    assert batch.tokens == 96
    assert torch.equal(batch.extra["inputs"], again.extra["inputs"])
    assert not torch.equal(batch.extra["inputs"], other.extra["inputs"])
    taught = batch.extra["inputs"][3:, ::2]
    # A teaching sequence begins with two inputs that agree on the literals and differ in all other variables.
    assert ((taught[:, 1] - taught[:, 0]) >= 0).all()


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.0, 1.0]))

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(*points.shape[:2], 2)


def test_classification_is_the_mean_cross_entropy_of_the_places_that_count() -> None:
    batch = FreshPoints([Boolean(examples_each=4)], 4, 5, seed=0)(0)
    targets = batch.extra["targets"]
    ones, zeros = int((targets == 1).sum()), int((targets == 0).sum())
    assert int((targets == IGNORED).sum()) == 20
    expected = (zeros * np.log(1 + np.e) + ones * np.log(1 + np.exp(-1))) / (ones + zeros)
    assert float(classification(Constant(), batch, 0).detach()) == pytest.approx(expected, rel=1e-5)


def test_outputs_are_the_same_in_parts_and_leave_the_mode() -> None:
    model, x = decoder().train(), np.random.default_rng(0).standard_normal((5, 4, 3)).astype(np.float32)
    assert np.allclose(outputs(model, x, rows=2), outputs(model, x), atol=1e-6)
    assert model.training
