"""Training: our loop beside transformers' bare loop, its Trainer and TRL's SFTTrainer, in tokens per second.

Both sides have the same model, text, batch, precision, optimizer and allocator setting, and what both mask is equal: TRL's
'wrapped' packing cuts one stream of text, as our windows do; its default packing keeps documents apart, as ours does. Every
contender takes `--steps` steps in turn, `--repeats` times, in one process; a contender's speed is the median. The first step
of every turn, and what comes before and after the steps, is not counted, nor is each one's first turn, which compiles.

Besides: how much of the rate of bare matrix products at the same shapes a step reaches; where its time goes; and the peak
memory of the loss at a vocabulary of 128k, chunked and whole.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bakeoff.training.threads import keep_memory

keep_memory()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from torch import nn
from torch.profiler import profile
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from bakeoff.budget import Budget
from bakeoff.lm.decoder import DecoderConfig, DecoderForCausalLM
from bakeoff.text.tokenise import Item
from bakeoff.training.batches import Batches, Shuffled, Windows, pack
from bakeoff.training.run import Run

VOCABULARY = 4096
RATE = 1e-3
Work = Callable[[int], float]
"""Takes so many steps and says how long all but the first took, in seconds: preparations count for nobody."""


def llama(width: int, layers: int, length: int) -> nn.Module:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64,
        intermediate_size=-(-8 * width // 3 // 32) * 32, max_position_embeddings=length, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(shape)


def gpt2(width: int, layers: int, length: int) -> nn.Module:
    torch.manual_seed(0)
    shape = GPT2Config(
        vocab_size=VOCABULARY, n_embd=width, n_layer=layers, n_head=width // 64, n_positions=length,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(shape)


def decoder(width: int, layers: int, length: int) -> nn.Module:
    torch.manual_seed(0)
    shape = DecoderConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64,
        max_position_embeddings=length,
    )  # fmt: skip
    return DecoderForCausalLM(shape)


def bare(model: nn.Module, rows: int, length: int, dtype: torch.dtype) -> Work:
    """The loop that everyone writes first: forward with labels, backward, clip, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    batches = Windows(text(rows, length), rows, length, 0)

    def work(steps: int) -> float:
        model.train()
        for step in range(steps):
            if step == 1:
                begin = time.perf_counter()
            ids = batches(step).input_ids
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
        return time.perf_counter() - begin

    return work


def ours(model: nn.Module, batches: Batches, dtype: torch.dtype, compile: str = "never") -> Work:
    def work(steps: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            run = Run(
                Budget.parse(f"{steps}steps"), 0, Path(folder), dtype=dtype, checkpoint_seconds=1e9, compile=compile
            )
            run.train(model, batches, learning_rate=RATE)
        return sum(run.step_seconds[1:])

    return work


def text(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (64 * rows * length,), generator=torch.Generator().manual_seed(1))


def documents(count: int, longest: int) -> list[list[int]]:
    """Texts of between an eighth of the greatest length and all of it."""
    draw = torch.Generator().manual_seed(2)
    sizes = torch.randint(longest // 8, longest + 1, (count,), generator=draw).tolist()
    return [torch.randint(0, VOCABULARY, (size,), generator=draw).tolist() for size in sizes]


def peers_arguments(steps: int, rows: int, dtype: torch.dtype) -> dict[str, Any]:
    """What both Trainers are told, so that they do what our loop does and nothing besides."""
    return {
        "max_steps": steps, "per_device_train_batch_size": rows, "learning_rate": RATE, "bf16": dtype == torch.bfloat16,
        "use_cpu": True, "report_to": [], "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
        "weight_decay": 0.0,
    }  # fmt: skip


def trainer(model: nn.Module, rows: int, length: int, dtype: torch.dtype) -> Work:
    """transformers' Trainer on the same windows."""
    whole = text(rows, length).view(-1, length)
    data = [{"input_ids": row, "labels": row} for row in whole]

    def work(steps: int) -> float:
        seen = Steps()
        with _quiet_folder() as folder:
            arguments = TrainingArguments(folder, **peers_arguments(steps, rows, dtype))
            Trainer(model=model, args=arguments, train_dataset=data, callbacks=[seen]).train()
        return seen.seconds()

    return work


def sft(model: nn.Module, rows: int, length: int, dtype: torch.dtype, strategy: str) -> Work:
    """TRL's SFTTrainer with packing: 'wrapped' cuts one stream, 'bfd' keeps documents apart."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    vocabulary = {f"t{i}": i for i in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t0")))
    tokenizer.pad_token = tokenizer.eos_token = "t0"
    data = Dataset.from_dict({"input_ids": documents(64 * rows, length)})

    def work(steps: int) -> float:
        seen = Steps()
        with _quiet_folder() as folder:
            arguments = SFTConfig(
                folder, packing=True, packing_strategy=strategy, max_length=length, gradient_checkpointing=False,
                dataset_kwargs={"skip_prepare_dataset": False}, **peers_arguments(steps, rows, dtype),
            )  # fmt: skip
            made = SFTTrainer(
                model=model, args=arguments, train_dataset=data, processing_class=tokenizer, callbacks=[seen]
            )
            made.train()
        return seen.seconds()

    return work


@contextlib.contextmanager
def _quiet_folder() -> Iterator[str]:
    folder = tempfile.mkdtemp()
    with contextlib.redirect_stdout(open(os.devnull, "w")):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class Steps(TrainerCallback):
    """When a Trainer's steps ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    def seconds(self) -> float:
        return self.ends[-1] - self.ends[0]


def race(contenders: dict[str, Work], tokens: dict[str, float], steps: int, repeats: int) -> dict[str, float]:
    """Tokens per second of each, measured in turn; `tokens` are those of a step."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name in sorted(contenders, reverse=repeat % 2 == 1):
            seconds = contenders[name](steps)
            if repeat:
                taken[name].append(seconds)
    return {name: (steps - 1) * tokens[name] / statistics.median(times) for name, times in taken.items()}


def product_rate(width: int, rows: int, length: int, dtype: torch.dtype) -> float:
    """FLOP/s of the matrix products of a step at these shapes, one after another, with nothing between them."""
    tokens, inner = rows * length, -(-8 * width // 3 // 32) * 32
    shapes = [(tokens, width, 3 * width), (tokens, width, width), (tokens, width, 2 * inner), (tokens, inner, width)]
    shapes += [(tokens, width, VOCABULARY)]
    pairs = [(torch.randn(a, b, dtype=dtype), torch.randn(b, c, dtype=dtype)) for a, b, c in shapes]
    flops, times = sum(2 * a * b * c for a, b, c in shapes), []
    for _ in range(7):
        begin = time.perf_counter()
        for one, other in pairs:
            one @ other
        times.append(time.perf_counter() - begin)
    return flops / statistics.median(times)


def flops_per_token(model: nn.Module, rows: int, length: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Budget.parse("1steps"), 0, Path(folder))
        run.train(model, Windows(text(rows, length), rows, length, 0), learning_rate=RATE)
    return run.meter.flops / run.meter.tokens


MEMORY = """
import sys, torch
from pathlib import Path
from bakeoff.training.objectives import linear_cross_entropy
torch.manual_seed(0)
hidden = torch.randn(1024, 256, requires_grad=True)
weight = torch.randn(128_000, 256, requires_grad=True)
labels = torch.randint(0, 128_000, (1024,))
Path("/proc/self/clear_refs").write_text("5")
before = int(next(l.split()[1] for l in open("/proc/self/status") if l.startswith("VmRSS")))
if sys.argv[1] == "chunked":
    linear_cross_entropy(hidden, weight, labels).backward()
else:
    torch.nn.functional.cross_entropy(hidden @ weight.T, labels).backward()
peak = int(next(l.split()[1] for l in open("/proc/self/status") if l.startswith("VmHWM")))
print(peak - before)
"""


def loss_memory() -> dict[str, float]:
    """Megabytes that loss and gradients take over 1,024 tokens at a vocabulary of 128,000, each in a fresh process."""
    return {
        kind: int(subprocess.check_output([sys.executable, "-c", MEMORY, kind], text=True)) / 1024
        for kind in ("chunked", "whole")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print nothing but the last line, which is JSON")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--only", default="", help="run the sections whose name holds this")
    parser.add_argument("--compile", action="store_true", help="have our side compiled as well")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    say: Callable[[str], None] = (lambda line: None) if given.json else print
    found: dict[str, Any] = {}
    wide, short = (256, 4, 16, 256), (384, 6, 64, 32)
    half, full = torch.bfloat16, torch.float32

    def windows(rows: int, length: int) -> Windows:
        return Windows(text(rows, length), rows, length, 0)

    def section(
        name: str, contenders: dict[str, Work], tokens: float | dict[str, float], goals: dict[str, float]
    ) -> None:
        if given.only not in name:
            return
        each = tokens if isinstance(tokens, dict) else dict.fromkeys(contenders, tokens)
        speeds = race(contenders, each, given.steps, given.repeats)
        say(f"\n{name}")
        mine = [label for label in speeds if label.startswith("ours")]
        for label, speed in speeds.items():
            against = "".join(
                f"   {speeds[m] / speed:5.2f}x{' compiled' if 'compiled' in m else ''} (goal {goals[label]:g})"
                for m in mine
                if label in goals
            )
            say(f"  {label:34} {speed:9,.0f} tokens/s{against}")
        found[name] = speeds

    def with_compiled(model: Callable[[], nn.Module], rows: int, length: int, dtype: torch.dtype) -> dict[str, Work]:
        made = {"ours": ours(model(), windows(rows, length), dtype)}
        return (
            {**made, "ours, compiled": ours(model(), windows(rows, length), dtype, "always")} if given.compile else made
        )

    for label, make in (("llama", llama), ("gpt2", gpt2)):
        for dtype in (half, full):
            width, layers, rows, length = wide
            new = lambda make=make: make(256, 4, 256)  # noqa: E731
            section(
                f"the user's {label}, {str(dtype)[6:]}, 4 layers of 256, 16 x 256 tokens",
                {
                    **with_compiled(new, rows, length, dtype), "transformers, bare": bare(new(), rows, length, dtype),
                    "transformers, Trainer": trainer(new(), rows, length, dtype),
                    "trl, SFTTrainer wrapped": sft(new(), rows, length, dtype, "wrapped"),
                },
                rows * length, {"transformers, Trainer": 1.5, "trl, SFTTrainer wrapped": 3.0},
            )  # fmt: skip
    packed = pack([Item(torch.tensor(d), torch.tensor(d), "") for d in documents(1024, 256)], 256)
    share = sum(len(row.input_ids) for row in packed) / len(packed)
    section(
        "documents kept apart, llama, bfloat16, 16 rows of at most 256 tokens",
        {
            "ours, packed": ours(llama(256, 4, 256), Shuffled(packed, 16, 0), half),
            "trl, SFTTrainer default packing": sft(llama(256, 4, 256), 16, 256, half, "bfd"),
        },
        16 * share, {"trl, SFTTrainer default packing": 3.0},
    )  # fmt: skip
    for name, (width, layers, rows, length), goal in (
        ("4 layers of 256, 16 x 256", wide, 1.8),
        ("6 layers of 384, 64 x 32", short, 2.0),
    ):
        new = lambda width=width, layers=layers, length=length: decoder(width, layers, length)  # noqa: E731
        section(
            f"our decoder, bfloat16, {name} tokens",
            {**with_compiled(new, rows, length, half), "transformers, bare llama": bare(llama(width, layers, length), rows, length, half)},
            rows * length, {"transformers, bare llama": goal},
        )  # fmt: skip
    if given.only in "share of the products' rate":
        say("\nshare of the rate of bare matrix products at the same shapes")
        for label, (width, layers, rows, length), dtype in (("bfloat16", wide, half), ("float32", wide, full)):
            limit = product_rate(width, rows, length, dtype)
            model = decoder(width, layers, length)
            need = flops_per_token(model, rows, length)
            speed = race(
                {"o": ours(model, windows(rows, length), dtype)}, {"o": rows * length}, given.steps, given.repeats
            )["o"]
            say(
                f"  {label:9} products {limit / 1e9:6.0f} GFLOP/s, our step {speed * need / 1e9:6.0f}: {speed * need / limit:.0%}"
            )
            found[f"share of products, {label}"] = {"limit": limit, "step": speed * need, "share": speed * need / limit}
    if given.only in "memory":
        memory = loss_memory()
        say(
            f"\nloss over 1,024 tokens, vocabulary 128,000: {memory['chunked']:.0f} MB chunked, {memory['whole']:.0f} MB whole"
        )
        found["memory of the loss, MB"] = memory
    if given.only in "profile" and not given.json:
        work = ours(decoder(*wide[:2], wide[3]), windows(wide[2], wide[3]), half)
        work(2)
        with profile() as seen:
            work(3)
        say("\nwhere the time of three steps goes")
        say(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=44))
    print(json.dumps({"benchmark": "train", "tokens_per_second": found}))


if __name__ == "__main__":
    main()
