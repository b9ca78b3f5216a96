"""Every command, as a user types it: what it prints and writes, and one sentence for everything that can be wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import METHODS, SEEDS, Finished, Material, Said, done_trials
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig

from bakeoff import registry
from bakeoff.budget import Budget
from bakeoff.cli import _repeated
from bakeoff.comparison import Comparison
from bakeoff.lm.tiny import save_tiny, tiny, tiny_tokenizer
from bakeoff.progress import read
from bakeoff.training.objectives import logits_of
from bakeoff.training.run import Run
from bakeoff.tune import contest

pytest_plugins = ("helpers",)

Command = Callable[..., Said]
METRICS = {"target_loss", "target_accuracy", "kept_loss", "expected_calibration_error", "in_context_gain"}


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds; other tests look at the report."""
    monkeypatch.setattr("bakeoff.report.page.write_report", lambda results, folder: folder / "report.html")


def test_help_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, bakeoff\n"
        "def heavy(): return sorted({'torch', 'transformers', 'datasets', 'peft', 'scipy', 'altair'} & set(sys.modules))\n"
        "assert not heavy(), heavy()\n"
        "from bakeoff.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as ended: assert ended.code == 0, ended.code\n"
        "assert not heavy(), heavy()\n"
    )
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    assert "compare" in asked.stdout


@pytest.mark.parametrize(
    "words",
    ["", "list", "show", "check", "score", "report", "study", "studies", "demo", "recipe", "compare", "apply", "compare tune",
     "apply tune", "compare pretrain"],
)  # fmt: skip
def test_every_command_has_help(words: str, bakeoff: Command) -> None:
    said = bakeoff(*words.split(), "--help")
    assert said.code == 0
    assert said.err == ""
    assert f"Usage: bakeoff {words}".strip() in said.out


def test_help_of_compare_shows_the_questions_options(bakeoff: Command) -> None:
    shown = bakeoff("compare", "tune", "--help").out
    for option in ("--model", "--train", "--keep", "--valid", "--budget", "--seeds", "--out", "--json", "--tune",
                   "--dry-run", "--config", "--store", "--quiet", "--max-length"):  # fmt: skip
        assert option in shown
    assert bakeoff().out == bakeoff("--help").out
    assert bakeoff("--version").out.startswith("bakeoff ")


def test_list_and_show(bakeoff: Command) -> None:
    rows = json.loads(bakeoff("list", "--json").out)
    names = {row["method"] for row in rows if row["contest"] == "tune"}
    assert names >= {"full", "lora", "dora", "ia3", "corda", "hft", "minifinetuning", "mixed-training", "subtuning"}
    assert names >= {"masked-thought"}
    table = bakeoff("list", "tune").out
    assert all(f"  {name} " in table for name in names)
    for name in names:
        (shown,) = json.loads(bakeoff("show", f"tune/{name}", "--json").out)["methods"]
        assert (shown["contest"], shown["method"]) == ("tune", name)
        assert shown["doc"]
    loras = json.loads(bakeoff("show", "lora", "--json").out)
    assert loras["paper"] is None
    assert {method["contest"] for method in loras["methods"]} == {"edit", "tune"}
    assert {"name": "rank", "type": "int", "default": 8, "values": [1, 256]} in loras["methods"][1]["parameters"]
    assert "rank = 8   (1 to 256)" in bakeoff("show", "lora").out


def test_check(bakeoff: Command, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from bakeoff.tune.contest import tune\n\n@tune.method()\ndef spoils(model, data, run):\n"
        "    '''Trains what it was given.'''\n    return run.train(model, data.batches(run), learning_rate=1e-3)\n"
    )
    good = bakeoff("check", "full", "--quick", "--json")
    assert good.code == 0, good.err
    rows = json.loads(good.out)
    assert {row["status"] for row in rows} == {"passed"}
    assert all(set(row) == {"name", "status", "sentence", "seconds"} for row in rows)
    bad = bakeoff("check", f"{own}:spoils", "--quick")
    assert bad.code == 1
    assert any(line.startswith("failed") and "input_unchanged" in line for line in bad.out.splitlines())


def test_score(bakeoff: Command, material: Material) -> None:
    said = bakeoff("score", "--model", material.model, "--text", material.keep, "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert {"token_perplexity", "word_perplexity", "byte_perplexity"} <= set(found)
    # A byte-level tokenizer makes a token of every byte, and an end of each text.
    assert found["token_perplexity"] == pytest.approx(found["byte_perplexity"], rel=0.2)
    assert "byte perplexity" in bakeoff("score", "--model", material.model, "--text", material.keep).out


def test_compare_writes_what_it_promises(finished: Finished) -> None:
    results = finished.results
    assert set(results) == {"comparison", "trials", "effects", "environment"}
    assert [(t["label"], t["seed"]) for t in results["trials"]] == [(m, s) for s in range(SEEDS) for m in METHODS]
    for trial in results["trials"]:
        assert set(trial) >= {"method", "args", "args_passed", "seed", "status", "metrics", "cost"}
        assert trial["status"] == "done"
        assert set(trial["metrics"]) == METRICS
        assert all(set(m) == {"value", "unit", "better"} for m in trial["metrics"].values())
        assert set(trial["cost"]) >= {
            "seconds", "peak_memory_bytes", "tokens", "flops", "trained_parameters", "bytes_saved"
        }  # fmt: skip
        assert all(value > 0 for name, value in trial["cost"].items() if name != "forward_tokens")
    lora = next(t for t in results["trials"] if t["method"] == "lora")
    assert lora["args_passed"] == {"rank": 2}
    assert lora["args"] == {"rank": 2, "alpha": 0, "learning_rate": 2e-3, "merge": True}
    for effect in results["effects"]:
        assert set(effect) >= {"method", "baseline", "metric", "effect", "low", "high", "p_adjusted", "decided"}
        assert effect["metric"] in METRICS
    pairs = {(e["method"], e["baseline"]) for e in results["effects"]}
    assert pairs == {("lora(rank=2)", "full"), ("full", "untouched"), ("lora(rank=2)", "untouched")}
    assert {"versions", "commit", "dirty", "cores", "device"} <= set(results["environment"])
    assert results["comparison"]["seeds"] == list(range(SEEDS))


def test_compare_prints_a_table_and_writes_report_and_model(finished: Finished) -> None:
    assert "| full " in finished.said.out
    assert "| lora(rank=2) " in finished.said.out
    assert f"Results: {finished.out / 'results.json'}" in finished.said.out
    assert "<html" in (finished.out / "report.html").read_text()
    winner = finished.results["comparison"]["winner"]["method"]
    assert f"after {winner.partition('(')[0]}" in (finished.out / "winner" / "README.md").read_text()
    AutoModelForCausalLM.from_pretrained(finished.out / "winner")


def test_report_draws_again(bakeoff: Command, finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes((finished.out / "results.json").read_bytes())
    said = bakeoff("report", tmp_path, "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out) == finished.results
    assert (tmp_path / "report.html").read_bytes() == (finished.out / "report.html").read_bytes()


def test_json_is_the_results(
    bakeoff: Command, material: Material, finished: Finished, tmp_path: Path, no_report: None
) -> None:
    said = bakeoff(*material.compare(finished.store, tmp_path / "out", "--json", "--quiet"))
    assert said.code == 0
    assert said.err == ""
    assert json.loads(said.out) == json.loads((tmp_path / "out" / "results.json").read_text())


def test_options_come_before_the_configuration(
    bakeoff: Command, material: Material, finished: Finished, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    fields: dict[str, Any] = {
        "model": str(material.model), "train": str(material.train), "methods": ["full", "lora(rank=2)"], "budget": "9steps",
        "seeds": 5, "seed-base": 3, "max_length": 24, "exam-items": 6, "per_device_train_batch_size": 2,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(fields))
    plan = json.loads(bakeoff("compare", "tune", "--config", path, "--dry-run", "--json").out)
    assert plan["budget"] == "9 steps"
    assert plan["seeds"] == [3, 4, 5, 6, 7]
    assert plan["question"]["max_length"] == 24
    assert [row["label"] for row in plan["plan"]] == ["full", "lora(rank=2)"]
    over = ["--budget", "2steps", "--seeds", "3", "--seed-base", "0", "--max-length", "16", "--dry-run", "--json"]
    plan = json.loads(bakeoff("compare", "tune", "hft", "--config", path, *over).out)
    assert plan["budget"] == "2 steps"
    assert plan["seeds"] == [0, 1, 2]
    assert plan["question"]["max_length"] == 16
    assert [row["label"] for row in plan["plan"]] == ["hft"]
    path.write_text(yaml.safe_dump({**fields, "methods": "full"}))
    plan = json.loads(bakeoff("compare", "tune", "--config", path, "--dry-run", "--json").out)
    assert [row["label"] for row in plan["plan"]] == ["full"]


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("sedes: 3", "There is no field in {path} called 'sedes': did you mean seeds"),
        ("seeds: many", "--seeds must be a whole number of at least 1, not 'many'."),
        ("seeds: 0", "--seeds must be a whole number of at least 1, not 0."),
        ("checkpoint_seconds: -1", "--checkpoint-seconds must be a number of at least 0, not -1."),
        ("max_length: 2", "--max-length is wrong"),
        ("- model", "must hold fields such as 'model: DIR', one a line"),
        ("model: [", "is not YAML"),
        ("\xff", "is not YAML"),
    ],
)
def test_a_configuration_that_is_wrong(
    written: str, told: str, bakeoff: Command, material: Material, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(written.encode("latin-1"))
    words = ["--model", material.model, "--train", material.train, "--budget", "2steps", "--out", tmp_path / "out"]
    said = bakeoff("compare", "tune", "full", *words, "--config", path)
    assert said.code == 2
    assert told.format(path=path) in said.sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_compare_on_other_architectures(
    family: str, bakeoff: Command, material: Material, tmp_path: Path, no_report: None
) -> None:
    save_tiny(tmp_path / "model", family, 3)
    words = material.compare(material.store(tmp_path / "store"), tmp_path / "out", methods=METHODS)
    words[words.index("--model") + 1] = str(tmp_path / "model")
    words[words.index("--budget") + 1] = "3steps"
    assert bakeoff(*words).code == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {t["status"] for t in results["trials"]} == {"done"}
    assert all(t["reload_difference"] <= 1e-5 for t in results["trials"])
    assert results["comparison"]["facts"]["model_type"] == family


def test_apply_saves_the_model_that_it_measured(bakeoff: Command, material: Material, tmp_path: Path) -> None:
    out = tmp_path / "out"
    question = ["--model", str(material.model), "--train", str(material.train), "--keep", str(material.keep),
                "--max-length", "32", "--exam-items", "6", "--per-device-train-batch-size", "2"]  # fmt: skip
    words = ["apply", "tune", "lora(rank=2)", *question, "--budget", "4steps", "--seed", "5", "--out", str(out),
             "--store", str(material.store(tmp_path / "store")), "--json"]  # fmt: skip
    said = bakeoff(*words)
    assert said.code == 0, said.err
    trial = json.loads(said.out)["trial"]
    assert trial["seed"] == 5
    assert set(trial["metrics"]) == METRICS
    card = (out / "README.md").read_text()
    assert all(text in card for text in ("after lora", "4 steps", "target_loss", "kept_loss", str(material.model)))

    setting = contest.open_tune(
        contest.TuneQuestion(
            model=str(material.model), train=str(material.train), keep=str(material.keep), max_length=32, exam_items=6,
            per_device_train_batch_size=2,
        )
    )  # fmt: skip
    run = Run(Budget.parse("4steps"), 5, tmp_path / "work")
    again = setting.perform(registry.method("tune", "lora"), {"rank": 2}, run)
    saved = AutoModelForCausalLM.from_pretrained(out).eval()
    rows = torch.tensor(AutoTokenizer.from_pretrained(out)("the cat sat on the mat")["input_ids"])[None]
    with torch.inference_mode():
        assert torch.equal(logits_of(saved, rows), logits_of(again, rows))
        assert not torch.equal(logits_of(saved, rows), logits_of(setting.model, rows))

    assert "Saved in" in bakeoff(*words[:-1], "--report-to", "tensorboard").out
    assert len(list(tmp_path.glob("out-tracking/tensorboard/*/*/events*"))) == 1
    stranger = tmp_path / "mine"
    stranger.mkdir()
    (stranger / "thesis.txt").write_text("years of work")
    words[words.index("--out") + 1] = str(stranger)
    refused = bakeoff(*words)
    assert refused.code == 2
    assert "holds other files" in refused.sentence
    assert [p.name for p in stranger.iterdir()] == ["thesis.txt"]


def test_an_option_that_takes_many_is_given_once(tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    for path in (first, second):
        path.write_text("text")
    asked = ["compare", "tune", "--also", str(first), str(second), "full", "--model", "reference"]
    spread = ["compare", "tune", "--also", str(first), "--also", str(second), "full", "--model", "reference"]
    assert _repeated(asked) == spread
    assert _repeated(spread) == spread
    several = ["compare", "measure", "perplexity", "--models", str(first), "reference", str(second)]
    assert _repeated(several).count("--models") == 3
    assert _repeated(["compare", "nothing", "--also", "a/b", "c/d"]) == ["compare", "nothing", "--also", "a/b", "c/d"]


def test_apply_says_why_it_failed(bakeoff: Command, material: Material, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "from bakeoff import lm\nfrom bakeoff.tune.contest import tune\n\n@tune.method()\n"
        "def stumbles(model, data, run):\n    tuned = run.train(lm.clone(model), data.batches(run), learning_rate=1e-3)\n"
        "    if run.seed == 7:\n        raise RuntimeError('seven is too many')\n    return tuned\n"
    )
    words = ["--model", material.model, "--train", material.train, "--budget", "4steps", "--max-length", "32",
             "--exam-items", "6", "--store", material.store(tmp_path / "store"), "--out", tmp_path / "out"]  # fmt: skip
    said = bakeoff("apply", "tune", f"{own}:stumbles", *words, "--seed", "7")
    assert said.code == 1
    assert said.sentence == f"bakeoff: {own}:stumbles failed: RuntimeError: seven is too many"
    said = bakeoff("apply", "tune", "mixed-training", *words)
    assert said.code == 2
    assert "mixed-training needs text to go on knowing: give it with --keep." in said.sentence
    assert not (tmp_path / "out").exists()


def test_tune_tries_the_same_number_for_each_method_and_never_sees_the_exam(
    bakeoff: Command, material: Material, tmp_path: Path, no_report: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning, seen = False, {True: set(), False: set()}
    choose, measure = Comparison._tune, contest.token_statistics

    def choosing(self: Comparison, *given: Any) -> Any:
        nonlocal tuning
        tuning = True
        try:
            return choose(self, *given)
        finally:
            tuning = False

    def measuring(model: Any, rows: Any) -> Any:
        rows = list(rows)
        seen[tuning] |= {tuple(ids.tolist()) for ids, _ in rows}
        return measure(model, rows)

    monkeypatch.setattr(Comparison, "_tune", choosing)
    monkeypatch.setattr(contest, "token_statistics", measuring)
    store, out = material.store(tmp_path / "store"), tmp_path / "out"
    words = material.compare(store, out, "--tune", "2", "--seeds", "1", methods=["full", "lora"])
    assert bakeoff(*words).code == 0
    tuned = json.loads((out / "results.json").read_text())["comparison"]["tuning"]
    assert {label: len(found["tried"]) for label, found in tuned.items()} == {"full": 2, "lora": 2}
    for found in tuned.values():
        assert found["split"] == "validation"
        assert found["best"] == min(found["tried"], key=lambda t: t["value"])["args"]
    assert seen[True]
    assert seen[False]
    assert seen[True].isdisjoint(seen[False])
    trials = json.loads((out / "results.json").read_text())["trials"]
    assert all(t["args"].items() >= tuned[t["label"]]["best"].items() for t in trials)
    assert len(done_trials(store)) == 2 * 2 + 2


def test_dry_run_plans_and_writes_nothing(
    bakeoff: Command, material: Material, tmp_path: Path, no_report: None
) -> None:
    # Each text is one row of 32 tokens and one of 32 that begins with the last token before it: all steps cost the same.
    train = tmp_path / "even.jsonl"
    lines = [json.dumps({"text": f"{i:02}" + "abcdef" * 10}) + "\n" for i in range(24)]
    train.write_text("".join(lines))
    store, out = tmp_path / "store", tmp_path / "out"
    words = material.compare(store, out, "--json", methods=METHODS)
    words[words.index("--budget") + 1] = "6steps"  # more than are tried for the plan
    words[words.index("--train") + 1] = str(train)
    said = bakeoff(*words, "--dry-run")
    assert said.code == 0, said.err
    assert not store.exists()
    assert not out.exists()
    plan = json.loads(said.out)
    assert set(plan) == {"plan", "budget", "seeds", "total_seconds", "question"}
    assert plan["question"]["train"] == str(train)
    for row in plan["plan"]:
        assert row["steps"] == 6
        assert row["tokens"] == 6 * 2 * 32
        assert row["trials"] == SEEDS
        assert row["seconds"] > 0
        assert row["peak_memory_bytes"] > 0
    assert "lora(rank=2)" in bakeoff(*[w for w in words if w != "--json"], "--dry-run").out
    assert not store.exists()
    assert not out.exists()

    words[words.index("--store") + 1] = str(material.store(store))
    measured = json.loads(bakeoff(*words).out)["trials"]
    assert {t["cost"]["tokens"] for t in measured} == {row["tokens"] for row in plan["plan"]}


def test_studies(bakeoff: Command) -> None:
    rows = json.loads(bakeoff("studies", "--json").out)
    assert {row["slug"] for row in rows} >= {"hft", "minifinetuning", "mixed-training"}
    assert all(set(row) >= {"slug", "verdict", "scale", "seeds", "date", "hardware", "stale"} for row in rows)
    assert all("cores" in row["hardware"] for row in rows if row["verdict"])
    assert all(row["slug"] in bakeoff("studies").out for row in rows)
    unknown = bakeoff("study", "hfd")
    assert unknown.code == 2
    assert "hft" in unknown.sentence
    assert bakeoff("study", "hft", "--scale", "cosmic").code == 2


def test_a_study_says_where_its_curves_are(bakeoff: Command, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    said = bakeoff("study", "task-hinting", "--scale", "smoke", "--out", str(page), "--store", str(tmp_path / "store"))
    assert said.code == 0
    assert f"Curves are drawn in {page}." in said.out
    assert "Expected beforehand" in said.out
    text = page.read_text("utf-8")
    assert "<svg" in text
    assert "--scale smoke" in text


def _pickle_only(folder: Path) -> str:
    save_tiny(folder, "llama")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return f"{folder} holds its weights as pickle (pytorch_model.bin)"


def _no_tokenizer(folder: Path) -> str:
    tiny("llama").save_pretrained(folder)
    return f"{folder} has no tokenizer: save it there with"


def _no_weights(folder: Path) -> str:
    save_tiny(folder, "llama")
    (folder / "model.safetensors").unlink()
    return f"{folder} holds no weights"


def _broken_weights(folder: Path) -> str:
    save_tiny(folder, "llama")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    return f"The model in {folder} cannot be read"


def _bert(folder: Path) -> str:
    BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(folder)
    tiny("llama").save_pretrained(folder / "other")
    (folder / "other" / "model.safetensors").rename(folder / "model.safetensors")
    tiny_tokenizer().save_pretrained(folder)
    return f"The model in {folder}"


def _small_vocabulary(folder: Path) -> str:
    tiny("llama", vocab_size=257).save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<{i}>" for i in range(20)])
    tokenizer.save_pretrained(folder)
    return "resize the model or give the tokenizer it was trained with"


def _empty(folder: Path) -> str:
    folder.mkdir()
    return f"{folder} has no config.json"


@pytest.mark.parametrize(
    "make", [_pickle_only, _no_tokenizer, _no_weights, _broken_weights, _bert, _small_vocabulary, _empty]
)
def test_a_model_folder_that_is_wrong(
    make: Callable[[Path], str], bakeoff: Command, material: Material, tmp_path: Path
) -> None:
    told = make(tmp_path / "model")
    words = material.compare(tmp_path / "store", tmp_path / "out")
    words[words.index("--model") + 1] = str(tmp_path / "model")
    said = bakeoff(*words)
    assert said.code == 2
    assert told in said.sentence
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"methods": ["lorra"]}, "There is no tune method called 'lorra': did you mean lora"),
        ({"methods": ["lora(ranks=8)"]}, "lora has no parameter 'ranks': it has rank, alpha"),
        ({"methods": ["lora(rank=0)"]}, "lora: rank must lie between 1 and 256, not 0."),
        ({"methods": ["lora(rank=two)"]}, "The method 'lora(rank=two)' is not understood"),
        ({"methods": ["lora(rank=2"]}, "The method 'lora(rank=2' is not understood"),
        ({"methods": ["full", "full"]}, "full is named twice"),
        ({"methods": []}, "No method is named"),
        ({"methods": ["nowhere/own.py:mine"]}, "The file nowhere/own.py does not exist: check the path."),
        ({"--baseline": "hft"}, "There is no baseline among the methods named called 'hft'"),
        ({"--train": "nowhere.txt"}, "nowhere.txt"),
        ({"--keep": "nowhere/keep.jsonl"}, "nowhere/keep.jsonl"),
        ({"--budget": "60 parsecs"}, "The budget '60 parsecs' is not understood: write a number and a unit"),
        ({"--budget": "1.5steps"}, "The budget '1.5steps' is not a whole number of steps"),
        ({"--max-length": "513"}, "--max-length 513 is beyond the 512 positions"),
        ({"--max-length": "3"}, "--max-length is wrong"),
        ({"--max-length": "many"}, "Invalid value for '--max-length'"),
        ({"--seeds": "0"}, "--seeds"),
        ({"--model": "nobody/nothing"}, "There is no folder 'nobody/nothing' here, and the hub did not give a model"),
        ({"--model": "/nowhere/model"}, "There is no model folder /nowhere/model: check the path."),
        ({"--store": "nosuchprotocol://x"}, "nosuchprotocol"),
        ({"--config": "nowhere.yaml"}, "The configuration nowhere.yaml cannot be read (No such file or directory)"),
        ({"--nonsense": "1"}, "No such option"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_sentence(
    changed: dict[str, Any],
    told: str,
    bakeoff: Command,
    material: Material,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = material.compare(tmp_path / "store", tmp_path / "out", methods=changed.pop("methods", METHODS))
    for option, value in changed.items():
        if option in words:
            words[words.index(option) + 1] = value
        else:
            words += [option, value]
    said = bakeoff(*words)
    assert said.code == 2
    assert told in said.sentence
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["--model", "--train", "--budget", "--out"])
def test_what_is_missing_is_named(missing: str, bakeoff: Command, material: Material, tmp_path: Path) -> None:
    words = material.compare(tmp_path / "store", tmp_path / "out")
    place = words.index(missing)
    said = bakeoff(*words[:place], *words[place + 2 :])
    assert said.code == 2
    assert f"{missing} is needed" in said.sentence
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("bad.jsonl", '{"text": "one"}\n{"text": "two"}\n{"text": 3}\n', "bad.jsonl:3"),
        ("torn.jsonl", '{"text": "one"}\n{"text": "tw', "torn.jsonl:2"),
        ("short.txt", "too short\n", "3 parts (train, validation, target) need at least 3 different examples"),
        ("empty.txt", "", "empty.txt"),
        ("odd.xyz", "what is this", "odd.xyz"),
    ],
)
def test_a_text_that_is_wrong_is_named(
    name: str, content: str, told: str, bakeoff: Command, material: Material, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    words = material.compare(tmp_path / "store", tmp_path / "out")
    words[words.index("--train") + 1] = str(tmp_path / name)
    said = bakeoff(*words)
    assert said.code == 2
    assert told in said.sentence
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("content", [None, "", "{", "[]", "5", '{"trials": []}', b"\xff\xfe\x00"])
def test_results_that_are_damaged(content: str | bytes | None, bakeoff: Command, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "results.json").write_bytes(content.encode() if isinstance(content, str) else content)
    said = bakeoff("report", tmp_path)
    assert said.code == 2
    assert f"{tmp_path / 'results.json'}" in said.sentence
    assert ("There is no" if content is None else "is damaged") in said.sentence


def test_debug_shows_the_traceback(bakeoff: Command, tmp_path: Path) -> None:
    plain, debug = bakeoff("report", tmp_path), bakeoff("report", tmp_path, "--debug")
    assert plain.code == debug.code == 2
    assert "Traceback" not in plain.err
    assert "Traceback" in debug.err
    assert "There is no" in debug.err


def test_words_that_are_no_command(bakeoff: Command) -> None:
    for words in (
        ["comparre"],
        ["compare", "nothing"],
        ["show"],
        ["show", "lorra"],
        ["list", "tunes"],
        ["check", "lorra"],
    ):
        said = bakeoff(*words)
        assert said.code == 2, words
        assert said.sentence


def test_search_and_show_papers(bakeoff: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    said = bakeoff("search", "half fine-tuning", "--count", "3")
    assert said.out.startswith("  1. hft (tune, ")
    assert "--embedding" in said.sentence
    found = json.loads(bakeoff("search", "half fine-tuning", "--json", "--embedding", "none").out)
    assert (found[0]["slug"], found[0]["bm25"], found[0]["embedding"]) == ("hft", 1, None)
    assert bakeoff("search", "xyzzy", "--embedding", "none").out.startswith("No paper fits")
    assert bakeoff("search", "?!").code == 2
    paper = json.loads(bakeoff("show", "hft", "--json").out)
    assert paper["paper"]["status"] in ("holds", "fails", "undecided")
    assert [method["method"] for method in paper["methods"]] == ["hft"]
    shown = bakeoff("show", "cut").out
    assert shown.startswith("Contrastive Learning for Unpaired Image-to-Image Translation (2020, arXiv:2007.15651)")
    assert "Status: not built" in shown


def test_list_papers(bakeoff: Command) -> None:
    rows = json.loads(bakeoff("list", "--papers", "--json").out)
    assert len(rows) == 327
    assert {"slug", "title", "claim", "contest", "status"} <= set(rows[0])
    merging = bakeoff("list", "merge", "--papers").out.splitlines()
    assert len(merging) == sum(row["contest"] == "merge" for row in rows)
    assert bakeoff("list", "--markdown").code == 2
    written = (Path(__file__).parents[1] / "docs" / "papers.md").read_text("utf-8")
    assert bakeoff("list", "--papers", "--markdown").out == written, "bakeoff list --papers --markdown > docs/papers.md"


def test_digest(bakeoff: Command) -> None:
    news = json.loads(bakeoff("digest", "--since", "2026-11-01", "--json").out)
    assert len(news["papers"]) == 327
    assert {"slug", "verdict", "scale"} <= set(news["verdicts"][0])
    assert bakeoff("digest", "--since", "2999-01-01").out.startswith("Nothing was added")
    for wrong in (["yesterday"], ["2026-11-01", "--mail", "a@example.org"]):
        assert bakeoff("digest", "--since", *wrong).code == 2


def test_what_the_site_refuses_to_start_with(bakeoff: Command, tmp_path: Path) -> None:
    for words, part in (
        ([tmp_path / "missing"], "is no folder"),
        ([tmp_path, "--host", "0.0.0.0"], "--token"),
        ([tmp_path, "--token", "short"], "can be guessed"),
    ):
        said = bakeoff("serve", *words)
        assert said.code == 2
        assert part in said.sentence


def test_progress_and_trackers_of_a_comparison(
    bakeoff: Command, material: Material, finished: Finished, tmp_path: Path, no_report: None
) -> None:
    out = tmp_path / "out"
    words = material.compare(finished.store, out)
    assert bakeoff(*words, "--report-to", "tensorboard").code == 0
    progress = read(out)
    assert progress is not None
    assert (progress.state, progress.over) == ("done", progress.total)
    trials = json.loads((out / "results.json").read_text("utf-8"))["trials"]
    assert {(t["label"], t["seed"]): t["metrics"] for t in trials} == {
        (t["label"], t["seed"]): t["metrics"] for t in progress.trials
    }
    assert len(list(out.glob("tensorboard/*/*/events*"))) == len(trials) + 1
    assert bakeoff(*words, "--report-to", "tensorbored").code == 2


def test_the_site_names_the_extra_that_it_needs(bakeoff: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("bakeoff.web")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    said = bakeoff("serve")
    assert said.code == 2
    assert "pip install 'bakeoff[web]'" in said.sentence
