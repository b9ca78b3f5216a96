"""Where each architecture keeps its parts: one table, and parts that can be read, written and masked by role."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bakeoff.errors import Unsupported, UsageError

View = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Layout:
    """Module paths of one architecture, by default Llama's: those of a block are relative to it.

    `fused` says that q, k and v are one projection, and how: "stacked" as [q; k; v], "per_head" as [q; k; v] of head 0,
    then of head 1, and so on, "grouped" as per_head but by key head, with all the queries that share it. `gated` says that
    gate and up are one projection, as [gate; up]. `mlp` is `None` where the block itself holds up and down.
    """

    blocks: str = "model.layers"
    embedding: str = "model.embed_tokens"
    positions: str | None = None
    final_norm: str = "model.norm"
    head: str = "lm_head"
    projections: tuple[str, ...] = ()
    attention: str = "self_attn"
    mlp: str | None = "mlp"
    qkv: tuple[str, str, str] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    fused: Literal["stacked", "per_head", "grouped"] | None = None
    o: str = "self_attn.o_proj"
    up: str = "mlp.up_proj"
    gate: str | None = "mlp.gate_proj"
    gated: bool = False
    down: str = "mlp.down_proj"
    norms: tuple[str, str] = ("input_layernorm", "post_attention_layernorm")
    qk_norms: tuple[str, ...] = ()


_LAYOUTS: dict[str, _Layout] = {
    "gpt2": _Layout(
        blocks="transformer.h",
        embedding="transformer.wte",
        positions="transformer.wpe",
        final_norm="transformer.ln_f",
        attention="attn",
        qkv=("attn.c_attn", "attn.c_attn", "attn.c_attn"),
        fused="stacked",
        o="attn.c_proj",
        up="mlp.c_fc",
        gate=None,
        down="mlp.c_proj",
        norms=("ln_1", "ln_2"),
    ),
    "gpt_neox": _Layout(
        blocks="gpt_neox.layers",
        embedding="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        attention="attention",
        qkv=("attention.query_key_value", "attention.query_key_value", "attention.query_key_value"),
        fused="per_head",
        o="attention.dense",
        up="mlp.dense_h_to_4h",
        gate=None,
        down="mlp.dense_4h_to_h",
    ),
    "opt": _Layout(
        blocks="model.decoder.layers",
        embedding="model.decoder.embed_tokens",
        positions="model.decoder.embed_positions",
        final_norm="model.decoder.final_layer_norm",
        projections=("model.decoder.project_in", "model.decoder.project_out"),
        mlp=None,
        o="self_attn.out_proj",
        up="fc1",
        gate=None,
        down="fc2",
        norms=("self_attn_layer_norm", "final_layer_norm"),
    ),
    "llama": _Layout(),
    "mistral": _Layout(),
    "qwen2": _Layout(),
    "qwen3": _Layout(qk_norms=("self_attn.q_norm", "self_attn.k_norm")),
    "gemma": _Layout(),
    "bakeoff_decoder": _Layout(
        positions="model.embed_positions",
        attention="mixer",
        qkv=("mixer.qkv", "mixer.qkv", "mixer.qkv"),
        fused="grouped",
        o="mixer.o",
        up="mlp.gate_up",
        gate="mlp.gate_up",
        gated=True,
        down="mlp.down",
        norms=("mixer_norm", "mlp_norm"),
        qk_norms=("mixer.q_norm", "mixer.k_norm"),
    ),
}


def _entries(tensor: Tensor, transposed: bool, split: tuple[int, ...], index: int | slice) -> Tensor:
    """View of a raw tensor with output features first; these are then split, and the last-but-one indexed."""
    rows = tensor.transpose(0, -1) if transposed else tensor
    return rows if not split else torch.unflatten(rows, 0, split)[(*(slice(None),) * (len(split) - 2), index)]


@dataclass(frozen=True, eq=False)
class Part:
    """The entries of a model's parameters that play one role; the current tensors are looked up at each call.

    Attributes:
        role: "q", "k", "v", "o", "up", "gate", "down", "embedding", "positions", "norm", "head", ...
        path: dotted name of the module that applies the part, the place for a hook; q, k and v share it where fused.
        name: name of the weight as in `model.named_parameters()`; a tied head bears the embedding's.
        bias_name: name of the bias, `None` where there is none.
        view: maps a tensor shaped like the raw weight or bias (the parameter, its gradient, an optimizer state) to a
            strided view of this part's entries: (..., in_features) for the weight, (...) for the bias, where ... is
            out_features, or heads and head_dim, or key heads, their queries and head_dim.
    """

    role: str
    path: str
    name: str
    bias_name: str | None
    view: View = field(repr=False)
    model: PreTrainedModel = field(repr=False)

    @property
    def module(self) -> nn.Module:
        """The module at `path`."""
        return self.model.get_submodule(self.path)

    @property
    def weight(self) -> nn.Parameter:
        """The whole raw parameter that holds the weight; other parts may share it."""
        return self.model.get_parameter(self.name)

    @property
    def bias(self) -> nn.Parameter | None:
        """The whole raw parameter that holds the bias."""
        return None if self.bias_name is None else self.model.get_parameter(self.bias_name)

    @property
    def numel(self) -> int:
        """Number of entries, weight and bias together."""
        return sum(self.view(tensor).numel() for tensor in self._raw().values())

    def read(self) -> Tensor:
        """A copy of the weight: (out_features, in_features); (tokens or positions, width) for embeddings; (width,)
        for norms."""
        return self._flat(self.weight.detach()).clone()

    def write(self, tensor: Tensor) -> None:
        """Overwrite the weight in place with a tensor shaped as `read` gives it, cast to the parameter's dtype.

        Raises:
            UsageError: the shape differs.
        """
        self._write(self.weight, tensor)

    def read_bias(self) -> Tensor | None:
        """A copy of the bias (out_features,), or `None` where the part has none."""
        return None if self.bias is None else self._flat(self.bias.detach()).clone()

    def write_bias(self, tensor: Tensor) -> None:
        """Overwrite the bias in place with a tensor (out_features,), cast to the parameter's dtype.

        Raises:
            UsageError: the part has no bias, or the shape differs.
        """
        if self.bias is None:
            raise UsageError(f"{self.name} has no bias to write; check that read_bias() is not None first.")
        self._write(self.bias, tensor)

    @torch.no_grad()
    def zero(self) -> None:
        """Set weight and bias to zero in place."""
        for tensor in self._raw().values():
            self.view(tensor).zero_()

    def mask(self) -> dict[str, Tensor]:
        """Parameter name to a boolean mask, of that parameter's shape and device, of exactly this part's entries."""
        masks = {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in self._raw().items()}
        for mask in masks.values():
            self.view(mask).fill_(True)
        return masks

    def _raw(self) -> dict[str, nn.Parameter]:
        return {name: self.model.get_parameter(name) for name in (self.name, self.bias_name) if name is not None}

    def _flat(self, tensor: Tensor) -> Tensor:
        view = self.view(tensor)
        return view.reshape(-1, *view.shape[-1:]) if tensor.dim() > 1 else view.reshape(-1)

    @torch.no_grad()
    def _write(self, parameter: nn.Parameter, tensor: Tensor) -> None:
        shape = self._flat(parameter).shape
        if tensor.shape != shape:
            raise UsageError(f"{self.role} of {self.path} takes a tensor {tuple(shape)}, not {tuple(tensor.shape)}.")
        view = self.view(parameter)
        view.copy_(tensor.reshape(view.shape))


@dataclass(frozen=True, eq=False)
class Block:
    """One transformer block: `x + attention(norm(x))`, then the MLP likewise, or both side by side (GPT-NeoX).

    A hook on `o.module` sees the attention's output and one on `down.module` the MLP's, as plain tensors, in every
    architecture: (batch, length, d_model), except that OPT's MLP works on (batch * length, d_model).

    Attributes:
        path: dotted name of the block.
        module: the block itself.
        attention_module: q, k, v, o together; its output is a tuple whose first entry is (batch, length, d_model).
        mlp_module: up, gate, down together; `None` for OPT, which keeps them in the block.
        norms: attention norm, MLP norm; empty where they have no weights.
        other: the norms of queries and keys (Qwen3, our decoder).
    """

    index: int
    path: str
    module: nn.Module = field(repr=False)
    attention_module: nn.Module = field(repr=False)
    mlp_module: nn.Module | None = field(repr=False)
    q: Part
    k: Part
    v: Part
    o: Part
    up: Part
    gate: Part | None
    down: Part
    norms: tuple[Part, ...]
    other: tuple[Part, ...]

    @property
    def attention(self) -> tuple[Part, ...]:
        """q, k, v, o."""
        return self.q, self.k, self.v, self.o

    @property
    def mlp(self) -> tuple[Part, ...]:
        """up, gate if there is one, down."""
        return tuple(part for part in (self.up, self.gate, self.down) if part is not None)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Every part of the block."""
        return *self.attention, *self.mlp, *self.norms, *self.other


@dataclass(frozen=True, eq=False)
class Anatomy:
    """All parts of a causal language model; every entry of every parameter belongs to exactly one of `parts`.

    Attributes:
        positions: learned positions, `None` where they are rotary; OPT's first two rows are never looked up.
        final_norm: `None` where there is none, or none with weights.
        head: maps to logits; where `tied`, its weight is the embedding's and `parts` leaves it out.
        other: OPT's projections between embedding width and block width, where these differ.
        d_model, heads, kv_heads, head_dim: width, query heads, key and value heads, width of a head; heads * head_dim
            need not be d_model.
    """

    model: PreTrainedModel = field(repr=False)
    blocks: tuple[Block, ...]
    embedding: Part
    positions: Part | None
    final_norm: Part | None
    head: Part
    tied: bool
    other: tuple[Part, ...]
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def parts(self) -> tuple[Part, ...]:
        """Every part once."""
        return tuple(part for groups in self.categories().values() for group in groups for part in group)

    def categories(self) -> dict[str, list[list[Part]]]:
        """Parts by kind, grouped by block: "attention" and "mlp" hold one group a block; "norm" one a block, then the
        final norm; "other" embedding, positions, untied head and projections, then one group a block for what is left.
        Groups without parts are left out."""
        norms = [list(block.norms) for block in self.blocks] + [[self.final_norm] if self.final_norm else []]
        ends = [self.embedding, self.positions, None if self.tied else self.head, *self.other]
        other = [[part for part in ends if part is not None]] + [list(block.other) for block in self.blocks]
        return {
            "attention": [list(block.attention) for block in self.blocks],
            "mlp": [list(block.mlp) for block in self.blocks],
            "norm": [group for group in norms if group],
            "other": [group for group in other if group],
        }

    def mask(self, parts: Iterable[Part]) -> dict[str, Tensor]:
        """Union of the parts' masks; a parameter that none of them touches is absent."""
        union: dict[str, Tensor] = {}
        for part in parts:
            for name, mask in part.mask().items():
                union[name] = union[name] | mask if name in union else mask
        return union


def _part(model: PreTrainedModel, role: str, path: str, split: tuple[int, ...] = (), index: int | slice = 0) -> Part:
    module = model.get_submodule(path)
    bias = None if getattr(module, "bias", None) is None else f"{path}.bias"
    view = partial(_entries, transposed=isinstance(module, Conv1D), split=split, index=index)
    return Part(role, path, f"{path}.weight", bias, view, model)


def _present(model: PreTrainedModel, role: str, paths: Iterable[str]) -> tuple[Part, ...]:
    """The parts at those of the paths where there is a module with a weight."""
    modules = dict(model.named_modules())
    return tuple(_part(model, role, path) for path in paths if getattr(modules.get(path), "weight", None) is not None)


def _block(model: PreTrainedModel, layout: _Layout, index: int, heads: int, kv_heads: int) -> Block:
    path = f"{layout.blocks}.{index}"
    group = heads // kv_heads
    splits: dict[str | None, tuple[tuple[int, ...], tuple[int | slice, ...]]] = {
        None: ((), (0, 0, 0)),
        "stacked": ((3, -1), (0, 1, 2)),
        "per_head": ((heads, 3, -1), (0, 1, 2)),
        "grouped": ((kv_heads, group + 2, -1), (slice(group), group, group + 1)),
    }
    split, places = splits[layout.fused]
    q, k, v = (
        _part(model, role, f"{path}.{name}", split, place)
        for role, name, place in zip("qkv", layout.qkv, places, strict=True)
    )
    stacked = (2, -1) if layout.gated else ()
    return Block(
        index=index,
        path=path,
        module=model.get_submodule(path),
        attention_module=model.get_submodule(f"{path}.{layout.attention}"),
        mlp_module=None if layout.mlp is None else model.get_submodule(f"{path}.{layout.mlp}"),
        q=q,
        k=k,
        v=v,
        o=_part(model, "o", f"{path}.{layout.o}"),
        up=_part(model, "up", f"{path}.{layout.up}", stacked, 1),
        gate=None if layout.gate is None else _part(model, "gate", f"{path}.{layout.gate}", stacked, 0),
        down=_part(model, "down", f"{path}.{layout.down}"),
        norms=_present(model, "norm", [f"{path}.{name}" for name in layout.norms]),
        other=tuple(
            part for name in layout.qk_norms for part in _present(model, name.rpartition(".")[2], [f"{path}.{name}"])
        ),
    )


def _assemble(model: PreTrainedModel, layout: _Layout) -> Anatomy:
    config = model.config
    heads: int = config.num_attention_heads
    kv_heads: int = getattr(config, "num_key_value_heads", None) or heads
    if layout.gated and config.hidden_act == "gelu":
        layout = replace(layout, up="mlp.up", gate=None, gated=False)
    embedding, head = _part(model, "embedding", layout.embedding), _part(model, "head", layout.head)
    tied = head.weight is embedding.weight
    count = len(list(model.get_submodule(layout.blocks).children()))
    return Anatomy(
        model=model,
        blocks=tuple(_block(model, layout, index, heads, kv_heads) for index in range(count)),
        embedding=embedding,
        positions=next(iter(_present(model, "positions", [layout.positions or ""])), None),
        final_norm=next(iter(_present(model, "norm", [layout.final_norm])), None),
        head=replace(head, name=embedding.name) if tied else head,
        tied=tied,
        other=_present(model, "projection", layout.projections),
        d_model=config.hidden_size,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def anatomy(model: PreTrainedModel) -> Anatomy:
    """Name where a causal language model keeps its parts.

    Raises:
        Unsupported: the architecture is not in the table, or this model has parameters the table does not place
            (adapters, wrappers, cross-attention, another head).
    """
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in _LAYOUTS:
        raise Unsupported(f"The parts of a {kind!r} model are not known; use one of {', '.join(sorted(_LAYOUTS))}.")
    advice = "merge adapters into the weights and pass the model itself, as AutoModelForCausalLM loads it."
    try:
        found = _assemble(model, _LAYOUTS[kind])
    except AttributeError as error:
        raise Unsupported(f"This {type(model).__name__} lacks a part of a {kind} model ({error}); {advice}") from error
    placed = {name for part in found.parts for name in (part.name, part.bias_name) if name is not None}
    strange = placed ^ {name for name, _ in model.named_parameters()}
    if strange:
        raise Unsupported(
            f"This {type(model).__name__} is no plain {kind} model, {min(strange)!r} has no known place in it; {advice}"
        )
    return found
