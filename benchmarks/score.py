"""bakeoff.lm.score against lm-eval's Hugging Face model: the same numbers, then tokens per second.

Both sides have the same model (Llama shape, 4 layers, 256 wide, vocabulary 4096, random weights, float32), tokenizer,
texts and two threads. The peer is timed at whichever of its batch sizes is fastest. What counts as a token is the same
for both: every token of every text, and of context and continuation of every choice.

Whole texts come in two kinds. Docstrings, one a text, differ in length, and sorting them saves padding. Chapters of the
language reference fill one window after the other: both sides do the same matrix products, so parity is the goal.
"""

from __future__ import annotations

import ast
import io
import random
import sys
import sysconfig
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import Ratio, arguments, measure, report, seconds

from bakeoff.training.threads import keep_memory

THREADS = 2
BATCH_SIZES = (8, 16, 32, 64)
DOCSTRINGS = 200
CHAPTER_CHARACTERS = 40_000
QUESTIONS = 40
CHOICES = 4
# A passage and short answers, as in reading comprehension or after a few worked examples.
CONTEXT_WORDS, CHOICE_WORDS = (80, 200), (2, 8)
END = "<|endoftext|>"
TOLERANCE = 1e-4


def main() -> None:
    options = arguments("lm.score against lm-eval: log-likelihood of whole texts and of four choices, in tokens/s")
    if find_spec("lm_eval") is None:
        print("This benchmark compares with lm-eval: run pip install 'bakeoff[bench]' first.", file=sys.stderr)
        raise SystemExit(2)
    keep_memory()

    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from bakeoff.lm.score import log_likelihood, rolling
    from bakeoff.text.installed import installed

    torch.set_num_threads(THREADS)
    documents = docstrings()
    chapters = [example.text for example in installed("reference", limit=CHAPTER_CHARACTERS)]
    tokenizer = trained_tokenizer(documents + chapters)
    model = random_model(tokenizer)
    pairs = questions(documents)
    documents = random.Random(0).sample(documents, DOCSTRINGS)

    def tokens(texts: list[str]) -> int:
        return sum(map(len, tokenizer(texts, verbose=False)["input_ids"]))

    peers = {size: HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size, device="cpu") for size in BATCH_SIZES}

    def instances(kind: str, rows: Sequence[tuple[str, ...]]) -> list[Any]:
        return [Instance(kind, {}, row, index) for index, row in enumerate(rows)]

    def whole(label: str, texts: list[str], goal: float) -> Ratio:
        requests = instances("loglikelihood_rolling", [(text,) for text in texts])
        return compare(
            label,
            lambda: [score.log_likelihood for score in rolling(model, tokenizer, texts)],
            lambda size: peers[size].loglikelihood_rolling(requests, disable_tqdm=True),
            tokens(texts),
            goal,
            options,
        )

    choices = instances("loglikelihood", pairs)
    ratios = {
        "rolling": whole("rolling", documents, 1.2),
        "rolling, full windows": whole("rolling, full windows", chapters, 1.0),
        "four choices": compare(
            "four choices",
            lambda: [found.log_likelihood for found in log_likelihood(model, pairs, tokenizer=tokenizer)],
            lambda size: [value for value, _ in peers[size].loglikelihood(choices, disable_tqdm=True)],
            tokens(["".join(pair) for pair in pairs]),
            3.0,
            options,
        ),
    }
    report("score", "tokens/s", ratios, json_only=options.json)


def compare(
    label: str,
    ours: Callable[[], list[float]],
    lm_eval: Callable[[int], list[float]],
    tokens: int,
    goal: float,
    options: Namespace,
) -> Ratio:
    """Time both sides once they agree, the peer at the batch size that suits it best."""

    def peer(size: int) -> list[float]:
        # Its progress bars cannot all be switched off.
        with redirect_stderr(io.StringIO()):
            return lm_eval(size)

    difference = max(abs(mine - theirs) / abs(theirs) for mine, theirs in zip(ours(), peer(8), strict=True))
    if not difference <= TOLERANCE:
        raise SystemExit(
            f"{label}: our numbers differ from lm-eval's by {difference:.1e} relative, so nothing is timed."
        )
    best = min(BATCH_SIZES, key=lambda size: min(seconds(lambda: peer(size)) for _ in range(2)))
    if not options.json:
        print(f"{label}: {tokens} tokens, agrees to {difference:.0e}, lm-eval's best batch size is {best}", flush=True)
    return measure(ours, lambda: peer(best), tokens, goal=goal, repeats=options.repeats)


def docstrings() -> list[str]:
    """Every docstring of the standard library's own modules, each once."""
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                found[text] = None
    return list(found)


def trained_tokenizer(texts: list[str]) -> Any:
    """A byte-level BPE tokenizer of 4096 tokens, trained on the texts."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=4096, special_tokens=[END], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token=END, eos_token=END, pad_token=END)


def random_model(tokenizer: Any) -> Any:
    """The model that both sides score with."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config).eval()


def questions(texts: list[str]) -> list[tuple[str, str]]:
    """Pairs of a passage and a few words from anywhere in the texts; CHOICES pairs in turn have the same passage."""
    draw = random.Random(0)
    words = " ".join(texts).split()

    def passage(span: tuple[int, int]) -> str:
        start = draw.randrange(len(words) - span[1])
        return " ".join(words[start : start + draw.randint(*span)])

    pairs: list[tuple[str, str]] = []
    for _ in range(QUESTIONS):
        context = passage(CONTEXT_WORDS)
        pairs += [(context, " " + passage(CHOICE_WORDS)) for _ in range(CHOICES)]
    return pairs


if __name__ == "__main__":
    main()
