"""The anatomy names the right entries: shown by coverage, by what zeroing does, and by symmetries of attention."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
)
from transformers.activations import ACT2FN

from bakeoff.errors import Unsupported, UsageError
from bakeoff.lm.anatomy import Part, anatomy
from bakeoff.lm.tiny import END, FAMILIES, save_tiny, tiny, tiny_tokenizer

TOLERANCE = 1e-5

pytestmark = pytest.mark.usefixtures("one_thread")
each_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 257, (2, 11), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    found: Tensor = model(tokens, use_cache=False).logits
    return found


def parameters(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@contextmanager
def outputs_replaced(modules: list[nn.Module], change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    handles = [module.register_forward_hook(hook) for module in modules]
    yield
    for handle in handles:
        handle.remove()


def seen(model: PreTrainedModel, tokens: Tensor, module: nn.Module) -> tuple[Tensor, Tensor]:
    """First input and first output of a module in one forward pass."""
    caught: list[tuple[Tensor, Tensor]] = []

    def hook(module: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
        given = arguments[0] if arguments else keywords["hidden_states"]
        caught.append((given, output[0] if isinstance(output, tuple) else output))

    handle = module.register_forward_hook(hook, with_kwargs=True)
    logits(model, tokens)
    handle.remove()
    (pair,) = caught
    return pair


def applied(part: Part, x: Tensor) -> Tensor:
    return nn.functional.linear(x, part.read(), part.read_bias())


def mlp_modules(model: PreTrainedModel) -> list[nn.Module]:
    return [block.mlp_module or block.module.get_submodule("fc2") for block in anatomy(model).blocks]


def check_covers_once(model: PreTrainedModel) -> None:
    counts = {name: torch.zeros(tensor.shape, dtype=torch.int) for name, tensor in model.named_parameters()}
    for part in anatomy(model).parts:
        assert part.numel == sum(int(mask.sum()) for mask in part.mask().values())
        for name, mask in part.mask().items():
            counts[name] += mask
    assert all((count == 1).all() for count in counts.values())


@each_family
def test_every_entry_belongs_to_exactly_one_part(family: str) -> None:
    check_covers_once(tiny(family))


@each_family
def test_categories_hold_every_part_once(family: str) -> None:
    found = anatomy(tiny(family, layers=3))
    categories = found.categories()
    assert list(categories) == ["attention", "mlp", "norm", "other"]
    assert len(categories["attention"]) == len(categories["mlp"]) == len(found.blocks) == 3
    assert {part.role for group in categories["attention"] for part in group} == {"q", "k", "v", "o"}
    assert {part.role for group in categories["mlp"] for part in group} <= {"up", "gate", "down"}
    assert categories["norm"][-1] == [found.final_norm]
    assert len(set(found.parts)) == len(found.parts)
    assert (found.head in found.parts) is not found.tied


@each_family
def test_dimensions_agree_with_the_weights(family: str) -> None:
    model = tiny(family)
    found = anatomy(model)
    width, query, key = found.d_model, found.heads * found.head_dim, found.kv_heads * found.head_dim
    named = dict(model.named_parameters())
    assert found.tied is (found.head.name == found.embedding.name)
    assert {found.head.name, found.embedding.name} <= set(named)
    for block in found.blocks:
        assert [part.role for part in block.attention] == ["q", "k", "v", "o"]
        assert [part.role for part in block.mlp] == (["up", "gate", "down"] if block.gate else ["up", "down"])
        assert [part.read().shape for part in block.attention] == [
            (query, width),
            (key, width),
            (key, width),
            (width, query),
        ]
        inner = block.up.read().shape[0]
        assert block.up.read().shape == (inner, width)
        assert block.down.read().shape == (width, inner)
        assert block.gate is None or block.gate.read().shape == (inner, width)
    assert found.embedding.read().shape == found.head.read().shape == (model.config.vocab_size, width)


def test_families_break_assumptions() -> None:
    found = {family: anatomy(tiny(family)) for family in FAMILIES}
    assert {family for family, parts in found.items() if parts.tied} == {"gpt2", "opt", "qwen2", "gemma"}
    assert {family for family, parts in found.items() if parts.positions} == {"gpt2", "opt"}
    assert {family for family, parts in found.items() if parts.heads * parts.head_dim != parts.d_model} == {
        "qwen3",
        "gemma",
    }
    assert {parts.kv_heads for parts in found.values()} == {1, 2, 4}
    assert {family for family, parts in found.items() if parts.blocks[0].other} == {"qwen3", "decoder"}


@each_family
def test_zeroing_a_part_moves_exactly_its_entries(family: str) -> None:
    count = len(anatomy(tiny(family)).parts)
    for index in range(count):
        model = tiny(family)
        before = parameters(model)
        part = anatomy(model).parts[index]
        part.zero()
        masks = part.mask()
        for name, tensor in model.named_parameters():
            mask = masks.get(name, torch.zeros(tensor.shape, dtype=torch.bool))
            assert torch.equal(tensor != before[name], mask)
            assert torch.equal(tensor == 0, mask)


@each_family
def test_zeroing_o_removes_attention(family: str, tokens: Tensor) -> None:
    model = tiny(family)
    with outputs_replaced([block.attention_module for block in anatomy(model).blocks], torch.zeros_like):
        expected = logits(model, tokens)
    assert (expected - logits(model, tokens)).abs().max() > 100 * TOLERANCE
    for block in anatomy(model).blocks:
        block.o.zero()
    torch.testing.assert_close(logits(model, tokens), expected, atol=TOLERANCE, rtol=0)


@each_family
def test_zeroing_down_removes_the_mlp(family: str, tokens: Tensor) -> None:
    model = tiny(family)
    with outputs_replaced(mlp_modules(model), torch.zeros_like):
        expected = logits(model, tokens)
    assert (expected - logits(model, tokens)).abs().max() > 100 * TOLERANCE
    for block in anatomy(model).blocks:
        block.down.zero()
    torch.testing.assert_close(logits(model, tokens), expected, atol=TOLERANCE, rtol=0)


@each_family
@pytest.mark.parametrize("role", ["v", "up", "gate"])
def test_zeroing_an_inner_part_leaves_the_output_bias(family: str, role: str, tokens: Tensor) -> None:
    model = tiny(family)
    for block, mlp in zip(anatomy(model).blocks, mlp_modules(model), strict=True):
        inner: Part | None = getattr(block, role)
        if inner is None:
            assert family in ("gpt2", "gpt_neox", "opt")
            continue
        last, module = (block.o, block.attention_module) if role == "v" else (block.down, mlp)
        inner.zero()
        _, output = seen(model, tokens, module)
        bias = last.read_bias()
        expected = torch.zeros_like(output) if bias is None else bias.expand_as(output)
        torch.testing.assert_close(output, expected, atol=TOLERANCE, rtol=0)


@each_family
@pytest.mark.parametrize("role", ["q", "k"])
def test_zeroing_q_or_k_makes_attention_uniform(family: str, role: str, tokens: Tensor) -> None:
    model = tiny(family)
    model.set_attn_implementation("eager")
    for block in anatomy(model).blocks:
        getattr(block, role).zero()
    length = tokens.shape[1]
    uniform = torch.tril(torch.ones(length, length)) / torch.arange(1, length + 1)[:, None]
    with torch.no_grad():
        attentions = model(tokens, output_attentions=True).attentions
    assert len(attentions) == len(anatomy(model).blocks)
    for attention in attentions:
        torch.testing.assert_close(attention, uniform.expand_as(attention), atol=TOLERANCE, rtol=0)


@each_family
def test_k_and_v_are_what_the_cache_holds(family: str, tokens: Tensor) -> None:
    model = tiny(family)
    with torch.no_grad():
        cache = model(tokens, use_cache=True).past_key_values
    found = anatomy(model)
    for block in found.blocks:
        x, _ = seen(model, tokens, block.attention_module)
        shape = (*x.shape[:2], found.kv_heads, found.head_dim)
        values = applied(block.v, x).view(shape).transpose(1, 2)
        torch.testing.assert_close(cache.layers[block.index].values, values, atol=TOLERANCE, rtol=0)
        # Rotation by position 0 is the identity, so that the first key is the projected one in every family.
        first = applied(block.k, x).view(shape)[:, 0]
        for norm in block.other:
            first = norm.module(first) if norm.role == "k_norm" else first
        torch.testing.assert_close(cache.layers[block.index].keys[:, :, 0], first, atol=TOLERANCE, rtol=0)


@each_family
def test_parts_apply_where_their_modules_do(family: str, tokens: Tensor) -> None:
    model = tiny(family)
    found = anatomy(model)
    for block in found.blocks:
        attention_norm, mlp_norm = block.norms
        given, output = seen(model, tokens, block.attention_module)
        assert torch.equal(given, seen(model, tokens, attention_norm.module)[1])
        assert torch.equal(output, seen(model, tokens, block.o.module)[1])
        assert torch.equal(seen(model, tokens, block.up.module)[0], seen(model, tokens, mlp_norm.module)[1])
        for part in (block.o, block.down, *block.mlp):
            x, y = seen(model, tokens, part.module)
            # Where one module makes gate and up, they stand side by side in its output.
            y = y.chunk(y.shape[-1] // len(part.read()), -1)[0 if part.role == "gate" else -1]
            torch.testing.assert_close(applied(part, x), y, atol=TOLERANCE, rtol=0)
    assert found.final_norm is not None
    x, y = seen(model, tokens, found.head.module)
    assert torch.equal(x, seen(model, tokens, found.final_norm.module)[1])
    torch.testing.assert_close(applied(found.head, x), y, atol=TOLERANCE, rtol=0)
    assert seen(model, tokens, found.embedding.module)[0].equal(tokens)


@each_family
def test_the_mlp_is_its_parts(family: str, tokens: Tensor) -> None:
    model = tiny(family)
    for block, mlp in zip(anatomy(model).blocks, mlp_modules(model), strict=True):
        x, _ = seen(model, tokens, block.up.module)
        _, expected = seen(model, tokens, mlp)
        activation = ACT2FN[getattr(model.config, "hidden_act", None) or model.config.activation_function]
        inner = activation(applied(block.gate or block.up, x))
        if block.gate is not None:
            inner = inner * applied(block.up, x)
        torch.testing.assert_close(applied(block.down, inner), expected, atol=TOLERANCE, rtol=0)


@each_family
def test_zeroing_the_embedding_forgets_the_tokens(family: str, tokens: Tensor) -> None:
    model = tiny(family)
    found = anatomy(model)
    assert not torch.allclose(logits(model, tokens)[0], logits(model, tokens)[1])
    head = found.head.read()
    found.embedding.zero()
    first, second = logits(model, tokens)
    torch.testing.assert_close(first, second, atol=TOLERANCE, rtol=0)
    assert found.head.read().equal(torch.zeros_like(head) if found.tied else head)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_zeroing_positions_removes_them(family: str, tokens: Tensor) -> None:
    model = tiny(family)
    positions = anatomy(model).positions
    assert positions is not None
    with outputs_replaced([positions.module], torch.zeros_like):
        expected = logits(model, tokens)
    assert not torch.allclose(logits(model, tokens), expected, atol=100 * TOLERANCE)
    positions.zero()
    torch.testing.assert_close(logits(model, tokens), expected, atol=TOLERANCE, rtol=0)


def permute_rows(part: Part, rows: Tensor) -> None:
    part.write(part.read()[rows])
    bias = part.read_bias()
    if bias is not None:
        part.write_bias(bias[rows])


@each_family
def test_permuting_heads_changes_no_logit(family: str, tokens: Tensor) -> None:
    model = tiny(family)
    found = anatomy(model)
    group = found.heads // found.kv_heads
    # Reverse the key heads, and the query heads within each group, so that every query keeps its key.
    keys = torch.arange(found.kv_heads).flip(0)
    queries = (keys[:, None] * group + torch.arange(group).flip(0)).flatten()
    key_rows, query_rows = (
        (order[:, None] * found.head_dim + torch.arange(found.head_dim)).flatten() for order in (keys, queries)
    )
    expected = logits(model, tokens)
    for block in found.blocks:
        permute_rows(block.k, key_rows)
        permute_rows(block.v, key_rows)
        permute_rows(block.q, query_rows)
    assert not torch.allclose(logits(model, tokens), expected, atol=100 * TOLERANCE)
    for block in found.blocks:
        block.o.write(block.o.read()[:, query_rows])
    torch.testing.assert_close(logits(model, tokens), expected, atol=TOLERANCE, rtol=0)


@each_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_writing_what_was_read_changes_no_bit(family: str, dtype: torch.dtype) -> None:
    model = tiny(family, dtype=dtype)
    before = parameters(model)
    for part in anatomy(model).parts:
        assert part.read().dtype == dtype
        part.write(part.read())
        bias = part.read_bias()
        if bias is not None:
            part.write_bias(bias)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())


@each_family
def test_writing_changes_only_the_masked_entries(family: str) -> None:
    for index in range(len(anatomy(tiny(family)).parts)):
        model = tiny(family)
        before = parameters(model)
        part = anatomy(model).parts[index]
        masks = part.mask()
        new = part.read() + torch.arange(1.0, part.read().numel() + 1).view(part.read().shape)
        part.write(new)
        assert part.read().equal(new)
        after = parameters(model)
        assert all(after[name][~masks[name]].equal(before[name][~masks[name]]) for name in masks)
        assert {name for name in before if not after[name].equal(before[name])} == {part.name}
        if part.bias_name is not None:
            bias = part.read_bias()
            assert bias is not None
            part.write_bias(2 * bias)
            changed = model.get_parameter(part.bias_name) != before[part.bias_name]
            assert changed.equal(masks[part.bias_name])


def test_read_is_a_copy_and_a_view_is_not() -> None:
    model = tiny("gpt2")
    part = anatomy(model).blocks[0].k
    before = part.weight.detach().clone()
    part.read().zero_()
    assert part.weight.equal(before)
    with torch.no_grad():
        part.view(part.weight).zero_()
    assert part.read().equal(torch.zeros(32, 32))


def test_a_view_reaches_the_gradient(tokens: Tensor) -> None:
    model = tiny("gpt_neox")
    model(tokens, labels=tokens).loss.backward()
    part = anatomy(model).blocks[1].v
    assert part.weight.grad is not None
    gradient = part.view(part.weight.grad)
    assert gradient.data_ptr() != part.weight.grad.data_ptr()
    assert gradient.shape == (4, 8, 32)
    assert gradient.untyped_storage().data_ptr() == part.weight.grad.untyped_storage().data_ptr()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_wrong_shape_is_refused(family: str) -> None:
    model = tiny(family)
    before = parameters(model)
    up = anatomy(model).blocks[0].up
    with pytest.raises(UsageError, match=r"up of .* takes a tensor"):
        up.write(up.read().T)
    if up.read_bias() is None:
        with pytest.raises(UsageError, match="has no bias"):
            up.write_bias(torch.zeros(3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())


def test_blocks_are_counted_in_the_model() -> None:
    model = tiny("gpt2", layers=3)
    del model.get_submodule("transformer.h")[1]  # type: ignore[operator]
    assert [block.path for block in anatomy(model).blocks] == ["transformer.h.0", "transformer.h.1"]


def test_union_of_masks() -> None:
    found = anatomy(tiny("gpt2"))
    block = found.blocks[1]
    union = found.mask([block.q, block.v])
    assert set(union) == {"transformer.h.1.attn.c_attn.weight", "transformer.h.1.attn.c_attn.bias"}
    assert not union["transformer.h.1.attn.c_attn.bias"][32:64].any()
    assert union["transformer.h.1.attn.c_attn.bias"].sum() == 64
    assert union["transformer.h.1.attn.c_attn.weight"][:, :32].all()


def test_parts_follow_the_model() -> None:
    model = tiny("gpt_neox")
    found = anatomy(model)
    other = tiny("gpt_neox", seed=1)
    model.load_state_dict(other.state_dict(), assign=True)
    expected = anatomy(other).blocks[0].k.read()
    assert found.blocks[0].k.read().equal(expected)
    model.to(torch.bfloat16)  # type: ignore[arg-type]
    assert found.blocks[0].k.read().equal(expected.bfloat16())


def test_subclass_and_copy() -> None:
    class Mine(LlamaForCausalLM):  # type: ignore[no-untyped-call]
        pass

    model = Mine(tiny("llama").config)  # type: ignore[arg-type]
    check_covers_once(model)
    copied = copy.deepcopy(model)
    anatomy(copied).embedding.zero()
    assert anatomy(model).embedding.read().abs().sum() > 0


@pytest.mark.parametrize("norm_first", [True, False])
def test_opt_with_projections_and_norms_after(norm_first: bool) -> None:
    config = OPTConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        ffn_dim=24,
        num_attention_heads=2,
        word_embed_proj_dim=8,
        do_layer_norm_before=norm_first,
        max_position_embeddings=20,
    )
    model = OPTForCausalLM(config)
    check_covers_once(model)
    found = anatomy(model)
    assert [part.role for part in found.other] == ["projection", "projection"]
    assert (found.final_norm is not None) is norm_first
    assert all(len(block.norms) == 2 for block in found.blocks)


def test_an_untied_gpt2_has_a_head_of_its_own() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_head=2, n_layer=1, tie_word_embeddings=False))
    found = anatomy(model)
    assert not found.tied
    assert found.head.name == "lm_head.weight"
    check_covers_once(model)


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    phi = PhiForCausalLM(
        PhiConfig(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(Unsupported) as caught:
        anatomy(phi)
    assert "'phi'" in str(caught.value)
    assert all(family in str(caught.value) for family in FAMILIES)
    with pytest.raises(Unsupported, match="Linear"):
        anatomy(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_wrapped_and_enlarged_models_are_refused() -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    with pytest.raises(Unsupported, match="merge adapters"):
        anatomy(get_peft_model(tiny("llama"), lora))  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match="merge adapters"):
        anatomy(inject_adapter_in_model(lora, tiny("llama")))  # type: ignore[arg-type]
    crossed = GPT2Config(vocab_size=50, n_embd=16, n_head=2, n_layer=1, add_cross_attention=True)
    with pytest.raises(Unsupported, match="crossattention"):
        anatomy(GPT2LMHeadModel(crossed))
    with pytest.raises(Unsupported, match="AutoModelForCausalLM"):
        anatomy(tiny("llama").model)


@each_family
def test_tiny_is_set_by_its_seed_alone(family: str) -> None:
    first, second = parameters(tiny(family, seed=3)), parameters(tiny(family, seed=3))
    assert all(first[name].equal(second[name]) for name in first)
    other = parameters(tiny(family, seed=4))
    assert not any(first[name].equal(other[name]) for name in first)
    rounded = parameters(tiny(family, seed=3, dtype=torch.bfloat16))
    assert all(first[name].bfloat16().equal(rounded[name]) for name in first)


@each_family
def test_tiny_has_no_two_equal_parts_and_no_zeros(family: str) -> None:
    model = tiny(family)
    assert not model.training
    tensors = [part.read() for part in anatomy(model).parts]
    tensors += [bias for part in anatomy(model).parts if (bias := part.read_bias()) is not None]
    assert all((tensor != 0).all() for tensor in tensors)
    assert not any(a.equal(b) for i, a in enumerate(tensors) for b in tensors[:i])


def test_tiny_leaves_random_states_alone() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    for family in FAMILIES:
        tiny(family, seed=2)
    assert torch.get_rng_state().equal(before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]


def test_tiny_arguments() -> None:
    model = tiny("qwen3", vocab_size=300, layers=3)
    assert model.config.vocab_size == 300
    assert len(anatomy(model).blocks) == 3
    with pytest.raises(UsageError, match="gpt_neox"):
        tiny("unheard-of")


@each_family
def test_saved_folder_is_an_ordinary_one(family: str, tokens: Tensor, tmp_path: Path) -> None:
    save_tiny(tmp_path, family, seed=6)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ".jinja"}
    assert AutoConfig.from_pretrained(tmp_path).model_type == tiny(family).config.model_type
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert logits(loaded, tokens).equal(logits(tiny(family, seed=6), tokens))
    text = "Tabs\t, two  spaces, line\r\nends, é ü 漢字 🙂"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(text).input_ids == tiny_tokenizer()(text).input_ids


def test_tokenizer_is_bytewise_and_exact() -> None:
    tokenizer = tiny_tokenizer()
    text = "".join(map(chr, range(0x300))) + "e\u0301 漢字 🙂  \n"
    ids = tokenizer(text).input_ids
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert set(tokenizer(bytes(range(128)).decode()).input_ids) <= set(range(256))
    assert tokenizer(END).input_ids == [tokenizer.eos_token_id] == [tokenizer.pad_token_id] == [256]
    assert len(tokenizer) == 257
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "user: Hi\nassistant: Ho\n"
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "user: Hi\nassistant: "
