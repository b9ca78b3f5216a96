"""Our own decoder: small, plain and fast, one architecture with exchangeable token mixers, in transformers' conventions."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep

from bakeoff.errors import ModelError
from bakeoff.lm.attention import Context, alibi_slopes, rotary_tables

# Modules are named, not imported: a decoder needs only those of its own mixers.
_MIXERS: dict[str, tuple[str, str]] = {
    "attention": ("bakeoff.lm.attention", "Attention"),
    "window": ("bakeoff.lm.attention", "WindowAttention"),
    "linear": ("bakeoff.lm.delta_rule", "LinearAttention"),
    "deltanet": ("bakeoff.lm.delta_rule", "DeltaNet"),
    "routing": ("bakeoff.lm.routing", "RoutingAttention"),
}
_RECURRENT = ("linear", "deltanet")
_MASKED = ("attention", "window")
_TABLES = ("learned", "random_spaced", "per_digit")
_CHOICES = {
    "positions": ("rotary", "learned", "sinusoidal", "alibi", "relative", "random_spaced", "per_digit", "none"),
    "mlp": ("swiglu", "gelu"),
    "norm": ("rms", "layer"),
    "initialization": ("normal", "fan_in"),
}
_COUNTS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "max_position_embeddings", "window", "relative_distance",
)  # fmt: skip
# Standard deviation of a normal distribution cut off at two of its standard deviations.
_CUT = 0.87962566103423978


class DecoderConfig(PreTrainedConfig):
    """The shape of a decoder.

    Attributes:
        num_key_value_heads: key and value heads of softmax attention; default as many as heads.
        head_dim: width of a head, default hidden_size / num_attention_heads; even with rotary positions.
        intermediate_size: width inside the MLP; default 4 * hidden_size, with "swiglu" 8 / 3 of it rounded up to 32s.
        max_position_embeddings: entries of a table of learned positions; for the others what the model is meant for.
        positions: "rotary", "sinusoidal" (added to the embeddings), "alibi", "relative" (see `RelativePositions`), "none", or
            a learned table that is added to the embeddings: at a token's place with "learned", at random growing places
            with "random_spaced" (see `spaced`), at a digit's place in its number with "per_digit" (see `digit_places`).
        relative_distance: the greatest distance that "relative" tells from smaller ones.
        digit_tokens: ids of the digits, for "per_digit".
        length_scale: attention gets sharper with the tokens that it sees (see `LengthScale`).
        qk_norm: normalise queries and keys over the head's width, before rotation.
        mixers: names of token mixers, taken in turn by the layers.
        window: tokens that a "window" mixer sees, the token itself among them.
        conv: width of the short convolutions of "linear" and "deltanet", 0 for none.
        routing_heads, clusters, routing_window: of "routing", default half the heads, the root of the length, length /
            clusters; routing_decay in [0, 1): of the centroids' moving average; commitment: weight of its loss.
        initialization: "normal" with deviation `initializer_range`, in the projections back to the residual stream that
            divided by sqrt(2 layers); or "fan_in": normal cut off at two deviations, with deviation 1 / sqrt(fan in), and
            1 / sqrt(hidden_size) for embeddings.
        dropout: of embeddings, attention probabilities and what is added to the residual stream, in [0, 1).
        logit_scale: multiplies the logits.

    Raises:
        ModelError: values that do not fit together or are not known.
    """

    model_type = "bakeoff_decoder"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - transformers' convention

    vocab_size: int = 4096
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = None  # type: ignore[assignment] # the three are set in __post_init__
    head_dim: int = None  # type: ignore[assignment]
    intermediate_size: int = None  # type: ignore[assignment]
    max_position_embeddings: int = 1024
    positions: str = "rotary"
    mlp: str = "swiglu"
    norm: str = "rms"
    norm_eps: float = 1e-5
    bias: bool = False
    qk_norm: bool = False
    tie_word_embeddings: bool = True
    mixers: Sequence[str] = ("attention",)
    window: int = 64
    conv: int = 4
    routing_heads: int | None = None
    clusters: int | None = None
    routing_window: int | None = None
    routing_decay: float = 0.999
    commitment: float = 1e-4
    rope_theta: float = 10000.0
    relative_distance: int = 16
    digit_tokens: Sequence[int] = ()
    length_scale: bool = False
    initialization: str = "normal"
    initializer_range: float = 0.02
    dropout: float = 0.0
    logit_scale: float = 1.0
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.mixers, str) or not self.mixers:
            raise ModelError(f'mixers is {self.mixers!r}: give a list of names, as in ["attention"].')
        self.mixers = tuple(self.mixers)
        for name in self.mixers:
            _known("mixer", name, tuple(_MIXERS))
        for field, names in _CHOICES.items():
            _known(field, getattr(self, field), names)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
                raise ModelError(
                    f"{self.num_attention_heads} heads do not divide a width of {self.hidden_size}: choose hidden_size as a "
                    "multiple of num_attention_heads, or set head_dim."
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.intermediate_size is None:
            gated = -(-8 * self.hidden_size // (3 * 32)) * 32
            self.intermediate_size = gated if self.mlp == "swiglu" else 4 * self.hidden_size
        for field in _COUNTS:
            if getattr(self, field) < 1:
                raise ModelError(f"{field} is {getattr(self, field)}: give at least 1.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelError(
                f"{self.num_key_value_heads} key heads do not divide {self.num_attention_heads} heads: choose "
                "num_attention_heads as a multiple of num_key_value_heads."
            )
        if self.positions == "rotary" and self.head_dim % 2:
            raise ModelError(f"Rotary positions need heads of even width, not {self.head_dim}: set head_dim.")
        if self.positions == "sinusoidal" and self.hidden_size % 2:
            raise ModelError(f"Sinusoidal positions need an even hidden_size, not {self.hidden_size}.")
        if (self.positions == "relative" or self.length_scale) and (rest := set(self.mixers) - set(_MASKED)):
            raise ModelError(
                f"The mixer {min(rest)} has no logits for relative positions or length_scale: use {' or '.join(_MASKED)}."
            )
        self.digit_tokens = tuple(self.digit_tokens)
        if self.positions == "per_digit" and not self.digit_tokens:
            raise ModelError('Positions "per_digit" need the ids of the digits: give digit_tokens.')
        if not 0 <= self.dropout < 1:
            raise ModelError(f"dropout is {self.dropout}: give a share from 0 to below 1.")
        super().__post_init__(**kwargs)

    @property
    def layer_mixers(self) -> tuple[str, ...]:
        """The mixer of each layer."""
        return tuple(self.mixers[layer % len(self.mixers)] for layer in range(self.num_hidden_layers))

    @property
    def layer_types(self) -> list[str]:
        """What transformers' caches keep for each layer."""
        return ["linear_attention" if name in _RECURRENT else "full_attention" for name in self.layer_mixers]

    @property
    def hidden_act(self) -> str:
        """transformers' name of the activation inside the MLP."""
        return "silu" if self.mlp == "swiglu" else "gelu"

    def new_norm(self, width: int, bias: bool | None = None) -> nn.Module:
        """A norm over the last `width` entries; a layer norm has a bias where the model has."""
        if self.norm == "rms":
            return nn.RMSNorm(width, self.norm_eps)
        return nn.LayerNorm(width, self.norm_eps, bias=self.bias if bias is None else bias)


def _known(kind: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        near = get_close_matches(str(name), names, 1, 0.4)
        advice = f"did you mean {near[0]!r}, of {', '.join(names)}?" if near else f"use one of {', '.join(names)}."
        raise ModelError(f"There is no {kind} {name!r}: {advice}")


class MLP(nn.Module):
    """down(silu(gate x) * up x), gate and up stacked in one projection (Shazeer 2020, arXiv:2002.05202), or down(gelu(up x))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        inner = config.intermediate_size
        if config.mlp == "swiglu":
            self.gate_up = nn.Linear(config.hidden_size, 2 * inner, bias=config.bias)
        else:
            self.up = nn.Linear(config.hidden_size, inner, bias=config.bias)
        self.gated = config.mlp == "swiglu"
        self.down = nn.Linear(inner, config.hidden_size, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            gate, up = self.gate_up(x).chunk(2, -1)
            inner = functional.silu(gate) * up
        else:
            inner = functional.gelu(self.up(x))
        y: Tensor = self.down(inner)
        return y


class DecoderLayer(GradientCheckpointingLayer):
    """x + mixer(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        module, name = _MIXERS[config.layer_mixers[layer]]
        self.mixer_norm = config.new_norm(config.hidden_size)
        self.mixer = getattr(importlib.import_module(module), name)(config, layer)
        self.mlp_norm = config.new_norm(config.hidden_size)
        self.mlp = MLP(config)
        self.dropout = config.dropout
        for linear in (self.mixer.o, self.mlp.down):
            linear.to_residual = True

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, list[Tensor]]:
        """The new x, and the mixer's auxiliary losses, returned so that recomputation can differentiate them."""
        before = len(context.losses)
        x = x + self._dropped(self.mixer(self.mixer_norm(x), context))
        losses = context.losses[before:]
        del context.losses[before:]
        return x + self._dropped(self.mlp(self.mlp_norm(x))), losses

    def _dropped(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout) if self.dropout and self.training else x


class DecoderPreTrainedModel(PreTrainedModel):
    config: DecoderConfig
    config_class = DecoderConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """A module of a mixer that has weights of its own, beyond linear maps and norms, sets them in `initialize()`."""
        config = self.config
        if isinstance(module, (nn.Linear, nn.Embedding)):
            fan_in = module.in_features if isinstance(module, nn.Linear) else config.hidden_size
            if config.initialization == "normal":
                shrunk = math.sqrt(2 * config.num_hidden_layers) if hasattr(module, "to_residual") else 1
                init.normal_(module.weight, std=config.initializer_range / shrunk)
            else:
                deviation = fan_in**-0.5 / _CUT
                init.trunc_normal_(module.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
            bias: Any = getattr(module, "bias", None)
            if bias is not None:
                init.zeros_(bias)
        elif callable(initialize := getattr(module, "initialize", None)):
            initialize()
        else:
            super()._init_weights(module)


@dataclass
class DecoderOutput(BaseModelOutputWithPast):
    """`auxiliary_loss`: sum of the mixers' losses, a scalar, absent where there are none."""

    auxiliary_loss: Tensor | None = None


@dataclass
class DecoderForCausalLMOutput(CausalLMOutputWithPast):
    """`auxiliary_loss`: sum of the mixers' losses, a scalar, absent where there are none; `loss` contains it."""

    auxiliary_loss: Tensor | None = None


class DecoderModel(DecoderPreTrainedModel):
    """Embeddings, layers and the last norm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        table = config.positions in _TABLES
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size) if table else None
        self.layers = nn.ModuleList([DecoderLayer(config, layer) for layer in range(config.num_hidden_layers)])
        self.norm = config.new_norm(config.hidden_size)
        self.gradient_checkpointing = False
        # Where a number begins is not known from its last digits alone.
        self.cached = config.positions != "per_digit" and all(
            getattr(layer.mixer, "cached", False) for layer in self.layers
        )
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        documents: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> DecoderOutput:
        """See `DecoderForCausalLM.forward`."""
        config = self.config
        if (input_ids is None) == (inputs_embeds is None):
            raise ModelError("A decoder takes input_ids or inputs_embeds: give exactly one of them.")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        length = x.shape[1]
        if past_key_values is not None and not self.cached:
            counted = " with positions per digit" if config.positions == "per_digit" else ""
            raise ModelError(
                f"A decoder of {', '.join(dict.fromkeys(config.layer_mixers))}{counted} keeps no cache: give use_cache=False."
            )
        mask = None
        if attention_mask is not None and attention_mask.dim() == 4:
            mask, attention_mask = attention_mask, None
            self._check_mask(mask, past_key_values)
        if use_cache is None:
            use_cache = config.use_cache and not self.training and mask is None
        recomputing = self.gradient_checkpointing and self.training
        if past_key_values is None and use_cache and self.cached and not recomputing:
            past_key_values = DynamicCache(config=config)
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if documents is not None and past:
            raise ModelError("Packed documents cannot go on from a cache: give them without past_key_values.")
        if config.positions in ("learned", "random_spaced") and past + length > config.max_position_embeddings:
            raise ModelError(
                f"An input of {past + length} tokens is longer than the {config.max_position_embeddings} positions that this "
                "model has learned: shorten it, or use a model with more positions."
            )
        seen = None if attention_mask is None else attention_mask.bool()
        padding = None if seen is None else seen[:, -length:]
        given = position_ids is not None
        if position_ids is None:
            position_ids = _positions(past, length, documents, seen, x.device)
        if self.embed_positions is not None:
            placed = position_ids
            if config.positions == "per_digit":
                placed = self._digit_places(input_ids, documents, padding)
            elif config.positions == "random_spaced" and self.training and not given:
                placed = spaced(position_ids.expand(x.shape[0], -1), config.max_position_embeddings)
            x = x + self.embed_positions(placed)
        elif config.positions == "sinusoidal":
            x = x * math.sqrt(config.hidden_size) + sinusoids(position_ids, config.hidden_size).to(x.dtype)
        if config.dropout and self.training:
            x = functional.dropout(x, config.dropout)
        autocast = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
        context = Context(
            positions=position_ids,
            documents=documents,
            padding=padding,
            cache=past_key_values,
            past=past,
            seen=seen,
            rotary=rotary_tables(position_ids, config.head_dim, config.rope_theta, dtype)
            if config.positions == "rotary"
            else None,
            slopes=alibi_slopes(config.num_attention_heads, x.device) if config.positions == "alibi" else None,
            mask=mask,
            attentions=[] if output_attentions else None,
        )
        states, losses = [x], []
        for layer in self.layers:
            x, own = layer(x, context)
            losses.extend(own)
            states.append(x)
        x = self.norm(x)
        return DecoderOutput(
            last_hidden_state=x,
            past_key_values=past_key_values,
            hidden_states=(*states[:-1], x) if output_hidden_states else None,
            attentions=None if context.attentions is None else tuple(context.attentions),
            auxiliary_loss=torch.stack(losses).sum() if losses else None,
        )

    def _digit_places(self, input_ids: Tensor | None, documents: Tensor | None, padding: Tensor | None) -> Tensor:
        if input_ids is None:
            raise ModelError('Positions "per_digit" are read off the tokens: give input_ids.')
        found, entries = (
            digit_places(input_ids, self.config.digit_tokens, documents, padding),
            self.config.max_position_embeddings,
        )
        longest = int(found.max())
        if longest >= entries:
            raise ModelError(
                f"A number of {longest} digits is longer than the {entries - 1} places that this model has learned: "
                "shorten it, or use a model with more positions."
            )
        if not self.training:
            return found
        offset = torch.randint(entries - longest, (len(found), 1), device=found.device)
        return torch.where(found > 0, found + offset, 0)

    def _check_mask(self, mask: Tensor, cache: Cache | None) -> None:
        if mask.dtype != torch.bool:
            raise ModelError("A mask of four dimensions is boolean here, True where a token may look: convert it.")
        if cache is not None:
            raise ModelError("A mask of four dimensions cannot go on from a cache: give it without past_key_values.")
        if other := [name for name in self.config.layer_mixers if name not in _MASKED]:
            raise ModelError(f"The mixer {other[0]} is causal and takes no mask of four dimensions: give two.")


def spaced(places: Tensor, entries: int) -> Tensor:
    """Places [B, L] that grow within rows, moved apart at random and shifted by a random start, all below `entries`.

    0, 1 or 2 places are left out before a token with chances 0.7, 0.2 and 0.1; at the end of the table none are.

    Source: Shen et al. 2023, arXiv:2311.14737, whose random spaces between symbols become random steps of the positions, in
    the manner of Ruoss et al. 2023, arXiv:2305.16843.
    Departures: the chances are our own; in evaluation places are as they stand, without a draw.
    """
    room = entries - 1 - int(places.max())
    chances = torch.tensor([0.7, 0.2, 0.1], device=places.device)
    left_out = torch.multinomial(chances, places.numel(), replacement=True).view_as(places)
    moved = left_out.cumsum(1).clamp(max=room)
    start = (torch.rand(len(places), 1, device=places.device) * (room + 1 - moved[:, -1:])).long()
    return places + moved + start


def digit_places(
    input_ids: Tensor, digits: Sequence[int], documents: Tensor | None = None, padding: Tensor | None = None
) -> Tensor:
    """[B, L]: the place of each digit in its number, from 1 on, and 0 for other tokens.

    A number ends at other tokens, at the end of its document, and at padding (False in `padding`).

    Source: McLeish et al. 2024, arXiv:2405.17399, section 3 (Abacus embeddings), with numbers written from the units on.
    """
    digit = torch.isin(input_ids, torch.tensor(digits, device=input_ids.device))
    if padding is not None:
        digit &= padding
    place = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    before = torch.where(digit, -1, place)
    if documents is not None:
        begins = functional.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
        before = torch.maximum(before, torch.where(begins, place - 1, -1))
    return torch.where(digit, place - before.cummax(1).values, 0)


def _positions(past: int, length: int, documents: Tensor | None, seen: Tensor | None, device: torch.device) -> Tensor:
    """[B or 1, length]: places in the row, in the document where there are documents, without padding where that is known."""
    places = torch.arange(past, past + length, device=device)[None]
    if documents is not None:
        begins = functional.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
        return places - torch.where(begins, places, 0).cummax(1).values
    return places if seen is None else (seen.long().cumsum(1) - 1).clamp(min=0)[:, -length:]


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """[B, L, width]: sines, then cosines, of position / 10000^(2 i / width). Source: Vaswani et al. 2017, arXiv:1706.03762,
    section 3.5, with the entries in another order; embeddings are multiplied by sqrt(width) as in section 3.4."""
    rates = 10000 ** (-torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width)
    angle = positions[..., None].float() * rates
    return torch.cat((angle.sin(), angle.cos()), -1)


class DecoderForCausalLM(DecoderPreTrainedModel, GenerationMixin):
    """A decoder with a language-model head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.model = DecoderModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if not self.model.cached:
            config.use_cache = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        documents: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> DecoderForCausalLMOutput | tuple[Any, ...]:
        """Logits [B, L, vocab_size] of the next token, and where labels are given the loss.

        Args:
            input_ids: [B, L].
            attention_mask: [B, cached + L], 1 at real tokens, 0 at padding on either side; or boolean [B or 1, 1, L, L], True
                where a token (of the third axis) may look, which replaces causality: all True makes an encoder.
            position_ids: [B or 1, L], default counted from documents, padding and cache; "per_digit" does not look at them.
            labels: [B, L], not shifted, -100 where nothing is learned; the loss is their mean negative log-likelihood in
                nats, plus the mixers' auxiliary losses.
            use_cache: default `config.use_cache` in evaluation, False in training.
            documents: [B, L], numbers of packed documents, which do not see each other.
            logits_to_keep: 0 for all, the number of last positions, or an index or mask [B, L] of positions.
        """
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            documents=documents,
            output_attentions=output_attentions,
            output_hidden_states=self.config.output_hidden_states
            if output_hidden_states is None
            else output_hidden_states,
        )
        x = slice_logits_to_keep(output.last_hidden_state, logits_to_keep)
        logits = self.lm_head(x if self.config.logit_scale == 1 else x * self.config.logit_scale)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
            if output.auxiliary_loss is not None:
                loss = loss + output.auxiliary_loss
        found = DecoderForCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            auxiliary_loss=output.auxiliary_loss,
        )
        return found if return_dict is not False else found.to_tuple()

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers' `generate`; where a mixer keeps no cache, every step computes the whole text anew."""
        if not self.model.cached:
            kwargs["use_cache"] = False
        return super().generate(*args, **kwargs)  # type: ignore[misc] # transformers types self by a protocol


AutoConfig.register(DecoderConfig.model_type, DecoderConfig)
AutoModel.register(DecoderConfig, DecoderModel)
AutoModelForCausalLM.register(DecoderConfig, DecoderForCausalLM)
