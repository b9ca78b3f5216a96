"""Sampling with a cache against computing the whole text anew for every token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bakeoff.lm.decoder import DecoderForCausalLM
from bakeoff.lm.sampling import sample
from bakeoff.training.worlds import decoder

STOP = 3
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 1], [5, 6, 7], [2, 2]]


@pytest.fixture(scope="module", params=["rotary", "learned", "alibi"])
def model(request: pytest.FixtureRequest) -> DecoderForCausalLM:
    made = decoder(
        0, vocab_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, positions=request.param,
        initializer_range=0.5,
    ).eval()  # fmt: skip
    # What follows a token is not mostly the token itself.
    made.lm_head.weight = torch.nn.Parameter(torch.randn(16, 32, generator=torch.Generator().manual_seed(1)))
    return made


def plainly(model: DecoderForCausalLM, prompt: list[int], tokens: int) -> list[int]:
    text = list(prompt)
    for _ in range(tokens):
        text.append(int(model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
        if text[-1] == STOP:
            break
    return text[len(prompt) :]


def test_the_likeliest_tokens_are_those_of_full_recomputation(model: DecoderForCausalLM) -> None:
    prompts = [[a, b, (a * b) % 16][: 1 + (a + b) % 3] for a in range(4, 16) for b in range(4, 8)]
    expected = [plainly(model, p, 12) for p in prompts]
    assert {len(e) for e in expected} - {12}, "some stop early"
    assert max(map(len, expected)) == 12
    assert sample(model, prompts, tokens=12, stop=STOP) == expected
    assert sample(model, prompts, tokens=12, stop=STOP, rows=7) == expected


def test_drawn_tokens_follow_the_softmax_at_their_temperature(model: DecoderForCausalLM) -> None:
    draw = torch.Generator().manual_seed(0)
    drawn = sample(model, [[5, 6]] * 4000, tokens=1, stop=STOP, temperature=2.0, generator=draw)
    logits = model(input_ids=torch.tensor([[5, 6]]), use_cache=False).logits[0, -1]
    expected = (logits / 2).softmax(-1).detach().numpy()
    found = np.bincount([row[0] for row in drawn], minlength=16) / 4000
    assert abs(found - expected).max() < 4 * np.sqrt(0.25 / 4000)


def test_the_generator_decides_what_is_drawn(model: DecoderForCausalLM) -> None:
    def drawn(seed: int) -> list[list[int]]:
        draw = torch.Generator().manual_seed(seed)
        return sample(model, PROMPTS, tokens=20, stop=STOP, temperature=1.0, generator=draw)

    assert drawn(0) == drawn(0) != drawn(1)
    assert drawn(0)[0] != drawn(0)[3], "the same prompt is drawn anew"
    for row in drawn(0):
        assert STOP not in row[:-1]
        assert len(row) == 20 or row[-1] == STOP
