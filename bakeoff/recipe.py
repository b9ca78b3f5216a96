"""A recipe: training in stages, each on the result of an earlier one, from one YAML file.

A stage is a contest, a method and a budget. It is one trial, kept in the store by what made it, the weights that it began with
among that: what was finished is not run again, and a killed stage goes on from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from bakeoff import check, files, registry
from bakeoff.budget import Budget
from bakeoff.comparison import Comparison, Ended, Watch
from bakeoff.contest import Contest
from bakeoff.errors import BakeoffError, UsageError
from bakeoff.method import Method, Spec
from bakeoff.store import Store
from bakeoff.text.installed import installed_part
from bakeoff.text.read import INSTALLED, SUFFIXES, TASK
from bakeoff.training import parallel
from bakeoff.trial import Trial

_FIELDS = ("name", "seed", "defaults", "stages")
_STAGE_FIELDS = ("name", "contest", "method", "budget", "from")


@dataclass(frozen=True)
class Stage:
    """One stage. `question` holds the fields of the contest's question; `start` names the stage whose result is its model."""

    name: str
    contest: Contest
    spec: Spec
    budget: Budget
    question: Mapping[str, Any]
    start: str | None

    @property
    def method(self) -> Method:
        return registry.method(self.contest.name, self.spec.name)


@dataclass(frozen=True)
class Recipe:
    """Stages in the order in which they run, all with one seed."""

    name: str
    seed: int
    stages: Sequence[Stage]

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str] = ()) -> Recipe:
        """The recipe in a YAML file, checked as far as it can be before anything runs.

        Fields: `name` (default: that of the file), `seed` (default 0), `defaults` (fields of questions, for every stage whose
        contest has them) and `stages`, each with `name`, `contest`, `method`, `budget`, optionally `from`, and the fields
        of the contest's question. The model of a stage is the result of the stage `from`, by default of the one before, unless
        the field `model` names another. Relative paths start at the file's folder.

        overrides: `STAGE.FIELD=VALUE`, which come before what the file says; paths in them start at the working directory.

        Raises:
            UsageError: what is wrong, with file and stage.
        """
        raw = _loaded(path)
        for key in raw:
            registry.pick(key, _FIELDS, f"field in {path}")
        stages, defaults = raw.get("stages"), raw.get("defaults") or {}
        if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
            raise UsageError(f"{path} needs a list `stages`, each with name, contest, method and budget.")
        if not isinstance(defaults, dict):
            raise UsageError(f"{path}: defaults must hold fields such as 'dtype: bfloat16', one a line.")
        seed = raw.get("seed", 0)
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise UsageError(f"{path}: the seed must be a whole number of at least 0, not {seed!r}.")
        changed = _overridden(stages, overrides)
        read: list[Stage] = []
        for number, given in enumerate(stages, 1):
            name = str(given.get("name", ""))
            place = f"{path}, stage {name or number}"
            if not name:
                raise UsageError(f"{place}: name is needed, so that later stages and errors can name it.")
            if name in {stage.name for stage in read}:
                raise UsageError(f"{path}: two stages are called {name!r}; give each a name of its own.")
            try:
                near = {
                    key: value if (name, key) in changed or key in _STAGE_FIELDS else _near(value, path.parent)
                    for key, value in given.items()
                }
                common = {key: _near(value, path.parent) for key, value in defaults.items()}
                read.append(_stage(name, near, common, read))
            except UsageError as error:
                raise UsageError(f"{place}: {error}") from None
        known = {field for stage in read for field in stage.contest.question.model_fields}
        for key in defaults:
            registry.pick(key, known, f"field of a stage's question, as {path} has it in defaults,")
        return cls(str(raw.get("name", path.stem)), seed, read)

    def plan(self, store: Store) -> list[dict[str, Any]]:
        """What each stage will do: whether it is done, or what it will take where that can be told before others have run."""
        folders: dict[str, Path] = {}
        rows = []
        for stage in self.stages:
            row: dict[str, Any] = {
                "name": stage.name, "contest": stage.contest.name, "method": str(stage.spec), "budget": str(stage.budget),
                "from": stage.start, "state": "to run", "key": None, "seconds": None, "tokens": None,
            }  # fmt: skip
            if stage.start is None or stage.start in folders:
                comparison = self._comparison(stage, folders)
                key = Trial(stage.method, stage.spec.arguments, self.seed, stage.budget, comparison.opened()).key
                record = store.get("trials", key)
                row["key"] = key
                if record and record["status"] == "done" and store.artifact("trials", key).is_dir():
                    row["state"] = "done"
                    folders[stage.name] = store.artifact("trials", key)
                else:
                    predicted = comparison.predict()[0]
                    row |= {name: predicted[name] for name in ("seconds", "tokens")}
            rows.append(row)
        return rows

    def run(
        self,
        store: Store,
        out: Path,
        card: Callable[[Mapping[str, Any]], str],
        *,
        checkpoint_seconds: float = 30.0,
        watch: Watch = lambda what, over, total, fraction, loss: None,
        notice: Callable[[str], None] = lambda sentence: None,
        ended: Ended = lambda label, seed, record: None,
    ) -> dict[str, Any]:
        """Run what is not in the store, write the last model with its card and `recipe.json` into `out`, and return that.

        Raises:
            BakeoffError: a method fails its checks, found before the first stage runs, or a stage fails; those before stay.
        """
        for stage in self.stages:
            if why := check.quick_verdict(stage.method, store):
                raise BakeoffError(f"The stage {stage.name} cannot run, as {stage.spec} gets no row: {why}")
        folders: dict[str, Path] = {}
        told: list[dict[str, Any]] = []
        for number, stage in enumerate(self.stages):
            # The comparison counts one trial; the recipe counts stages.
            def watching(what: str, over: int, total: int, fraction: float, loss: float, stage: Stage = stage) -> None:
                watch(f"{stage.name}: {stage.spec}", len(told), len(self.stages), fraction, loss)

            def over(label: str, seed: int, record: Mapping[str, Any], stage: Stage = stage) -> None:
                ended(f"{stage.name}: {label}", seed, record)

            comparison = dataclasses.replace(
                self._comparison(stage, folders), checkpoint_seconds=checkpoint_seconds, watch=watching, ended=over
            )
            results = comparison.run(store)
            trial = results["trials"][0]
            if trial["status"] != "done":
                raise BakeoffError(f"The stage {stage.name} failed: {trial['error']}")
            comparison = dataclasses.replace(comparison, notice=notice)
            folders[stage.name] = comparison.kept(trial, store)
            told.append(_told(stage, trial, results["comparison"]))
            watch(stage.name, number + 1, len(self.stages), 0.0, float("nan"))
        made = {"name": self.name, "seed": self.seed, "stages": told, "environment": results["environment"]}
        comparison.export(trial, store, out, card(made))
        parallel.on_first(lambda: files.write_json(out / "recipe.json", made))
        return made

    def _comparison(self, stage: Stage, folders: Mapping[str, Path]) -> Comparison:
        """The comparison of one method that a stage is, on the model that it starts from, with its inputs read."""
        question = dict(stage.question)
        if stage.start is not None:
            question["model"] = str(folders[stage.start])
        asked = stage.contest.question(**question)
        try:
            return Comparison(stage.contest, asked, [stage.spec], stage.budget, [self.seed]).prepared()
        except UsageError as error:
            raise UsageError(f"The stage {stage.name} cannot begin: {error}") from None


def _stage(name: str, given: Mapping[str, Any], defaults: Mapping[str, Any], before: Sequence[Stage]) -> Stage:
    for field in ("contest", "method", "budget"):
        if given.get(field) is None:
            raise UsageError(f"{field} is needed.")
    contest = registry.contest(str(given["contest"]))
    spec = Spec.parse(str(given["method"]))
    registry.method(contest.name, spec.name).resolve(spec.arguments)
    budget = Budget.parse(str(given["budget"]))
    fields = contest.question.model_fields
    for key in given:
        registry.pick(key, [*_STAGE_FIELDS, *fields], f"field of a stage of the contest {contest.name}")
    question = {key: value for key, value in defaults.items() if key in fields}
    question |= {key: value for key, value in given.items() if key in fields}
    start = given.get("from")
    if start is not None:
        if "model" not in fields:
            raise UsageError(f"the contest {contest.name} begins without a model: leave out `from`.")
        if "model" in given:
            raise UsageError("it begins with `model` or with the result of the stage in `from`: give one of them.")
        registry.pick(str(start), [stage.name for stage in before], "earlier stage")
    elif "model" in fields and "model" not in given and before:
        start = before[-1].name
    if start is not None:
        question.pop("model", None)
    if "model" in fields and fields["model"].is_required() and start is None and question.get("model") is None:
        raise UsageError(
            "it needs a model to begin with: give `model: DIR`, or put a stage before it that makes one, such as pretrain."
        )
    try:
        contest.question(**{**question, **({"model": str(start)} if start is not None else {})})
    except ValidationError as error:
        first = error.errors()[0]
        wrong = "is needed" if first["type"] == "missing" else f"is wrong ({first['msg']})"
        raise UsageError(
            f"{first['loc'][0]} {wrong}: `bakeoff compare {contest.name} --help` says what it takes."
        ) from None
    return Stage(name, contest, spec, budget, question, None if start is None else str(start))


def _told(stage: Stage, trial: Mapping[str, Any], comparison: Mapping[str, Any]) -> dict[str, Any]:
    method = stage.method
    return {
        "name": stage.name, "contest": stage.contest.name, "method": str(stage.spec), "does": method.doc.split("\n")[0],
        "source": method.source, "paper": method.paper, "departures": method.departures, "args": trial["args"],
        "budget": str(stage.budget), "from": stage.start, "question": dict(stage.question), "inputs": comparison["inputs"],
        "key": trial["key"], "weights_sha256": trial["weights_sha256"], "before": comparison["untouched"],
        "after": trial["metrics"], "cost": trial["cost"], "notes": trial["notes"],
    }  # fmt: skip


def _loaded(path: Path) -> dict[str, Any]:
    loaded = files.read_yaml(path, "recipe")
    if not isinstance(loaded, dict):
        raise UsageError(f"{path} needs a list `stages`, each with name, contest, method and budget.")
    return {str(key): value for key, value in loaded.items()}


def _overridden(stages: list[dict[str, Any]], overrides: Sequence[str]) -> set[tuple[str, str]]:
    """Put the overrides into the stages; the (stage, field) pairs that they changed."""
    changed = set()
    for text in overrides:
        place, equals, value = text.partition("=")
        name, dot, field = place.strip().partition(".")
        if not (equals and dot and field):
            raise UsageError(
                f"--set {text} is not understood: write STAGE.FIELD=VALUE, such as pretrain.budget=50steps."
            )
        known = {str(stage.get("name")): stage for stage in stages}
        known[registry.pick(name, known, "stage")][field] = yaml.safe_load(value)
        changed.add((name, field))
    return changed


def _near(value: Any, folder: Path) -> Any:
    """A value in which a relative path starts at `folder`; UsageError for a file of data that is not there."""
    if isinstance(value, list):
        return [_near(one, folder) for one in value]
    if not isinstance(value, str) or value == "reference" or "(" in value or value.startswith(TASK):
        return value
    if value.startswith(INSTALLED):
        installed_part(value)
        return value
    path = Path(value).expanduser()
    near = folder / path
    if near.exists():
        return str(near)
    if path.exists() or Path(value.removesuffix(".gz")).suffix.lower() in SUFFIXES:
        raise UsageError(f"there is no {near}: give a path that starts at the recipe's folder.")
    return value
