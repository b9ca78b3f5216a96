"""Our decoder computes what a plain one does, whatever its options, and behaves as a transformers model."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from bakeoff import lm
from bakeoff.errors import ModelError
from bakeoff.lm.attention import Attention, watch_attention
from bakeoff.lm.decoder import DecoderConfig, DecoderForCausalLM, digit_places, spaced
from bakeoff.lm.tiny import tiny_tokenizer

TOLERANCE = 1e-5
SHAPES: dict[str, dict[str, Any]] = {
    "rotary": {},
    "grouped heads": {"num_key_value_heads": 2},
    "one key head": {"num_key_value_heads": 1, "head_dim": 6},
    "qk norm": {"qk_norm": True, "num_key_value_heads": 2},
    "gpt2-like": {"positions": "learned", "norm": "layer", "mlp": "gelu", "bias": True},
    "layer norms": {"norm": "layer", "qk_norm": True, "positions": "none"},
    "sinusoidal": {"positions": "sinusoidal", "mlp": "gelu", "logit_scale": 0.5},
    "alibi": {"positions": "alibi", "num_key_value_heads": 2, "tie_word_embeddings": False},
    "none": {"positions": "none", "initialization": "fan_in", "bias": True},
    "relative": {"positions": "relative", "relative_distance": 4, "num_key_value_heads": 2},
    "relative with a window": {
        "positions": "relative",
        "relative_distance": 9,
        "mixers": ("window", "attention"),
        "window": 5,
    },
    "random spaced": {"positions": "random_spaced"},
    "length scale": {"positions": "none", "length_scale": True},
    "length scale with a window": {"length_scale": True, "mixers": ("window", "attention"), "window": 5},
    "window": {"mixers": ("window",), "window": 5},
    "window and attention": {"mixers": ("window", "attention"), "window": 4, "positions": "alibi"},
    "window with grouped heads": {"mixers": ("attention", "window"), "window": 3, "num_key_value_heads": 2},
}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def made(seed: int = 0, **changes: Any) -> DecoderForCausalLM:
    """A small model in which no gain is one and no bias zero."""
    torch.manual_seed(seed)
    settings = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 40, **changes}
    model = DecoderForCausalLM(DecoderConfig(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def tokens(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(50, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits(model: nn.Module, input_ids: Tensor, **arguments: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=input_ids, use_cache=False, **arguments).logits
    return found


def normed(x: Tensor, norm: nn.Module) -> Tensor:
    if isinstance(norm, nn.LayerNorm):
        x = x - x.mean()
    x = x / (x.square().mean() + norm.eps).sqrt() * norm.weight
    return x + norm.bias if getattr(norm, "bias", None) is not None else x


def turned(x: Tensor, position: int, theta: float) -> Tensor:
    half, out = len(x) // 2, x.clone()
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x))
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return out


def plain_attention(x: list[Tensor], mixer: Attention, config: DecoderConfig) -> list[Tensor]:
    width, group = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    parts = [mixer.qkv(row).split(width) for row in x]
    queries, keys, values = [], [], []
    for position, part in enumerate(parts):
        for head in range(config.num_attention_heads):
            begin = head // group * (group + 2)
            q, k = part[begin + head % group], part[begin + group]
            if config.qk_norm:
                q, k = normed(q, mixer.q_norm), normed(k, mixer.k_norm)
            if config.positions == "rotary":
                q, k = turned(q, position, config.rope_theta), turned(k, position, config.rope_theta)
            if config.length_scale:
                seen = position + 1 if mixer.window is None else min(position + 1, mixer.window)
                q = q * (mixer.length_scale.slope[head] * math.log(seen) + mixer.length_scale.level[head])
            queries.append(q), keys.append(k), values.append(part[begin + group + 1])
    out, heads = [], config.num_attention_heads
    for i in range(len(x)):
        first = 0 if mixer.window is None else max(0, i - mixer.window + 1)
        mixed = []
        for head in range(heads):
            slope = 2 ** (-8 * (head + 1) / heads) if config.positions == "alibi" else 0.0
            scores = []
            for j in range(first, i + 1):
                key = keys[j * heads + head]
                if config.positions == "relative":
                    reach = config.relative_distance
                    key = key + mixer.relative.vectors.weight[max(j - i, -reach) + reach]
                scores.append(queries[i * heads + head] @ key / math.sqrt(width) - slope * (i - j))
            weights = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
            mixed.append(sum(w * values[j * heads + head] for w, j in zip(weights, range(first, i + 1), strict=True)))
        out.append(mixer.o(torch.cat(mixed)))
    return out


def plain_decoder(model: DecoderForCausalLM, input_ids: Tensor) -> Tensor:
    """Logits [L, vocabulary] of one row [L], token by token and head by head."""
    config, body = model.config, model.model
    x = [body.embed_tokens.weight[token] for token in input_ids]
    for position in range(len(x)):
        if config.positions in ("learned", "random_spaced"):
            x[position] = x[position] + body.embed_positions.weight[position]
        if config.positions == "sinusoidal":
            angles = [position / 10000 ** (2 * i / config.hidden_size) for i in range(config.hidden_size // 2)]
            added = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            x[position] = x[position] * math.sqrt(config.hidden_size) + torch.tensor(added, dtype=x[position].dtype)
    for layer in body.layers:
        mixed = plain_attention([normed(row, layer.mixer_norm) for row in x], layer.mixer, config)
        for position, added in enumerate(mixed):
            row = x[position] + added
            inner = normed(row, layer.mlp_norm)
            if config.mlp == "swiglu":
                gate, up = layer.mlp.gate_up(inner).split(config.intermediate_size)
                hidden = gate / (1 + (-gate).exp()) * up
            else:
                up = layer.mlp.up(inner)
                hidden = up * (1 + torch.erf(up / math.sqrt(2))) / 2
            x[position] = row + layer.mlp.down(hidden)
    return torch.stack([model.lm_head(normed(row, body.norm)) * config.logit_scale for row in x])


@each_shape
@pytest.mark.parametrize("length", [1, 7, 33])
def test_outputs_and_gradients_are_those_of_the_plain_decoder(shape: dict[str, Any], length: int) -> None:
    model = made(**shape)
    twin = copy.deepcopy(model).double()
    input_ids = tokens(2, length)
    direction = torch.randn(2, length, 50, generator=torch.Generator().manual_seed(2))
    found = model(input_ids=input_ids).logits
    expected = torch.stack([plain_decoder(twin, row) for row in input_ids])
    torch.testing.assert_close(found.double(), expected, atol=TOLERANCE, rtol=TOLERANCE)
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert parameter.grad is not None, name
        assert other.grad is not None, name
        scale = float(other.grad.abs().max())
        torch.testing.assert_close(parameter.grad.double(), other.grad, atol=TOLERANCE * (1 + scale), rtol=0)


@each_shape
def test_bfloat16_is_close(shape: dict[str, Any]) -> None:
    # Matrix products take the place of the fused kernel there, so this is another path than float32's.
    model, input_ids = made(**shape), tokens(2, 33)
    exact = logits(model, input_ids)
    with torch.autocast("cpu", torch.bfloat16):
        rough = logits(model, input_ids)
    assert float((rough - exact).abs().mean()) < 0.02 * float(exact.std())
    assert not rough.equal(exact)


@each_shape
def test_packed_documents_are_as_if_alone(shape: dict[str, Any]) -> None:
    model = made(**shape)
    lengths = (3, 11, 1, 7)
    input_ids = tokens(2, sum(lengths))
    # Numbers need not rise, and two documents with one number are two if another stands between them only where positions
    # are concerned, so each has its own.
    documents = torch.cat([torch.full((n,), number) for n, number in zip(lengths, (5, 2, 9, 0), strict=True)])
    packed = logits(model, input_ids, documents=documents.expand(2, -1))
    begin = 0
    for length in lengths:
        alone = logits(model, input_ids[:, begin : begin + length])
        torch.testing.assert_close(packed[:, begin : begin + length], alone, atol=TOLERANCE, rtol=TOLERANCE)
        begin += length


@each_shape
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(shape: dict[str, Any], side: str) -> None:
    model = made(**shape)
    rows = [tokens(1, length, seed=length)[0] for length in (4, 13)]
    width = 17
    padded, mask = torch.zeros(2, width, dtype=torch.long), torch.zeros(2, width, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        padded[i, place], mask[i, place] = row, 1
    found = logits(model, padded, attention_mask=mask)
    other = logits(model, torch.where(mask.bool(), padded, 7), attention_mask=mask)
    assert found.isfinite().all()
    for i, row in enumerate(rows):
        torch.testing.assert_close(
            found[i][mask[i].bool()], logits(model, row[None])[0], atol=TOLERANCE, rtol=TOLERANCE
        )
        assert found[i][mask[i].bool()].equal(other[i][mask[i].bool()])


@each_shape
def test_generation_with_cache_and_padding(shape: dict[str, Any]) -> None:
    model = made(**shape)
    rows = [tokens(1, length, seed=length) for length in (3, 9)]
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    singles = [model.generate(row, use_cache=False, **settings)[0, row.shape[1] :] for row in rows]
    for row, single in zip(rows, singles, strict=True):
        assert model.generate(row, use_cache=True, **settings)[0, row.shape[1] :].equal(single)
    batch = torch.cat([torch.cat((torch.zeros(1, 6, dtype=torch.long), rows[0]), 1), rows[1]])
    mask = torch.ones_like(batch)
    mask[0, :6] = 0
    found = model.generate(batch, attention_mask=mask, **settings)[:, batch.shape[1] :]
    assert found.equal(torch.stack(singles))


def test_without_a_cache_generation_computes_everything_anew() -> None:
    model, input_ids = made(mixers=("routing",), window=4), tokens(2, 9)
    found = model.generate(input_ids, max_new_tokens=4, do_sample=False, use_cache=True, pad_token_id=0)
    expected = input_ids
    for _ in range(4):
        expected = torch.cat((expected, logits(model, expected)[:, -1:].argmax(-1)), 1)
    assert found.equal(expected)
    with pytest.raises(ModelError, match="routing keeps no cache"):
        model(input_ids=input_ids, past_key_values=DynamicCache())


@each_shape
def test_a_cache_gives_the_logits_of_the_whole(shape: dict[str, Any]) -> None:
    model, input_ids = made(**shape), tokens(2, 15)
    whole = logits(model, input_ids)
    with torch.no_grad():
        first = model(input_ids=input_ids[:, :6], use_cache=True)
        second = model(input_ids=input_ids[:, 6:], past_key_values=first.past_key_values)
    found = torch.cat((first.logits, second.logits), 1)
    torch.testing.assert_close(found, whole, atol=TOLERANCE, rtol=TOLERANCE)


@each_shape
def test_saved_and_loaded_it_is_the_same(shape: dict[str, Any], tmp_path: Path) -> None:
    model, input_ids = made(**shape), tokens(2, 9)
    lm.save(model, tiny_tokenizer(), tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".py")]
    for loaded in (lm.load(tmp_path).model, AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert type(loaded) is DecoderForCausalLM
        assert logits(loaded, input_ids).equal(logits(model, input_ids))
    assert AutoConfig.from_pretrained(tmp_path).mixers == model.config.mixers


@pytest.mark.parametrize("length", [9, 21])
def test_a_window_that_covers_everything_is_attention(length: int) -> None:
    input_ids = tokens(2, length)
    full, wide = made(), made(mixers=["window"], window=length)
    torch.testing.assert_close(logits(wide, input_ids), logits(full, input_ids), atol=TOLERANCE, rtol=TOLERANCE)
    assert not torch.allclose(logits(made(mixers=["window"], window=length - 1), input_ids), logits(full, input_ids))


@pytest.mark.parametrize("length", [6, 8, 9, 33])
def test_a_window_ignores_what_lies_before_it(length: int) -> None:
    model = made(mixers=("window",), window=4, num_hidden_layers=1)
    input_ids = tokens(1, length)
    before = logits(model, input_ids)
    changed = input_ids.clone()
    changed[0, 0] = (changed[0, 0] + 1) % 50
    after = logits(model, changed)
    assert all(not after[0, i].equal(before[0, i]) for i in range(4))
    assert after[0, 4:].equal(before[0, 4:])


def test_the_future_is_not_seen() -> None:
    for shape in SHAPES.values():
        model, input_ids = made(**shape), tokens(1, 20)
        changed = input_ids.clone()
        changed[0, 12] = (changed[0, 12] + 1) % 50
        torch.testing.assert_close(logits(model, changed)[:, :12], logits(model, input_ids)[:, :12], atol=1e-6, rtol=0)


@each_shape
def test_recomputed_gradients_are_the_same(shape: dict[str, Any]) -> None:
    model, input_ids = made(**shape, dropout=0.1), tokens(2, 9)
    gradients = []
    for checkpointing in (False, True):
        model.train()
        model.zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(5)
        model(input_ids=input_ids, labels=input_ids).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(model.parameters()))
    assert all(a.equal(b) for a, b in zip(*gradients, strict=True))


def test_the_loss_is_the_mean_over_labelled_tokens() -> None:
    model, input_ids = made(), tokens(2, 9)
    labels = input_ids.clone()
    labels[0, 3:] = -100
    output = model(input_ids=input_ids, labels=labels)
    shifted = labels[:, 1:]
    log_probabilities = output.logits[:, :-1].log_softmax(-1)
    chosen = [log_probabilities[i, j, shifted[i, j]] for i in range(2) for j in range(8) if shifted[i, j] >= 0]
    torch.testing.assert_close(output.loss, -torch.stack(chosen).mean())
    assert output.auxiliary_loss is None


class Penalised(Attention):
    """Attention whose auxiliary loss is the mean square of its output."""

    def forward(self, x: Tensor, context: Any) -> Tensor:
        y = super().forward(x, context)
        context.losses.append(y.square().mean())
        return y


@pytest.mark.parametrize("checkpointing", [False, True])
def test_auxiliary_losses_are_added(checkpointing: bool) -> None:
    model, input_ids = made().train(), tokens(2, 9)
    for layer in model.model.layers:
        layer.mixer.__class__ = Penalised
    caught: list[Tensor] = []
    for layer in model.model.layers:
        layer.mixer.register_forward_hook(lambda module, arguments, output: caught.append(output))
    if checkpointing:
        model.gradient_checkpointing_enable()
    output = model(input_ids=input_ids, labels=input_ids)
    assert output.auxiliary_loss is not None
    torch.testing.assert_close(output.auxiliary_loss, sum(y.square().mean() for y in caught[:2]))
    plain = nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())
    torch.testing.assert_close(output.loss, plain + output.auxiliary_loss)
    output.auxiliary_loss.backward()
    gradient = model.model.layers[0].mixer.qkv.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_watched_attention_reports_the_greatest_allowed_logit() -> None:
    model, input_ids = made(num_key_value_heads=2), tokens(2, 9)
    caught: list[Tensor] = []
    for layer in model.model.layers:
        layer.mixer.qkv.register_forward_hook(lambda module, arguments, output: caught.append(output))
    with watch_attention(model) as watch:
        watched = logits(model, input_ids)
    greatest = 0.0
    for qkv in caught:
        parts = qkv.view(2, 9, 2, 4, 4)
        for row in range(2):
            for head in range(4):
                q = [turned(parts[row, i, head // 2, head % 2], i, 1e4) for i in range(9)]
                k = [turned(parts[row, i, head // 2, 2], i, 1e4) for i in range(9)]
                greatest = max(greatest, *(abs(float(q[i] @ k[j])) / 2 for i in range(9) for j in range(i + 1)))
    assert watch.greatest == pytest.approx(greatest, rel=1e-5)
    torch.testing.assert_close(watched, logits(model, input_ids))
    before = watch.greatest
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mixer.qkv.weight.mul_(10)
    logits(model, input_ids)
    assert watch.greatest == before


def test_initialisation_has_the_stated_spread() -> None:
    torch.manual_seed(0)
    normal = DecoderForCausalLM(DecoderConfig(num_hidden_layers=8, initializer_range=0.05))
    layer = normal.model.layers[3]
    for weight, deviation in [
        (normal.model.embed_tokens.weight, 0.05),
        (layer.mixer.qkv.weight, 0.05),
        (layer.mixer.o.weight, 0.05 / 4),
        (layer.mlp.gate_up.weight, 0.05),
        (layer.mlp.down.weight, 0.05 / 4),
    ]:
        assert float(weight.std()) == pytest.approx(deviation, rel=0.03)
    scaled = DecoderForCausalLM(DecoderConfig(initialization="fan_in", tie_word_embeddings=False))
    layer = scaled.model.layers[1]
    for weight, fan_in in [
        (scaled.model.embed_tokens.weight, 256),
        (scaled.lm_head.weight, 256),
        (layer.mixer.o.weight, 256),
        (layer.mlp.down.weight, 704),
    ]:
        deviation = fan_in**-0.5
        assert float(weight.std()) == pytest.approx(deviation, rel=0.03)
        assert float(weight.abs().max()) < 2 * deviation / 0.87
    assert all((p == 1).all() for name, p in scaled.named_parameters() if "norm" in name)


def test_tied_heads_share_and_untied_do_not() -> None:
    tied, untied = made(), made(tie_word_embeddings=False)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight


def test_mixers_take_turns_over_the_layers() -> None:
    assert DecoderConfig(num_hidden_layers=5, mixers=["window", "attention"]).layer_mixers == (
        "window", "attention", "window", "attention", "window",
    )  # fmt: skip
    assert DecoderConfig(intermediate_size=None, hidden_size=256).intermediate_size == 704
    assert DecoderConfig(mlp="gelu", hidden_size=256).intermediate_size == 1024


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 30}, "4 heads do not divide a width of 30"),
        ({"num_key_value_heads": 3}, "3 key heads do not divide 4 heads"),
        ({"mixers": ["atention"]}, "did you mean 'attention'"),
        ({"mixers": "attention"}, "list of names"),
        ({"positions": "rotatory"}, "did you mean 'rotary'"),
        ({"norm": "xyz"}, "use one of rms, layer"),
        ({"mlp": "swigl"}, "did you mean 'swiglu'"),
        ({"initialization": "fanin"}, "did you mean 'fan_in'"),
        ({"head_dim": 5}, "even width"),
        ({"window": 0}, "window is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"relative_distance": 0}, "relative_distance is 0"),
        ({"positions": "per_digit"}, "give digit_tokens"),
        ({"positions": "relative", "mixers": ("attention", "linear")}, "mixer linear has no logits"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        DecoderConfig(**changes)


MASKED: dict[str, dict[str, Any]] = {
    "learned": {"positions": "learned"},
    "relative": {"positions": "relative", "relative_distance": 3},
    "alibi": {"positions": "alibi"},
    "length scale": {"length_scale": True},
    "window": {"mixers": ("window", "attention"), "window": 4},
}


@pytest.mark.parametrize("shape", MASKED.values(), ids=MASKED)
def test_a_causal_mask_of_four_dimensions_changes_nothing(shape: dict[str, Any]) -> None:
    model, input_ids = made(**shape), tokens(2, 11)
    causal = torch.ones(11, 11, dtype=torch.bool).tril()[None, None]
    torch.testing.assert_close(
        logits(model, input_ids, attention_mask=causal), logits(model, input_ids), atol=TOLERANCE, rtol=TOLERANCE
    )


def test_a_full_mask_makes_an_encoder_and_a_prefix_sees_itself() -> None:
    model, input_ids = made(positions="none"), tokens(1, 9)
    everything = torch.ones(1, 1, 9, 9, dtype=torch.bool)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    found = logits(model, input_ids, attention_mask=everything)
    # Without positions an encoder does not know the order of its input.
    again = logits(model, input_ids[:, order], attention_mask=everything)
    torch.testing.assert_close(again, found[:, order], atol=TOLERANCE, rtol=TOLERANCE)
    prefix = torch.ones(9, 9, dtype=torch.bool).tril()
    prefix[:4, :4] = True
    changed, later = input_ids.clone(), input_ids.clone()
    changed[0, 3], later[0, 6] = (input_ids[0, 3] + 1) % 50, (input_ids[0, 6] + 1) % 50
    before = logits(model, input_ids, attention_mask=prefix[None, None])
    assert not logits(model, changed, attention_mask=prefix[None, None])[0, 0].equal(before[0, 0])
    assert logits(model, later, attention_mask=prefix[None, None])[0, :6].equal(before[0, :6])


def test_relative_positions_see_distances_alone_and_reach_zero_sees_nothing() -> None:
    model, input_ids = made(positions="relative", relative_distance=2, num_hidden_layers=1), tokens(1, 8)
    # One layer, a window of the same tokens: what stands before is alike from distance 2 on, so places do not count.
    moved = logits(model, torch.cat((input_ids[:, :1], input_ids), 1))
    repeated = logits(model, torch.cat((input_ids[:, :1], input_ids[:, :1], input_ids), 1))
    assert not moved[0, -1].equal(repeated[0, -1])
    none = made(positions="none", num_hidden_layers=1)
    for layer in model.model.layers:
        layer.mixer.relative.vectors.weight.data[:] = layer.mixer.relative.vectors.weight.data[:1]
    shared = {name: value for name, value in model.state_dict().items() if "relative" not in name}
    none.load_state_dict(shared)
    torch.testing.assert_close(logits(model, input_ids), logits(none, input_ids), atol=TOLERANCE, rtol=TOLERANCE)


def test_random_spaces_grow_within_the_table_and_only_in_training() -> None:
    torch.manual_seed(0)
    places = spaced(torch.arange(20).expand(500, -1), 40)
    assert (places.diff(dim=1) >= 1).all()
    assert places.min() == 0
    assert places.max() == 39
    assert abs(float((places.diff(dim=1)[:, :8] == 1).float().mean()) - 0.7) < 0.03
    assert spaced(torch.arange(40).expand(3, -1), 40).equal(torch.arange(40).expand(3, -1))
    model, input_ids = made(positions="random_spaced"), tokens(2, 12)
    assert logits(model, input_ids).equal(logits(model, input_ids))
    model.train()
    assert not logits(model, input_ids).equal(logits(model, input_ids))


def test_places_of_digits() -> None:
    ids = torch.tensor([[3, 1, 2, 9, 2, 2, 1, 9, 9, 1], [1, 1, 1, 1, 1, 1, 9, 1, 1, 1]])
    assert digit_places(ids, (1, 2, 3)).tolist() == [[1, 2, 3, 0, 1, 2, 3, 0, 0, 1], [1, 2, 3, 4, 5, 6, 0, 1, 2, 3]]
    documents = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 7, 7, 7, 7, 7, 7]])
    assert digit_places(ids, (1, 2, 3), documents)[:, :6].tolist() == [[1, 2, 1, 0, 1, 2], [1, 2, 3, 4, 1, 2]]
    padding = torch.ones_like(ids, dtype=torch.bool)
    padding[1, :4] = False
    assert digit_places(ids, (1, 2, 3), padding=padding)[1].tolist() == [0, 0, 0, 0, 1, 2, 0, 1, 2, 3]


def test_positions_per_digit_add_their_entry_of_the_table() -> None:
    model, plain = made(positions="per_digit", digit_tokens=(1, 2)), made(positions="none")
    weights = model.state_dict()
    table = weights.pop("model.embed_positions.weight")
    plain.load_state_dict(weights)
    ids = torch.tensor([[7, 1, 2, 9, 2, 1]])
    with torch.no_grad():
        embedded = plain.model.embed_tokens(ids) + table[torch.tensor([[0, 1, 2, 0, 1, 2]])]
        expected = plain(inputs_embeds=embedded, use_cache=False).logits
    assert logits(model, ids).equal(expected)
    found = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    grown = ids
    for _ in range(4):
        grown = torch.cat((grown, logits(model, grown)[:, -1:].argmax(-1)), 1)
    assert found.equal(grown)
    model.train()
    assert not logits(model, ids).equal(logits(model, ids))
    with pytest.raises(ModelError, match="41 digits is longer than the 39 places"):
        logits(model, torch.ones(1, 41, dtype=torch.long))
    with pytest.raises(ModelError, match="read off the tokens"):
        model(inputs_embeds=embedded)


def test_a_sharper_attention_starts_as_the_plain_one() -> None:
    torch.manual_seed(0)
    one = DecoderForCausalLM(DecoderConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1))
    other = DecoderForCausalLM(DecoderConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, length_scale=True))
    other.load_state_dict(one.state_dict(), strict=False)
    assert logits(one.eval(), tokens(2, 9)).equal(logits(other.eval(), tokens(2, 9)))


def test_masks_that_cannot_be_are_refused() -> None:
    model, everything = made(), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    with pytest.raises(ModelError, match="boolean"):
        logits(model, tokens(1, 4), attention_mask=everything.float())
    first = model(input_ids=tokens(1, 4), use_cache=True)
    with pytest.raises(ModelError, match="cannot go on from a cache"):
        model(input_ids=tokens(1, 4), past_key_values=first.past_key_values, attention_mask=everything)
    with pytest.raises(ModelError, match="linear is causal"):
        logits(made(mixers=("linear",)), tokens(1, 4), attention_mask=everything)


def test_inputs_that_cannot_be_are_refused() -> None:
    model = made(positions="learned")
    logits(model, tokens(1, 40))
    with pytest.raises(ModelError, match=r"41 tokens .* 40 positions"):
        logits(model, tokens(1, 41))
    with pytest.raises(ModelError, match="exactly one"):
        model()
    first = model(input_ids=tokens(1, 4), use_cache=True)
    with pytest.raises(ModelError, match="Packed documents"):
        model(input_ids=tokens(1, 4), past_key_values=first.past_key_values, documents=torch.zeros(1, 4))


def test_outputs_that_transformers_promises() -> None:
    model, input_ids = made(), tokens(2, 7)
    output = model(input_ids=input_ids, output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in output.hidden_states] == [(2, 7, 16)] * 3
    torch.testing.assert_close(model.lm_head(output.hidden_states[-1]), output.logits)
    assert [attention.shape for attention in output.attentions] == [(2, 4, 7, 7)] * 2
    torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones(2, 4, 7))
    torch.testing.assert_close(output.logits, logits(model, input_ids))
    assert model(input_ids=input_ids, logits_to_keep=2).logits.equal(model(input_ids=input_ids).logits[:, -2:])
    embedded = model.get_input_embeddings()(input_ids)
    torch.testing.assert_close(model(inputs_embeds=embedded).logits, output.logits)
    assert torch.equal(model(input_ids=input_ids, return_dict=False)[0], model(input_ids=input_ids).logits)
