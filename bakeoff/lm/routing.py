"""Routing attention: heads that attend within clusters of similar tokens, beside heads that attend to a window."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from bakeoff.errors import Unsupported
from bakeoff.lm.attention import Context, WindowAttention, attend

if TYPE_CHECKING:
    from bakeoff.lm.decoder import DecoderConfig

_SMOOTHING = 1e-5


class _WindowHeads(WindowAttention):
    """Window attention without the projection that mixes its heads."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.o = nn.Identity()  # type: ignore[assignment] # the heads go on as they are


class RoutingAttention(nn.Module):
    """Some heads attend to a window; the others route: token t attends to the tokens of its clusters before it.

    A routing head has k centroids mu. Queries and keys are one vector x, layer-normalised without gain or bias, so that
    the nearest centroid has the largest product. Cluster c takes the w tokens with the largest x mu_c (of equal ones the
    first), and each of them attends to itself and to those of the cluster before it, with logits x x' / sqrt(width). A
    token in several clusters gets the mean of what it found there, one in none gets 0. In training every token moves the
    centroid nearest to it: counts N_c and sums M_c of vectors are exponential moving averages, and mu_c = M_c / N_c with
    N smoothed, as it stands at the start of a forward pass. `commitment` times the mean square of x - mu_nearest joins the
    loss. With k = w = sqrt(L) the cost grows with L^1.5.

    Which tokens a cluster takes depends on the whole row, so a later token may change what an earlier one attends to,
    though it never adds what it holds: see `prefix_only`.

    Source: Roy et al. 2021, arXiv:2003.05997, with the counts of the authors' code (google-research).
    Departures: averages start as if each centroid had taken one vector, itself, where the code starts with sums but no
    counts; means over clusters are exact, where the code divides by the number + 0.01; logits have the factor
    1 / sqrt(width), where the code has none after the normalisation; window heads slide, where the code's are in blocks;
    routing heads have no positions, which are optional in the code.
    Limits: packed documents compete for places in the clusters, though none attends to another.

    Attributes:
        coverage: share of the last forward pass's tokens that were in a cluster, over routing heads, in [0, 1].
        multiplicity: number of clusters that a token was in, mean over the same.
    """

    cached = False
    from_prefix = False
    centroids: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.width, self.dropout = layer, config.head_dim, config.dropout
        total = config.num_attention_heads
        self.heads = total // 2 if config.routing_heads is None else config.routing_heads
        if not 0 <= self.heads <= total:
            raise Unsupported(f"{self.heads} routing heads of {total} heads are too many: lower routing_heads.")
        self.window, self.decay, self.commitment = config.routing_window, config.routing_decay, config.commitment
        self.coverage = self.multiplicity = torch.tensor(math.nan)
        self.o = nn.Linear(total * self.width, config.hidden_size, bias=config.bias)
        self.local = None
        if self.heads < total:
            own = copy.copy(config)
            own.num_attention_heads = own.num_key_value_heads = total - self.heads
            self.local = _WindowHeads(own, layer)
        if self.heads:
            clusters = config.clusters or max(round(math.sqrt(config.max_position_embeddings)), 1)
            self.qv = nn.Linear(config.hidden_size, 2 * self.heads * self.width, bias=config.bias)
            self.register_buffer("centroids", torch.empty(self.heads, clusters, self.width))
            self.register_buffer("sums", torch.empty(self.heads, clusters, self.width))
            self.register_buffer("counts", torch.empty(self.heads, clusters))

    def initialize(self) -> None:
        """Centroids are normal, then normalised as the queries are."""
        if self.heads:
            init.copy_(self.centroids, F.layer_norm(torch.randn_like(self.centroids), (self.width,)))
            init.copy_(self.sums, self.centroids)
            init.ones_(self.counts)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        outputs = []
        if self.local is not None:
            own = context
            if context.slopes is not None:
                own = dataclasses.replace(context, slopes=context.slopes[self.heads :], biases={})
            outputs.append(self.local(x, own))
        if self.heads:
            outputs.append(self._route(x, context))
        mixed: Tensor = self.o(torch.cat(outputs, -1))
        return mixed

    def _route(self, x: Tensor, context: Context) -> Tensor:
        q, v = self.qv(x).unflatten(-1, (self.heads, 2, self.width)).permute(3, 0, 2, 1, 4)
        with torch.autocast(x.device.type, enabled=False):
            q = F.layer_norm(q.float(), (self.width,))
            fresh = self.training and self.layer not in context.updated
            if fresh:
                self._refresh()
            scores = q @ self.centroids.mT
            if self.training:
                context.losses.append(self._learn(q, scores.detach(), context, fresh))
        if context.padding is not None:
            scores = scores.masked_fill(~context.padding[:, None, :, None], -math.inf)
        within = self._within_prefixes if self.from_prefix else self._within_clusters
        found, count = within(q.to(v.dtype), v, scores.detach().mT, context)
        real = count if context.padding is None else count[context.padding[:, None].expand(count.shape)]
        self.coverage, self.multiplicity = (real > 0).float().mean(), real.float().mean()
        mean = found / count.clamp(min=1)[..., None].to(found.dtype)
        return mean.transpose(1, 2).flatten(2)

    def _within_clusters(self, q: Tensor, v: Tensor, scores: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The sum over a token's clusters of what it finds there, [B, H, L, width], and their number, [B, H, L].

        q, v: [B, H, L, width]; scores: [B, H, k, L], -inf at padding.
        """
        rows, heads, clusters, length = scores.shape
        size = self._size(clusters, length)
        # NaN is to reach the loss, not to break the table of places.
        scores = scores.nan_to_num(0.0, math.inf, -math.inf)
        least = scores.topk(size, -1).values[..., -1:]
        above, equal = scores > least, scores == least
        taken = above | (equal & (equal.cumsum(-1) <= size - above.sum(-1, keepdim=True)))
        # Every cluster takes exactly `size` tokens, so their places, in order, fill a table.
        places = taken.nonzero()[:, -1].view(rows, heads, clusters * size)
        index = places[..., None].expand(-1, -1, -1, self.width)
        q, chosen = (t.gather(2, index).view(rows, heads * clusters, size, self.width) for t in (q, v))
        bias = None
        if context.padding is not None or context.documents is not None:
            allowed = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()
            own = places.view(rows, -1, size)
            for marks in (context.documents, context.padding):
                if marks is not None:
                    of = marks.gather(1, own.flatten(1)).view_as(own)
                    allowed = allowed & (of[..., None] == of[..., None, :])
            bias = torch.zeros(allowed.shape, dtype=q.dtype, device=q.device).masked_fill(~allowed, -math.inf)
        mixed = attend(q, q, chosen, bias, self.dropout if self.training else 0.0).to(v.dtype)
        found = torch.zeros_like(v).scatter_add(2, index, mixed.reshape(rows, heads, clusters * size, self.width))
        return found, taken.sum(2)

    def _within_prefixes(self, q: Tensor, v: Tensor, scores: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The same where clusters are formed anew for each token from it and those before it: time and memory L^2 k."""
        clusters, length = scores.shape[2:]
        size, device = self._size(clusters, length), q.device
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        if context.documents is not None:
            see = causal & (context.documents[:, None, :, None] == context.documents[:, None, None, :])
        else:
            see = causal
        logits = (q @ q.mT).float() * self.width**-0.5
        found, count = torch.zeros_like(v), torch.zeros(v.shape[:3], dtype=torch.long, device=device)
        for score in scores.unbind(2):
            # before[r, s]: token r ranks before token s; the sum over r up to t is the rank of s among the first t.
            one, other = score[..., :, None], score[..., None, :]
            before = (one > other) | ((one == other) & causal.mT.triu(1))
            member = (before.cumsum(-2, dtype=torch.int32) < size) & causal & (score > -math.inf)[..., None, :]
            own = member.diagonal(dim1=-2, dim2=-1)
            weights = logits.masked_fill(~(member & see), -math.inf).softmax(-1)
            weights = weights.masked_fill(~own[..., None], 0)
            found = found + weights.to(v.dtype) @ v
            count = count + own
        return found, count

    def _size(self, clusters: int, length: int) -> int:
        return min(self.window or -(-length // clusters), length)

    def _learn(self, q: Tensor, scores: Tensor, context: Context, fresh: bool) -> Tensor:
        """The commitment loss; the averages take in this batch if it is `fresh`, not recomputed."""
        nearest = F.one_hot(scores.argmax(-1), scores.shape[-1]).to(q.dtype)
        distance = (q - nearest @ self.centroids).square()
        if context.padding is not None:
            nearest = nearest * context.padding[:, None, :, None]
            distance = distance[context.padding[:, None].expand(distance.shape[:3])]
        if fresh:
            context.updated.add(self.layer)
            with torch.no_grad():
                sums, counts = torch.einsum("bhnk,bhnd->hkd", nearest, q), nearest.sum((0, 2))
                if torch.distributed.is_available() and torch.distributed.is_initialized():
                    torch.distributed.all_reduce(sums)
                    torch.distributed.all_reduce(counts)
                self.sums.lerp_(sums, 1 - self.decay)
                self.counts.lerp_(counts, 1 - self.decay)
        return self.commitment * distance.mean()

    @torch.no_grad()
    def _refresh(self) -> None:
        # A new tensor each time: earlier passes that still wait for their backward pass keep theirs.
        total, clusters = self.counts.sum(-1, keepdim=True), self.counts.shape[-1]
        smoothed = (self.counts + _SMOOTHING) / (total + clusters * _SMOOTHING) * total
        self.centroids = self.sums / smoothed[..., None]


@contextmanager
def prefix_only(model: nn.Module) -> Iterator[None]:
    """Inside the `with` block the model's routing heads form clusters for each token from it and those before it alone.

    No output then depends on a later token, as in generation. Slow: time and memory grow with L^2 k. The number of tokens
    a cluster takes stays that of the whole length.
    """
    layers = [module for module in model.modules() if isinstance(module, RoutingAttention)]
    try:
        for layer in layers:
            layer.from_prefix = True
        yield
    finally:
        for layer in layers:
            layer.from_prefix = False
