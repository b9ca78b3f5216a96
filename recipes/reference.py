"""Train the packaged reference model: a small Llama on stories, encyclopedia, speeches, web text, code and docstrings.

    BAKEOFF_CORPORA=/path/to/corpora python recipes/reference.py --out bakeoff/lm/reference

The corpora folder is the one that the tests use (text/ and code/); docstrings come from what is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from bakeoff.training.threads import keep_memory

keep_memory()

import tokenizers  # noqa: E402
import torch  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from bakeoff import files  # noqa: E402
from bakeoff.budget import Budget  # noqa: E402
from bakeoff.lm.load import save  # noqa: E402
from bakeoff.text.installed import installed  # noqa: E402
from bakeoff.text.tokenise import Item  # noqa: E402
from bakeoff.training.batches import Shuffled, collate  # noqa: E402
from bakeoff.training.objectives import cross_entropy  # noqa: E402
from bakeoff.training.run import Run  # noqa: E402

END = "<|endoftext|>"
VOCABULARY, WINDOW, ROWS, HELD_OUT = 4096, 256, 16, 0.04
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def sources(corpora: Path) -> dict[str, list[str]]:
    """Documents by source. Shakespeare, Gatsby, WikiText's test part and the instructions are left for later use."""

    def rows(name: str) -> list[str]:
        return [json.loads(line)["text"] for line in (corpora / name).read_text("utf-8").splitlines() if line.strip()]

    wikitext = (corpora / "text/wikitext2_raw_valid.txt").read_text("utf-8").split("\n = ")
    return {
        "stories": (corpora / "text/tinystories_sample.txt").read_text("utf-8").split(END),
        "encyclopedia": (corpora / "text/wiki_demo.txt").read_text("utf-8").splitlines() + wikitext,
        "speeches": rows("text/inaugural.jsonl"),
        "mixed genres": rows("text/masc_plain.jsonl"),
        "web": rows("text/c4_demo.jsonl"),
        "code": rows("code/code_corpus.jsonl"),
        "docstrings": [example.text for example in installed("docstrings", limit=3_000_000)],
    }


def hold_out(documents: Iterable[str]) -> tuple[list[str], list[str]]:
    """Documents for training and, chosen by content hash, the 4% (at least one) held out."""
    kept = sorted({d.strip() for d in documents if d.strip()}, key=lambda d: hashlib.sha256(d.encode()).digest())
    count = math.ceil(len(kept) * HELD_OUT)
    return kept[count:], kept[:count]


def train_tokenizer(documents: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with 4,096 tokens; digits stand alone."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        documents,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=END, model_max_length=512)
    made.chat_template = CHAT_TEMPLATE
    return made


def windows(documents: Iterable[str], tokenizer: PreTrainedTokenizerFast) -> list[Item]:
    """Documents one after the other, the end token between them, in windows of 256 tokens; the rest is left over."""
    stream: list[int] = []
    for document in documents:
        stream += [*tokenizer.encode(document, add_special_tokens=False), tokenizer.eos_token_id]
    ids = torch.tensor(stream[: len(stream) // WINDOW * WINDOW]).view(-1, WINDOW)
    return [Item(row, row, "") for row in ids]


@torch.inference_mode()
def held_out_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, documents: list[str]
) -> tuple[float, float]:
    """Mean loss in nats a token over windows, and bits a byte."""
    items = windows(documents, tokenizer)
    losses = [
        float(cross_entropy(model, collate(items[i : i + 16]), 0)) * len(items[i : i + 16])
        for i in range(0, len(items), 16)
    ]
    nats = sum(losses) / len(items)
    tokens = sum(len(tokenizer.encode(d, add_special_tokens=False)) for d in documents)
    size = sum(len(d.encode()) for d in documents)
    return nats, nats * tokens / size / math.log(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=float, default=12e6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument(
        "--work", type=Path, default=None, help="folder of checkpoints; the same one goes on after a kill"
    )
    given = parser.parse_args()
    parts = {name: hold_out(documents) for name, documents in sources(Path(os.environ["BAKEOFF_CORPORA"])).items()}
    training = [document for train, _ in parts.values() for document in train]
    tokenizer = train_tokenizer(training)
    items = windows(training, tokenizer)
    print(f"{sum(map(len, training)):,} characters, {len(items) * WINDOW:,} tokens", flush=True)

    torch.manual_seed(given.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
            initializer_range=0.02,
        )
    )
    began, seen = time.time(), 0

    def report(fraction: float, loss: float) -> None:
        nonlocal seen
        seen += 1
        if seen % 50 == 0:
            print(
                f"{fraction:6.1%}  loss {loss:.3f}  {seen * ROWS * WINDOW / (time.time() - began):,.0f} tokens/s",
                flush=True,
            )

    run = Run(
        Budget(given.tokens, "tokens"), given.seed, given.work or Path(tempfile.mkdtemp()),
        dtype=torch.bfloat16, checkpoint_seconds=120, progress=report,
    )  # fmt: skip
    run.train(
        model, Shuffled(items, ROWS, given.seed), learning_rate=given.learning_rate,
        optimizer=lambda ps, lr: torch.optim.AdamW(ps, lr=lr, betas=(0.9, 0.95), weight_decay=0.1),
    )  # fmt: skip
    model = model.to(torch.bfloat16)
    measured = {name: held_out_loss(model.float(), tokenizer, held) for name, (_, held) in parts.items()}
    card = model_card(model, given, run, parts, measured, len(items) * WINDOW)
    with files.replace_folder(given.out) as folder:
        save(model.to(torch.bfloat16), tokenizer, folder)
        (folder / "README.md").write_text(card, "utf-8")
    print(card)


def model_card(model, given, run, parts, measured, tokens) -> str:  # type: ignore[no-untyped-def]
    rows = "\n".join(
        f"| {name} | {len(parts[name][0])} | {sum(map(len, parts[name][0])):,} | {len(parts[name][1])} | {nats:.3f} | {bits:.3f} |"
        for name, (nats, bits) in measured.items()
    )
    parameters = sum(p.numel() for p in model.parameters())
    return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# bakeoff reference model

A Llama of {parameters / 1e6:.1f}M parameters that has learned some English and some Python: small enough to fine-tune in seconds on a
processor, trained enough to have something to lose. It is there for demonstrations, tests and examples, not for use.

Made by `recipes/reference.py` (seed {given.seed}): {run.meter.steps:,} steps of {ROWS} x {WINDOW} tokens,
{run.meter.tokens:,} tokens in all ({run.meter.tokens / tokens:.1f} passes over {tokens:,}), AdamW with peak learning rate
{given.learning_rate:g}, bf16 autocast, {run.meter.seconds / 60:.0f} minutes on a processor (torch threads: {torch.get_num_threads()}).
4 layers, width 256, 4 heads sharing 2 key-value heads, byte-level BPE with {VOCABULARY:,} tokens, 512 positions, embeddings tied.
torch {torch.__version__}, tokenizers {tokenizers.__version__}, Python {platform.python_version()}.

Held-out documents are chosen by the hash of their content ({HELD_OUT:.0%} of each source, at least one), and their loss is measured in
windows of {WINDOW} tokens on the weights as saved, in bf16.

| source | documents | characters | held out | loss (nats a token) | bits a byte |
|---|---|---|---|---|---|
{rows}

Sources: stories are TinyStories (CDLA-Sharing-1.0); encyclopedia is English Wikipedia and the validation part of WikiText-2 (CC BY-SA);
speeches are the inaugural addresses of US presidents (public domain); mixed genres are MASC; web is a slice of C4 (ODC-By);
code is from botorch (MIT), PyTorch's examples (BSD-3-Clause) and litgpt (Apache-2.0); docstrings are those of the installed
standard library and packages. The model may repeat fragments of them.
"""


if __name__ == "__main__":
    main()
