"""Linear-time mixers with a matrix as memory: additive linear attention and DeltaNet.

A head keeps a state S [d_v, d_k], 0 at the start of a document, and reads it with its query: o_t = S_t q_t.

    linear attention   S_t = S_{t-1} + v_t k_t^T
    delta rule         S_t = S_{t-1} + u_t k_t^T,   u_t = beta_t (v_t - S_{t-1} k_t)

Both are computed in chunks of C tokens, with rows K, V, Q [C, d] and beta [C] of one chunk and S the state before it:

    A = tril(diag(beta) K K^T, -1)                        0 for linear attention
    [W, U] = (I + A)^{-1} diag(beta) [K, V]               W = 0, U = V for linear attention
    X = U - W S^T                                         rows u_t
    O = Q S^T + tril(Q K^T) X
    S' = S + X^T K = S (I - W^T K) + U^T K

Only the last line is sequential, over L/C chunks: work O(L C d + L d^2), memory one state a chunk.

Source: Yang et al. 2024, arXiv:2406.06484; the layer as in the authors' flash-linear-attention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

if TYPE_CHECKING:
    from bakeoff.lm.attention import Context
    from bakeoff.lm.decoder import DecoderConfig

CHUNK = 64


def delta_rule_recurrent(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, *, state: Tensor | None = None, starts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The delta rule token by token: what `delta_rule` must equal. Arguments and results are the same."""
    state = _initial(k, v) if state is None else state
    outputs = []
    for t in range(k.shape[2]):
        if starts is not None:
            state = state * ~starts[:, t, None, None, None]
        error = v[:, :, t] - (state @ k[:, :, t, :, None]).squeeze(-1)
        state = state + (beta[:, :, t, None] * error)[..., None] * k[:, :, t, None, :]
        outputs.append((state @ q[:, :, t, :, None]).squeeze(-1))
    return torch.stack(outputs, dim=2), state


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """What each query reads, [B, H, L, d_v], and the last state, [B, H, d_v, d_k].

    Computed in float32 (float64 for float64) whatever the dtype and under autocast too, because the triangular system
    amplifies rounding where keys repeat. The state is stable where beta |k|^2 lies in [0, 2].

    Args:
        q, k: [B, H, L, d_k].
        v: [B, H, L, d_v].
        beta: [B, H, L]; with 0 a token leaves the state as it is.
        state: the state before the first token, [B, H, d_v, d_k]; 0 by default.
        starts: [B, L], true where the state starts anew, at the first token of a document.
        chunk: tokens computed at once. It does not change the result.
    """
    return _chunked(q, k, v, beta, state, starts, chunk)


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    state: Tensor | None = None,
    starts: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Additive linear attention; arguments and results as of `delta_rule`. A token with k or v = 0 leaves no trace."""
    return _chunked(q, k, v, None, state, starts, chunk)


def _chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    state: Tensor | None,
    starts: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    (batch, _, length, _), dtype = k.shape, v.dtype
    chunks = -(-length // chunk)
    chunk = -(-length // chunks)

    def fold(x: Tensor) -> Tensor:
        """[B, H, L, ...] -> [B, H, chunks, chunk, ...], filled up with zeros, in the dtype of the computation."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        missing = chunks * chunk - length
        x = F.pad(x, (*(0, 0) * (x.dim() - 3), 0, missing))
        return x.view(*x.shape[:2], chunks, chunk, *x.shape[3:])

    with torch.autocast(k.device.type, enabled=False):
        q, k, u = fold(q), fold(k), fold(v)
        causal = torch.ones(chunk, chunk, dtype=k.dtype, device=k.device).tril()
        keep = torch.ones(1, 1, chunks, 1, 1, dtype=k.dtype, device=k.device)
        reached, leaves = q, k
        if starts is not None:
            document = F.pad(starts.long(), (0, chunks * chunk - length)).cumsum(1).view(batch, 1, chunks, chunk)
            last = document[..., -1:]
            before = F.pad(last[:, :, :-1], (0, 0, 1, 0))
            causal = causal * (document[..., None] == document[..., None, :])
            carried = (document == before)[..., None]
            keep = (last == before)[..., None].to(k.dtype)
            reached, leaves = q * carried, k * (document == last)[..., None]
        read = (q @ k.mT) * causal
        w = None
        if beta is not None:
            weighted = fold(beta)[..., None]
            a = weighted * (k @ k.mT) * causal.tril(-1)
            # Given as unit triangular, so the diagonal, which holds zeros, is taken as ones.
            solved = torch.linalg.solve_triangular(a, weighted * torch.cat([k, u], -1), upper=False, unitriangular=True)
            w, u = solved.split([k.shape[-1], u.shape[-1]], dim=-1)
            if starts is not None:
                w = w * carried
        states, added = [], u.mT @ leaves
        now = _initial(k, u) if state is None else state.to(k.dtype)
        transition = (
            None if w is None else keep * torch.eye(k.shape[-1], dtype=k.dtype, device=k.device) - w.mT @ leaves
        )
        for i in range(chunks):
            states.append(now)
            now = (now * keep[:, :, i] if transition is None else now @ transition[:, :, i]) + added[:, :, i]
        entering = torch.stack(states, dim=2)
        if w is not None:
            u = u - w @ entering.mT
        output = reached @ entering.mT + read @ u
    return output.flatten(2, 3)[:, :, :length].to(dtype), now


def _initial(k: Tensor, v: Tensor) -> Tensor:
    return k.new_zeros(*k.shape[:2], v.shape[-1], k.shape[-1])


class ShortConvolution(nn.Module):
    """Causal depthwise convolution without bias: each channel is a weighted sum of its last `size` inputs."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, channels))

    def initialize(self) -> None:
        """As torch does for a convolution of one channel."""
        init.uniform_(self.weight, -(len(self.weight) ** -0.5), len(self.weight) ** -0.5)

    def forward(self, x: Tensor, before: Tensor | None, age: Tensor | None) -> Tensor:
        """[B, L, channels] from and to.

        Args:
            before: the size - 1 inputs before these, [B, size - 1, channels]; 0 by default.
            age: [B, L], how many tokens of its document stand before a token; no sum reaches back further.
        """
        size, length = len(self.weight), x.shape[1]
        x = F.pad(x, (0, 0, size - 1, 0)) if before is None else torch.cat([before, x], 1)
        total = x[:, size - 1 :] * self.weight[-1]
        for back in range(1, size):
            past = x[:, size - 1 - back : size - 1 - back + length] * self.weight[-1 - back]
            total = total + (past if age is None else past * (age >= back)[..., None])
        return total


class LinearAttention(nn.Module):
    """Additive linear attention with DeltaNet's feature map and norm, to be compared with it.

    Projection, short convolution and SiLU make queries, keys and values; queries and keys are scaled to length 1 for each
    head, queries then by d_k^-1/2; RMSNorm for each head and a projection follow. No biases and no positions.

    A cache keeps the state and the last inputs of the convolution.

    Limits: every head has keys and values of its own, whatever `num_key_value_heads` says; without a layer that keeps keys
    and values there is no cache, because transformers then cannot tell how long the text before is.
    """

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.heads, self.width = layer, config.num_attention_heads, config.head_dim
        self.cached = "full_attention" in config.layer_types
        rows = self.heads * self.width
        self.qkv = nn.Linear(config.hidden_size, 3 * rows, bias=False)
        self.size = config.conv
        self.convolution = ShortConvolution(3 * rows, self.size) if self.size else None
        self.norm = nn.RMSNorm(self.width, eps=config.norm_eps)
        self.o = nn.Linear(rows, config.hidden_size, bias=False)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        starts, age = _documents(context)
        real = None if context.padding is None else context.padding[..., None]
        qkv = inputs = self.qkv(x) if real is None else self.qkv(x) * real
        state = before = None
        if context.cache is not None:
            state = context.cache.get_recurrent_state(self.layer)
            before = context.cache.get_conv_state(self.layer)
        if self.convolution is not None:
            qkv = self.convolution(inputs, None if before is None else before.mT[:, 1:], age)
        if context.cache is not None:
            # One input more than is needed: without any, transformers would take no note of the state.
            context.cache.update_conv_state(inputs.mT, self.layer, conv_kernel_size=max(self.size, 1))
        q, k, v = F.silu(qkv).view(*x.shape[:2], 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        q, k = F.normalize(q.float(), dim=-1) * self.width**-0.5, F.normalize(k.float(), dim=-1)
        if real is not None:
            k = k * real[:, None]
        output, state = self._remember(x, q, k, v, real, state, starts)
        if context.cache is not None:
            context.cache.update_recurrent_state(state, self.layer)
        mixed: Tensor = self.o(self.norm(output).transpose(1, 2).flatten(2))
        return mixed

    def _remember(
        self,
        x: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        real: Tensor | None,
        state: Tensor | None,
        starts: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        return linear_attention(q, k, v, state=state, starts=starts)


class DeltaNet(LinearAttention):
    """DeltaNet: the delta rule with beta = sigmoid(W x), one for each head and token.

    Source: Yang et al. 2024, arXiv:2406.06484, without the optional output gate.
    Limits: as of LinearAttention.
    """

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.beta = nn.Linear(config.hidden_size, self.heads, bias=False)

    def _remember(
        self,
        x: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        real: Tensor | None,
        state: Tensor | None,
        starts: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        beta = self.beta(x).float().sigmoid()
        beta = beta if real is None else beta * real
        return delta_rule(q, k, v, beta.mT, state=state, starts=starts)


def _documents(context: Context) -> tuple[Tensor | None, Tensor | None]:
    """Where documents start, and how many tokens of its document stand before each token, both [B, L]."""
    if context.documents is None:
        return None, None
    starts = F.pad(context.documents.diff(dim=1) != 0, (1, 0), value=True)
    place = torch.arange(starts.shape[1], device=starts.device)
    return starts, place - (place * starts).cummax(1).values
