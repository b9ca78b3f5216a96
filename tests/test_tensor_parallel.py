"""Two processes that share a model equal one that has it whole. One group of processes runs all that needs two."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from bakeoff.errors import UsageError
from bakeoff.lm.anatomy import anatomy
from bakeoff.lm.decoder import DecoderConfig, DecoderForCausalLM
from bakeoff.lm.tiny import tiny
from bakeoff.training import objectives
from bakeoff.training.attention import packed
from bakeoff.training.batches import IGNORED, Batch
from bakeoff.training.tensor_parallel import cross_entropy, gathered, scattered, tensor_parallel

PROCESSES = 2
SECONDS = 150
ROWS, LENGTH, VOCABULARY, WIDTH = 2, 9, 260, 32
STEPS = 20
THREE = ("llama", "gpt2", "decoder")
OTHERS = ("gpt_neox", "opt", "mistral", "qwen2", "qwen3", "decoder alibi", "decoder window", "odd vocabulary")
DECODERS: dict[str, dict[str, Any]] = {
    "decoder": {},
    "decoder alibi": {"positions": "alibi", "norm": "layer", "mlp": "gelu", "bias": True, "qk_norm": True},
    "decoder window": {
        "positions": "learned", "mixers": ["attention", "window"], "window": 4, "logit_scale": 0.5, "tie_word_embeddings": False,
    },
}  # fmt: skip


def made(shape: str, dtype: torch.dtype = torch.float32, layers: int = 2, **more: Any) -> PreTrainedModel:
    """A random model whose biases are not zero, with two key heads for four heads where the shape allows, in training."""
    if shape == "odd vocabulary":
        return tiny("gpt2", dtype=dtype, vocab_size=VOCABULARY + 1, layers=layers).train()
    if shape not in DECODERS:
        return tiny(shape, dtype=dtype, layers=layers).train()
    torch.manual_seed(0)
    config = DecoderConfig(
        **{
            "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": layers,
            "num_attention_heads": 4, "num_key_value_heads": 2, **DECODERS[shape], **more,
        }
    )  # fmt: skip
    model = DecoderForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).train()


def still(model: PreTrainedModel, kept: tuple[str, ...] = ()) -> PreTrainedModel:
    """Without dropout, but for the modules whose names end with one of `kept`."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and not name.endswith(kept or ("-",)):
            module.p = 0.0
        for attribute in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
    return model


def batch_of(step: int) -> Batch:
    ids = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(step))
    labels = ids.clone()
    labels[0, -3:] = IGNORED
    return Batch(ids, labels, ids.numel())


def exact_loss(logits: Tensor, labels: Tensor, **_: Any) -> Tensor:
    """transformers' loss, which would round to float32."""
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def losses_in_turn(model: PreTrainedModel, step: int) -> Tensor:
    """From labels, then from whole logits."""
    batch, double = batch_of(step), next(model.parameters()).dtype == torch.float64
    if double:
        if step % 2:
            return model(input_ids=batch.input_ids, labels=batch.labels, use_cache=False).loss
        return exact_loss(model(input_ids=batch.input_ids, use_cache=False).logits, batch.labels)
    objective = cross_entropy if step % 2 else objectives.cross_entropy
    return objective(model, batch, step)


def trained(model: PreTrainedModel, steps: int, learning_rate: float = 1e-2, clip: float = 0.5) -> dict[str, Any]:
    # A key's bias has no gradient; with a smaller epsilon Adam would take the rounding noise there for one.
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, eps=1e-5, weight_decay=0.1)
    found: dict[str, Any] = {"losses": [], "norms": []}
    for step in range(steps):
        optimizer.zero_grad()
        loss = losses_in_turn(model, step)
        loss.backward()
        if step == 0:
            gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            found["gradients"] = {name: value.clone() for name, value in gathered(model, gradients).items()}
            found["placed"] = all(
                p.grad.placements == p.placements for p in model.parameters() if isinstance(p.grad, DTensor)
            )
        found["norms"].append(float(nn.utils.clip_grad_norm_(model.parameters(), clip)))
        found["losses"].append(float(loss.detach()))
        optimizer.step()
    found["weights"] = gathered(model)
    return found


def equality(mesh: DeviceMesh, _: Path, shape: str, dtype: torch.dtype, steps: int) -> dict[str, Any]:
    """How far the processes together are from one, which process 0 plays."""

    def model() -> PreTrainedModel:
        plain = still(made(shape, dtype))
        if dtype == torch.float64:
            plain.loss_function = exact_loss
        return plain

    ours = trained(tensor_parallel(model(), mesh), steps)
    result = {name: ours[name] for name in ("losses", "norms", "placed")}
    if mesh.get_local_rank() == 0:
        plain = trained(model(), steps)
        assert set(plain["weights"]) == set(ours["weights"])
        assert set(plain["gradients"]) == set(ours["gradients"])
        result |= {
            "loss": furthest(plain["losses"], ours["losses"]),
            "norm": furthest(plain["norms"], ours["norms"]),
            "gradient": max(apart(plain["gradients"][name], value) for name, value in ours["gradients"].items()),
            "weight": max(apart(plain["weights"][name], value) for name, value in ours["weights"].items()),
            "moved": max(apart(value, ours["weights"][name]) for name, value in model().state_dict().items()),
        }
    return result


def furthest(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def apart(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max())


class Reductions(TorchDispatchMode):
    """The shapes of all tensors that are all-reduced, in order, and the names of all other collectives."""

    local = ("wait_tensor", "_wrap_tensor_autograd")

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[list[int]] = []
        self.others: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        if func is torch.ops._c10d_functional.all_reduce.default:
            self.shapes.append(list(args[0].shape))
        elif func.namespace in ("c10d", "_c10d_functional") and func.name().rpartition("::")[2] not in self.local:
            self.others.append(func.name())
        return func(*args, **(kwargs or {}))


def collectives(mesh: DeviceMesh, _: Path, shape: str) -> dict[str, Any]:
    """Forward and backward, for one and for two layers: counts by torch's counter, shapes by ours."""
    counted: dict[str, Any] = {}
    for layers in (1, 2):
        model, batch = tensor_parallel(still(made(shape, layers=layers)), mesh), batch_of(0)
        with CommDebugMode() as counter:
            loss = cross_entropy(model, batch, 0)
            forward = counter.get_total_counts()
            loss.backward()
        kinds = {str(kind).rpartition(".")[2] for kind, count in counter.get_comm_counts().items() if count}
        with Reductions() as seen:
            loss = cross_entropy(model, batch, 0)
            before = len(seen.shapes)
            loss.backward()
        counted[str(layers)] = {
            "forward": forward, "backward": counter.get_total_counts() - forward, "kinds": sorted(kinds),
            "forward shapes": seen.shapes[:before], "backward shapes": seen.shapes[before:], "others": seen.others,
        }  # fmt: skip
    with CommDebugMode() as counter:
        model(input_ids=batch.input_ids, use_cache=False)
    counted["whole logits"] = {str(k).rpartition(".")[2]: n for k, n in counter.get_comm_counts().items() if n}
    return counted


def one_process(mesh: DeviceMesh, _: Path) -> dict[str, Any]:
    """A group of one."""
    alone = init_device_mesh("cpu", (PROCESSES, 1), mesh_dim_names=("data", "tensor"))["tensor"]
    with Reductions() as seen:
        ours = trained(tensor_parallel(still(made("gpt2")), alone), 3)
    plain = trained(still(made("gpt2")), 3)
    same = all(torch.equal(value, plain["weights"][name]) for name, value in ours["weights"].items())
    return {"same": same and ours["losses"] == plain["losses"], "collectives": len(seen.shapes) + len(seen.others)}


def saved(mesh: DeviceMesh, folder: Path, shape: str) -> None:
    """Train a little, save as a folder, and leave the logits beside it."""
    model = tensor_parallel(still(made(shape)), mesh)
    trained(model, 2)
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=batch_of(0).input_ids, use_cache=False).logits
    whole = gathered(model)
    if mesh.get_local_rank() == 0:
        model.save_pretrained(folder / shape, state_dict=whole)
        save_file({"logits": logits.contiguous()}, folder / f"{shape}.safetensors")


def worked_mlp(mesh: DeviceMesh, _: Path) -> dict[str, Any]:
    """The two halves of gelu(x A) B + b and what comes out."""
    config = GPT2Config(
        n_embd=2,
        n_head=2,
        n_inner=4,
        n_layer=1,
        vocab_size=4,
        n_positions=4,
        activation_function="gelu",
        resid_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        mlp = model.transformer.h[0].mlp
        mlp.c_fc.weight.copy_(torch.tensor([[1.0, 0, 1, -1], [0, 1, 1, 1]]))
        mlp.c_proj.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1], [2, 0]]))
        mlp.c_proj.bias.copy_(torch.tensor([10.0, 20.0]))
    mlp = tensor_parallel(model, mesh).transformer.h[0].mlp
    hidden: list[Tensor] = []
    mlp.act.register_forward_hook(lambda _module, _args, output: hidden.append(output))
    result = mlp(torch.tensor([[[1.0, 2.0]]]))
    return {"hidden": hidden[0].flatten().tolist(), "result": result.flatten().tolist()}


def worked_loss(mesh: DeviceMesh, _: Path) -> dict[str, Any]:
    """Cross-entropy of logits 1, 2, 3, 4 with target 2, and its gradient on this process."""
    model = tensor_parallel(made("llama"), mesh)
    rank = mesh.get_local_rank()
    own = torch.tensor([[[1.0, 2.0], [3.0, 4.0]][rank]]).view(1, 1, 2).requires_grad_()
    logits = DTensor.from_local(own, mesh, [Shard(-1)])
    loss = model.loss_function(logits=logits, labels=None, vocab_size=4, shift_labels=torch.tensor([[2]]))
    (3 * loss).backward()
    return {"loss": float(loss.detach()), "gradient": own.grad.flatten().tolist()}


def fused_layout(mesh: DeviceMesh, _: Path) -> dict[str, Any]:
    """Whether this process's rows of the fused projection are q, k and v of its own heads; and of gate and up."""
    rank, plain = mesh.get_local_rank(), made("gpt2")
    found = anatomy(plain).blocks[1]
    expected = torch.cat([part.read().chunk(PROCESSES)[rank] for part in (found.q, found.k, found.v)])
    biases = torch.cat([part.read_bias().chunk(PROCESSES)[rank] for part in (found.q, found.k, found.v)])
    attention = tensor_parallel(plain, mesh).transformer.h[1].attn
    decoder = made("decoder")
    halves = decoder.model.layers[1].mlp.gate_up.weight.detach().chunk(2)
    gate_up = torch.cat([half.chunk(PROCESSES)[rank] for half in halves])
    mlp = tensor_parallel(decoder, mesh).model.layers[1].mlp
    return {
        "qkv": torch.equal(attention.c_attn.weight.to_local(), expected),
        "bias": torch.equal(attention.c_attn.bias.to_local(), biases),
        "gate_up": torch.equal(mlp.gate_up.weight.to_local(), gate_up),
    }


def there_and_back(mesh: DeviceMesh, _: Path, shape: str) -> dict[str, bool]:
    """Weights, random numbers and masks in the plain layout, cut and put together again."""
    plain = dict(made(shape).named_parameters())
    model = tensor_parallel(made(shape), mesh)
    own = dict(model.named_parameters())
    weights = scattered(model, {name: p.detach() for name, p in plain.items()})
    torch.manual_seed(3)
    numbers = {name: torch.randn_like(p) for name, p in plain.items()}
    masks = {name: value > 0 for name, value in numbers.items()}
    back = {name: gathered(model, scattered(model, values)) for name, values in (("n", numbers), ("m", masks))}
    return {
        "weights": all(torch.equal(value.to_local(), own[name].to_local()) for name, value in weights.items()),
        "numbers": all(torch.equal(value, numbers[name]) for name, value in back["n"].items()),
        "masks": all(torch.equal(value, masks[name]) for name, value in back["m"].items()),
    }


def share(mesh: DeviceMesh, _: Path) -> dict[str, int]:
    """Entries of a GPT-2's parameters: all, those whole everywhere, and what this process holds."""
    plain = made("gpt2")
    total = sum(p.numel() for p in plain.parameters())
    block = anatomy(plain).blocks[0]
    per_block = sum(norm.numel for norm in block.norms) + block.o.bias.numel() + block.down.bias.numel()
    found = anatomy(plain)
    whole = len(found.blocks) * per_block + found.final_norm.numel + found.positions.numel
    model = tensor_parallel(plain, mesh)
    return {"total": total, "whole": whole, "own": sum(p.to_local().numel() for p in model.parameters())}


def residual_dropout(mesh: DeviceMesh, _: Path) -> dict[str, float]:
    """Losses with dropout only where all processes see the same numbers, against one process with the same seed."""

    def losses(model: PreTrainedModel) -> list[float]:
        torch.manual_seed(7)
        return [float(objectives.cross_entropy(model, batch_of(step), step).detach()) for step in range(3)]

    kept = (".drop", ".resid_dropout", ".mlp.dropout")
    dropped, plain = still(made("gpt2"), kept), losses(still(made("gpt2"), kept))
    ours = losses(tensor_parallel(dropped, mesh))
    return {"difference": furthest(plain, ours), "effect": furthest(plain, losses(still(made("gpt2"))))}


def attention_dropout(mesh: DeviceMesh, _: Path) -> dict[str, Any]:
    """What two heads that would be alike come to on each process, and the state of the generator afterwards."""
    plain = made("gpt2", layers=1)
    with torch.no_grad():
        plain.transformer.h[0].attn.c_attn.weight.zero_()
        plain.transformer.h[0].attn.c_attn.bias.fill_(1.0)
    model = tensor_parallel(still(plain, (".attn_dropout",)), mesh)
    heads: list[Tensor] = []
    # The projection's own hook makes a distributed tensor of it first.
    model.transformer.h[0].attn.c_proj.register_forward_pre_hook(lambda _, args: heads.append(args[0].to_local()))
    torch.manual_seed(7)
    losses = []
    for gradient_checkpointing in (False, True):
        if gradient_checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(7)
        model.zero_grad()
        loss = cross_entropy(model, batch_of(0), 0)
        loss.backward()
        losses.append((float(loss.detach()), float(nn.utils.clip_grad_norm_(model.parameters(), math.inf))))
    return {"heads": heads[0].flatten().tolist(), "state": torch.get_rng_state().tolist(), "losses": losses}


def packing(mesh: DeviceMesh, _: Path, shape: str) -> dict[str, float]:
    """The loss of two documents packed into each row, against one process, and against a row of one document."""
    batch = batch_of(0)
    documents = torch.tensor([[0] * 4 + [1] * (LENGTH - 4)] * ROWS)
    plain, ours = still(made(shape)), tensor_parallel(still(made(shape)), mesh)
    with torch.no_grad(), packed(documents):
        expected, found = objectives.cross_entropy(plain, batch, 0), cross_entropy(ours, batch, 0)
    with torch.no_grad():
        whole = cross_entropy(ours, batch, 0)
    return {"difference": abs(float(expected - found)), "effect": abs(float(whole - found))}


def refusals(mesh: DeviceMesh, _: Path) -> dict[str, str]:
    square = init_device_mesh("cpu", (PROCESSES, 1))
    attempts: dict[str, tuple[Callable[[], PreTrainedModel], DeviceMesh]] = {
        "heads": (
            lambda: GPT2LMHeadModel(GPT2Config(n_embd=48, n_head=3, n_layer=1, vocab_size=8, n_positions=8)),
            mesh,
        ),
        "key heads": (lambda: made("decoder", num_key_value_heads=1), mesh),
        "hidden features": (lambda: made("decoder", intermediate_size=49), mesh),
        "mixer": (lambda: made("decoder", mixers=["attention", "deltanet"]), mesh),
        "architecture": (lambda: BloomForCausalLM(BloomConfig(vocab_size=8, hidden_size=8, n_layer=1, n_head=2)), mesh),
        "cut": (lambda: tensor_parallel(made("llama"), mesh), mesh),
        "dimensions": (lambda: made("llama"), square),
    }
    said: dict[str, str] = {}
    for name, (make, over) in attempts.items():
        model = make()
        try:
            tensor_parallel(model, over)
        except UsageError as error:
            said[name] = str(error)
    return said


Check = Callable[[DeviceMesh, Path], Any]
CHECKS: dict[str, Check] = {
    **{f"double {shape}": partial(equality, shape=shape, dtype=torch.float64, steps=STEPS) for shape in THREE},
    **{f"single {shape}": partial(equality, shape=shape, dtype=torch.float32, steps=STEPS) for shape in THREE},
    **{f"single {shape}": partial(equality, shape=shape, dtype=torch.float32, steps=3) for shape in OTHERS},
    **{f"collectives {shape}": partial(collectives, shape=shape) for shape in (*THREE, "qwen3")},
    **{f"saved {shape}": partial(saved, shape=shape) for shape in THREE},
    **{f"packing {shape}": partial(packing, shape=shape) for shape in THREE},
    "one process": one_process,
    "worked mlp": worked_mlp,
    "worked loss": worked_loss,
    "fused layout": fused_layout,
    **{f"there and back {shape}": partial(there_and_back, shape=shape) for shape in THREE},
    "share": share,
    "residual dropout": residual_dropout,
    "attention dropout": attention_dropout,
    "refusals": refusals,
}


def play(rank: int, folder: Path) -> None:
    """One process of the group: every check in turn, each result written down as soon as it is there."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=30),
    )
    mesh = init_device_mesh("cpu", (PROCESSES,))
    results: dict[str, Any] = {}
    for name, check in CHECKS.items():
        begin = time.monotonic()
        try:
            results[name] = check(mesh, folder)
        except Exception:
            results[name] = traceback.format_exc()
        results[name] = [results[name], time.monotonic() - begin]
        (folder / f"{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """The folder in which the processes worked, and each one's results by check."""
    folder = tmp_path_factory.mktemp("group")
    environment = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "TRANSFORMERS_VERBOSITY": "error"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setitem(os.environ, name, value)
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=play, args=(rank, folder), daemon=True) for rank in range(PROCESSES)]
        try:
            for process in processes:
                process.start()
            deadline = time.monotonic() + SECONDS
            for process in processes:
                process.join(max(0.0, deadline - time.monotonic()))
            # A process that ended without results has said why on its standard error.
            yield folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(PROCESSES)]
        finally:
            for process in processes:
                if process.pid is not None:
                    process.kill()
                    process.join()


@pytest.fixture
def results(group: tuple[Path, list[dict[str, Any]]]) -> Callable[[str], list[Any]]:
    """What each process found in a check."""

    def of(name: str) -> list[Any]:
        for found in group[1]:
            assert name in found, f"the group ended before {name!r}"
            assert not (isinstance(found[name][0], str) and "Traceback" in found[name][0]), found[name][0]
        return [found[name][0] for found in group[1]]

    return of


Results = Callable[[str], list[Any]]


@pytest.mark.parametrize(("check", "tolerance"), [*((f"double {shape}", 1e-9) for shape in THREE),
                                                  *((f"single {shape}", 1e-4) for shape in (*THREE, *OTHERS))])  # fmt: skip
def test_processes_together_train_as_one(results: Results, check: str, tolerance: float) -> None:
    first, second = results(check)
    assert first["losses"] == second["losses"]
    assert first["norms"] == second["norms"]
    assert first["placed"]
    assert {name: first[name] for name in ("loss", "norm", "gradient", "weight") if not first[name] < tolerance} == {}
    # Clipping was at work and the weights went somewhere.
    assert min(first["norms"]) > 0.5
    assert first["moved"] > 0.01
    if len(first["losses"]) == STEPS:
        assert first["losses"][-1] != first["losses"][0]


@pytest.mark.parametrize("shape", THREE)
def test_a_block_reduces_twice_forward_and_twice_backward(results: Results, shape: str) -> None:
    for found in results(f"collectives {shape}"):
        one, two, states, numbers = found["1"], found["2"], [ROWS, LENGTH, WIDTH], ROWS * (LENGTH)
        assert two["forward"] - one["forward"] == 2
        assert two["backward"] - one["backward"] == 2
        # Beside the blocks: the embedding; the loss's maximum, sum and target logit; backward the head's input.
        assert (one["forward"], one["backward"]) == (2 + 1 + 3, 2 + 1)
        assert two["kinds"] == ["all_reduce"]
        assert two["others"] == []
        shapes = two["forward shapes"]
        assert [math.prod(shape) for shape in shapes[:5]] == [math.prod(states)] * 5
        assert [math.prod(shape) for shape in shapes[5:]] == [numbers] * 3
        assert [math.prod(shape) for shape in two["backward shapes"]] == [math.prod(states)] * 5
        assert found["whole logits"] == {"all_reduce": 5, "all_gather_into_tensor": 1}


def test_norms_of_queries_and_keys_cost_one_small_reduction_each(results: Results) -> None:
    for found in results("collectives qwen3"):
        one, two = found["1"], found["2"]
        assert (two["forward"] - one["forward"], two["backward"] - one["backward"]) == (2, 4)
        small = [shape for shape in two["backward shapes"] if math.prod(shape) != ROWS * LENGTH * WIDTH]
        assert small == [[16]] * 4


def test_a_group_of_one_has_the_plain_model(results: Results) -> None:
    assert results("one process") == [{"same": True, "collectives": 0}] * PROCESSES


@pytest.mark.parametrize("shape", THREE)
def test_a_gathered_model_is_saved_as_any_other(results: Results, group: Any, shape: str) -> None:
    results(f"saved {shape}")
    folder = group[0]
    model = AutoModelForCausalLM.from_pretrained(folder / shape)
    with torch.no_grad():
        logits = model(input_ids=batch_of(0).input_ids, use_cache=False).logits
    torch.testing.assert_close(logits, load_file(folder / f"{shape}.safetensors")["logits"], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        before = made(shape).eval()(input_ids=batch_of(0).input_ids, use_cache=False).logits
    assert apart(before, logits) > 0.01


def test_the_halves_of_an_mlp_are_added_and_its_bias_once(results: Results) -> None:
    # x = (1, 2) and A give x A = (1, 2, 3, 1); exact GeLU of that is below. Of B, rows 1 and 2 are process 0's, which
    # gives (.84134, 1.95450), rows 3 and 4 process 1's: (2.99595 + 2 * .84134, 2.99595). Their sum, and b = (10, 20).
    first, second = results("worked mlp")
    assert first["hidden"] == pytest.approx([0.84134, 1.95450], abs=1e-5)
    assert second["hidden"] == pytest.approx([2.99595, 0.84134], abs=1e-5)
    for found in (first, second):
        assert found["result"] == pytest.approx([15.51998, 24.95045], abs=2e-5)


def test_cross_entropy_of_cut_logits(results: Results) -> None:
    # Less the maximum 4: exp(-3) + exp(-2) = .185122 and exp(-1) + 1 = 1.367879, log of their sum .440190, and the
    # target's logit is -1. The gradient of three times the loss is 3 (softmax - one-hot).
    first, second = results("worked loss")
    softmax = [math.exp(value - 4) / 1.553002 for value in (1, 2, 3, 4)]
    assert first["loss"] == second["loss"] == pytest.approx(1.440190, abs=1e-6)
    expected = [3 * softmax[0], 3 * softmax[1], 3 * (softmax[2] - 1), 3 * softmax[3]]
    assert [*first["gradient"], *second["gradient"]] == pytest.approx(expected, abs=1e-5)


def test_stacked_projections_are_cut_by_heads_and_features(results: Results) -> None:
    assert results("fused layout") == [{"qkv": True, "bias": True, "gate_up": True}] * PROCESSES


@pytest.mark.parametrize("shape", THREE)
def test_whole_tensors_are_cut_as_the_weights_are(results: Results, shape: str) -> None:
    assert results(f"there and back {shape}") == [{"weights": True, "numbers": True, "masks": True}] * PROCESSES


def test_a_process_holds_its_share(results: Results) -> None:
    for found in results("share"):
        assert found["own"] == found["whole"] + (found["total"] - found["whole"]) // PROCESSES


def test_dropout_outside_the_heads_is_the_same_everywhere(results: Results) -> None:
    for found in results("residual dropout"):
        assert found["difference"] < 1e-5
        assert found["effect"] > 1e-3


def test_dropout_of_attention_differs_between_processes(results: Results) -> None:
    first, second = results("attention dropout")
    assert first["heads"] != second["heads"]
    assert first["state"] == second["state"]
    # The same masks again where activations are computed anew.
    assert first["losses"][0] == pytest.approx(first["losses"][1], rel=1e-6)
    assert first["losses"] == second["losses"]


@pytest.mark.parametrize("shape", THREE)
def test_packed_documents_stay_apart(results: Results, shape: str) -> None:
    for found in results(f"packing {shape}"):
        assert found["difference"] < 1e-5
        assert found["effect"] > 1e-3


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        ("heads", ("3 heads", "2 processes")),
        ("key heads", ("1 key and value heads", "2 processes")),
        ("hidden features", ("49 hidden features", "2 processes")),
        ("mixer", ("'deltanet'",)),
        ("architecture", ("'bloom'",)),
        ("cut", ("already",)),
        ("dimensions", ("one dimension, not 2",)),
    ],
)
def test_what_cannot_be_cut_is_refused(results: Results, attempt: str, words: tuple[str, ...]) -> None:
    for said in results("refusals"):
        assert all(word in said[attempt] for word in words), said.get(attempt)
