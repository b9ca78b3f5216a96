"""The pretrain contest: a method receives an architecture, a stream of tokens and a budget; it returns a trained model.

The architecture comes as a model with random weights, the same ones for all methods of a seed. The exam measures the loss on
held-out text in nats a token and in bits a byte, which does not depend on the tokenizer, and how steadily training went.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import re
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from bakeoff import lm, registry
from bakeoff.contest import Contest, Setting
from bakeoff.errors import BakeoffError, DataError, ModelError, UsageError
from bakeoff.lm.decoder import DecoderConfig
from bakeoff.lm.load import read_config, read_tokenizer
from bakeoff.lm.score import token_statistics
from bakeoff.lm.tiny import tiny, tiny_tokenizer
from bakeoff.method import Method, Spec
from bakeoff.metric import Measured, Metric
from bakeoff.text import documents, read
from bakeoff.text.read import TASK, Example
from bakeoff.text.stream import stream
from bakeoff.text.tokenise import IGNORED, Item
from bakeoff.training.batches import derived_seed
from bakeoff.training.exam import (
    chosen,
    device_named,
    divided,
    greatest_difference,
    named_texts,
    other_loss,
    sums,
    table_of_texts,
    text_digest,
)
from bakeoff.training.options import TrainingQuestion
from bakeoff.training.run import Run
from bakeoff.training.sources import Piece, PretrainData, TaskData, TextData, open_task

_CHARACTERS_A_TOKEN = 3  # about, of English: what makes a piece of text in the exam about as long as a row
_SPIKE, _PAST, _FEWEST = 4.0, 64, 16

HELD_OUT_LOSS = Metric("held_out_loss", "nats/token", "lower", "mean loss on held-out text")
BITS_PER_BYTE = Metric(
    "bits_per_byte", "bits/byte", "lower", "loss on held-out text per byte of it, whatever the tokenizer"
)
ACCURACY = Metric("accuracy", "share", "higher", "share of held-out tokens predicted first")
EXACT = Metric("exact_match", "share", "higher", "share of a task's answers whose every token is predicted first")
INSTABILITY = Metric(
    "instability", "share", "lower",
    f"share of training steps whose loss lies over {_SPIKE:g} robust standard deviations above the median of the last {_PAST}",
)  # fmt: skip


def exact_of(difficulty: str) -> Metric:
    """Exact answers at one difficulty of a task."""
    return Metric(f"exact_match:{difficulty}", "share", "higher", f"share of right answers at {difficulty}")


class PretrainQuestion(TrainingQuestion):
    """Which way of training from scratch makes the best model of this architecture, this text and this budget?"""

    architecture: str = Field(
        description='"decoder(hidden_size=128, num_hidden_layers=2)", or a folder whose config.json is taken, without weights.'
    )
    train: str = Field(
        description="Training text: .txt, .jsonl, .csv, .parquet, a dataset folder or a hub id; or a synthetic task, "
        "such as task:sorting(symbols=50)."
    )
    difficulty: str | None = Field(None, description="Of a task: what is learned, as in 3, 1-5 or 1-5,10.")
    exam_difficulty: str | None = Field(
        None, description="Of a task: what the exam asks, each difficulty by itself. Default: what is learned."
    )
    tokenizer: str = Field(
        "reference",
        description="Folder of a tokenizer, or 'reference' for the packaged one; a task has one of its own.",
    )
    valid: str | None = Field(None, description="Held-out text for the exam. Default: a tenth of --train.")
    also: tuple[str, ...] = Field(
        (), description="Further text that no method sees, whose loss is reported as other_loss; may be repeated."
    )
    max_length: int | None = Field(
        None, ge=8, description="Tokens in a training row. Default: 256, or the architecture's positions."
    )
    exam_items: int = Field(
        96,
        ge=2,
        description="Pieces of each text in the exam, at most, each about a row long; examples of each difficulty.",
    )


@dataclass
class PretrainSetting(Setting):
    """An architecture, its token stream and the exam's pieces: `held_out`, then other texts by name.

    `untouched` has the random weights of `seed`; a trial starts from those of its own.
    """

    question: PretrainQuestion
    config: PretrainedConfig
    data: PretrainData
    pieces: Mapping[str, Sequence[Piece]]
    origin: Mapping[str, Any]
    device: torch.device
    seed: int = 0
    _random: dict[int, PreTrainedModel] = field(default_factory=dict, repr=False)
    _spikes: weakref.WeakKeyDictionary[Any, tuple[int, int]] = field(
        default_factory=weakref.WeakKeyDictionary, repr=False
    )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_random": {}, "_spikes": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({**state, "_spikes": weakref.WeakKeyDictionary()})

    def made_by(self) -> dict[str, Any]:
        q = self.question
        return {
            "inputs": dict(self.origin), "exam": sorted(self.pieces), "exam_items": q.exam_items,
            "max_length": self.data.length, "rows": self.data.rows, **q.training(), "device": self.device.type,
        }  # fmt: skip

    def lacks(self, method: Method) -> str | None:
        return None

    def surroundings(self) -> dict[str, Any]:
        return self.question.surroundings(self.device)

    def random(self, seed: int) -> PreTrainedModel:
        """The model with the random weights of a seed; the last one asked for is kept."""
        if seed not in self._random:
            self._random.clear()
            self._random[seed] = initial(self.config, seed).to(self.device)  # type: ignore[arg-type]
            self._spikes[self._random[seed]] = (0, 0)
        return self._random[seed]

    def perform(self, method: Method, arguments: Mapping[str, Any], run: Run) -> Any:
        result = method(self.random(run.seed), self.data, run, **arguments)
        self._spikes[result] = (spikes([loss for _, _, loss in run.curve]), len(run.curve))
        return result

    def untouched(self) -> Any:
        return self.random(self.seed)

    def metrics(self) -> list[Metric]:
        others = [name for name in self.pieces if name != "held_out"]
        if isinstance(self.data, TaskData):
            return [HELD_OUT_LOSS, ACCURACY, EXACT, INSTABILITY, *map(exact_of, others)]
        return [*PRETRAIN_METRICS, *map(other_loss, others)]

    def exam(self, result: Any) -> dict[str, Measured]:
        """Every metric; instability only of a model whose training this setting has seen."""
        measured = []
        for name, pieces in self.pieces.items():
            rows = [row for piece in pieces for row in piece.rows]
            statistics = token_statistics(result, [(row.input_ids, row.labels) for row in rows])
            first = np.cumsum([0, *(len(piece.rows) for piece in pieces[:-1])])
            losses = np.add.reduceat(sums(statistics, "negative_log_likelihood"), first)
            hits = np.add.reduceat(sums(statistics, "correct"), first)
            held_out, is_task = name == "held_out", isinstance(self.data, TaskData)
            if is_task:
                exact = np.stack([hits[:, 0] == hits[:, 1], np.ones(len(hits))], axis=1).astype(float)
                measured.append(Measured(EXACT if held_out else exact_of(name), exact))
            elif not held_out:
                measured.append(Measured(other_loss(name), losses))
            if held_out:
                measured += [Measured(HELD_OUT_LOSS, losses), Measured(ACCURACY, hits)]
            if held_out and not is_task:
                bits = np.stack([losses[:, 0] / np.log(2), [float(piece.size) for piece in pieces]], axis=1)
                measured.append(Measured(BITS_PER_BYTE, bits))
        if result in self._spikes:
            found, steps = self._spikes[result]
            measured.append(Measured(INSTABILITY, np.array([[float(found), float(max(steps, 1))]])))
        return {m.metric.name: m for m in measured}

    def save(self, result: Any, folder: Path) -> None:
        lm.save(result, self.data.tokenizer, folder)

    def reload(self, folder: Path) -> Any:
        return lm.load(folder, dtype="auto", device=self.device).model

    def difference(self, result: Any, other: Any) -> float:
        rows = [piece.rows[0] for pieces in self.pieces.values() for piece in pieces[:4]]
        return greatest_difference(result, other, rows)

    def digest(self, result: Any) -> str:
        return lm.weights_digest(result)

    def tuning(self) -> PretrainSetting:
        return dataclasses.replace(
            self,
            pieces={"held_out": chosen(self.data.validation, self.question.exam_items)},
            origin={**self.origin, "exam": "validation"},
        )

    def facts(self) -> dict[str, Any]:
        pieces = {"validation": self.data.validation, **{f"exam {name}": found for name, found in self.pieces.items()}}
        return {
            "architecture": self.question.architecture,
            "model_type": self.config.model_type,
            "parameters": self.random(self.seed).num_parameters(),
            "max_length": self.data.length,
            "texts": {
                "train": self.data.facts(),
                **table_of_texts({name: [row for p in found for row in p.rows] for name, found in pieces.items()}),
            },
        }


def initial(config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """The architecture with random weights, float32, in evaluation mode on the CPU; the caller's random state stays."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(derived_seed(seed, "weights"))
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            copy.deepcopy(config), dtype=torch.float32
        )
    model.train(False)
    return model


def spikes(losses: Sequence[float]) -> int:
    """How many training losses lie more than 4 robust standard deviations above the median of the 64 before them.

    The robust standard deviation is 1.4826 times the median distance from the median. The first 16 losses, of which
    there are too few before, never count.
    """
    values = np.asarray(losses, float)
    found = 0
    for step in range(_FEWEST, len(values)):
        past = values[max(0, step - _PAST) : step]
        middle = np.median(past)
        found += bool(values[step] > middle + _SPIKE * 1.4826 * np.median(np.abs(past - middle)))
    return found


def open_pretrain(question: PretrainQuestion) -> PretrainSetting:
    """Read architecture, tokenizer and texts or task. ModelError, DataError or UsageError name what is wrong."""
    if question.train.startswith(TASK):
        return _open_task(question)
    if question.difficulty or question.exam_difficulty:
        raise UsageError("--difficulty and --exam-difficulty are of tasks: leave them out, or give --train task:NAME.")
    tokenizer = read_tokenizer(lm.resolve(question.tokenizer))
    config = _architecture(question.architecture, tokenizer)
    if (limit := getattr(config, "max_position_embeddings", None)) and (question.max_length or 0) > limit:
        raise UsageError(
            f"--max-length {question.max_length} is beyond the {limit} positions of {question.architecture}: "
            f"give at most {limit}, or an architecture with more."
        )
    length = question.max_length or min(256, limit or 256)
    paths = named_texts({"train": question.train, "valid": question.valid}, question.also, _TAKEN)
    texts = {name: _plain(path) for name, path in paths.items()}
    shares = (
        {"train": 0.9, "validation": 0.1} if "valid" in texts else {"train": 0.8, "validation": 0.1, "held_out": 0.1}
    )
    parts = divided(question.train, texts.pop("train"), shares)
    if "valid" in texts:
        parts["held_out"] = texts.pop("valid")
    parts |= texts
    tokens = stream([example.text for example in parts.pop("train")], tokenizer)
    if len(tokens) < length:
        raise DataError(
            f"{question.train} has {len(tokens)} tokens to learn, fewer than one row of {length}: "
            "give longer text or a smaller --max-length."
        )
    pieces = {name: _pieces(examples, tokenizer, length) for name, examples in parts.items()}
    data = TextData(pieces.pop("validation"), tokenizer, question.rows, length, tokens)
    origin = {
        "architecture": _fingerprint(config),
        "tokenizer": lm.fingerprint(question.tokenizer),
        **{name: text_digest(path) for name, path in paths.items()},
    }
    question = question.model_copy(update={"max_length": length})
    exam = {name: chosen(found, question.exam_items) for name, found in pieces.items()}
    return PretrainSetting(question, config, data, exam, origin, device_named(question.device))


def _open_task(question: PretrainQuestion) -> PretrainSetting:
    if question.valid or question.also or question.max_length or question.tokenizer != "reference":
        raise UsageError(
            "--valid, --also, --max-length and --tokenizer are of text, and a task brings its own: leave them out."
        )
    data, pieces = open_task(
        question.train, question.difficulty, question.exam_difficulty, question.exam_items, question.rows
    )
    config = _architecture(question.architecture, data.tokenizer)
    if (limit := _held_positions(config)) and data.length > limit:
        raise UsageError(
            f"The longest example of these difficulties takes {data.length} tokens, and {question.architecture} holds {limit} "
            "positions: choose smaller difficulties, or an architecture with more positions."
        )
    origin = {"architecture": _fingerprint(config), "task": data.fingerprint()}
    return PretrainSetting(question, config, data, pieces, origin, device_named(question.device))


def _fingerprint(config: PretrainedConfig) -> str:
    written = config.to_dict()
    for name in ("architectures", "transformers_version", "_name_or_path", "dtype", "torch_dtype"):
        written.pop(name, None)
    return hashlib.sha256(json.dumps(written, sort_keys=True, default=str).encode()).hexdigest()


def _held_positions(config: PretrainedConfig) -> int | None:
    """The longest input that an architecture takes; None where its positions have no end."""
    if isinstance(config, DecoderConfig) and config.positions not in ("learned", "random_spaced"):
        return None
    return getattr(config, "max_position_embeddings", None)


def planted(family: str, seed: int = 0) -> PretrainSetting:
    """A tiny architecture and text that follows one rule, so that the right answer is known.

    The text repeats a fixed cycle of eight symbols, without end: a model that has learned it has a loss near 0, and one that
    has not, near the logarithm of the vocabulary. The other text of the exam holds random symbols.
    """
    tokenizer = tiny_tokenizer()
    draw = np.random.default_rng(seed)
    cycle = np.array(tokenizer.encode("bakeoff!", add_special_tokens=False))

    def pieces(count: int, random: bool) -> list[Piece]:
        made = []
        for _ in range(count):
            ids = draw.choice(cycle, 32) if random else np.roll(cycle, draw.integers(8))[np.arange(32) % 8]
            made.append(Piece((Item(torch.tensor(ids), torch.tensor(ids), "planted"),), 32))
        return made

    data = TextData(pieces(16, False), tokenizer, 8, 32, torch.tensor(np.tile(cycle, 256), dtype=torch.int32))
    question = PretrainQuestion(architecture=f"tiny {family}", train="planted", max_length=32, exam_items=16)
    exam = {"held_out": pieces(16, False), "random": pieces(16, True)}
    origin = {"planted": family, "seed": seed}
    return PretrainSetting(question, tiny(family).config, data, exam, origin, torch.device("cpu"), seed)


def _architecture(text: str, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The configuration that a text or folder describes, wide enough for the tokenizer."""
    if re.match(r"\s*decoder\s*(\(|$)", text) and not Path(text).exists():
        config = _decoder(text, tokenizer)
    else:
        config = read_config(lm.resolve(text))
    if len(tokenizer) > config.vocab_size:
        raise ModelError(
            f"The tokenizer has {len(tokenizer)} tokens and the embedding of {text} only {config.vocab_size}: "
            "raise vocab_size, or give the tokenizer that belongs to it with --tokenizer."
        )
    return config


def _decoder(text: str, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    # A bare word is meant as a string: mixers=deltanet.
    quoted = re.sub(r"=\s*(?!(?:True|False|None)\b)([A-Za-z_]\w*)\s*(?=[,)])", r"='\1'", text)
    try:
        given = dict(Spec.parse(quoted).arguments)
    except UsageError:
        raise UsageError(
            f'The architecture {text!r} is not understood: write "decoder(hidden_size=128, num_hidden_layers=2)" or a folder.'
        ) from None
    for name, value in given.items():
        registry.pick(name, DecoderConfig.__annotations__, "field of decoder")
        if name == "mixers" and isinstance(value, str):
            given[name] = (value,)
    if given.get("positions") == "per_digit":
        digits = [i for word, i in tokenizer.get_vocab().items() if len(word) == 1 and word.isdigit()]
        given.setdefault("digit_tokens", sorted(digits))
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    try:
        return DecoderConfig(**{"vocab_size": len(tokenizer), **ids, **given})
    except BakeoffError:
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"The architecture {text!r} cannot be made ({first}): change the value.") from None


def _plain(path: str) -> list[Example]:
    examples = read(path)
    if examples[0].kind != "text":
        raise DataError(f"{path} holds rows of kind {examples[0].kind}: pretrain learns plain text (a column 'text').")
    return examples


def _pieces(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, length: int) -> list[Piece]:
    """Each piece begins with the end-of-text token, as documents do in training."""
    made = []
    for example in documents(examples, _CHARACTERS_A_TOKEN * length):
        found = tokenizer(example.text, add_special_tokens=False, verbose=False)["input_ids"]
        ids = torch.tensor([tokenizer.eos_token_id, *found])
        rows = []
        for begin in range(0, len(ids) - 1, length - 1):
            row = ids[begin : begin + length]
            labels = row.clone()
            labels[0] = IGNORED
            rows.append(Item(row, labels, example.where))
        made.append(Piece(tuple(rows), len(example.text.encode())))
    return made


_TAKEN = ("train", "valid", "validation", "held_out")
PRETRAIN_METRICS = (HELD_OUT_LOSS, BITS_PER_BYTE, ACCURACY, INSTABILITY)

pretrain = Contest(
    name="pretrain",
    summary="Train a model from scratch on your text: how well it predicts, how steadily it learned, what it cost.",
    metrics=PRETRAIN_METRICS,
    benefit="held_out_loss",
    harm="instability",
    question=PretrainQuestion,
    open=open_pretrain,
    planted=planted,
    receives="an architecture with random weights, a stream of tokens, a budget",
    returns="a model",
)
