"""A recipe runs its stages in order, keeps what is done, goes on after a kill, and says what is wrong before anything runs."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import WORDS, Child, Said, done_trials
from transformers import AutoModelForCausalLM

from bakeoff import check, lm, registry, trial
from bakeoff.errors import UsageError
from bakeoff.lm.tiny import save_tiny
from bakeoff.recipe import Recipe
from bakeoff.store import Store
from bakeoff.training import checkpoint

pytest_plugins = ("helpers",)

Command = Callable[..., Said]
STEPS = 3
SPOILS = '''
from bakeoff.tune.contest import tune

@tune.method()
def spoils(model, data, run, *, learning_rate: float = 1e-3):
    """Trains the model that it was given, which the quick checks catch."""
    return run.train(model, data.batches(run), learning_rate=learning_rate)
'''


def chain() -> dict[str, Any]:
    """Three stages, small in every way."""
    return {
        "name": "small",
        "seed": 3,
        "defaults": {"max_length": 32, "per_device_train_batch_size": 2, "exam_items": 4, "tokenizer": "model"},
        "stages": [
            {
                "name": "first", "contest": "pretrain", "method": "adamw(learning_rate=0.01)", "budget": f"{STEPS}steps",
                "architecture": "decoder(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)", "train": "plain.txt",
            },
            {"name": "second", "contest": "tune", "method": "full", "budget": f"{STEPS}steps", "train": "other.txt"},
            {"name": "third", "contest": "tune", "method": "full", "budget": f"{STEPS}steps", "train": "answers.jsonl"},
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the chain reads, and in `checked` a store that knows that its methods pass their quick checks."""
    place = tmp_path_factory.mktemp("recipe")
    save_tiny(place / "model", "llama", 1)
    draw = random.Random(0)
    for name in ("plain.txt", "other.txt"):
        texts = [" ".join(draw.choice(WORDS) for _ in range(40)) for _ in range(20)]
        (place / name).write_text("\n\n".join(texts))
    rows = [{"prompt": f"{word}?\n", "completion": f"the {word}."} for word in WORDS]
    (place / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for contest, name in (("pretrain", "adamw"), ("tune", "full")):
        assert check.quick_verdict(registry.method(contest, name), Store(place / "checked")) is None
    return place


def written(folder: Path, recipe: dict[str, Any], name: str = "chain.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def store_in(folder: Path, place: Path) -> Path:
    shutil.copytree(folder / "checked", place)
    return place


def words(path: Path, store: Path, out: Path, *more: object) -> list[str]:
    return ["recipe", str(path), "--store", str(store), "--out", str(out), "--checkpoint-seconds", "0", *map(str, more)]


def essence(out: Path) -> list[Any]:
    """What must come out the same however it came about."""
    made = json.loads((out / "recipe.json").read_text())
    kept = ("name", "key", "inputs", "weights_sha256", "before", "after")
    weights = lm.weights_digest(AutoModelForCausalLM.from_pretrained(out))
    return [weights, *({name: stage[name] for name in kept} for stage in made["stages"])]


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Store and output of the chain, run without interruption."""
    place = tmp_path_factory.mktemp("finished")
    store, out = store_in(folder, place / "store"), place / "out"
    said = Child(place, words(written(folder, chain()), store, out)).ended()
    assert said.code == 0, said.err
    return store, out


@pytest.fixture
def performed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the trials that this process performs."""
    keys: list[str] = []
    perform = trial.Trial._perform

    def counted(self: trial.Trial, *given: Any) -> dict[str, Any]:
        keys.append(self.key)
        return perform(self, *given)

    monkeypatch.setattr(trial.Trial, "_perform", counted)
    return keys


def test_each_stage_begins_with_the_result_of_the_one_before(finished: tuple[Path, Path]) -> None:
    store, out = finished
    made = json.loads((out / "recipe.json").read_text())
    stages = {stage["name"]: stage for stage in made["stages"]}
    assert [(s["name"], s["from"]) for s in made["stages"]] == [
        ("first", None),
        ("second", "first"),
        ("third", "second"),
    ]
    for before, after in (("first", "second"), ("second", "third")):
        kept = store / "artifacts" / "trials" / stages[before]["key"]
        assert stages[after]["inputs"]["model"] == lm.fingerprint(kept)
        assert lm.weights_digest(AutoModelForCausalLM.from_pretrained(kept)) == stages[before]["weights_sha256"]
    assert lm.weights_digest(AutoModelForCausalLM.from_pretrained(out)) == stages["third"]["weights_sha256"]
    for stage in made["stages"]:
        assert set(stage["before"]) == set(stage["after"])
        assert stage["cost"]["steps"] == STEPS
    assert stages["first"]["after"]["held_out_loss"]["value"] < stages["first"]["before"]["held_out_loss"]["value"]
    card = (out / "README.md").read_text()
    for part in (
        "# small",
        "| second | tune | full | 3 steps | first |",
        "## third",
        stages["third"]["weights_sha256"],
    ):
        assert part in card


def test_the_second_run_trains_nothing_and_writes_the_same(
    folder: Path, finished: tuple[Path, Path], tmp_path: Path, performed: list[str], bakeoff: Command
) -> None:
    store, out = finished
    before = done_trials(store)
    said = bakeoff(*words(folder / "chain.yaml", store, tmp_path / "again", "--report-to", "tensorboard"))
    assert said.code == 0, said.err
    assert said.err == ""
    logged = {path.parent.name for path in tmp_path.glob("again-tracking/tensorboard/*/*/events*")}
    assert {name.partition("_")[0] for name in logged} == {"first", "second", "third"}, logged
    assert not performed
    assert done_trials(store) == before
    assert essence(tmp_path / "again") == essence(out)
    assert "third: tune full, 3 steps" in said.out


def dying_after(count: int) -> None:
    """Die right after so many checkpoints."""
    write, written = checkpoint.write, 0

    def counted(*given: Any, **named: Any) -> None:
        nonlocal written
        write(*given, **named)
        written += 1
        if written == count:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.write = counted


@pytest.mark.parametrize("checkpoints", [2, STEPS + 1 + 2, 2 * (STEPS + 1) + 1])
def test_a_killed_recipe_goes_on_to_the_same_bits(
    checkpoints: int, folder: Path, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    store, out = store_in(folder, tmp_path / "store"), tmp_path / "out"
    command = words(written(folder, chain()), store, out)
    assert Child(tmp_path, command, dying_after, checkpoints).ended().code == -signal.SIGKILL
    before = done_trials(store)
    assert len(before) == checkpoints // (STEPS + 1)
    assert not out.exists()
    said = Child(tmp_path, command).ended()
    assert said.code == 0, said.err
    assert before.items() <= done_trials(store).items()
    assert essence(out) == essence(finished[1])


@pytest.mark.parametrize(("stage", "again"), [("third", 1), ("second", 2)])
def test_a_changed_stage_reruns_itself_and_those_after_it(
    stage: str,
    again: int,
    folder: Path,
    finished: tuple[Path, Path],
    tmp_path: Path,
    performed: list[str],
    bakeoff: Command,
) -> None:
    store = tmp_path / "store"
    shutil.copytree(finished[0], store)
    out = tmp_path / "out"
    said = bakeoff(*words(folder / "chain.yaml", store, out, "--set", f"{stage}.budget={STEPS + 1}steps"))
    assert said.code == 0, said.err
    assert len(performed) == again
    keys = [s["key"] for s in json.loads((out / "recipe.json").read_text())["stages"]]
    assert performed == keys[-again:]


def test_a_stage_may_begin_with_an_earlier_one_or_with_a_model_of_its_own(
    folder: Path, finished: tuple[Path, Path], tmp_path: Path, performed: list[str], bakeoff: Command
) -> None:
    store = tmp_path / "store"
    shutil.copytree(finished[0], store)
    recipe = chain()
    recipe["stages"][2]["from"] = "first"
    recipe["stages"].append({**recipe["stages"][1], "name": "fourth", "model": "model"})
    said = bakeoff(*words(written(folder, recipe, "branches.yaml"), store, tmp_path / "out", "--json"))
    assert said.code == 0, said.err
    made = json.loads(said.out)
    first, _, third, fourth = made["stages"]
    assert third["inputs"]["model"] == lm.fingerprint(store / "artifacts" / "trials" / first["key"])
    assert fourth["inputs"]["model"] == lm.fingerprint(folder / "model")
    assert fourth["from"] is None
    assert len(performed) == 2


def test_the_plan_says_what_is_done_and_trains_nothing(
    folder: Path, finished: tuple[Path, Path], tmp_path: Path, performed: list[str], bakeoff: Command
) -> None:
    path = written(folder, chain())
    plan = ["recipe", path, "--dry-run", "--json", "--store"]
    stages = json.loads(bakeoff(*plan, finished[0], "--set", "third.budget=9steps").out)["stages"]
    assert [s["state"] for s in stages] == ["done", "done", "to run"]
    assert stages[2]["seconds"] > 0
    stages = json.loads(bakeoff(*plan, tmp_path / "store").out)["stages"]
    assert [(s["state"], s["key"] is None) for s in stages] == [("to run", False), ("to run", True), ("to run", True)]
    table = bakeoff(*plan[:3], "--store", tmp_path / "store").out.splitlines()
    assert [line.split()[0] for line in table] == ["stage", "first", "second", "third"]
    assert not performed


def test_a_damaged_result_is_made_again(
    folder: Path, finished: tuple[Path, Path], tmp_path: Path, performed: list[str], bakeoff: Command
) -> None:
    store = tmp_path / "store"
    shutil.copytree(finished[0], store)
    key = json.loads((finished[1] / "recipe.json").read_text())["stages"][0]["key"]
    path = store / "artifacts" / "trials" / key / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    said = bakeoff(*words(folder / "chain.yaml", store, tmp_path / "out"))
    assert said.code == 0, said.err
    assert "is damaged, kept as" in said.sentence
    assert performed == [key]
    assert essence(tmp_path / "out") == essence(finished[1])


def test_a_method_that_its_checks_refuse_stops_the_recipe_before_it_begins(
    folder: Path, tmp_path: Path, performed: list[str], bakeoff: Command
) -> None:
    (tmp_path / "own.py").write_text(SPOILS)
    store = store_in(folder, tmp_path / "store")
    said = bakeoff(
        *words(written(folder, chain()), store, tmp_path / "out", "--set", f"third.method={tmp_path}/own.py:spoils")
    )
    assert said.code == 1
    assert "The stage third cannot run, as " in said.sentence
    assert "input_unchanged" in said.sentence
    assert not performed


def test_a_stage_that_fails_says_so_and_those_before_stay(
    folder: Path, finished: tuple[Path, Path], tmp_path: Path, bakeoff: Command
) -> None:
    store = tmp_path / "store"
    shutil.copytree(finished[0], store)
    before = done_trials(store)
    path = folder / "chain.yaml"
    said = bakeoff(
        *words(
            path,
            store,
            tmp_path / "out",
            "--set",
            "third.method=full(learning_rate=0.1)",
            "--set",
            "third.max_length=9999",
        )
    )
    assert said.code == 2
    assert "The stage third cannot begin: --max-length 9999 is beyond" in said.sentence
    assert done_trials(store) == before
    assert not (tmp_path / "out").exists()


def changed(**fields: Any) -> Callable[[dict[str, Any]], None]:
    """A change of the stage `second`; None takes a field away."""

    def change(recipe: dict[str, Any]) -> None:
        stage = recipe["stages"][1]
        stage.update(fields)
        for name in [name for name, value in stage.items() if value is None]:
            del stage[name]

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            changed(contest="tuna"),
            "chain.yaml, stage second: There is no contest called 'tuna': did you mean tune or unlearn?",
        ),
        (changed(method="ful"), "stage second: There is no tune method called 'ful': did you mean full"),
        (changed(method="full(rate=1)"), "stage second: full has no parameter 'rate': it has learning_rate."),
        (changed(trian="x"), "no field of a stage of the contest tune called 'trian': did you mean train"),
        (changed(budget="3"), "stage second: The budget '3' is not understood"),
        (changed(budget=None), "stage second: budget is needed."),
        (changed(train=None), "stage second: train is needed: `bakeoff compare tune --help` says what it takes."),
        (changed(max_length=3), "stage second: max_length is wrong (Input should be greater than or equal to 8)"),
        (changed(name="first"), "two stages are called 'first'; give each a name of its own."),
        (changed(name=None), "stage 2: name is needed"),
        (changed(train="nothing.txt"), "nothing.txt: give a path that starts at the recipe's folder."),
        (changed(train="installed:novels"), "'installed:novels' is not understood: write one of installed:docstrings"),
        (changed(train="installed:code:many"), "'installed:code:many' is not understood"),
        (changed(**{"from": "third"}), "There is no earlier stage called 'third'"),
        (changed(**{"from": "first"}, model="model"), "give one of them."),
        (lambda r: r["stages"][0].update({"from": "second"}), "the contest pretrain begins without a model"),
        (lambda r: r["stages"].pop(0), "stage second: it needs a model to begin with: give `model: DIR`"),
        (lambda r: r.update(stage=[]), "There is no field in "),
        (lambda r: r.update(stages=[]), "needs a list `stages`"),
        (lambda r: r.update(seed=-1), "the seed must be a whole number of at least 0, not -1."),
        (lambda r: r["defaults"].update(maxlength=8), "called 'maxlength': did you mean max_length"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    change: Callable[[dict[str, Any]], Any], told: str, folder: Path, tmp_path: Path, bakeoff: Command
) -> None:
    recipe = chain()
    change(recipe)
    said = bakeoff(*words(written(folder, recipe), tmp_path / "store", tmp_path / "out"))
    written(folder, chain())
    assert said.code == 2
    assert told in said.sentence
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("second", "--set second is not understood: write STAGE.FIELD=VALUE"),
        ("secnd.budget=1steps", "There is no stage called 'secnd': did you mean second?"),
        ("second.bugdet=1steps", "called 'bugdet': did you mean budget"),
    ],
)
def test_an_override_that_fits_nothing_is_told(override: str, told: str, folder: Path) -> None:
    with pytest.raises(UsageError) as wrong:
        Recipe.read(written(folder, chain()), [override])
    assert told in str(wrong.value)


def test_files_that_are_no_recipe_and_folders_that_hold_something(
    folder: Path, tmp_path: Path, bakeoff: Command
) -> None:
    assert (
        "cannot be read (No such file" in bakeoff("recipe", tmp_path / "none.yaml", "--out", tmp_path / "out").sentence
    )
    (tmp_path / "bad.yaml").write_text("stages: [")
    assert "is not YAML" in bakeoff("recipe", tmp_path / "bad.yaml", "--out", tmp_path / "out").sentence
    path = written(folder, chain())
    assert "--out is needed" in bakeoff("recipe", path).sentence
    said = bakeoff(*words(path, tmp_path / "store", folder))
    assert "holds other files" in said.sentence
    assert bakeoff("recipe", "--help").code == 0


def test_paths_in_overrides_start_at_the_working_directory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.read(written(folder, chain()), ["third.train=mine.txt", "second.also=[plain.txt]"])
    assert recipe.stages[2].question["train"] == "mine.txt"
    assert recipe.stages[1].question["also"] == ["plain.txt"]
    assert recipe.stages[0].question["train"] == str(folder / "plain.txt")
    assert recipe.stages[0].question["tokenizer"] == str(folder / "model")
    assert "tokenizer" not in recipe.stages[1].question


def test_the_recipes_of_the_repository_can_be_read() -> None:
    paths = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
    assert paths
    for path in paths:
        assert len(Recipe.read(path).stages) > 1
