"""Full fine-tuning and peft's adapters: the input stays, the result is ordinary, and the mathematics is the papers'."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bakeoff import lm
from bakeoff.budget import Budget
from bakeoff.errors import Unsupported, UsageError
from bakeoff.lm.tiny import FAMILIES, save_tiny, tiny
from bakeoff.method import Method
from bakeoff.training.run import Run
from bakeoff.tune.baselines import corda, dora, full, ia3, lora
from bakeoff.tune.contest import TuneData, planted

torch.set_num_threads(1)

KPM = {"mode": "kpm"}
ADAPTERS: list[tuple[Method, dict[str, Any]]] = [(lora, {}), (dora, {}), (ia3, {}), (corda, {}), (corda, KPM)]
NAMES = ["lora", "dora", "ia3", "corda-ipm", "corda-kpm"]
adapters = pytest.mark.parametrize(("method", "arguments"), ADAPTERS, ids=NAMES)


class Spy(Run):
    """Keeps a copy of what it was asked to train."""

    start: Any = None

    def train(self, model: nn.Module, *inputs: Any, **arguments: Any) -> nn.Module:
        self.start = copy.deepcopy(model)
        return super().train(model, *inputs, **arguments)


def trial(folder: Path, steps: int, seed: int = 0) -> Spy:
    return Spy(Budget(steps, "steps"), seed, folder / f"run-{steps}-{seed}-{len(list(folder.iterdir()))}")


def logits(model: nn.Module, data: TuneData) -> Tensor:
    with torch.no_grad():
        return model(input_ids=data.train[0].input_ids[None]).logits  # type: ignore[no-any-return]


@adapters
@pytest.mark.parametrize("family", FAMILIES)
def test_returns_an_ordinary_model_and_leaves_the_input(
    family: str, method: Method, arguments: dict[str, Any], tmp_path: Path
) -> None:
    setting = planted(family)
    model, data, before = setting.model, setting.data, lm.weights_digest(setting.model)
    unchanged = method(model, data, trial(tmp_path, 0), **arguments)
    torch.testing.assert_close(logits(unchanged, data), logits(model, data), rtol=0, atol=1e-4)

    run = trial(tmp_path, 1)
    tuned = method(model, data, run, **arguments)
    assert run.meter.steps == 1
    assert lm.weights_digest(model) == before
    assert type(tuned) is type(model)
    assert {n: (p.shape, p.dtype) for n, p in tuned.state_dict().items()} == {
        n: (p.shape, p.dtype) for n, p in model.state_dict().items()
    }
    assert float((logits(tuned, data) - logits(model, data)).abs().max()) > 1e-3
    assert all(p.requires_grad for p in tuned.parameters())
    assert 0 < run.trained_parameters < model.num_parameters() / 2
    # What is not adapted is in the same memory as the input's.
    assert tuned.get_input_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


@adapters
def test_follows_from_the_seed_alone(method: Method, arguments: dict[str, Any], tmp_path: Path) -> None:
    setting = planted("llama")
    digests = []
    for trial_seed, global_seed in ((0, 1), (0, 2), (1, 2)):
        torch.manual_seed(global_seed)
        tuned = method(setting.model, setting.data, trial(tmp_path, 2, trial_seed), **arguments)
        digests.append(lm.weights_digest(tuned))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("method", [full, lora, dora, ia3, corda], ids=lambda method: method.name)
def test_learns_the_planted_rule(method: Method, tmp_path: Path) -> None:
    setting = planted("llama")
    tuned = method(setting.model, setting.data, trial(tmp_path, 40))
    gained = setting.exam(setting.model)["target_loss"].value - setting.exam(tuned)["target_loss"].value
    # A vocabulary of 260 leaves 5.7 nats to gain; (IA)3 moves 160 numbers only.
    assert gained > (0.3 if method is ia3 else 1.0)


@adapters
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_adapter_saves_alone_and_loads_to_the_same_logits(
    family: str, method: Method, arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = planted(family)
    save_tiny(tmp_path / "base", family)
    monkeypatch.chdir(tmp_path)
    model, tokenizer, _ = lm.load(Path("base"))
    merged = method(model, setting.data, trial(tmp_path, 3), **arguments)
    adapted = method(model, setting.data, trial(tmp_path, 3), merge=False, **arguments)
    torch.testing.assert_close(logits(adapted, setting.data), logits(merged, setting.data), rtol=0, atol=1e-4)
    base = adapted.get_base_model().get_input_embeddings().weight
    assert base.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    lm.save(adapted, tokenizer, tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = lm.load(tmp_path / "adapter").model
    torch.testing.assert_close(logits(loaded, setting.data), logits(adapted, setting.data), rtol=0, atol=1e-6)


@adapters
def test_writes_nothing_outside_the_run(
    method: Method, arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    setting = planted("llama")
    run = trial(tmp_path, 1)
    method(setting.model, setting.data, run, merge=False, **arguments)
    assert not list((tmp_path / "here").iterdir())
    assert set(tmp_path.iterdir()) == {tmp_path / "here", run.folder}


@adapters
def test_keeps_bfloat16(method: Method, arguments: dict[str, Any], tmp_path: Path) -> None:
    model = tiny("llama", dtype=torch.bfloat16)
    tuned = method(model, planted("llama").data, trial(tmp_path, 2), **arguments)
    assert {p.dtype for p in tuned.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_lora_adds_alpha_over_rank_times_the_product(family: str, tmp_path: Path) -> None:
    setting = planted(family)
    adapted = lora(setting.model, setting.data, trial(tmp_path, 3), rank=4, merge=False)
    merged = lora(setting.model, setting.data, trial(tmp_path, 3), rank=4)
    parts = [part for block in lm.anatomy(setting.model).blocks for part in (block.q, block.o, block.down)]
    for path in {part.path for part in parts}:
        layer = adapted.get_base_model().get_submodule(path)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        product = 8 / 4 * b @ a
        expected = setting.model.get_submodule(path).weight + (product.T if family == "gpt2" else product)
        torch.testing.assert_close(merged.get_submodule(path).weight, expected)


def test_ia3_scales_keys_values_and_inner_activations(tmp_path: Path) -> None:
    setting = planted("qwen2")
    adapted = ia3(setting.model, setting.data, trial(tmp_path, 3), merge=False)
    merged = ia3(setting.model, setting.data, trial(tmp_path, 3))
    block, tuned = lm.anatomy(setting.model).blocks[0], lm.anatomy(merged).blocks[0]
    for part, new in zip(block.parts, tuned.parts, strict=True):
        if part.role not in ("k", "v", "down"):
            assert torch.equal(part.read(), new.read())
            continue
        factors = adapted.get_base_model().get_submodule(part.path).ia3_l["default"]
        assert factors.shape == ((1, 48) if part.role == "down" else (16, 1))
        torch.testing.assert_close(new.read(), part.read() * factors)
        if part.role != "down":
            torch.testing.assert_close(new.read_bias(), part.read_bias() * factors.flatten())  # type: ignore[operator]


@pytest.mark.parametrize("mode", ["ipm", "kpm"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_corda_is_the_decomposition_of_weights_times_covariance(family: str, mode: str, tmp_path: Path) -> None:
    setting = planted(family)
    model, data, run = setting.model, setting.data, trial(tmp_path, 0)
    corda(model, data, run, mode=mode, samples=5, rank=4)
    assert run.meter.forward_tokens == 5 * 32
    part = lm.anatomy(model).blocks[1].down
    batches = data.batches(run) if mode == "ipm" else data.keep_batches(run, "")
    covariance, inputs = torch.zeros(()), []
    handle = part.module.register_forward_hook(lambda module, given, output: inputs.append(given[0][0]))
    for row in batches.draw(0, 5):
        model(input_ids=row.input_ids[None])
        scaled = inputs[-1] / inputs[-1].max().abs()
        covariance = covariance + scaled.T @ scaled / 5
    handle.remove()
    # peft adds 1% of the mean variance to the diagonal, and doubles that until the inverse is good.
    covariance = covariance + 0.01 * covariance.diag().mean() * torch.eye(len(covariance))
    u, s, v = torch.linalg.svd(part.read() @ covariance, full_matrices=False)
    chosen = slice(None, 4) if mode == "ipm" else slice(-4, None)
    expected = u[:, chosen] @ s[chosen].diag() @ v[chosen] @ covariance.inverse()
    layer = run.start.get_base_model().get_submodule(part.path)
    product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    # The inverse of a nearly singular matrix costs float32 most of its digits; a wrong choice of components errs by 1.
    assert (product - expected).norm().item() < 1e-2 * expected.norm().item()
    stays = layer.base_layer.weight.T if family == "gpt2" else layer.base_layer.weight
    torch.testing.assert_close(stays + product, part.read(), rtol=0, atol=1e-5)


def test_corda_says_what_it_cannot_do(tmp_path: Path) -> None:
    setting = planted("llama")
    without = TuneData(setting.data.train, None, setting.data.validation, setting.data.tokenizer, 8)
    with pytest.raises(UsageError, match="--keep"):
        corda(setting.model, without, trial(tmp_path, 1), mode="kpm")
    with pytest.raises(UsageError, match="at most 16"):
        corda(setting.model, setting.data, trial(tmp_path, 1), rank=17)
    corda(setting.model, without, trial(tmp_path, 1), rank=16)


@adapters
def test_model_with_an_adapter_is_refused(method: Method, arguments: dict[str, Any], tmp_path: Path) -> None:
    setting = planted("llama")
    adapted: PreTrainedModel = lora(setting.model, setting.data, trial(tmp_path, 0), merge=False)
    with pytest.raises(Unsupported, match="merge"):
        method(adapted, setting.data, trial(tmp_path, 1), **arguments)
