"""The delta rule in chunks against its recurrence and against worked examples; the mixers made of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bakeoff.lm import DecoderConfig, DecoderForCausalLM
from bakeoff.lm.attention import Context
from bakeoff.lm.delta_rule import delta_rule, delta_rule_recurrent, linear_attention

LENGTH = 37


def inputs(length: int = LENGTH, dtype: torch.dtype = torch.float64, d_k: int = 5, d_v: int = 3) -> dict[str, Tensor]:
    """Two rows, three heads, unit keys, some of them twice."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, d, generator=draw, dtype=torch.float64) for d in (d_k, d_k, d_v))
    k[:, :, length // 2 :: 3] = k[:, :, :1]
    beta = torch.rand(2, 3, length, generator=draw, dtype=torch.float64)
    state = torch.randn(2, 3, d_v, d_k, generator=draw, dtype=torch.float64)
    made = {"q": q, "k": functional.normalize(k, dim=-1), "v": v, "beta": beta, "state": state}
    return {name: x.to(dtype) for name, x in made.items()}


def additive(q: Tensor, k: Tensor, v: Tensor, state: Tensor | None = None, starts: Tensor | None = None) -> Tensor:
    """Linear attention token by token."""
    now, outputs = 0.0 if state is None else state, []
    for t in range(q.shape[2]):
        if starts is not None:
            now = now * ~starts[:, t, None, None, None]
        now = now + v[:, :, t, :, None] * k[:, :, t, None, :]
        outputs.append((now @ q[:, :, t, :, None]).squeeze(-1))
    return torch.stack(outputs, 2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("starts", [(), (0, 7, 8, 30)], ids=["one document", "documents"])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("chunk", [1, 2, 8, LENGTH, 64])
def test_chunks_equal_the_recurrence(
    chunk: int, with_state: bool, starts: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    given = inputs(dtype=dtype)
    if not with_state:
        given["state"].zero_()
    mask = torch.zeros(2, LENGTH, dtype=torch.bool)
    mask[0, list(starts)] = True
    marks = mask if starts else None
    weights = [torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(1)) for shape in ((LENGTH, 3), (3, 5))]
    found = []
    for rule in (delta_rule_recurrent, lambda **given: delta_rule(**given, chunk=chunk)):
        leaves = {name: x.clone().requires_grad_() for name, x in given.items()}
        results = rule(**leaves, starts=marks)
        loss = sum((weight * result).sum() for weight, result in zip(weights, results, strict=True))
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        found.append([*results, *gradients])
    for recurrent, chunked in zip(*found, strict=True):
        assert chunked.dtype == dtype
        torch.testing.assert_close(chunked, recurrent, rtol=tolerance, atol=tolerance)


def test_without_a_state_it_begins_at_zero() -> None:
    given = inputs()
    zero = {**given, "state": torch.zeros_like(given["state"])}
    del given["state"]
    for rule in (delta_rule, delta_rule_recurrent):
        torch.testing.assert_close(rule(**given), rule(**zero), rtol=0, atol=0)


@pytest.mark.parametrize("chunk", [1, 2, 8, 64])
@pytest.mark.parametrize("starts", [False, True])
def test_linear_attention_is_the_additive_rule(chunk: int, starts: bool) -> None:
    given = inputs()
    del given["beta"]
    marks = torch.zeros(2, LENGTH, dtype=torch.bool)
    marks[1, [3, 20]] = True
    extra = {"starts": marks} if starts else {}
    output, _ = linear_attention(**given, **extra, chunk=chunk)
    torch.testing.assert_close(output, additive(**given, **extra), rtol=1e-10, atol=1e-10)


def test_a_text_in_two_parts_is_the_text() -> None:
    given = inputs()
    state = given.pop("state")
    whole, last = delta_rule(**given, state=state, chunk=8)
    head, middle = delta_rule(**{n: x[:, :, :13] for n, x in given.items()}, state=state, chunk=8)
    tail, end = delta_rule(**{n: x[:, :, 13:] for n, x in given.items()}, state=middle, chunk=8)
    torch.testing.assert_close((torch.cat([head, tail], 2), end), (whole, last), rtol=1e-10, atol=1e-10)


def example() -> dict[str, Tensor]:
    """k1 = (1, 0), v1 = 2, beta1 = 1/2; k2 = (0.6, 0.8), v2 = 1, beta2 = 1; read with k1, then with k2, then with k1.

    u1 = 1/2 * 2 = 1, so S1 = (1, 0); u2 = 1 - S1 k2 = 1 - 0.6 = 0.4, so S2 = (1 + 0.24, 0.32) = (1.24, 0.32).
    S1 k1 = 1; S2 k2 = 0.744 + 0.256 = 1 = v2, for beta = 1 stores a unit key exactly; S2 k1 = 1.24.
    The third token has beta = 0 and only reads.
    """
    k = torch.tensor([[1.0, 0], [0.6, 0.8], [0.6, 0.8]], dtype=torch.float64)
    q = torch.tensor([[1.0, 0], [0.6, 0.8], [1.0, 0]], dtype=torch.float64)
    v, beta = torch.tensor([[2.0], [1], [5]], dtype=torch.float64), torch.tensor([0.5, 1, 0], dtype=torch.float64)
    return {"q": q[None, None], "k": k[None, None], "v": v[None, None], "beta": beta[None, None]}


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_worked_example(chunk: int) -> None:
    output, state = delta_rule(**example(), chunk=chunk)
    torch.testing.assert_close(output.flatten(), torch.tensor([1, 1, 1.24], dtype=torch.float64))
    torch.testing.assert_close(state.flatten(), torch.tensor([1.24, 0.32], dtype=torch.float64))


def test_worked_example_from_a_state() -> None:
    # W = [[0.5, 0], [0.3, 0.8]], so I - W^T K = [[1 - 0.5 - 0.18, -0.24], [-0.48, 1 - 0.64]]: the first row of the state
    # (1, 0) becomes (0.32, -0.24) and that of (0, 1) becomes (-0.48, 0.36); values 0 add nothing.
    given = {name: torch.cat([x, x], 1)[:, :, :2] for name, x in example().items()}
    given["v"] = torch.zeros_like(given["v"])
    state = torch.eye(2, dtype=torch.float64)[None, :, None]
    for chunk in (1, 2):
        _, last = delta_rule(**given, state=state, chunk=chunk)
        expected = torch.tensor([[0.32, -0.24], [-0.48, 0.36]], dtype=torch.float64)
        torch.testing.assert_close(last[0, :, 0], expected)


def test_orthonormal_keys_are_recalled_and_make_both_rules_equal() -> None:
    given = inputs(length=5)
    keys = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    k, v, ones = keys.expand(2, 3, 5, 5), given["v"], torch.ones(2, 3, 5, dtype=torch.float64)
    delta, state = delta_rule(given["q"], k, v, ones)
    torch.testing.assert_close(delta, linear_attention(given["q"], k, v)[0])
    torch.testing.assert_close((state @ k.mT).mT, v)


def test_beta_zero_changes_nothing() -> None:
    given = inputs()
    output, state = delta_rule(**{**given, "beta": torch.zeros_like(given["beta"])})
    assert torch.equal(state, given["state"])
    torch.testing.assert_close(output, given["q"] @ given["state"].mT)


def test_a_repeated_key_is_overwritten_where_linear_attention_adds() -> None:
    key = functional.normalize(torch.ones(1, 1, 1, 4, dtype=torch.float64), dim=-1).expand(1, 1, 3, 4)
    values = torch.tensor([1.0, 10, 100], dtype=torch.float64)[None, None, :, None]
    delta, _ = delta_rule(key, key, values, torch.ones(1, 1, 3, dtype=torch.float64))
    torch.testing.assert_close(delta.flatten(), torch.tensor([1.0, 10, 100], dtype=torch.float64))
    torch.testing.assert_close(
        linear_attention(key, key, values)[0].flatten(), torch.tensor([1.0, 11, 111], dtype=torch.float64)
    )


@pytest.mark.parametrize("bits", [torch.bfloat16, torch.float16])
def test_computes_in_float32_under_autocast(bits: torch.dtype) -> None:
    given = {n: x.to(bits) for n, x in inputs(length=64).items()}
    expected, _ = delta_rule(**{n: x.float() for n, x in given.items()})
    with torch.autocast("cpu", torch.bfloat16):
        output, state = delta_rule(**given)
    assert (output.dtype, state.dtype) == (bits, torch.float32)
    assert torch.equal(output, expected.to(bits))


def test_gradients_agree_with_differences() -> None:
    given = [x[:1, :1, :6].requires_grad_() for n, x in inputs(length=6, d_k=2, d_v=2).items() if n != "state"]
    assert torch.autograd.gradcheck(lambda *x: delta_rule(*x, chunk=4)[0], given)


def decoder(mixers: Sequence[str], **changed: Any) -> DecoderForCausalLM:
    """A small random decoder in which no two parts are equal."""
    shape: dict[str, Any] = {
        "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "positions": "none",
        "window": 4, "initializer_range": 0.3, "tie_word_embeddings": False,
    }  # fmt: skip
    torch.manual_seed(0)
    return DecoderForCausalLM(DecoderConfig(mixers=mixers, **{**shape, **changed})).eval()


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 50, shape, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_layer_is_that_of_the_paper() -> None:
    """A plain DeltaNet layer written out token by token, with torch's own convolution."""
    layer = decoder(["deltanet"]).model.layers[0].mixer
    x = torch.randn(2, 11, 32, generator=torch.Generator().manual_seed(1))
    found = layer(x, Context(torch.arange(11)[None]))
    qkv = functional.pad(layer.qkv(x).mT, (3, 0))
    qkv = functional.silu(functional.conv1d(qkv, layer.convolution.weight.T[:, None], groups=96)).mT
    q, k, v = (part.view(2, 11, 4, 8) for part in qkv.split(32, -1))
    q, k = (part / part.norm(dim=-1, keepdim=True) for part in (q, k))
    beta = torch.sigmoid(layer.beta(x))
    expected = torch.zeros(2, 11, 4, 8)
    for row in range(2):
        for head in range(4):
            state = torch.zeros(8, 8)
            for t in range(11):
                key = k[row, t, head]
                state = state - beta[row, t, head] * torch.outer(state @ key - v[row, t, head], key)
                read = state @ q[row, t, head] / 8**0.5
                expected[row, t, head] = read / (read.square().mean() + 1e-5).sqrt() * layer.norm.weight
    torch.testing.assert_close(found, layer.o(expected.flatten(2)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("mixer", ["linear", "deltanet"])
@pytest.mark.parametrize("conv", [0, 1, 4])
def test_packed_documents_equal_documents_alone(mixer: str, conv: int) -> None:
    model, ids = decoder([mixer], conv=conv), tokens(1, 79)
    lengths = (1, 70, 2, 6)
    documents = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None]
    packed = model(ids, documents=documents).logits
    alone = torch.cat([model(part).logits for part in ids.split(lengths, dim=1)], 1)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("mixer", ["linear", "deltanet"])
def test_padding_on_either_side_changes_nothing(mixer: str) -> None:
    model, ids, filling = decoder([mixer]), tokens(2, 20), tokens(2, 5)
    expected = model(ids).logits
    ones, zeros = torch.ones(2, 20, dtype=torch.long), torch.zeros(2, 5, dtype=torch.long)
    right = model(torch.cat([ids, filling], 1), attention_mask=torch.cat([ones, zeros], 1)).logits[:, :20]
    left = model(torch.cat([filling, ids], 1), attention_mask=torch.cat([zeros, ones], 1)).logits[:, 5:]
    for padded in (left, right):
        torch.testing.assert_close(padded, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_state_is_left_as_it_is_by_padding() -> None:
    model, ids = decoder(["deltanet", "attention"]), tokens(2, 20)
    mask = torch.ones(2, 26, dtype=torch.long)
    mask[:, 20:] = 0
    caches = [
        model(ids, use_cache=True).past_key_values,
        model(torch.cat([ids, tokens(2, 6)], 1), attention_mask=mask, use_cache=True).past_key_values,
    ]
    states = [cache.get_recurrent_state(0) for cache in caches]
    assert states[0].abs().max() > 0.1
    torch.testing.assert_close(states[1], states[0])


@torch.no_grad()
@pytest.mark.parametrize("conv", [0, 1, 4])
@pytest.mark.parametrize("mixers", [("linear", "attention"), ("deltanet", "attention"), ("window", "deltanet")])
def test_cache_goes_on_where_the_text_ended(mixers: tuple[str, ...], conv: int) -> None:
    model, ids = decoder(mixers, conv=conv), tokens(2, 24)
    expected = model(ids, use_cache=False).logits
    cache, found = None, []
    for part in ids.split([2, 1, 10, 1, 1, 9], dim=1):
        output = model(part, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        found.append(output.logits)
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mixers", [("linear",), ("deltanet",), ("deltanet", "attention")])
def test_generates_what_the_whole_text_predicts(mixers: tuple[str, ...]) -> None:
    model, ids = decoder(mixers), tokens(2, 6)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    made = model.generate(ids, attention_mask=mask, max_new_tokens=7, do_sample=False, pad_token_id=0)
    for _ in range(7):
        last = model(ids, attention_mask=mask, use_cache=False).logits[:, -1]
        ids = torch.cat([ids, last.argmax(-1, keepdim=True)], 1)
        mask = functional.pad(mask, (0, 1), value=1)
    assert torch.equal(made, ids)


@torch.no_grad()
@pytest.mark.parametrize("mixer", ["linear", "deltanet"])
def test_no_output_depends_on_a_later_token(mixer: str) -> None:
    model, ids = decoder([mixer]), tokens(1, 70)
    changed = ids.clone()
    changed[:, 40:] = (changed[:, 40:] + 1) % 50
    before, after = model(ids).logits, model(changed).logits
    assert torch.equal(before[:, :40], after[:, :40])
    assert not torch.equal(before[:, 40:], after[:, 40:])


def test_every_weight_learns_and_is_saved(tmp_path: Path) -> None:
    model, ids = decoder(["deltanet", "linear"]), tokens(2, 20)
    model(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and bool(p.grad.abs().max() > 0) for p in model.parameters())
    model.save_pretrained(tmp_path)
    again = DecoderForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, model(ids).logits)
