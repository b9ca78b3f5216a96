"""The objectives of pretraining with preferences, against figures worked out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bakeoff.errors import UsageError
from bakeoff.lm import DecoderConfig, DecoderForCausalLM
from bakeoff.training.batches import Batch
from bakeoff.training.objectives import cross_entropy
from bakeoff.training.preferences import (
    AdvantageWeighted,
    Blocks,
    RewardWeighted,
    Unlikelihood,
    WithValues,
    conditioned,
    filtered,
    stream,
)

END, GOOD, BAD = 0, 1, 2
DOCUMENTS = [[((5, 6), 0.0), ((7, 8, 9), 1.0)], [((5,), 0.5), ((6, 7), 0.0)], [((8, 9), 0.0)]]


class Fixed(nn.Module):
    """A model of two tokens that says of each next token, the first of a row aside, that it is 1 with these probabilities."""

    def __init__(self, probabilities: list[float]) -> None:
        super().__init__()
        p = torch.tensor([*probabilities, 0.5], dtype=torch.float64)
        self.logits = nn.Parameter(torch.stack([(1 - p).log(), p.log()], 1)[None])

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:
        return SimpleNamespace(logits=self.logits.expand(len(input_ids), -1, -1))


def batch(scores: list[float]) -> Batch:
    """One row of ones; `scores` are of all tokens but the first, which has a score that must not count."""
    ids = torch.ones(1, len(scores) + 1, dtype=torch.long)
    return Batch(ids, ids, ids.numel(), extra={"score": torch.tensor([[77.0, *scores]])})


def tiny() -> DecoderForCausalLM:
    torch.manual_seed(0)
    return DecoderForCausalLM(DecoderConfig(vocab_size=12, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))


def random_batch(scores: Tensor | None = None) -> Batch:
    ids = torch.randint(12, (3, 7), generator=torch.Generator().manual_seed(1))
    return Batch(ids, ids, ids.numel(), extra={"score": torch.zeros(3, 7) if scores is None else scores})


def value(tensor: Tensor | None) -> float:
    assert tensor is not None
    return tensor.item()


def test_unlikelihood_of_one_token() -> None:
    # -ln(1 - 0.9) of a token that is not wanted, -ln 0.9 of one that is.
    assert value(Unlikelihood()(Fixed([0.9]), batch([1.0]), 0)) == pytest.approx(2.302585, abs=1e-5)
    assert value(Unlikelihood()(Fixed([0.9]), batch([0.0]), 0)) == pytest.approx(0.1053605, abs=1e-5)


def test_unlikelihood_of_nothing_weight_still_counts_in_the_mean() -> None:
    loss = Unlikelihood(alpha=0.0)(Fixed([0.9, 0.6]), batch([1.0, 0.0]), 0)
    assert value(loss) == pytest.approx(-math.log(0.6) / 2, abs=1e-6)
    half = Unlikelihood(alpha=0.5)(Fixed([0.9, 0.6]), batch([1.0, 0.0]), 0)
    assert value(half) == pytest.approx((0.5 * math.log(10) - math.log(0.6)) / 2, abs=1e-5)


def test_unlikelihood_of_a_certain_token_is_finite() -> None:
    loss = Unlikelihood()(Fixed([1 - 1e-12]), batch([1.0]), 0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert math.isfinite(value(loss))


def test_unlikelihood_pushes_down_what_is_not_wanted_and_up_what_is() -> None:
    model = Fixed([0.6, 0.6])
    Unlikelihood()(model, batch([1.0, 0.0]), 0).backward()
    assert model.logits.grad is not None
    assert model.logits.grad[0, 0, 1] > 0 > model.logits.grad[0, 1, 1]
    Unlikelihood(threshold=1.0)(model := Fixed([0.6]), batch([1.0]), 0).backward()
    assert model.logits.grad[0, 0, 1] < 0


def test_reward_weights() -> None:
    # exp(0) = 1 and exp(-1) = 0.36788 at beta 1.
    losses = [value(RewardWeighted(beta=1.0)(Fixed([0.5]), batch([score]), 0)) for score in (0.0, 1.0)]
    assert losses == pytest.approx([math.log(2), 0.367879 * math.log(2)], abs=1e-5)


@pytest.mark.parametrize("loss", [RewardWeighted(beta=1e9), RewardWeighted(beta=0.1), Unlikelihood()])
def test_without_unwanted_text_or_with_endless_beta_it_is_maximum_likelihood(loss: Any) -> None:
    model = tiny()
    scores = torch.rand(3, 7) if getattr(loss, "beta", 0) > 1 else None
    assert value(loss(model, random_batch(scores), 0)) == pytest.approx(
        value(cross_entropy(model, random_batch(), 0)), abs=1e-5
    )


class Valued(Fixed):
    """`Fixed` with one value for all states."""

    def __init__(self, probabilities: list[float], value: float) -> None:
        super().__init__(probabilities)
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:
        logits = super().forward(input_ids).logits
        return logits, self.value.expand(logits.shape[:2])


def test_advantage_weights() -> None:
    # V = R: weight 1 and no loss of the value.
    same = AdvantageWeighted(alpha=0.5, beta=0.1)(Valued([0.5], -1.0), batch([1.0]), 0)
    assert value(same) == pytest.approx(math.log(2) / 2, abs=1e-6)
    # R - V = 0.9 at beta 0.1: exp(9) = 8103, cut to 1000.
    cut = AdvantageWeighted(alpha=0.5, beta=0.1)(Valued([0.5], -0.9), batch([0.0]), 0)
    assert value(cut) == pytest.approx(0.5 * 1000 * math.log(2) + 0.5 * 0.81, rel=1e-6)
    # R - V = -0.5 at beta 1.
    less = AdvantageWeighted(alpha=0.25, beta=1.0)(Valued([0.5], -0.5), batch([1.0]), 0)
    assert value(less) == pytest.approx(0.25 * math.exp(-0.5) * math.log(2) + 0.75 * 0.25, abs=1e-6)


def test_values_learn_from_their_own_term_alone() -> None:
    model = Valued([0.5], -0.9)
    AdvantageWeighted(alpha=0.5, beta=1.0)(model, batch([0.0]), 0).backward()
    # d/dV of 0.5 (V - R)^2 at V - R = -0.9.
    assert value(model.value.grad) == pytest.approx(-0.9, abs=1e-6)


def test_values_of_a_model_begin_at_minus_a_half_and_reach_its_body() -> None:
    model = WithValues(tiny())
    logits, values = model(random_batch().input_ids)
    assert torch.equal(values, torch.full((3, 7), -0.5))
    assert logits.shape == (3, 7, 12)
    nn.init.normal_(model.value.weight)
    AdvantageWeighted(alpha=0.0)(model, random_batch(), 0).backward()
    assert model.model.model.embed_tokens.weight.grad.abs().sum() > 0


def test_the_score_is_that_of_the_predicted_token_and_the_value_that_of_the_state_before_it() -> None:
    model = WithValues(tiny())
    nn.init.normal_(model.value.weight)
    made = random_batch(torch.rand(3, 7))
    logits, values = model(made.input_ids)
    likelihood = logits[:, :-1].log_softmax(-1).gather(2, made.input_ids[:, 1:, None])[..., 0]
    reward = -made.extra["score"][:, 1:]
    weight = ((reward - values[:, :-1]) / 0.7).exp()
    expected = 0.3 * -(weight * likelihood).mean() + 0.7 * (values[:, :-1] - reward).square().mean()
    assert value(AdvantageWeighted(alpha=0.3, beta=0.7)(model, made, 0)) == pytest.approx(value(expected), abs=1e-5)


def test_a_stream_holds_all_segments_with_their_scores() -> None:
    tokens, scores = stream(DOCUMENTS, END)
    assert tokens.tolist() == [0, 5, 6, 7, 8, 9, 0, 5, 6, 7, 0, 8, 9]
    assert scores.tolist() == [0, 0, 0, 1, 1, 1, 0, 0.5, 0, 0, 0, 0, 0]


def test_filtering_is_by_the_mean_of_a_document() -> None:
    assert filtered(DOCUMENTS, 0.25) == DOCUMENTS[1:]
    assert filtered(DOCUMENTS, 0.1) == DOCUMENTS[2:]
    assert filtered(DOCUMENTS, 1.0) == DOCUMENTS


def test_conditioning_marks_segments() -> None:
    marked = conditioned(DOCUMENTS, 0.4, GOOD, BAD, omitted=0.0)
    assert [[list(ids) for ids, _ in document] for document in marked] == [
        [[1, 5, 6], [2, 7, 8, 9]], [[2, 5], [1, 6, 7]], [[1, 8, 9]],
    ]  # fmt: skip
    assert [[s for _, s in d] for d in marked] == [[s for _, s in d] for d in DOCUMENTS]
    everything = stream(conditioned(DOCUMENTS, -1.0, GOOD, BAD, omitted=0.0), END)[0].tolist()
    assert (everything.count(BAD), everything.count(GOOD)) == (5, 0)


def test_conditioning_without_marks_is_the_plain_stream_and_some_are_left_out() -> None:
    plain = stream(conditioned(DOCUMENTS, 0.0, GOOD, BAD, omitted=1.0), END)
    assert all(map(np.array_equal, plain, stream(DOCUMENTS, END)))
    marked = stream(conditioned(DOCUMENTS * 400, 0.0, GOOD, BAD, omitted=0.3), END)[0]
    assert np.isin(marked, (GOOD, BAD)).sum() == pytest.approx(0.7 * 2000, rel=0.05)


def test_blocks_have_one_length_and_go_through_the_text_once_a_pass() -> None:
    tokens, scores = np.arange(23), np.arange(23, dtype=np.float32) / 100
    blocks = Blocks(tokens, scores, 2, 5, 0)
    assert blocks.blocks == 4
    seen = [blocks(step) for step in range(4)]
    for made in seen:
        assert made.input_ids.shape == (2, 5)
        assert made.extra["score"].numpy() == pytest.approx(made.input_ids.numpy() / 100)
    for begin in (0, 2):
        assert sorted(torch.cat([b.input_ids.flatten() for b in seen[begin : begin + 2]]).tolist()) == list(range(20))
    with pytest.raises(UsageError, match="23 tokens, less than one block of 24"):
        Blocks(tokens, scores, 1, 24, 0)
