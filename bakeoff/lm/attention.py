"""Softmax attention over everything before a token, or over a window, and what a mixer is told about its input."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache

if TYPE_CHECKING:
    from bakeoff.lm.decoder import DecoderConfig

# Up to this many keys, a product of whole matrices in bfloat16 is faster on the CPU than the fused kernel.
_MATRIX_KEYS = 1024


@dataclass
class Context:
    """What every mixer of one forward pass is told about its input of B rows and L tokens.

    Attributes:
        positions: [B or 1, L], long; they begin anew with each document.
        documents: [B, L], numbers of packed documents; no token may see one of another document.
        padding: [B, L], True at real tokens. No real token may see padding; what padding holds is not looked at.
        cache: holds what the layers keep of the tokens before these.
        past: number of tokens in the cache.
        seen: `padding` of cached and present tokens together, [B, past + L].
        rotary: cosine and sine, each [B or 1, L, head_dim / 2], in the dtype of the queries, for `rotate`.
        slopes: [heads], how much a logit falls with each token of distance (ALiBi).
        mask: [B or 1, 1, L, L], True where a token may look; in place of causality, without a cache.
        losses: a mixer appends its auxiliary losses here; they are added to the model's loss.
        updated: layers that have already moved their buffers in this forward pass, which recomputation must not repeat.
        attentions: where a list, each softmax attention appends its probabilities [B, heads, L, past + L].
    """

    positions: Tensor
    documents: Tensor | None = None
    padding: Tensor | None = None
    cache: Cache | None = None
    past: int = 0
    seen: Tensor | None = None
    rotary: tuple[Tensor, Tensor] | None = None
    slopes: Tensor | None = None
    mask: Tensor | None = None
    losses: list[Tensor] = field(default_factory=list)
    updated: set[int] = field(default_factory=set)
    attentions: list[Tensor] | None = None
    biases: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict)

    def bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """What is added to attention logits, [B or 1, heads or 1, L, past + L]: -inf where a token may not look.

        Computed once per forward pass. A token always sees itself, so that no row is empty.
        """
        if (window, dtype) not in self.biases:
            length, device = self.positions.shape[1], self.positions.device
            keys = torch.arange(self.past + length, device=device)
            distance = keys[self.past :, None] - keys
            allowed = (distance >= 0)[None] if self.mask is None else self.mask[:, 0] | (distance == 0)
            if window is not None:
                allowed = allowed & (distance.abs() < window)
            if self.documents is not None:
                allowed = allowed & (self.documents[:, :, None] == self.documents[:, None, :])
            if self.seen is not None:
                allowed = (allowed & self.seen[:, None, :]) | (distance == 0)
            self.biases[window, dtype] = _bias(allowed[:, None], distance.abs(), self.slopes, dtype)
        return self.biases[window, dtype]

    def visible(self, window: int | None) -> Tensor:
        """[B or 1, L]: how many tokens of its own document each one sees, itself among them."""
        if self.mask is not None:
            return (self.bias(window, torch.float32) > -math.inf).sum(-1)[:, 0]
        return self.positions + 1 if window is None else (self.positions + 1).clamp(max=window)

    def blocks(self, window: int, dtype: torch.dtype) -> Tensor:
        """`bias` of each block of `window` tokens towards itself and the block before: [(B or 1) * blocks, heads or 1,
        window, 2 * window]. Tokens of no row, which fill the last block, see themselves."""
        if (-window, dtype) not in self.biases:
            length, device = self.positions.shape[1], self.positions.device
            count = -(-length // window)
            place = torch.arange(2 * window, device=device)
            distance = place[window:, None] - place
            allowed = ((distance >= 0) & (distance < window)).expand(count, -1, -1)
            # Before the first block there is nothing.
            allowed = (allowed & ((place >= window) | (torch.arange(count, device=device)[:, None] > 0))[:, None])[None]
            if self.documents is not None:
                own = in_blocks(self.documents, window)
                allowed = allowed & (own[..., None] == with_previous(own)[..., None, :])
            if self.seen is not None:
                allowed = (allowed & with_previous(in_blocks(self.seen, window))[..., None, :]) | (distance == 0)
            self.biases[-window, dtype] = _bias(allowed.flatten(0, 1)[:, None], distance, self.slopes, dtype)
        return self.biases[-window, dtype]


def _bias(allowed: Tensor, distance: Tensor, slopes: Tensor | None, dtype: torch.dtype) -> Tensor:
    bias = torch.zeros((), dtype=dtype, device=allowed.device)
    if slopes is not None:
        bias = (-slopes[:, None, None] * distance).to(dtype)
    return torch.where(allowed, bias, -math.inf)


def in_blocks(x: Tensor, size: int) -> Tensor:
    """[B, L, ...] to [B, blocks, size, ...], the last block filled up with zeros."""
    missing = -x.shape[1] % size
    padded = functional.pad(x, (*(0, 0) * (x.dim() - 2), 0, missing)) if missing else x
    return padded.reshape(x.shape[0], -1, size, *x.shape[2:])


def with_previous(blocks: Tensor) -> Tensor:
    """[B, blocks, size, ...] to [B, blocks, 2 * size, ...]: each block with the one before it, zeros before the first."""
    previous = torch.cat((torch.zeros_like(blocks[:, :1]), blocks[:, :-1]), 1)
    return torch.cat((previous, blocks), 2)


def rotary_tables(positions: Tensor, width: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine, each [B, L, width / 2], of position * theta^(-2 i / width) for the pairs i of entries.

    Source: Su et al. 2021, arXiv:2104.09864, section 3.4.2.
    """
    exponent = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    angle = positions[..., None].float() * theta**-exponent
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Turn vectors [B, ..., L, width] by their positions: entries i and i + width / 2 are a pair, which the paper has side
    by side. The result is contiguous."""
    cosine, sine = (table.view(table.shape[0], *(1,) * (x.dim() - 3), *table.shape[1:]) for table in tables)
    first, second = x.chunk(2, -1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)


def alibi_slopes(heads: int, device: torch.device) -> Tensor:
    """[heads]: 2^(-8 h / heads) for h = 1 to heads. Source: Press et al. 2022, arXiv:2108.12409, section 3.

    Departures: the same formula also where the number of heads is no power of two.
    """
    return 2.0 ** (-8.0 * torch.arange(1, heads + 1, device=device, dtype=torch.float32) / heads)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    dropout: float = 0.0,
    probabilities: list[Tensor] | None = None,
) -> Tensor:
    """softmax(q k' / sqrt(width) + bias) v.

    Args:
        q: [B, heads, L, width]; k, v: [B, key heads, K, width], each shared by heads / key heads heads in a row.
        bias: [B or 1, heads or 1, L, K]; without one a token sees itself and what is before it, which needs L = K.
        probabilities: gets the softmax appended, [B, heads, L, K].
    """
    rows, length, keys, groups = q.shape[0], q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    direct = q.device.type == "cpu" and q.dtype == torch.bfloat16 and keys <= _MATRIX_KEYS
    if not direct and probabilities is None:
        return functional.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, dropout_p=dropout, is_causal=bias is None, enable_gqa=groups > 1
        )
    if bias is None:
        bias = torch.full((length, keys), -math.inf, dtype=q.dtype, device=q.device).triu(1)
    # Heads that share keys are rows of one product.
    q, k, v = q.reshape(-1, groups * length, q.shape[3]), k.flatten(0, 1), v.flatten(0, 1)
    logits = torch.bmm(q, k.mT).view(-1, k.shape[0] * groups // rows, length, keys)
    weights = torch.add(bias, logits, alpha=q.shape[-1] ** -0.5).softmax(-1).to(v.dtype)
    if probabilities is not None:
        probabilities.append(weights)
    if dropout:
        weights = functional.dropout(weights, dropout)
    return torch.bmm(weights.view(k.shape[0], -1, keys), v).view(rows, -1, length, v.shape[-1])


class RelativePositions(nn.Module):
    """q_i a_(j - i) / sqrt(width), added to the logit of token i towards token j; distances beyond `reach` count as `reach`.

    One vector a for each distance and layer, shared by the heads.

    Source: Shaw et al. 2018, arXiv:1803.02155, section 3.2, the keys' part, which the paper finds to be enough (section 4.3).
    """

    def __init__(self, width: int, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.vectors = nn.Embedding(2 * reach + 1, width)

    def forward(self, q: Tensor, keys: int) -> Tensor:
        """q [B, heads, L, width] of the last L of `keys` tokens to [B, heads, L, keys]."""
        places = torch.arange(keys, device=q.device)
        distance = (places - places[keys - q.shape[2] :, None]).clamp(-self.reach, self.reach) + self.reach
        by_distance = q @ self.vectors.weight.T.to(q.dtype) * q.shape[-1] ** -0.5
        return by_distance.gather(3, distance.expand(*q.shape[:2], -1, -1))


class LengthScale(nn.Module):
    """Multiplies a query that sees n tokens by s log(n) + t, with s and t learned for each head, from 0 and 1.

    Source: the idea of length-dependent logits, Awasthi and Gupta 2023, arXiv:2310.00726; the factor log(n), from memory,
    Chiang and Cholak 2022, arXiv:2202.12172.
    Departures: slope and level are learned; the first paper's own function of the length was not at hand.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.slope, self.level = nn.Parameter(torch.zeros(heads)), nn.Parameter(torch.ones(heads))

    @torch.no_grad()
    def initialize(self) -> None:
        self.slope.zero_()
        self.level.fill_(1.0)

    def forward(self, q: Tensor, visible: Tensor) -> Tensor:
        """q [B, heads, L, width], visible [B or 1, L]."""
        factor = self.slope[:, None] * visible[:, None].float().log() + self.level[:, None]
        return q * factor[..., None].to(q.dtype)


class Attention(nn.Module):
    """Softmax attention with one projection for queries, keys and values, causal unless the context has a mask.

    The rows of that projection are grouped by key head: the query heads that share it, the key head, the value head. With
    `qk_norm`, queries and keys are normalised over the head's width, with a learned gain each, and rotated after that.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2; shared key heads: Ainslie et al. 2023, arXiv:2305.13245.
    Limits: distance, for windows, ALiBi and relative positions, is counted in places of the row, not in `position_ids`.
    """

    cached = True
    window: int | None = None

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.key_heads, self.width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.dropout = config.dropout
        rows = (self.heads + 2 * self.key_heads) * self.width
        self.qkv = nn.Linear(config.hidden_size, rows, bias=config.bias)
        self.o = nn.Linear(self.heads * self.width, config.hidden_size, bias=config.bias)
        self.q_norm = config.new_norm(self.width, bias=False) if config.qk_norm else None
        self.k_norm = config.new_norm(self.width, bias=False) if config.qk_norm else None
        self.relative = (
            RelativePositions(self.width, config.relative_distance) if config.positions == "relative" else None
        )
        self.length_scale = LengthScale(self.heads) if config.length_scale else None
        self.watch: AttentionWatch | None = None

    def forward(self, x: Tensor, context: Context) -> Tensor:
        rows, length, _ = x.shape
        groups = self.heads // self.key_heads
        qk, v = self.qkv(x).view(rows, length, self.key_heads, groups + 2, self.width).split((groups + 1, 1), 3)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.to(x.dtype).split((groups, 1), 3)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), 3).to(v.dtype)
        qk, v = qk.permute(0, 2, 3, 1, 4), v.squeeze(3).transpose(1, 2)
        if context.rotary is not None:
            qk = rotate(qk, context.rotary)
        q, k = qk.split((groups, 1), 2)
        mixed: Tensor = self._mix(q.flatten(1, 2), k.squeeze(2), v, context)
        projected: Tensor = self.o(mixed.transpose(1, 2).reshape(rows, length, -1))
        return projected

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """q [B, heads, L, width], k and v [B, key heads, L, width] to [B, heads, L, width]."""
        length, window = q.shape[2], self.window
        dropout = self.dropout if self.training else 0.0
        if self.length_scale is not None:
            q = self.length_scale(q, context.visible(window))
        whole = any(x is not None for x in (context.cache, context.attentions, context.mask, self.watch, self.relative))
        if window is not None and length > 2 * window and not whole:
            q, k, v = (in_blocks(part.transpose(1, 2), window) for part in (q, k, v))
            blocks = context.blocks(window, q.dtype)
            bias = blocks.repeat(q.shape[0] * q.shape[1] // blocks.shape[0], 1, 1, 1)
            shown = [part.flatten(0, 1).transpose(1, 2) for part in (q, with_previous(k), with_previous(v))]
            mixed = attend(shown[0], shown[1], shown[2], bias, dropout).transpose(1, 2)
            return mixed.reshape(q.shape[0], -1, *q.shape[3:])[:, :length].transpose(1, 2)
        if context.cache is not None:
            k, v = context.cache.update(k, v, self.layer)
        reach = None if window is None or context.past + length <= window else window
        limits = (reach, context.documents, context.seen, context.slopes, context.mask, self.relative)
        plain = all(limit is None for limit in limits)
        if self.watch is not None:
            self.watch.see(q, k, context.bias(reach, q.dtype))
        hidden = None if plain and context.past == 0 else context.bias(reach, q.dtype)
        if self.relative is not None:
            hidden = hidden + self.relative(q, k.shape[2])
        return attend(q, k, v, hidden, dropout, context.attentions)


class WindowAttention(Attention):
    """Attention to the last `window` tokens, the token itself among them; its cost grows with length times window.

    Source: Beltagy et al. 2020, arXiv:2004.05150, section 3.1, in its causal form.
    """

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.window = config.window


@dataclass
class AttentionWatch:
    """The greatest |q k' / sqrt(width)| seen where a token may look, in float32, of all rows, heads and layers."""

    greatest: float = 0.0

    @torch.no_grad()
    def see(self, q: Tensor, k: Tensor, bias: Tensor) -> None:
        k = k.float().repeat_interleave(q.shape[1] // k.shape[1], 1)
        with torch.autocast(q.device.type, enabled=False):
            logits = (q.float() @ k.transpose(-1, -2)).abs() * q.shape[-1] ** -0.5
        self.greatest = max(self.greatest, float(logits.masked_fill(bias == -math.inf, 0).max()))


@contextmanager
def watch_attention(model: nn.Module) -> Iterator[AttentionWatch]:
    """Record the greatest attention logit before the softmax (after norm and rotation, without ALiBi's bias) of every
    forward pass of the model's softmax attentions inside the `with` block: `with watch_attention(model) as watch: ...`,
    then `watch.greatest`. Slows attention down."""
    watch = AttentionWatch()
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    try:
        for layer in layers:
            layer.watch = watch
        yield watch
    finally:
        for layer in layers:
            layer.watch = None
