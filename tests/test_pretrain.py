"""The pretrain contest: what a method is given, what the exam measures, and what is refused."""

from __future__ import annotations

import json
import math
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import WORDS, Said
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from bakeoff import check as checks
from bakeoff import lm, registry
from bakeoff.budget import Budget
from bakeoff.errors import UsageError
from bakeoff.lm.score import perplexity
from bakeoff.lm.tiny import save_tiny, tiny, tiny_tokenizer
from bakeoff.lm.words import word_tokenizer
from bakeoff.pretrain.contest import (
    PretrainQuestion,
    PretrainSetting,
    initial,
    open_pretrain,
    planted,
    pretrain,
    spikes,
)
from bakeoff.training.run import Run

pytest_plugins = ("helpers",)

Command = Callable[..., Said]
DECODER = "decoder(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama with its tokenizer in `model`, and texts."""
    place = tmp_path_factory.mktemp("pretrain")
    save_tiny(place / "model", "llama", 1)
    draw = random.Random(0)
    for name in ("train.txt", "other.txt"):
        texts = [" ".join(draw.choice(WORDS) for _ in range(50)) for _ in range(40)]
        (place / name).write_text("\n\n\n".join(texts))
    (place / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    (place / "short.jsonl").write_text("".join(json.dumps({"text": f"{word}."}) + "\n" for word in WORDS))
    return place


def asked(folder: Path, **fields: Any) -> PretrainQuestion:
    given = {"architecture": DECODER, "train": str(folder / "train.txt"), "tokenizer": str(folder / "model")}
    return PretrainQuestion(**{**given, "max_length": 32, "exam_items": 8, **fields})


def run_of(folder: Path, setting: PretrainSetting, steps: int = 3, seed: int = 0) -> Run:
    return Run(Budget(steps, "steps"), seed, folder, **setting.surroundings())


def test_all_methods_of_a_seed_begin_with_the_same_weights(folder: Path, tmp_path: Path) -> None:
    setting = open_pretrain(asked(folder))
    given = []

    @pretrain.method(source="a test")
    def looks(model, data, run, *, rate: float = 0.1):  # type: ignore[no-untyped-def]
        """Looks."""
        given.append(lm.weights_digest(model))
        return lm.clone(model)

    state = torch.get_rng_state()
    for seed in (0, 0, 1):
        torch.rand(3)
        setting.perform(looks, {}, run_of(tmp_path, setting, seed=seed))
    assert given[0] == given[1] != given[2]
    torch.set_rng_state(state)
    assert given[0] == lm.weights_digest(initial(setting.config, 0)) == setting.digest(setting.untouched())
    assert torch.equal(state, torch.get_rng_state())


def test_the_architecture_is_what_the_text_says(folder: Path) -> None:
    setting = open_pretrain(asked(folder, architecture="decoder(hidden_size=32, num_hidden_layers=3, mixers=deltanet)"))
    config = setting.config
    assert (config.model_type, config.hidden_size, config.num_hidden_layers) == ("bakeoff_decoder", 32, 3)
    assert tuple(config.mixers) == ("deltanet",)
    assert config.vocab_size == len(tiny_tokenizer())
    assert config.eos_token_id == tiny_tokenizer().eos_token_id
    two = open_pretrain(asked(folder, architecture="decoder(mixers=('linear', 'attention'), hidden_size=32)"))
    assert tuple(two.config.mixers) == ("linear", "attention")
    assert open_pretrain(asked(folder, architecture="decoder", max_length=None)).data.length == 256


def test_a_folder_gives_its_configuration_and_not_its_weights(folder: Path, tmp_path: Path) -> None:
    tiny("gpt2").config.save_pretrained(tmp_path)
    for place in (tmp_path, folder / "model"):
        setting = open_pretrain(asked(folder, architecture=str(place)))
        assert setting.config.model_type == AutoConfig.from_pretrained(place).model_type
    trained = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert setting.untouched().state_dict().keys() == trained.state_dict().keys()
    assert lm.weights_digest(setting.untouched()) != lm.weights_digest(trained)


def test_training_reads_windows_of_the_stream_and_never_the_exam(folder: Path) -> None:
    setting = open_pretrain(asked(folder, also=(str(folder / "other.txt"),)))
    data, tokenizer = setting.data, setting.data.tokenizer
    batch = data.batches(run_of(folder, setting))(0)
    assert batch.input_ids.shape == (8, 32)
    text = tokenizer.decode(data.tokens)
    window = tokenizer.decode(batch.input_ids[0])
    assert window in text
    held = [tokenizer.decode(piece.rows[0].input_ids[1:]) for piece in setting.pieces["held_out"]]
    assert held
    assert not any(piece in text for piece in held)
    assert setting.facts()["texts"]["train"]["tokens"] == len(data.tokens)


def test_the_exam_agrees_with_the_perplexity_of_the_same_text(folder: Path) -> None:
    long = DECODER.replace("64", "512")
    setting = open_pretrain(asked(folder, architecture=long, also=(str(folder / "other.txt"),), max_length=512))
    model = setting.untouched()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    tokenizer = setting.data.tokenizer
    pieces = setting.pieces["held_out"]
    assert [len(piece.rows) for piece in pieces] == [1] * len(pieces)
    measured = {name: m.value for name, m in setting.exam(model).items()}
    known = perplexity(model, tokenizer, [tokenizer.decode(piece.rows[0].input_ids[1:]) for piece in pieces])
    assert measured["bits_per_byte"] == pytest.approx(known.bits_per_byte, rel=1e-5)
    assert measured["held_out_loss"] == pytest.approx(math.log(known.token_perplexity), rel=1e-5)
    assert 0 <= measured["accuracy"] <= 1
    assert set(measured) == {m.name for m in setting.metrics()}
    assert measured["other_loss:other"] > 0


def test_each_token_of_a_long_piece_is_predicted_once(folder: Path) -> None:
    setting = open_pretrain(asked(folder, max_length=8))
    assert any(len(piece.rows) > 2 for piece in setting.pieces["held_out"])
    for piece in setting.pieces["held_out"]:
        predicted = torch.cat([row.labels[1:] for row in piece.rows])
        text = setting.data.tokenizer.decode(predicted)
        assert len(text.encode()) == piece.size
        assert all(row.labels[0] == -100 and len(row.input_ids) <= 8 for row in piece.rows)


def test_spikes_are_counted_against_the_losses_before() -> None:
    draw = np.random.default_rng(0)
    falling = np.linspace(3.2, 3, 200) + 0.05 * draw.standard_normal(200)
    assert spikes(falling) == 0
    planted_at = falling.copy()
    planted_at[[50, 120, 199]] += 1.0
    assert spikes(planted_at) == 3
    assert spikes([9.0] * 15) == spikes([]) == 0
    # Median 2.5, median distance 1.5: the bound is 2.5 + 4 * 1.4826 * 1.5 = 11.3956.
    past = [1.0, 1.0, 4.0, 4.0] * 4
    assert (spikes([*past, 11.39]), spikes([*past, 11.40])) == (0, 1)


def test_instability_is_that_of_the_training_and_of_no_other_model(folder: Path, tmp_path: Path) -> None:
    setting = open_pretrain(asked(folder))

    @pretrain.method(source="a test")
    def jumps(model, data, run, *, rate: float = 0.1):  # type: ignore[no-untyped-def]
        """Jumps."""
        run.curve += [(step, step, 9.0 if step in (30, 31) else 3.0 + 0.01 * (step % 5)) for step in range(40)]
        return lm.clone(model)

    result = setting.perform(jumps, {}, run_of(tmp_path, setting))
    assert setting.exam(result)["instability"].value == pytest.approx(2 / 40)
    assert setting.exam(setting.untouched())["instability"].value == 0
    assert "instability" not in setting.exam(lm.clone(result))
    assert "instability" not in pickle.loads(pickle.dumps(setting)).exam(result)


def test_a_method_that_trains_what_it_was_given_is_caught() -> None:
    @pretrain.method(source="a test")
    def spoils(model, data, run, *, learning_rate: float = 1e-3):  # type: ignore[no-untyped-def]
        """Trains its input."""
        return run.train(model, data.batches(run), learning_rate=learning_rate)

    failed = [r.name for r in checks.check(spoils, quick=True) if r.status == "failed"]
    assert "input_unchanged" in failed


def test_the_planted_rule_is_learned_and_random_symbols_are_not(tmp_path: Path) -> None:
    setting = planted("llama")
    result = setting.perform(
        registry.method("pretrain", "adamw"), {"learning_rate": 1e-2}, run_of(tmp_path, setting, 60)
    )
    measured = {name: m.value for name, m in setting.exam(result).items()}
    assert measured["held_out_loss"] < 0.5
    assert measured["other_loss:random"] > math.log(8)


@pytest.mark.parametrize(
    ("spec", "factors"),
    [
        ("adamw", {0.025: 0.5, 0.05: 1.0, 0.525: 0.55, 1.0: 0.1}),
        ("wsd", {0.025: 0.5, 0.05: 1.0, 0.7: 1.0, 0.9: 0.5, 1.0: 0.0}),
    ],
)
def test_what_the_baselines_ask_of_the_loop(
    spec: str, factors: dict[float, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}

    def train(self: Run, model: Any, batches: Any, **options: Any) -> Any:
        told.update(options)
        return model

    monkeypatch.setattr(Run, "train", train)
    setting = planted("gpt2")
    given = setting.perform(registry.method("pretrain", spec), {"weight_decay": 0.3}, run_of(tmp_path, setting))
    assert given is not setting.untouched()
    assert {at: told["schedule"](at) for at in factors} == pytest.approx(factors)
    optimizer = told["optimizer"](list(given.parameters()), told["learning_rate"])
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {(p.ndim >= 2, decay) for p, decay in decays.items()} == {(True, 0.3), (False, 0.0)}
    assert len(decays) == len(list(given.parameters()))
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)
    assert told["clip"] == 1.0


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"architecture": "decoder(hiden_size=8)"},
            "no field of decoder called 'hiden_size': did you mean hidden_size",
        ),
        ({"architecture": "decoder(hidden_size=8"}, "The architecture 'decoder(hidden_size=8' is not understood"),
        ({"architecture": "decoder(hidden_size=10)"}, "heads do not divide"),
        ({"architecture": "decoder(mixers=delta)"}, "There is no mixer 'delta': did you mean 'deltanet'"),
        ({"architecture": "decoder(hidden_size='wide')"}, "cannot be made"),
        ({"architecture": "decoder(vocab_size=100)"}, "The tokenizer has 257 tokens and the embedding of decoder"),
        ({"architecture": "nowhere/at/all"}, "There is no model folder nowhere/at/all: check the path."),
        ({"max_length": 65}, "--max-length 65 is beyond the 64 positions of decoder"),
        ({"train": "rows.jsonl"}, "holds rows of kind completion: pretrain learns plain text"),
        ({"train": "short.jsonl", "max_length": 64}, "fewer than one row of 64: give longer text"),
        ({"train": "nothing.txt"}, "does not exist"),
        (
            {"also": ("train.txt",)},
            "Each --also needs a file name of its own, other than train, valid, validation, held_out",
        ),
        ({"tokenizer": "texts"}, "has no tokenizer"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(changed: dict[str, Any], told: str, folder: Path) -> None:
    (folder / "texts").mkdir(exist_ok=True)
    for name in ("train", "tokenizer"):
        if name in changed:
            changed[name] = str(folder / changed[name])
    with pytest.raises(UsageError) as wrong:
        open_pretrain(asked(folder, **changed))
    assert told in str(wrong.value)
    assert "\n" not in str(wrong.value)


def test_a_tokenizer_wider_than_the_folders_embedding_is_refused(folder: Path) -> None:
    with pytest.raises(
        UsageError, match="The tokenizer has 4096 tokens and the embedding of .* only 260: raise vocab_size"
    ):
        open_pretrain(asked(folder, architecture=str(folder / "model"), tokenizer="reference"))


def test_the_address_follows_from_the_architecture_and_not_from_weights(folder: Path, tmp_path: Path) -> None:
    def inputs(**fields: Any) -> Any:
        return open_pretrain(asked(folder, **fields)).made_by()["inputs"]

    tiny("llama", 5).config.save_pretrained(tmp_path)
    assert inputs() == inputs()
    assert inputs()["architecture"] != inputs(architecture=DECODER.replace("16", "32"))["architecture"]
    llama = inputs(architecture=str(folder / "model"))["architecture"]
    assert llama == inputs(architecture=str(tmp_path))["architecture"]


def test_the_winner_of_a_comparison_is_an_ordinary_model(folder: Path, tmp_path: Path, bakeoff: Command) -> None:
    out = tmp_path / "out"
    said = bakeoff(
        "compare", "pretrain", "adamw(learning_rate=0.02)", "wsd", "--architecture", DECODER, "--train", folder / "train.txt",
        "--tokenizer", folder / "model", "--max-length", 32, "--exam-items", 8, "--budget", "20steps", "--seeds", 1, "--out", out,
    )  # fmt: skip
    assert said.code == 0, said.err
    results = json.loads((out / "results.json").read_text())
    winner = results["comparison"]["winner"]
    assert results["comparison"]["harm"] == "instability"
    assert (out / "report.html").exists()
    model = AutoModelForCausalLM.from_pretrained(out / "winner")
    assert model.config.model_type == "bakeoff_decoder"
    assert lm.weights_digest(model) == winner["weights_sha256"]
    tokenizer = AutoTokenizer.from_pretrained(out / "winner")
    assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"
    assert "bakeoff apply pretrain" in (out / "winner" / "README.md").read_text()


def of_task(**fields: Any) -> PretrainQuestion:
    given = {"architecture": DECODER, "train": "task:sorting(symbols=8)", "difficulty": "2-4", "exam_items": 12}
    return PretrainQuestion(**{**given, **fields})


def test_a_task_is_learned_and_examined_by_difficulty(tmp_path: Path) -> None:
    setting = open_pretrain(of_task(exam_difficulty="3,6"))
    assert list(setting.pieces) == ["held_out", "length 3", "length 6"]
    assert {len(piece.rows[0].input_ids) for piece in setting.pieces["length 6"]} == {14}
    batch = setting.data.batches(run_of(tmp_path, setting))(0)
    assert batch.input_ids.shape[0] == 8
    assert set((batch.labels >= 0).sum(1).tolist()) <= {3, 4, 5}
    setting = open_pretrain(
        of_task(
            difficulty="1-3", exam_difficulty="3,6", train="task:sorting(symbols=6)", per_device_train_batch_size=32
        )
    )
    trained = setting.perform(
        registry.method("pretrain", "adamw"), {"learning_rate": 1e-2}, run_of(tmp_path / "b", setting, 150)
    )
    before, after = setting.exam(setting.untouched()), setting.exam(trained)
    assert {m.name for m in setting.metrics()} == {*after}
    assert set(before) == set(after)
    values = {name: float(m.metric.reduce(m.components.sum(axis=0))) for name, m in after.items()}
    assert values["accuracy"] > 0.5
    assert values["held_out_loss"] < 1.3
    exact = after["exact_match:length 3"].components
    assert exact.shape == (12, 2)
    for piece, (right, one) in zip(setting.pieces["length 3"], exact, strict=True):
        row = piece.rows[0]
        asked = row.input_ids[: int((row.labels < 0).sum())]
        said = trained.generate(
            asked[None], max_new_tokens=len(row.input_ids) - len(asked), do_sample=False, pad_token_id=0
        )
        assert (bool(right), one) == (said[0].equal(row.input_ids), 1.0)


def test_a_model_of_a_task_is_saved_with_its_words(tmp_path: Path) -> None:
    setting = open_pretrain(of_task())
    setting.save(setting.untouched(), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("3 1 2 >")["input_ids"] == setting.data.task.vocabulary.ids(["3", "1", "2", ">"])
    assert tokenizer.decode(tokenizer("3 1 > 1 3 .")["input_ids"]) == "3 1 > 1 3 ."
    assert tokenizer.eos_token == "."
    assert setting.digest(setting.reload(tmp_path)) == setting.digest(setting.untouched())


def test_words_without_spaces_are_found_again() -> None:
    tokenizer = word_tokenizer(["<pad>", "1", "2", "12", "+", "."], "", ".")
    assert tokenizer("1+212.")["input_ids"] == [1, 4, 2, 3, 5]
    assert tokenizer.decode([1, 4, 2, 3, 5]) == "1+212."


def test_positions_per_digit_know_the_digits_of_a_task() -> None:
    setting = open_pretrain(of_task(architecture="decoder(hidden_size=16, positions=per_digit)"))
    words = setting.data.task.vocabulary
    assert setting.config.digit_tokens == tuple(words.ids("01234567"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"difficulty": None}, "give --difficulty"),
        ({"difficulty": "0"}, "no length of 0: choose from 1"),
        ({"exam_difficulty": "2,9999"}, "no length of 9999"),
        ({"train": "task:sortin"}, "did you mean sorting"),
        ({"train": "task:boolean", "difficulty": "5"}, "made of vectors"),
        ({"max_length": 16}, "a task brings its own"),
        ({"tokenizer": "elsewhere"}, "a task brings its own"),
        ({"exam_difficulty": "40", "architecture": DECODER[:-1] + ", positions=learned)"}, "takes 82 tokens"),
        ({"train": "texts.txt"}, "are of tasks"),
    ],
)
def test_what_a_task_cannot_be_asked_gets_one_sentence(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        open_pretrain(of_task(**fields))
