"""Which windows come how often, what a copying head scores, and what size a loss is worth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bakeoff.studies import repeated_data as study
from bakeoff.training.worlds import decoder


@pytest.mark.parametrize(("epochs", "repeated"), [(1, 500), (5, 100), (20, 25), (500, 1)])
def test_every_window_comes_as_often_as_it_should(epochs: int, repeated: int) -> None:
    order = study.order_of(np.random.default_rng(3), 1000, 0.5, epochs)
    assert len(order) == 1000
    _, counts = np.unique(order, return_counts=True)
    assert sorted(counts) == sorted([1] * 500 + [epochs] * repeated)


def test_repeats_that_do_not_divide_are_even() -> None:
    order = study.order_of(np.random.default_rng(3), 1000, 0.1, 7)
    _, counts = np.unique(order, return_counts=True)
    # 100 places for 14 windows: two come 8 times.
    assert sorted(counts) == [1] * 900 + [7] * 12 + [8] * 2


def test_new_windows_are_the_same_for_all_numbers_of_repeats() -> None:
    def new(epochs: int) -> set[int]:
        order = study.order_of(np.random.default_rng(3), 1000, 0.5, epochs)
        numbers, counts = np.unique(order, return_counts=True)
        return set(numbers[counts == 1].tolist())

    alone = study.order_of(np.random.default_rng(3), 1000, 0.5, 0)
    assert new(4) == new(50) == set(alone.tolist())
    assert len(alone) == 500
    assert new(1) == set(range(1000))


def test_repeats_are_mixed_into_every_part_of_the_training() -> None:
    order = study.order_of(np.random.default_rng(3), 6400, 0.5, 64)
    numbers, counts = np.unique(order, return_counts=True)
    often = np.isin(order, numbers[counts > 1]).reshape(8, 800).mean(1)
    assert often == pytest.approx(np.full(8, 0.5), abs=0.07)


def test_batches_are_the_windows_of_their_step() -> None:
    windows = torch.arange(40, dtype=torch.int32).view(10, 4)
    batch = study.Ordered(windows, np.array([3, 3, 9, 0, 1, 2]), 2)(1)
    assert batch.input_ids.tolist() == [[36, 37, 38, 39], [0, 1, 2, 3]]
    assert batch.labels is batch.input_ids
    assert batch.tokens == 8


class Heads(torch.nn.Module):
    """Attention of a copying head, an even one and one that looks at the token before."""

    def __init__(self, period: int) -> None:
        super().__init__()
        self.period, self.weight = period, torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        length = input_ids.shape[1]
        place = torch.arange(length)
        copying = torch.zeros(length, length)
        copying[place, (place - self.period + 1).clamp(min=0)] = 1
        even = torch.ones(length, length).tril() / (place[:, None] + 1)
        before = torch.zeros(length, length)
        before[place, (place - 1).clamp(min=0)] = 1
        layers = [torch.stack([copying, even]), before[None]]

        class Output:
            attentions = tuple(layer.expand(len(input_ids), -1, -1, -1) for layer in layers)

        return Output


def test_prefix_matching_of_known_heads() -> None:
    found = study.matching(Heads(10), torch.zeros(3, 25, dtype=torch.long), 10)
    assert found.shape == (3, 3)
    # Places 10 to 19 of the second time see 11 to 20 tokens.
    even = np.mean([1 / (t + 1) for t in range(10, 20)])
    assert found[0] == pytest.approx([1.0, even, 0.0])


def test_prefix_matching_reads_a_decoder() -> None:
    model = decoder(0, vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=4).eval()
    strings = torch.arange(6).repeat(5, 2)
    found = study.matching(model, strings, 6)
    assert found.shape == (5, 8)
    assert found.mean() == pytest.approx(np.mean([1 / (t + 1) for t in range(6, 12)]), rel=0.2)


def test_losses_are_those_of_each_byte() -> None:
    model = decoder(0, vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2).eval()
    windows = torch.randint(30, (70, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        likely = model(input_ids=windows).logits[:, :-1].log_softmax(-1).gather(2, windows[:, 1:, None])[..., 0]
    assert study.losses(model, windows) == pytest.approx(-likely.double().numpy(), rel=1e-5)


def test_what_size_a_loss_is_worth() -> None:
    """With L = a N^-0.076, a loss 1.0541 times as high is that of half the size."""
    sizes = np.array([0.5, 1.0, 0.5]) * 1e6
    copies, losses = 3 * sizes**-0.076, 5 * np.array([1.0, 1.0, 0.5]) ** -0.076
    assert copies[0] / copies[1] == pytest.approx(1.0541, abs=1e-4)
    assert losses[2] / losses[1] == pytest.approx(1.0541, abs=1e-4)

    def sums(*values: float) -> Any:
        return np.array([[part for value in values for part in (7 * value, 7)]])

    # Damaged, clean, smaller: copying fell to the smaller size, the test loss not at all.
    assert study.further(sums(*copies, *losses)) == pytest.approx([1.0])
    assert study.further(sums(*copies[[1, 1, 2]], *losses)) == pytest.approx([0.0])
    assert study.further(sums(*copies[[1, 1, 2]], *losses[[2, 1, 2]])) == pytest.approx([-1.0])
