"""Routing attention against a plain reference, worked examples, and what it promises about order, padding and training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bakeoff.errors import Unsupported
from bakeoff.lm import DecoderConfig, DecoderForCausalLM
from bakeoff.lm.attention import Context
from bakeoff.lm.routing import RoutingAttention, prefix_only


def reference(
    layer: RoutingAttention,
    q: Tensor,
    v: Tensor,
    size: int,
    prefix: bool = False,
    documents: Any = None,
    real: Any = None,
) -> tuple[Tensor, Tensor]:
    """Routing written out token by token: found values [H, L, width] and number of clusters [H, L] of one row."""
    heads, length, width = q.shape
    found, count = torch.zeros_like(v), torch.zeros(heads, length)
    real = [True] * length if real is None else real
    documents = [0] * length if documents is None else documents
    for head in range(heads):
        for centroid in layer.centroids[head]:
            scores = [float(q[head, t].detach() @ centroid) for t in range(length)]
            for t in range(length):
                pool = [s for s in range(t + 1 if prefix else length) if real[s]]
                members = sorted(pool, key=lambda s: (-scores[s], s))[:size]
                if t not in members:
                    continue
                seen = [s for s in members if s <= t and documents[s] == documents[t]]
                weights = torch.stack([q[head, t] @ q[head, s] / math.sqrt(width) for s in seen]).softmax(0)
                found[head, t] += weights @ v[head, seen]
                count[head, t] += 1
    return found / count.clamp(min=1)[..., None], count


def decoder(**changed: Any) -> DecoderForCausalLM:
    shape: dict[str, Any] = {
        "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "mixers": ("routing",),
        "window": 4, "clusters": 3, "initializer_range": 0.3, "tie_word_embeddings": False,
    }  # fmt: skip
    torch.manual_seed(0)
    return DecoderForCausalLM(DecoderConfig(**{**shape, **changed})).eval()


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 50, shape, generator=torch.Generator().manual_seed(3))


def routed(**changed: Any) -> RoutingAttention:
    """A layer whose heads all route, that only splits its input into vectors and values and joins the heads."""
    layer = decoder(**{"routing_heads": 4, **changed}).model.layers[0].mixer
    assert isinstance(layer, RoutingAttention)
    layer.o = torch.nn.Identity()  # type: ignore[assignment]
    return layer


def vectors(layer: RoutingAttention, x: Tensor) -> tuple[Tensor, Tensor]:
    q, v = layer.qv(x).view(*x.shape[:2], layer.heads, 2, layer.width).permute(3, 0, 2, 1, 4)
    return functional.layer_norm(q, (layer.width,)), v


def context(length: int, **more: Any) -> Context:
    return Context(torch.arange(length)[None], **more)


@torch.no_grad()
@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize(("length", "window"), [(1, None), (7, None), (13, 4), (13, 99)])
def test_equals_the_reference(length: int, window: int | None, prefix: bool) -> None:
    layer = routed(routing_window=window)
    x = torch.randn(2, length, 32, generator=torch.Generator().manual_seed(1))
    # Equal tokens score equally: the first are taken.
    x[:, length // 2 :: 2] = x[:, length // 2, None].clone()
    layer.from_prefix = prefix
    found = layer(x, context(length))
    q, v = vectors(layer, x)
    made = [reference(layer, *row, window or math.ceil(length / 3), prefix) for row in zip(q, v, strict=True)]
    expected = torch.stack([values for values, _ in made]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    counts = torch.stack([count for _, count in made])
    assert float(layer.coverage) == pytest.approx(float((counts > 0).float().mean()))
    assert float(layer.multiplicity) == pytest.approx(float(counts.mean()))


@torch.no_grad()
@pytest.mark.parametrize("prefix", [False, True])
def test_documents_and_padding_equal_the_reference(prefix: bool) -> None:
    layer = routed(routing_window=5)
    layer.from_prefix = prefix
    x = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(1))
    documents = torch.tensor([[0] * 3 + [1] * 5 + [2] * 4, [0] * 12])
    real = torch.tensor([[True] * 10 + [False] * 2, [False] * 8 + [True] * 4])
    found = layer(x, context(12, documents=documents, padding=real))
    q, v = vectors(layer, x)
    for row in range(2):
        marks = {"documents": documents[row].tolist(), "real": real[row].tolist()}
        expected, _ = reference(layer, q[row], v[row], 5, prefix, **marks)
        torch.testing.assert_close(
            found[row, real[row]], expected.transpose(0, 1).flatten(1)[real[row]], rtol=1e-4, atol=1e-5
        )


@torch.no_grad()
def test_gradients_equal_those_of_the_reference() -> None:
    layer = routed(routing_window=5)
    x = torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(1))
    weights = torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(2))
    gradients = []
    for plain in (False, True):
        leaf = x.clone().requires_grad_()
        with torch.enable_grad():
            if plain:
                q, v = vectors(layer, leaf)
                output = reference(layer, q[0], v[0], 5)[0].transpose(0, 1).flatten(1)[None]
            else:
                output = layer(leaf, context(12))
            gradients.append(torch.autograd.grad((output * weights).sum(), leaf)[0])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def example(points: list[tuple[float, float]], size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Found values, counts, and values of tokens with these vectors, centroids (1, 0) and (0, 1); the norm left out."""
    layer = RoutingAttention(DecoderConfig(hidden_size=2, num_attention_heads=1, routing_heads=1, clusters=2), 0)
    layer.centroids, layer.window = torch.eye(2)[None], size
    q, v = torch.tensor(points)[None, None], torch.eye(len(points))[None, None, :, :2] + 1
    scores = (q @ layer.centroids.mT).mT
    found, count = layer._within_clusters(q, v, scores, context(len(points)))
    return found[0, 0], count[0, 0], v[0, 0]


def test_worked_example() -> None:
    # Scores of the first centroid 1, 0, .9, .1: tokens 0 and 2; of the second 0, 1, .1, .9: tokens 1 and 3.
    # Token 2 has products .9 with token 0 and .81 + .01 = .82 with itself, over the root of 2.
    found, count, v = example([(1, 0), (0, 1), (0.9, 0.1), (0.1, 0.9)], 2)
    share = 1 / (1 + math.exp((0.82 - 0.9) / math.sqrt(2)))
    assert count.tolist() == [1, 1, 1, 1]
    expected = torch.stack([v[0], v[1], share * v[0] + (1 - share) * v[2], share * v[1] + (1 - share) * v[3]])
    torch.testing.assert_close(found, expected)


def test_worked_example_of_unbalanced_clusters() -> None:
    # The first centroid scores 1, 1, 1, .8: of equal ones the first two, tokens 0 and 1. The second scores 0, 0, 0, .6:
    # token 3 and, of equal ones, token 0. Token 2 is in none.
    found, count, v = example([(1, 0), (1, 0), (1, 0), (0.8, 0.6)], 2)
    assert count.tolist() == [2, 1, 0, 1]
    torch.testing.assert_close(found[0] / 2, v[0])
    torch.testing.assert_close(found[1], (v[0] + v[1]) / 2)
    assert found[2].tolist() == [0, 0]


@torch.no_grad()
def test_one_cluster_of_everything_is_full_attention() -> None:
    layer = routed(clusters=1)
    x = torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(1))
    q, v = vectors(layer, x)
    expected = functional.scaled_dot_product_attention(q, q, v, is_causal=True).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer(x, context(17)), expected, rtol=1e-4, atol=1e-5)
    assert (float(layer.coverage), float(layer.multiplicity)) == (1, 1)


def test_number_of_products() -> None:
    # 1024 tokens, 32 clusters of 32: 32 * 32 * 33 / 2 = 16,896 pairs, where all would be 1024 * 1025 / 2 = 524,800.
    layer = decoder(clusters=None, max_position_embeddings=1024).model.layers[0].mixer
    clusters, size = layer.centroids.shape[1], layer._size(layer.centroids.shape[1], 1024)
    assert (clusters, size, clusters * size * (size + 1) // 2) == (32, 32, 16_896)


def learn(layer: RoutingAttention, q: Tensor, **more: Any) -> Tensor:
    """The commitment loss of vectors [B, H, L, width] as they are, with the averages moved."""
    return layer._learn(q, q @ layer.centroids.mT, context(q.shape[2], **more), True)


def test_worked_example_of_the_averages() -> None:
    # Decay 1/2. Centroid 0 has counts 2 and sums (2, 0) and gets (0, 1) twice: counts (2 + 2) / 2 = 2 and sums
    # ((2, 0) + (0, 2)) / 2 = (1, 1), so it moves to (.5, .5). Centroid 1 gets nothing: counts 4 -> 2, sums (0, -8) ->
    # (0, -4), and it stays at (0, -2). Its product with (0, 1) is -2, that of centroid 0 is 0, the larger.
    config = DecoderConfig(
        hidden_size=2, num_attention_heads=1, routing_heads=1, clusters=2, routing_decay=0.5, commitment=0.1
    )
    layer = RoutingAttention(config, 0)
    layer.centroids = torch.tensor([[[1.0, 0], [0, -2]]])
    layer.counts, layer.sums = torch.tensor([[2.0, 4]]), torch.tensor([[[2.0, 0], [0, -8]]])
    loss = learn(layer, torch.tensor([[[[0.0, 1], [0, 1]]]]))
    assert layer.counts.tolist() == [[2, 2]]
    assert layer.sums.tolist() == [[[1, 1], [0, -4]]]
    # (0, 1) - (1, 0) has squares 1 and 1, mean 1.
    assert float(loss) == pytest.approx(0.1)
    layer._refresh()
    torch.testing.assert_close(layer.centroids, torch.tensor([[[0.5, 0.5], [0, -2]]]), rtol=1e-4, atol=1e-4)


def test_padding_moves_no_centroid_and_costs_nothing() -> None:
    x = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(1))
    found = []
    for more in (3, 0):
        layer = routed(commitment=1.0).train()
        padded = functional.pad(x, (0, 0, 0, more), value=7.0)
        told = context(6 + more, padding=torch.arange(6 + more).expand(2, -1) < 6)
        layer(padded, told)
        found.append((layer.sums, layer.counts, told.losses[0]))
    torch.testing.assert_close(found[0], found[1])


def test_centroids_learn_in_training_only_and_once_a_step() -> None:
    model, ids = decoder(routing_decay=0.9), tokens(2, 20)
    layer = model.model.layers[0].mixer
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    assert before["counts"].eq(1).all()
    torch.testing.assert_close(
        before["centroids"], functional.layer_norm(before["centroids"], (8,)), rtol=1e-3, atol=1e-3
    )
    model(ids)
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())
    model.train()
    model(ids, labels=ids).loss.backward()
    # 2 rows of 20 tokens: counts sum to .9 * 3 + .1 * 40.
    torch.testing.assert_close(layer.counts.sum(-1), torch.full((2,), 6.7))
    model(ids, labels=ids)
    assert not torch.equal(layer.centroids, before["centroids"])


def test_recomputation_gives_the_same_gradients_and_averages() -> None:
    ids, found = tokens(2, 20), []
    for recompute in (False, True):
        model = decoder(routing_decay=0.5, commitment=1.0).train()
        if recompute:
            model.gradient_checkpointing_enable()
        for _ in range(2):
            model.zero_grad()
            model(ids, labels=ids).loss.backward()
        found.append([*(p.grad for p in model.parameters()), *model.buffers()])
    torch.testing.assert_close(*found)


def test_with_decay_1_centroids_stay() -> None:
    model, ids = decoder(routing_decay=1.0).train(), tokens(2, 20)
    start = model.model.layers[0].mixer.centroids.clone()
    for _ in range(3):
        model(ids, labels=ids)
    torch.testing.assert_close(model.model.layers[0].mixer.centroids, start)


def test_gradients_reach_the_vectors_by_attention_and_commitment_and_no_centroid() -> None:
    layer = routed(commitment=1.0).train()
    told = context(9)
    layer(torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(1)), told)
    (loss,) = told.losses
    gradient = torch.autograd.grad(loss, layer.qv.weight)[0].view(4, 2, 8, 32)
    assert gradient[:, 0].abs().max() > 0
    assert gradient[:, 1].abs().max() == 0
    assert not any(buffer.requires_grad for buffer in layer.buffers())


def test_nan_reaches_the_loss() -> None:
    model, ids = decoder().train(), tokens(2, 20)
    with torch.no_grad():
        model.model.layers[0].mixer.qv.weight[0, 0] = math.nan
    assert math.isnan(model(ids, labels=ids).loss.item())


def test_two_passes_before_a_backward_pass() -> None:
    model, ids = decoder(routing_decay=0.5).train(), tokens(2, 20)
    sum(model(part, labels=part).loss for part in ids.split(1)).backward()
    assert all(p.grad is not None for p in model.parameters())


@torch.no_grad()
def test_prefixes_see_no_later_token_where_the_whole_row_does() -> None:
    model, ids = decoder(routing_window=3), tokens(1, 24)
    changed = ids.clone()
    changed[:, 12:] = (changed[:, 12:] + 7) % 50
    assert not torch.equal(model(ids).logits[:, :12], model(changed).logits[:, :12])
    with prefix_only(model):
        assert torch.equal(model(ids).logits[:, :12], model(changed).logits[:, :12])
        # Nor is what it sees different from what it would see if there was nothing more.
        torch.testing.assert_close(model(ids).logits[:, :12], model(ids[:, :12]).logits, rtol=1e-4, atol=1e-4)
    assert not torch.equal(model(ids).logits[:, :12], model(changed).logits[:, :12])


@torch.no_grad()
def test_values_of_later_tokens_never_reach_earlier_ones() -> None:
    layer = routed(routing_window=4)
    x = torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(1))
    q, v = vectors(layer, x)
    changed = v.clone()
    changed[:, :, 6:] += 1
    scores = (q @ layer.centroids.mT).mT
    one, other = (layer._within_clusters(q, values, scores, context(12))[0] for values in (v, changed))
    assert torch.equal(one[:, :, :6], other[:, :, :6])
    assert not torch.equal(one, other)


@torch.no_grad()
def test_last_token_of_a_layer_is_routed_alike() -> None:
    layer = routed(routing_window=4)
    x = torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([layer(x[:, : t + 1], context(t + 1))[:, -1] for t in range(12)], 1)
    layer.from_prefix = True
    torch.testing.assert_close(layer(x, context(12)), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["rotary", "alibi", "none"])
def test_heads_that_do_not_route_attend_to_the_window(positions: str) -> None:
    whole, window = (decoder(routing_heads=0, mixers=(name,), positions=positions) for name in ("routing", "window"))
    state = {name.replace("mixer.qkv", "mixer.local.qkv"): value for name, value in window.state_dict().items()}
    whole.load_state_dict(state)
    torch.testing.assert_close(whole(tokens(2, 20)).logits, window(tokens(2, 20)).logits)


def test_generates_what_the_whole_text_predicts() -> None:
    model, ids = decoder(), tokens(2, 6)
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=0)
    for _ in range(5):
        ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(made, ids)


def test_centroids_are_saved(tmp_path: Path) -> None:
    model, ids = decoder(routing_decay=0.5).train(), tokens(2, 20)
    for _ in range(2):
        model(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and bool(p.grad.abs().max() > 0) for p in model.parameters())
    model.save_pretrained(tmp_path)
    again = DecoderForCausalLM.from_pretrained(tmp_path)
    for one, other in zip(again.state_dict().items(), model.state_dict().items(), strict=True):
        assert one[0] == other[0]
        assert torch.equal(one[1], other[1])
    assert torch.equal(again.eval()(ids).logits, model.eval()(ids).logits)


def test_refuses_more_routing_heads_than_heads() -> None:
    with pytest.raises(Unsupported, match="5 routing heads of 4 heads"):
        decoder(routing_heads=5)
