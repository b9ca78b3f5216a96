"""Tensor parallel training: every matrix of a block cut over the processes of a group, by torch's DTensor plans.

With t processes, those that write heads or hidden features (q, k, v, up, gate) are cut by output features, those that
read them (o, down) by input features, embedding and head by vocabulary:

    y = sum_i act(x A_i) B_i + b,   one all-reduce forward (of y) and one backward (of the gradient of x),

so a block's forward has 2 all-reduces of (batch, length, d_model) and its backward 2. Norms, learned positions and the
residual stream are whole everywhere and see the same numbers, so every process needs the same batch and the same seed.

Source: Shoeybi et al. 2019, Megatron-LM, arXiv:1909.08053, section 3.
Departures: DTensor knows no vocabulary-parallel backward of an embedding, so each process makes the whole gradient of
the embedding (vocabulary, d_model) for a moment before it keeps its own rows; the vocabulary is cut unevenly where t does
not divide it, instead of padded; weights of query and key norms cost one small all-reduce each in the backward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    loss_parallel,
    parallelize_module,
)
from torch.distributed.tensor.placement_types import Placement
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.generic import ModelOutput

from bakeoff.errors import Unsupported, UsageError
from bakeoff.lm.anatomy import Anatomy, anatomy
from bakeoff.lm.attention import Context
from bakeoff.lm.decoder import DecoderForCausalLM
from bakeoff.training.attention import apart
from bakeoff.training.batches import Batch

_LAYOUTS = "tensor_parallel_layouts"


@dataclass(frozen=True)
class _Layout:
    """How a weight or bias lies before the cut: its row i is row `order[i]` of the plain one; transposed: Conv1D's."""

    order: Tensor | None = None
    transposed: bool = False

    def lay(self, plain: Tensor) -> Tensor:
        rows = plain.t() if self.transposed and plain.dim() > 1 else plain
        return (rows if self.order is None else rows[self.order.to(rows.device)]).contiguous()

    def plain(self, laid: Tensor) -> Tensor:
        rows = laid if self.order is None else laid[self.order.argsort().to(laid.device)]
        return (rows.t() if self.transposed and rows.dim() > 1 else rows).contiguous()


class _Whole(ParallelStyle):
    """A module that every process runs alike; with `heads`, each on its own heads (batch, length, heads, head_dim)."""

    def __init__(self, *, heads: bool = False) -> None:
        self.placement: Placement = Shard(2) if heads else Replicate()

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            return tuple(map(distributed, args)), {name: distributed(value) for name, value in kwargs.items()}

        def distributed(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return DTensor.from_local(value, device_mesh, [self.placement], run_check=False)

        module.register_forward_pre_hook(enter, with_kwargs=True)
        module.register_forward_hook(lambda _module, _args, output: output.to_local())
        return distribute_module(module, device_mesh)


@dataclass
class _Parts:
    """What the plan needs to know of a model: module paths, and what is divided by the processes.

    `stacked` gives the sizes of the matrices that one module stacks by output features, `attentions` the attention, the
    module after whose call its heads are apart, and the one that brings them together again.
    """

    embedding: str
    head: str
    heads: int
    key_heads: int
    inner: int
    whole: list[str] = field(default_factory=list)
    per_head: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    inputs: dict[str, ParallelStyle] = field(default_factory=dict)
    stacked: dict[str, list[int]] = field(default_factory=dict)
    attentions: list[tuple[str, str, str]] = field(default_factory=list)


def tensor_parallel(model: PreTrainedModel, mesh: DeviceMesh) -> PreTrainedModel:
    """Cut a causal language model over the processes of `mesh`, in place, and return it; every process calls it.

    Each process keeps its share of what process 0 has. Afterwards every parameter is a DTensor, so any optimizer that
    knows those works, and `torch.nn.utils.clip_grad_norm_` counts each weight once. `model(input_ids).logits` are
    whole, at the price of gathering them; with labels, `.loss` is the vocabulary-parallel cross-entropy and `.logits`
    stay cut. Attention dropout is drawn by each process for its own heads, all other dropout from the generator that they
    share. On a mesh of one process the model stays as it is.

    Limits: every process has the whole model to begin with. Some parameters lie otherwise than in the plain model, so that
    whatever has their shape passes through `gathered` and `scattered`. Activation checkpointing repeats a block's forward all-reduces.

    Args:
        model: our decoder with softmax attention, or an architecture that `anatomy` knows, on the mesh's kind of device.
        mesh: one-dimensional; of a larger mesh, the dimension to cut over.

    Raises:
        UsageError: heads, key and value heads or hidden features of the MLP are not divisible by the processes; the
            mesh has more than one dimension; the model is cut already.
        Unsupported: the architecture or a mixer has no known plan.
    """
    if mesh.ndim != 1:
        raise UsageError(f"Tensor parallel takes a mesh of one dimension, not {mesh.ndim}: pass one of its dimensions.")
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise UsageError("This model is cut over processes already: pass it as it was loaded.")
    parts, size = _decoder(model) if isinstance(model, DecoderForCausalLM) else _of_anatomy(anatomy(model)), mesh.size()
    for what, count in (
        ("heads", parts.heads),
        ("key and value heads", parts.key_heads),
        ("hidden features of the MLP", parts.inner),
    ):
        if count % size:
            raise UsageError(
                f"{count} {what} cannot be shared by {size} processes: choose a number that divides {count}."
            )
    if size == 1:
        return model
    tied = model.get_parameter(f"{parts.head}.weight") is model.get_parameter(f"{parts.embedding}.weight")
    layouts: dict[str, _Layout] = {}
    for path in (*parts.columns, *parts.rows):
        layouts |= _lay(model, path, _by_process(parts.stacked[path], size) if path in parts.stacked else None)
    setattr(model, _LAYOUTS, layouts)
    parallelize_module(model, mesh, _plan(parts))
    if tied:
        model.get_submodule(parts.head).weight = model.get_parameter(f"{parts.embedding}.weight")
    for parameter in model.parameters():
        if parameter.requires_grad:
            assert isinstance(parameter, DTensor)
            parameter.register_hook(partial(_placed, placements=parameter.placements))  # type: ignore[no-untyped-call]
    for attention, first, last in parts.attentions:
        _local_heads(model.get_submodule(attention), mesh)
        _own_dropout(model.get_submodule(first), model.get_submodule(last), mesh)
    model.loss_function = partial(_vocabulary_parallel, model.loss_function)
    model.register_forward_hook(_whole_logits)
    return model


def gathered(model: nn.Module, values: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """What the processes hold together, as the plain model has it: same names, shapes and layout, on every process.

    `model.save_pretrained(folder, state_dict=gathered(model))` writes an ordinary folder. Every process calls it. What
    was not cut may share its memory with the model.

    Args:
        values: tensors by parameter name, shaped like the parameters: gradients, an optimizer's state. By default
            `model.state_dict()`.
    """
    layouts: dict[str, _Layout] = getattr(model, _LAYOUTS, {})
    whole: dict[str, Tensor] = {}
    for name, value in (model.state_dict() if values is None else values).items():
        tensor = value.detach()
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        whole[name] = layouts[name].plain(tensor) if name in layouts else tensor
    return whole


def scattered(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `gathered`: laid out as the model's parameters and cut like them, without communication.

    Args:
        values: whole tensors by parameter name, as the plain model has them and the same in every process: weights, an
            optimizer's state from any number of processes, masks of entries.
    """
    layouts: dict[str, _Layout] = getattr(model, _LAYOUTS, {})
    cut: dict[str, Tensor] = {}
    for name, value in values.items():
        parameter = model.get_parameter(name)
        laid = layouts[name].lay(value) if name in layouts else value
        if isinstance(parameter, DTensor):
            laid = distribute_tensor(laid, parameter.device_mesh, parameter.placements, src_data_rank=None)
        cut[name] = laid
    return cut


def cross_entropy(model: nn.Module, batch: Batch, step: int) -> Tensor:
    """Mean negative log-likelihood (nats) of the labelled tokens, in float32, over logits that stay cut.

    The training objective `bakeoff.training.objectives.cross_entropy` for a tensor parallel model: processes exchange
    three numbers a token instead of the logits.
    """
    ids = batch.input_ids
    output: Any = model(input_ids=ids, labels=batch.labels, use_cache=False, **apart(model, ids))
    return output.loss  # type: ignore[no-any-return]


def _of_anatomy(found: Anatomy) -> _Parts:
    parts = _Parts(
        embedding=found.embedding.path,
        head=found.head.path,
        heads=found.heads,
        key_heads=found.kv_heads,
        inner=found.blocks[0].down.read().shape[1],
        whole=[part.path for part in (found.positions, found.final_norm, *found.other) if part is not None],
    )
    for block in found.blocks:
        parts.columns += dict.fromkeys(part.path for part in (block.q, block.k, block.v, *block.mlp[:-1]))
        parts.rows += [block.o.path, block.down.path]
        parts.whole += [norm.path for norm in block.norms]
        parts.per_head += [norm.path for norm in block.other]
        # What several matrices read enters the parallel region once, so that its gradient is reduced once.
        attention = _path(found.model, block.attention_module)
        if block.q.path != block.k.path:
            whole: dict[str, Placement] = {"hidden_states": Replicate()}
            parts.inputs[attention] = PrepareModuleInput(input_kwarg_layouts=whole, desired_input_kwarg_layouts=whole)
        elif isinstance(block.q.module, Conv1D):
            parts.stacked[block.q.path] = [found.d_model] * 3
        if block.gate is not None and block.mlp_module is not None:
            parts.inputs[_path(found.model, block.mlp_module)] = PrepareModuleInput(
                input_layouts=Replicate(), desired_input_layouts=Replicate()
            )
        parts.attentions.append((attention, block.v.path, block.o.path))
    return parts


def _decoder(model: DecoderForCausalLM) -> _Parts:
    config = model.config
    parts = _Parts(
        embedding="model.embed_tokens",
        head="lm_head",
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        inner=config.intermediate_size,
        whole=["model.norm"] + ["model.embed_positions"] * (model.model.embed_positions is not None),
    )
    if config.positions in ("relative", "random_spaced", "per_digit") or config.length_scale:
        what = "length_scale" if config.length_scale else f"positions {config.positions!r}"
        raise Unsupported(f"A decoder with {what} cannot be cut over processes: launch it with data parallelism.")
    for layer, name in enumerate(config.layer_mixers):
        if name not in ("attention", "window"):
            raise Unsupported(
                f"A {name!r} mixer cannot be cut over processes: use attention or window, or one process."
            )
        path = f"model.layers.{layer}"
        first = f"{path}.mlp.gate_up" if config.mlp == "swiglu" else f"{path}.mlp.up"
        parts.columns += [f"{path}.mixer.qkv", first]
        parts.rows += [f"{path}.mixer.o", f"{path}.mlp.down"]
        parts.whole += [f"{path}.mixer_norm", f"{path}.mlp_norm"]
        parts.per_head += [f"{path}.mixer.q_norm", f"{path}.mixer.k_norm"] if config.qk_norm else []
        if config.mlp == "swiglu":
            parts.stacked[first] = [config.intermediate_size] * 2
        parts.attentions.append((f"{path}.mixer", f"{path}.mixer.qkv", f"{path}.mixer.o"))
    return parts


def _path(model: nn.Module, wanted: nn.Module) -> str:
    return next(str(path) for path, module in model.named_modules() if module is wanted)


def _by_process(sizes: list[int], size: int) -> Tensor:
    """The rows of stacked matrices of these sizes, so ordered that each process's share has its share of each."""
    segments = [segment.chunk(size) for segment in torch.split(torch.arange(sum(sizes)), sizes)]
    return torch.cat([segment[rank] for rank in range(size) for segment in segments])


@torch.no_grad()
def _lay(model: nn.Module, path: str, order: Tensor | None) -> dict[str, _Layout]:
    """Lay out the module's parameters as those of an nn.Linear; how, by name, where that is not as they were."""
    old = model.get_submodule(path)
    transposed = isinstance(old, Conv1D)
    if order is None and not transposed:
        return {}
    layout = _Layout(order, transposed)
    parameters = {
        name: nn.Parameter(layout.lay(parameter), requires_grad=parameter.requires_grad)
        for name, parameter in old.named_parameters()
    }
    features, inputs = parameters["weight"].shape
    new = nn.Linear(inputs, features, bias="bias" in parameters, device="meta").train(old.training)
    for name, parameter in parameters.items():
        new.register_parameter(name, parameter)
    model.set_submodule(path, new)
    return {f"{path}.{name}": layout for name in parameters}


def _plan(parts: _Parts) -> dict[str, ParallelStyle]:
    return {
        parts.embedding: RowwiseParallel(input_layouts=Replicate()),
        parts.head: ColwiseParallel(use_local_output=False),
        **{path: _Whole() for path in parts.whole},
        **{path: _Whole(heads=True) for path in parts.per_head},
        **{path: ColwiseParallel() for path in parts.columns},
        **{path: RowwiseParallel() for path in parts.rows},
        **parts.inputs,
    }


def _placed(gradient: Tensor, placements: tuple[Placement, ...]) -> Tensor:
    """The gradient cut as its parameter is."""
    assert isinstance(gradient, DTensor)
    return gradient.redistribute(placements=placements)


def _local_heads(attention: nn.Module, mesh: DeviceMesh) -> None:
    """Tell an attention how many heads this process has, and which slopes (ALiBi) are theirs."""
    size = mesh.size()
    for counted in ("num_heads", "split_size", "heads", "key_heads"):
        if hasattr(attention, counted):
            setattr(attention, counted, getattr(attention, counted) // size)

    def own_slopes(module: nn.Module, args: tuple[Any, ...]) -> None:
        # The layers share one context, so the first of them does it for all.
        for context in args:
            if isinstance(context, Context) and context.slopes is not None and len(context.slopes) != module.heads:
                context.slopes = context.slopes.chunk(size)[mesh.get_local_rank()]

    attention.register_forward_pre_hook(own_slopes)


def _own_dropout(first: nn.Module, last: nn.Module, mesh: DeviceMesh) -> None:
    """Between the calls of two modules draw from a seed of this process, which follows from a draw that all share.

    Where nothing is drawn between them, that draw is undone.
    """
    states: list[tuple[Tensor, Tensor, Tensor]] = []

    def leave(module: nn.Module, _args: Any, _output: Any) -> None:
        if module.training:
            generator, unused = _generator(mesh), torch.get_rng_state()
            # Drawn on the processor, where no one waits for it.
            seed = int(torch.randint(1 << 62, ()))
            shared = generator.get_state()
            generator.manual_seed(seed + mesh.get_local_rank())
            states.append((unused, shared, generator.get_state()))

    def come_back(_module: nn.Module, _args: Any) -> None:
        if states:
            generator, (unused, shared, own) = _generator(mesh), states.pop()
            drawn = not torch.equal(generator.get_state(), own)
            generator.set_state(shared)
            if not drawn:
                torch.set_rng_state(unused)

    first.register_forward_hook(leave)
    last.register_forward_pre_hook(come_back)


def _generator(mesh: DeviceMesh) -> torch.Generator:
    """The generator that dropout draws from."""
    if mesh.device_type == "cpu":
        return torch.default_generator
    device: Any = torch.get_device_module(mesh.device_type)
    generator: torch.Generator = device.default_generators[device.current_device()]
    return generator


def _whole_logits(_model: nn.Module, _args: Any, output: Any) -> None:
    logits = output.get("logits") if isinstance(output, ModelOutput) and output.get("loss") is None else None
    if isinstance(logits, DTensor):
        output["logits"] = logits.full_tensor()


def _vocabulary_parallel(loss_function: Callable[..., Tensor], logits: Any, labels: Tensor, **options: Any) -> Tensor:
    loss: Tensor = _LossParallel.apply(  # type: ignore[no-untyped-call]
        logits.to_local(), logits.detach(), partial(loss_function, labels=labels, **options)
    )
    return loss


class _LossParallel(torch.autograd.Function):
    """A loss of cut logits, whose gradient is made with it: `loss_parallel` need not span the backward."""

    @staticmethod
    def forward(ctx: Any, _local: Tensor, logits: DTensor, loss_function: Callable[..., DTensor]) -> Tensor:
        leaf = logits.detach().requires_grad_(ctx.needs_input_grad[0])
        with torch.enable_grad(), loss_parallel():
            loss = loss_function(logits=leaf)
            if leaf.requires_grad:
                (gradient,) = torch.autograd.grad(loss, leaf)
                ctx.save_for_backward(cast(DTensor, gradient).to_local())
        return cast(DTensor, loss.detach()).to_local()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None, None
