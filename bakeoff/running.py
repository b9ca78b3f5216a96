"""From what a user gave to a comparison, and from a comparison to its files: shared by the command line and the site."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bakeoff import files
from bakeoff.errors import UsageError
from bakeoff.progress import Journal
from bakeoff.training import parallel

if TYPE_CHECKING:
    from bakeoff.comparison import Comparison, Watch
    from bakeoff.contest import Question
    from bakeoff.executor import Executor
    from bakeoff.report.trackers import Trackers
    from bakeoff.store import Store

COMPARED = (
    "methods", "seeds", "seed_base", "baseline", "tune", "executor", "workers", "ray_address", "budget", "checkpoint_seconds",
)  # fmt: skip
"""The fields of a comparison besides those of its contest's question."""


def given(contest_name: str, options: Mapping[str, Any], known: Collection[str]) -> tuple[Question, dict[str, Any]]:
    """The contest's question, and the fields that `known` names (None where absent), from options and the configuration file
    that their field `config` names; options win. UsageError for what is missing, unknown or wrong."""
    from pydantic import ValidationError

    from bakeoff import registry

    contest = registry.contest(contest_name)
    fields: dict[str, Any] = dict.fromkeys(known)
    if path := options.get("config"):
        loaded = _configuration(Path(path))
        if (named := loaded.pop("contest", contest_name)) != contest_name:
            raise UsageError(f"The configuration {path} is for the contest {named}, not for {contest_name}.")
        for key in loaded:
            registry.pick(key, [*known, *contest.question.model_fields], f"field in {path}")
        fields |= loaded
    fields |= {k: v for k, v in options.items() if k != "config" and v is not None and v is not False and v != []}
    asked = {key: fields.pop(key) for key in contest.question.model_fields if fields.get(key) is not None}
    try:
        return contest.question(**asked), fields
    except ValidationError as error:
        first = error.errors()[0]
        name = "--" + str(first["loc"][0]).replace("_", "-")
        wrong = "is needed" if first["type"] == "missing" else f"is wrong ({first['msg']})"
        raise UsageError(f"{name} {wrong}: --help says what it takes.") from None


def _configuration(path: Path) -> dict[str, Any]:
    loaded = files.read_yaml(path, "configuration") or {}
    if not isinstance(loaded, dict):
        raise UsageError(f"The configuration {path} must hold fields such as 'model: DIR', one a line.")
    return {str(key).replace("-", "_"): value for key, value in loaded.items()}


def comparison_from(
    contest_name: str,
    fields: Mapping[str, Any],
    *,
    watch: Watch = lambda what, over, total, fraction, loss: None,
    notice: Callable[[str], None] = lambda sentence: None,
) -> Comparison:
    """The comparison that these fields describe: those of the contest's question, and those that COMPARED names.

    Raises: UsageError, in one sentence, for what is missing, unknown or out of range.
    """
    from bakeoff import registry

    for name in fields:
        registry.pick(name, [*COMPARED, *registry.contest(contest_name).question.model_fields], "field of a comparison")
    question, own = given(contest_name, fields, COMPARED)
    return put(contest_name, question, own, watch=watch, notice=notice)


def put(
    contest_name: str, question: Question, fields: Mapping[str, Any], *, watch: Watch, notice: Callable[[str], None]
) -> Comparison:
    """A question put to methods; `fields` as `given` returned them."""
    from bakeoff import registry
    from bakeoff.budget import Budget
    from bakeoff.comparison import Comparison
    from bakeoff.method import Spec

    first, methods = number(fields, "seed_base", 0), fields["methods"] or []
    return Comparison(
        registry.contest(contest_name), question,
        [Spec.parse(str(m)) for m in (methods if isinstance(methods, list | tuple) else [methods])],
        Budget.parse(budget(contest_name, fields)), range(first, first + number(fields, "seeds", 3, 1)),
        baseline=fields["baseline"] and str(Spec.parse(str(fields["baseline"]))), tune=number(fields, "tune", 0),
        checkpoint_seconds=number(fields, "checkpoint_seconds", 30.0), watch=watch, notice=notice, executor=_executor(fields),
    )  # fmt: skip


def need(fields: Mapping[str, Any], name: str, example: str) -> str:
    if fields.get(name) is None:
        raise UsageError(f"--{name} is needed, for example --{name} {example}.")
    return str(fields[name])


def budget(contest_name: str, fields: Mapping[str, Any]) -> str:
    """What was given, else the contest's own; UsageError where it has none."""
    from bakeoff import registry

    own = registry.contest(contest_name).budget
    return own if own and fields["budget"] is None else need(fields, "budget", "60steps")


def number(fields: Mapping[str, Any], name: str, default: float, least: float = 0) -> Any:
    """A number of the default's type; a configuration file may hold anything."""
    value, kind = default if fields[name] is None else fields[name], type(default)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < least or value != kind(value):
        option = "--" + name.replace("_", "-")
        whole = "whole " if kind is int else ""
        raise UsageError(f"{option} must be a {whole}number of at least {least:g}, not {value!r}.")
    return kind(value)


def _executor(fields: Mapping[str, Any]) -> Executor | None:
    """What spreads the trials; None where they run in this process."""
    from bakeoff import registry
    from bakeoff.executor import Executor

    kind = registry.pick(str(fields["executor"] or "serial"), ("serial", "joblib", "ray"), "executor")
    if kind == "serial" and fields["workers"] is not None:
        raise UsageError(
            "--workers needs other processes to work in: give --executor joblib or --executor ray as well."
        )
    if kind != "ray" and fields["ray_address"] is not None:
        raise UsageError("--ray-address names a Ray cluster: give --executor ray as well.")
    if kind == "serial":
        return None
    workers = None if fields["workers"] is None else number(fields, "workers", 1, 1)
    address = None if fields["ray_address"] is None else str(fields["ray_address"])
    if parallel.processes() > 1:
        raise UsageError("--executor and a launcher of several processes exclude one another: use one of them.")
    return Executor("ray" if kind == "ray" else "joblib", workers, address)


def run_comparison(comparison: Comparison, out: Path, store: Store, report_to: str | None = None) -> dict[str, Any]:
    """Run a comparison and write `results.json`, `report.html` and, where a method helped, the model in `winner/`.

    While it runs, `progress.jsonl` in the same folder tells how far it is. `report_to` names experiment trackers, as in
    "mlflow,wandb", that every trial is logged to as well.
    """
    from bakeoff.report.card import model_card
    from bakeoff.report.page import write_report

    def card(trial: dict[str, Any]) -> str:
        return model_card(comparison.methods[trial["label"]], trial, results["comparison"], results["environment"])

    def finish() -> None:
        with only_writer(out, store):
            files.write_json(out / "results.json", results)
            comparison.export_winner(results, store, out / "winner", card)
            write_report(results, out)

    trackers = trackers_of(comparison, report_to, out, comparison.notice) if report_to else None
    comparison = comparison.prepared()
    if trackers:
        comparison = comparison.watched(trackers.ended)
    with Journal(out) if parallel.is_first() else contextlib.nullcontext() as journal:
        results = (comparison.watched(journal.ended, journal.watch) if journal else comparison).run(store)
        parallel.on_first(finish)
        if trackers:
            trackers.finish(results)
    return results


def trackers_of(comparison: Comparison, names: str, folder: Path, notice: Callable[[str], None]) -> Trackers:
    """Experiment trackers for the trials of a comparison; `folder` is for what they keep in files."""
    from bakeoff.report.trackers import Trackers

    asked = comparison.question.model_dump(mode="json")
    common = {"contest": comparison.contest.name, "budget": str(comparison.budget), "question": asked}
    return Trackers(names, "bakeoff", folder, common, notice)


def only_writer(out: Path, store: Store) -> AbstractContextManager[None]:
    """Keeps processes that share a store from writing the same output at once."""
    from bakeoff.store import address

    if not parallel.is_first():
        return contextlib.nullcontext()
    return store.lock("outputs", address({"folder": str(out.resolve())}))


def read_results(folder: Path) -> dict[str, Any]:
    """The results that a comparison wrote; UsageError where there are none or they are damaged."""
    path = folder / "results.json"
    try:
        results = json.loads(path.read_text("utf-8"))
        if not isinstance(results, dict) or not {"comparison", "trials", "effects", "environment"} <= set(results):
            raise ValueError("fields are missing")
    except OSError:
        raise UsageError(f"There is no {path}: give the folder that `bakeoff compare --out` wrote.") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is damaged ({error}): run the same `bakeoff compare` again; finished trials are kept."
        ) from None
    return dict(results)
