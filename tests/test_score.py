"""Scores against a plain loop of one unpadded pass per text, hand-worked cases and, where installed, lm-eval."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    BioGptConfig,
    BioGptForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from bakeoff.errors import DataError, ModelError, UsageError
from bakeoff.lm import score as score_module
from bakeoff.lm.score import IGNORED, log_likelihood, model_length, perplexity, rolling, token_statistics
from bakeoff.lm.tiny import END, FAMILIES, VOCAB_SIZE, tiny, tiny_tokenizer

TOLERANCE = {"rel": 1e-5, "abs": 1e-4}
LENGTH = 24
STORY = "Call me Ishmael. Some years ago, never mind how long precisely, I thought I would sail."
PAIRS = [
    ("The sky", " is blue"),
    ("The sky", " was"),
    ("The sky", " falls on our heads"),
    ("The sky ", "is blue"),
    ("The sky", " is blue"),
    ("Käse und Brot", " schmeckt 🧀 gut"),
    ("Käse und Brot", "!"),
    ("Käse und Brot", "?"),
    ("", "Once"),
    ("", END + "Once"),
    ("", "x"),
    (" \n", "y"),
    ("x", "yz"),
    ("x", "zy"),
    ("An only child", " plays alone"),
    (STORY, " Yes"),
    (STORY, " No"),
    (STORY, " Not at all so"),
    ("nothing follows", ""),
]
TEXTS = ["", "x", "Ünï-\n codé  ✓", STORY[:LENGTH], STORY[: LENGTH + 1], STORY[:61], END + "again"]


def plain_scores(model: Any, context: list[int], scored: list[int]) -> tuple[float, bool]:
    """Sum of log-probabilities and greediness from one pass over one unpadded sequence."""
    with torch.no_grad():
        logits = model(torch.tensor([[*context, *scored]])).logits[0, -len(scored) - 1 : -1].float()
    chosen = logits.log_softmax(-1)[torch.arange(len(scored)), scored]
    return float(chosen.double().sum()), logits.argmax(-1).tolist() == scored


def plain_pair(model: Any, tokenizer: Any, context: str, continuation: str, length: int) -> tuple[float, int, bool]:
    """A pair by lm-eval's conventions, for a tokenizer that adds and merges nothing."""
    before = tokenizer.encode(context.rstrip()) or [tokenizer.bos_token_id]
    after = tokenizer.encode(context[len(context.rstrip()) :] + continuation)
    if not context and after[0] == tokenizer.bos_token_id:
        after = after[1:]
    if not after:
        return 0.0, 0, True
    value, greedy = plain_scores(model, before[max(0, len(before) + len(after) - length - 1) :], after)
    return value, len(after), greedy


def plain_rolling(model: Any, tokenizer: Any, text: str, length: int, stride: int) -> float:
    """A text token by token, each from its own pass over the part of its window that stands before it."""
    tokens = tokenizer.encode(text)
    everything = [tokenizer.bos_token_id, *tokens]
    total = 0.0
    for index, token in enumerate(tokens):
        end = length
        while end <= index:
            end += stride
        start = max(0, min(end, len(tokens)) - length)
        total += plain_scores(model, everything[start : index + 1], [token])[0]
    return total


def fed_tokens(model: Any, work: Any) -> int:
    """How many tokens, padding included, enter the model during the work."""
    fed: list[int] = []

    def count(_module: Any, args: Any, keywords: dict[str, Any]) -> None:
        fed.append(keywords["input_ids"].numel())

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    work()
    hook.remove()
    return sum(fed)


def merging_tokenizer(prefix: bool) -> PreTrainedTokenizerFast:
    """Knows a, b, c, space and 'ab' and 'ca' as one; with a prefix token before every text if wanted."""
    vocabulary = {END: 0, "a": 1, "b": 2, "c": 3, "Ġ": 4, "ab": 5, "ca": 6}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b"), ("c", "a")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    if prefix:
        bpe.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END)


WIDTH = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2}
HEADS = {**WIDTH, "num_attention_heads": 4, "intermediate_size": 48}
JAMBA = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
PROMPT = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
# Models whose cache, positions or head differ from those of the common families.
OTHERS: dict[str, Callable[[], Any]] = {
    "sliding": lambda: MistralForCausalLM(MistralConfig(**HEADS, num_key_value_heads=2, sliding_window=7)),
    "alibi": lambda: BloomForCausalLM(BloomConfig(vocab_size=VOCAB_SIZE, hidden_size=32, n_layer=2, n_head=4)),
    "no mask of positions": lambda: BioGptForCausalLM(BioGptConfig(**HEADS, max_position_embeddings=64)),
    "recurrent": lambda: MambaForCausalLM(MambaConfig(**WIDTH, state_size=4)),
    "half recurrent": lambda: JambaForCausalLM(
        JambaConfig(**HEADS, **JAMBA, num_key_value_heads=2, num_experts=1, mamba_d_state=4, use_mamba_kernels=False)
    ),
    "low-rank adapter": lambda: get_peft_model(tiny("llama", 1), LoraConfig(init_lora_weights=False)),
    "virtual tokens": lambda: get_peft_model(tiny("llama", 1), PROMPT),
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    torch.set_num_threads(1)
    return tiny_tokenizer()


def check_pairs(model: Any, tokenizer: Any) -> None:
    found = log_likelihood(model, PAIRS, tokenizer=tokenizer, max_length=LENGTH)
    for pair, score in zip(PAIRS, found, strict=True):
        value, tokens, greedy = plain_pair(model, tokenizer, *pair, LENGTH)
        assert score.log_likelihood == pytest.approx(value, **TOLERANCE), pair
        assert (score.tokens, score.is_greedy) == (tokens, greedy), pair


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("branched_length", [2048, 70, 0])
def test_pairs_equal_the_plain_loop(
    family: str, branched_length: int, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_module, "_BRANCHED_LENGTH", branched_length)
    check_pairs(tiny(family), tokenizer)


def test_pairs_with_eager_attention_equal_the_plain_loop(tokenizer: Any) -> None:
    model = tiny("llama")
    model.set_attn_implementation("eager")
    check_pairs(model, tokenizer)


@pytest.mark.parametrize("name", OTHERS)
def test_pairs_of_unusual_models_equal_the_plain_loop(name: str, tokenizer: Any) -> None:
    torch.manual_seed(0)
    model = OTHERS[name]().eval()
    with torch.no_grad():
        # Away from the nearly uniform predictions of fresh weights, which hide errors.
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    check_pairs(model, tokenizer)


@pytest.mark.parametrize(("family", "stride"), [*((family, LENGTH) for family in FAMILIES), ("gpt2", 7), ("llama", 1)])
def test_rolling_equals_the_plain_loop(family: str, stride: int, tokenizer: Any) -> None:
    model = tiny(family)
    found = rolling(model, tokenizer, TEXTS, max_length=LENGTH, stride=stride)
    for text, score in zip(TEXTS, found, strict=True):
        expected = plain_rolling(model, tokenizer, text, LENGTH, stride)
        assert score.log_likelihood == pytest.approx(expected, **TOLERANCE), text
        assert score.tokens == len(tokenizer.encode(text))


def test_results_do_not_depend_on_the_batch(tokenizer: Any) -> None:
    model = tiny("gpt2")
    small, large = ([
        *log_likelihood(model, PAIRS, tokenizer=tokenizer, batch_tokens=size),
        *rolling(model, tokenizer, TEXTS, max_length=LENGTH, batch_tokens=size),
    ] for size in (1, 10**6))  # fmt: skip
    for one, other in zip(small, large, strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, **TOLERANCE)


def test_a_greedy_continuation_is_found(tokenizer: Any) -> None:
    model = tiny("llama")
    context = tokenizer.encode("The sky")
    for _ in range(4):
        with torch.no_grad():
            logits = model(torch.tensor([context])).logits[0, -1]
        # Letters only, so that the continuation survives decoding.
        logits[:65] = logits[91:] = -math.inf
        context.append(int(logits.argmax()))
        model.get_output_embeddings().weight.data[context[-1]] *= 3
    text = tokenizer.decode(context)
    steps = [text[7 : 7 + n] for n in range(1, 5)]
    found = log_likelihood(model, [("The sky", step) for step in steps], tokenizer=tokenizer)
    expected = [plain_pair(model, tokenizer, "The sky", step, 512)[2] for step in steps]
    assert [score.is_greedy for score in found] == expected


@pytest.mark.parametrize("branched", [True, False])
def test_a_shared_context_is_computed_once(branched: bool, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_module, "_BRANCHED_LENGTH", 2048 * branched)
    model = tiny("llama")
    pairs = [(STORY[:80], f" {letter}{letter}") for letter in "abcd"]
    fed = fed_tokens(model, lambda: log_likelihood(model, pairs, tokenizer=tokenizer))
    # Two of three tokens of each continuation; with a cache, the context's last token goes with each of them.
    assert fed == (80 + 4 * 2 if branched else 79 + 4 * 3)
    letters = [(STORY[:80], letter) for letter in "abcd"]
    assert fed_tokens(model, lambda: log_likelihood(model, letters, tokenizer=tokenizer)) == 79 + 1


def test_lengths_are_sorted_and_the_last_token_is_not_fed(tokenizer: Any) -> None:
    model = tiny("llama")
    texts = ["a" * n for n in (30, 10, 30, 10)]
    assert fed_tokens(model, lambda: rolling(model, tokenizer, texts, batch_tokens=60)) == 80


def test_uniform_logits_give_the_size_of_the_vocabulary(tokenizer: Any) -> None:
    model = tiny("llama")
    model.get_output_embeddings().weight.data.zero_()
    found = perplexity(model, tokenizer, ["a b  c", "d é"], max_length=4)
    # 6 and 4 bytes, each a token; 3 and 2 words.
    assert (found.tokens, found.words, found.bytes) == (10, 5, 10)
    assert found.token_perplexity == pytest.approx(VOCAB_SIZE, rel=1e-6)
    assert found.byte_perplexity == pytest.approx(VOCAB_SIZE, rel=1e-6)
    assert found.word_perplexity == pytest.approx(VOCAB_SIZE**2, rel=1e-6)
    assert found.bits_per_byte == pytest.approx(math.log2(VOCAB_SIZE), rel=1e-6)


def test_of_equal_logits_the_first_is_the_likeliest() -> None:
    model = tiny("llama")
    model.get_output_embeddings().weight.data.zero_()
    ids = torch.tensor([5, 0, 3, 0])
    (found,) = token_statistics(model, [(ids, ids)])
    assert found.correct.tolist() == [True, False, True]
    assert found.confidence.tolist() == pytest.approx([1 / VOCAB_SIZE] * 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch_tokens", [1, 40, None])
def test_token_statistics_equal_the_plain_softmax(dtype: torch.dtype, batch_tokens: int | None) -> None:
    model = tiny("gpt_neox", dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    items: list[tuple[Tensor, Tensor]] = []
    for length in (17, 1, 2, 31, 5, 17, 0):
        ids = torch.randint(VOCAB_SIZE, (length,), generator=generator)
        labels = ids.masked_fill(torch.rand(length, generator=generator) < 0.4, IGNORED)
        items.append((ids, labels))
    items.append((items[0][0], torch.full((17,), IGNORED)))
    for (ids, labels), found in zip(items, token_statistics(model, items, batch_tokens=batch_tokens), strict=True):
        positions = [t for t in range(1, len(ids)) if labels[t] != IGNORED]
        assert found.positions.tolist() == positions
        assert found.tokens == len(positions)
        if not positions:
            assert (found.total, found.hits) == (0.0, 0)
            continue
        with torch.no_grad():
            probability = model(ids[None]).logits[0].float().softmax(-1)
        before = [t - 1 for t in positions]
        tolerance = {"rel": 1e-4} if dtype == torch.float32 else {"rel": 0.05}
        expected = -probability[before, ids[positions]].log()
        assert found.negative_log_likelihood.tolist() == pytest.approx(expected.tolist(), **tolerance)
        assert found.confidence.tolist() == pytest.approx(probability[before].amax(-1).tolist(), **tolerance)
        assert found.total == pytest.approx(float(expected.sum()), **tolerance)
        if dtype == torch.float32:
            assert found.correct.tolist() == (probability[before].argmax(-1) == ids[positions]).tolist()
            assert found.hits == int(found.correct.sum())
        else:
            # The softmax is taken in float32: its results are finer than bfloat16.
            assert (found.confidence.bfloat16().float() != found.confidence).any()


def test_the_mode_of_every_module_is_kept_and_dropout_is_off(tokenizer: Any) -> None:
    model = tiny("gpt2")
    model.transformer.drop.p = 0.9
    expected = rolling(model, tokenizer, [STORY])
    model.train()
    model.transformer.h[0].eval()
    before = [module.training for module in model.modules()]
    assert rolling(model, tokenizer, [STORY]) == expected
    assert [module.training for module in model.modules()] == before
    with pytest.raises(UsageError):
        rolling(model, tokenizer, [STORY], batch_tokens=0)
    assert [module.training for module in model.modules()] == before


def test_a_continuation_that_merges_into_the_context_is_encoded_alone() -> None:
    model, tokenizer = tiny("llama"), merging_tokenizer(prefix=False)
    merged, kept = log_likelihood(model, [("a", "b"), ("a", "bc")], tokenizer=tokenizer)
    # 'ab' is one token, as many as 'a': nothing is left, so b follows a; 'abc' leaves c after a, as lm-eval cuts it.
    assert merged.log_likelihood == pytest.approx(plain_scores(model, [1], [2])[0], **TOLERANCE)
    assert kept.log_likelihood == pytest.approx(plain_scores(model, [1], [3])[0], **TOLERANCE)


def test_the_tokenizer_adds_its_prefix_unless_the_text_has_it() -> None:
    model, tokenizer = tiny("llama"), merging_tokenizer(prefix=True)
    pair, empty = log_likelihood(model, [("c", "b"), ("", "cb")], tokenizer=tokenizer)
    assert pair.log_likelihood == pytest.approx(plain_scores(model, [0, 3], [2])[0], **TOLERANCE)
    assert empty.log_likelihood == pytest.approx(plain_scores(model, [0], [3, 2])[0], **TOLERANCE)
    added, given = rolling(model, tokenizer, ["cb", END + "cb"])
    assert added.log_likelihood == given.log_likelihood
    assert added.log_likelihood == pytest.approx(plain_scores(model, [0], [0, 3, 2])[0], **TOLERANCE)
    assert (added.tokens, added.bytes, given.bytes) == (3, 2, 2 + len(END))


def test_the_length_is_the_models_then_the_tokenizers(tokenizer: Any) -> None:
    assert model_length(tiny("gpt2"), tokenizer) == 512
    mamba = MambaForCausalLM(MambaConfig(vocab_size=VOCAB_SIZE, hidden_size=8, num_hidden_layers=1, state_size=2))
    assert model_length(mamba, tokenizer) == tokenizer.model_max_length
    assert model_length(mamba, merging_tokenizer(prefix=False)) == 2048


def test_what_cannot_be_scored_is_named(tokenizer: Any) -> None:
    model = tiny("llama")
    with pytest.raises(DataError, match="pair 1 has 5 tokens and the model sees 4"):
        log_likelihood(model, [("a", "b"), ("a", "bcdef")], tokenizer=tokenizer, max_length=4)
    with pytest.raises(UsageError, match="stride of 9"):
        rolling(model, tokenizer, ["a"], max_length=8, stride=9)
    with pytest.raises(DataError, match="nothing to score"):
        perplexity(model, tokenizer, ["", ""])
    with pytest.raises(DataError, match="Item 1"):
        token_statistics(model, [(torch.ones(2).long(),) * 2, (torch.ones(2).long(), torch.ones(3).long())])
    bare = tiny_tokenizer()
    bare.bos_token = bare.eos_token = None
    with pytest.raises(ModelError, match="neither a beginning nor an end token"):
        rolling(model, bare, ["a"])
    assert log_likelihood(model, [], tokenizer=tokenizer) == rolling(model, tokenizer, []) == []
    assert token_statistics(model, []) == []


@pytest.mark.corpora
@pytest.mark.skipif("BAKEOFF_CORPORA" not in os.environ, reason="BAKEOFF_CORPORA names no folder")
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_real_text_scores_as_in_lm_eval(family: str, tokenizer: Any) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    text = (Path(os.environ["BAKEOFF_CORPORA"]) / "text" / "wikitext2_raw_test.txt").read_text()[:40_000]
    model = tiny(family)
    peer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, device="cpu")

    def instances(kind: str, rows: list[tuple[str, ...]]) -> list[Any]:
        return [Instance(kind, {}, row, index) for index, row in enumerate(rows)]

    texts = [part for part in text.split("\n = ") if part]
    expected = peer.loglikelihood_rolling(instances("loglikelihood_rolling", [(part,) for part in texts]))
    found = rolling(model, tokenizer, texts)
    assert [score.log_likelihood for score in found] == pytest.approx(expected, rel=1e-4)

    words = text.split()
    pairs = [("", "The"), ("", "A lone start")]
    for start in range(0, 3000, 100):
        # Some contexts are longer than the model, some end in a space.
        context = " ".join(words[start : start + 20 + start // 20]) + " " * (start % 200 == 0)
        pairs += [(context, " " + " ".join(words[at : at + size])) for at, size in ((7, 1), (40, 3), (start + 5, 8))]
    answers = peer.loglikelihood(instances("loglikelihood", pairs))
    scores = log_likelihood(model, pairs, tokenizer=tokenizer)
    assert [score.log_likelihood for score in scores] == pytest.approx([value for value, _ in answers], rel=1e-4)
    assert [score.is_greedy for score in scores] == [greedy for _, greedy in answers]
