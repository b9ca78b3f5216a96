"""The command line. Torch and transformers are imported when a command needs them, so that help is instant."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.exceptions import TyperException

from bakeoff import __version__
from bakeoff.console import (
    method_row,
    notice,
    paper_row,
    print_found,
    print_method,
    print_paper,
    print_papers,
    print_plan,
    print_readings,
    print_results,
    print_stages,
    watching,
)
from bakeoff.errors import BakeoffError, UsageError
from bakeoff.training import parallel
from bakeoff.training.threads import keep_memory

if TYPE_CHECKING:
    from bakeoff.store import Store

app = typer.Typer(
    help="Would that paper's trick work on my model? Published techniques, side by side on your own model and data.",
    epilog="Every command takes --debug, which shows a traceback where something fails.",
    add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
)  # fmt: skip

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
StoreUrl = Annotated[
    str | None, typer.Option("--store", help="Folder or fsspec URL of the store. Default: .bakeoff, or BAKEOFF_STORE.")
]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 well, 1 failed, 2 not understood, 130 interrupted."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not parallel.is_first() and not debug:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  the first process speaks for all
    if words in ([], ["compare"], ["apply"]):
        words = [*words, "--help"]
    words = _repeated(words)
    keep_memory()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        code = command(words)(args=words, prog_name="bakeoff", standalone_mode=False) or 0
    except typer.Exit as done:
        code = done.exit_code
    except TyperException as error:
        print(f"bakeoff: {error.format_message()} (--help says more)", file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        elif isinstance(error, BakeoffError):
            print(f"bakeoff: {error}", file=sys.stderr)
        else:
            print(
                f"bakeoff: unexpected {type(error).__name__}: {error} (give --debug for the traceback)", file=sys.stderr
            )
        code = error.exit_code if isinstance(error, BakeoffError) else 1
    parallel.leave()
    if code == 130:  # typer makes it of a KeyboardInterrupt
        again = shlex.join(["bakeoff", *words])
        print(
            f"\nInterrupted. Nothing that was finished is lost; to go on, give the same command again:\n  {again}",
            file=sys.stderr,
        )
    sys.exit(code)


def _repeated(words: list[str]) -> list[str]:
    """Several folders or files after one option of a contest that takes many, as in `--models A B`, named one by one."""
    from bakeoff import registry

    if words[:1] not in (["compare"], ["apply"]) or words[1:2] == [] or words[1] not in registry.contest_names():
        return words
    fields = registry.contest(words[1]).question.model_fields.items()
    many = {"--" + name.replace("_", "-") for name, field in fields if str(field.annotation).startswith("tuple")}
    spread, option = words[:2], None
    has_method = words[0] == "apply" and len(words) > 2 and not words[2].startswith("-")
    for before, word in itertools.pairwise(words[1:]):
        if word.startswith("-"):
            option = word if word in many else None
        elif before != option and option:
            if (
                has_method
                or word == "reference"
                or Path(word).exists()
                or ("/" in word and ".py" not in word and "(" not in word)
            ):
                spread.append(option)
            else:
                option = None
        spread.append(word)
    return spread


def command(words: Sequence[str]) -> Callable[..., Any]:
    """The command tree. `compare` and `apply` have one subcommand a contest; the one named gets its question's options."""
    from bakeoff.registry import contest_names

    app.registered_groups.clear()
    for name, summary, handler, own in (
        (
            "compare",
            "Run methods side by side and say which gains most, breaks least, costs least.",
            _compare,
            _COMPARE,
        ),
        ("apply", "Run one method and save what it makes.", _apply, _APPLY),
    ):
        group = typer.Typer(rich_markup_mode=None)
        for contest in contest_names():
            options = {**own, **_options(contest), **_COMMON} if contest in words[1:2] and name == words[0] else {}
            group.command(contest, help=f"{summary} Contest: {contest}.")(_function(handler, contest, options))
        app.add_typer(group, name=name, help=summary)
    return typer.main.get_command(app)


def _function(
    handler: Callable[[str, dict[str, Any]], int], contest: str, options: dict[str, Any]
) -> Callable[..., int]:
    """A function that typer can read: one keyword parameter an option, None where the user gave nothing."""

    def function(**given: Any) -> int:
        return handler(contest, given)

    function.__annotations__ = options
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=None)
            for name, kind in options.items()
        ]
    )
    return function


def _options(contest_name: str) -> dict[str, Any]:
    """The options that a contest's question needs, made from its fields."""
    from bakeoff import registry

    made: dict[str, Any] = {}
    for name, field in registry.contest(contest_name).question.model_fields.items():
        kind = list[str] if str(field.annotation).startswith("tuple") else field.annotation
        made[name] = Annotated[kind | None, typer.Option(help=field.description, show_default=False)]  # type: ignore[valid-type, operator]
    return made


def _option(kind: Any, help: str, *names: str, **more: Any) -> Any:
    return Annotated[kind | None, typer.Option(*names, help=help, show_default=False, **more)]


_COMMON: dict[str, Any] = {
    "budget": _option(str, "What each trial may spend: 60steps, 200ktokens, 10min."),
    "out": _option(str, "Folder for results, report and model."),
    "store": _option(str, "Folder or fsspec URL of the store. Default: .bakeoff, or BAKEOFF_STORE."),
    "config": _option(str, "YAML file with the same fields; options given here come first."),
    "checkpoint_seconds": _option(float, "Seconds between checkpoints of a trial. Default: 30.", min=0),
    "report_to": _option(
        str,
        "Log every trial to experiment trackers as well: tensorboard, mlflow, wandb, trackio, several with commas, or all.",
    ),
    "quiet": _option(bool, "No progress.", "--quiet"),
    "json": _option(bool, "Print the results as JSON.", "--json"),
}
_COMPARE: dict[str, Any] = {
    "methods": Annotated[
        list[str] | None, typer.Argument(help='Methods, with values as in "lora(rank=8)".', show_default=False)
    ],
    "seeds": _option(int, "Trials of each method, one a seed. Default: 3.", min=1),
    "seed_base": _option(int, "The first seed. Default: 0.", min=0),
    "baseline": _option(str, "What effects are measured against. Default: the first method."),
    "tune": _option(int, "Optuna trials for each method on a validation split first.", min=0),
    "executor": _option(
        Literal["serial", "joblib", "ray"],
        "Where trials run: here one by one, in processes of this machine, or on a Ray cluster. Default: serial.",
    ),
    "workers": _option(int, "Trials at once with joblib or ray. Default: one for each core.", min=1),
    "ray_address": _option(str, "HOST:PORT of a Ray cluster, or auto. Default: Ray on this machine only."),
    "dry_run": _option(bool, "Print the plan with tokens, seconds and memory predicted, and stop.", "--dry-run"),
}
_APPLY: dict[str, Any] = {
    "method": Annotated[
        str | None, typer.Argument(help='A method, with values as in "lora(rank=8)".', show_default=False)
    ],
    "seed": _option(int, "Default: 0.", min=0),
}


def _compare(contest_name: str, options: dict[str, Any]) -> int:
    from bakeoff.running import given, need, put, run_comparison

    question, fields = given(contest_name, options, {*_COMPARE, *_COMMON} - {"config"})
    with watching(bool(fields["quiet"])) as watch:
        comparison = put(contest_name, question, fields, watch=watch, notice=notice)
        if len(comparison.seeds) < 3:
            notice("Fewer than 3 seeds decide nothing reliably: one gives no interval, two too narrow a one.")
        if fields["dry_run"]:
            return print_plan(comparison, bool(fields["json"]))
        out = Path(need(fields, "out", "results"))
        results = run_comparison(comparison, out, _store(fields["store"]), fields["report_to"])
    print_results(results, out, bool(fields["json"]))
    left_out = results["comparison"]["facts"].get("failures", ())
    for failure in left_out:
        notice(f"{failure['where']}: {failure['why']}")
    failed = results["comparison"]["refused"] or any(t["status"] == "failed" for t in results["trials"])
    return 1 if failed or left_out else 0


def _apply(contest_name: str, options: dict[str, Any]) -> int:
    from bakeoff import registry
    from bakeoff.method import Spec
    from bakeoff.running import budget, given, need, number, only_writer, trackers_of

    question, fields = given(contest_name, options, {*_APPLY, *_COMMON} - {"config"})
    spec, out = Spec.parse(need(fields, "method", "full")), Path(need(fields, "out", "model"))
    seed, direct = number(fields, "seed", 0), registry.contest(contest_name).direct
    _refuse_to_replace(out)
    if direct:
        method = registry.method(contest_name, spec.name)
        if (done := direct(question, method, method.resolve(spec.arguments), seed, out)) is not None:
            print(
                json.dumps({"out": str(out), **done}, indent=2)
                if fields["json"]
                else f"{done['sentence']} Saved in {out}."
            )
            for failure in done.get("failures", ()):
                notice(f"{failure['where']}: {failure['why']}")
            return 1 if done.get("failures") else 0
    from bakeoff.budget import Budget
    from bakeoff.comparison import Comparison
    from bakeoff.report.card import model_card

    with watching(bool(fields["quiet"])) as watch:
        comparison = Comparison(
            registry.contest(contest_name), question, [spec], Budget.parse(budget(contest_name, fields)), [seed],
            checkpoint_seconds=number(fields, "checkpoint_seconds", 30.0), watch=watch,
        ).prepared()  # fmt: skip
        store = _store(fields["store"])
        tracking = out.with_name(f"{out.name}-tracking")
        if fields["report_to"]:
            comparison = comparison.watched(trackers_of(comparison, fields["report_to"], tracking, notice).ended)
        results = comparison.run(store)
        trial = (
            results["trials"]
            or [{"status": "refused", "error": next(iter(results["comparison"]["refused"].values()), "")}]
        )[0]
        if trial["status"] != "done":
            raise BakeoffError(f"{spec} failed: {trial['error']}")
        card = model_card(comparison.methods[str(spec)], trial, results["comparison"], results["environment"])
        with only_writer(out, store):
            dataclasses.replace(comparison, notice=notice).export(trial, store, out, card)
    if fields["json"]:
        print(json.dumps({"out": str(out), "trial": trial, "untouched": results["comparison"]["untouched"]}, indent=2))
        return 0
    for name, before in results["comparison"]["untouched"].items():
        print(
            f"{name:28} {before['value']:9.4f} -> {trial['metrics'][name]['value']:9.4f} {before['unit']} ({before['better']} is better)"
        )
    print(
        f"\nSaved in {out}; read back, its answers differ from those of the model in memory by at most {trial['reload_difference']:g}."
    )
    return 0


def _refuse_to_replace(out: Path) -> None:
    """UsageError for a folder with content that no earlier `bakeoff apply` wrote: it would be lost."""
    if out.is_dir() and any(out.iterdir()):
        card = out / "README.md"
        if not (card.is_file() and "Made by bakeoff " in card.read_text("utf-8", errors="replace")):
            raise UsageError(
                f"{out} holds other files, which the model would replace: give --out an empty or new folder."
            )


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"bakeoff {__version__}")
        raise typer.Exit


@app.command("list")
def list_methods(
    contest: Annotated[str | None, typer.Argument(help="Contest; default: all.")] = None,
    papers: Annotated[bool, typer.Option("--papers", help="The papers of the catalogue, with status.")] = False,
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="With --papers: a page of markdown.")] = False,
) -> None:
    """List the contests and their methods, or the papers."""
    from bakeoff import registry

    if papers:
        _list_papers(contest, as_json, markdown)
        return
    if markdown:
        raise UsageError("--markdown is for the papers: give --papers as well.")
    names = [registry.pick(contest, registry.contest_names(), "contest")] if contest else registry.contest_names()
    rows = [
        {
            "contest": name,
            "method": m.name,
            "paper": m.paper,
            "source": m.source,
            "needs": list(m.needs),
            "summary": m.doc.split("\n")[0],
        }
        for name in names
        for m in registry.methods(name).values()
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for name in names:
        print(f"{name}: {registry.contest(name).summary}")
        own = [row for row in rows if row["contest"] == name]
        width = max((len(str(row["method"])) for row in own), default=0)
        for row in own:
            print(f"  {row['method']:{width}}  {row['summary']}")


def _list_papers(contest: str | None, as_json: bool, markdown: bool) -> None:
    from bakeoff import registry
    from bakeoff.catalogue.status import entries
    from bakeoff.catalogue.table import page

    chosen = list(entries().values())
    if contest:
        registry.pick(contest, sorted({entry.paper.contest for entry in chosen}), "contest")
        chosen = [entry for entry in chosen if entry.paper.contest == contest]
    if markdown:
        print(page(chosen), end="")
    elif as_json:
        print(json.dumps([paper_row(entry) for entry in chosen], indent=2, ensure_ascii=False))
    else:
        print_papers(chosen)


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="A problem, a technique or a title, in words.")],
    count: Annotated[int, typer.Option(min=1, help="Papers, at most.")] = 10,
    embedding: Annotated[
        str | None,
        typer.Option(help="Folder or hub id of an encoder to search by meaning as well; none: words alone."),
    ] = None,
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Find papers by words (BM25) and, where an embedding model is at hand, by meaning."""
    from bakeoff.catalogue.papers import papers
    from bakeoff.catalogue.search import EMBEDDING, Index, embedding_at_hand
    from bakeoff.catalogue.status import entries

    chosen = embedding_at_hand(embedding, _store(store))
    found = Index(list(papers().values()), chosen).search(query, count)
    if as_json:
        rows = [{**paper_row(entries()[f.paper.slug]), "bm25": f.bm25, "embedding": f.embedding} for f in found]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    if not found:
        print("No paper fits: try fewer or other words.")
        return
    print_found(found, chosen is not None)
    if chosen is None and embedding is None:
        notice(f"Searched by words alone; to search by meaning as well, give --embedding {EMBEDDING}.")


@app.command()
def show(name: str, as_json: Json = False) -> None:
    """Show a paper: its claim, what runs here, its verdicts; or a method, as lora or tune/lora: source, parameters, limits."""
    from bakeoff import registry
    from bakeoff.catalogue.status import entries

    entry = entries().get(name)
    if entry:
        methods = [registry.methods(contest)[method] for contest, method in entry.paper.methods]
    elif ".py" in name or ":" in name:
        methods = [registry.method_from(name)]
    else:
        every = [m for contest in registry.contest_names() for m in registry.methods(contest).values()]
        methods = [m for m in every if name in (m.name, f"{m.contest}/{m.name}")]
        if not methods:
            registry.pick(name, sorted({*(m.name for m in every), *entries()}), "paper or method")
    if as_json:
        shown = {"paper": paper_row(entry) if entry else None, "methods": [method_row(method) for method in methods]}
        print(json.dumps(shown, indent=2, ensure_ascii=False))
        return
    if entry:
        print_paper(entry)
    for method in methods:
        print_method(method)


@app.command()
def digest(
    since: Annotated[str, typer.Option(help="A date, as 2026-11-01: what came or was judged on that day or later.")],
    mail: Annotated[str | None, typer.Option(help="Address to send it to; --smtp says through which server.")] = None,
    smtp: Annotated[str | None, typer.Option(help="HOST:PORT of a mail server; TLS always.")] = None,
    as_json: Json = False,
) -> None:
    """What is new in the catalogue or newly judged since a date, printed or sent by mail."""
    import datetime

    from bakeoff import study
    from bakeoff.catalogue.digest import digest as gather
    from bakeoff.catalogue.digest import send
    from bakeoff.catalogue.papers import papers

    try:
        day = datetime.date.fromisoformat(since)
    except ValueError:
        raise UsageError(f"--since {since} is no date: give one as 2026-11-01.") from None
    if (mail is None) != (smtp is None):
        raise UsageError("--mail and --smtp go together: an address, and the HOST:PORT that sends to it.")
    found = gather(papers().values(), study.recorded(), day)
    sent = send(found, mail, smtp) if mail and smtp else None
    if as_json:
        print(json.dumps({**found.as_dict(), "sent": sent}, indent=2, ensure_ascii=False))
    else:
        print(sent or (found.text() if found else found.empty))


@app.command()
def serve(
    roots: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders with your models and data: the site sees no others. Default: this folder."),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8642,
    host: Annotated[str, typer.Option(help="Address to listen at; any but loopback needs a token.")] = "127.0.0.1",
    name: Annotated[
        list[str] | None, typer.Option(help="Another name under which the site is asked for; may be repeated.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="BAKEOFF_TOKEN", help="What visitors must know; 'new' makes one.")
    ] = None,
    embedding: Annotated[
        str | None, typer.Option(help="Folder or hub id of an encoder, to search by meaning as well.")
    ] = None,
    store: StoreUrl = None,
) -> None:
    """The catalogue and your comparisons as a site on this machine (extra [web])."""
    try:
        from bakeoff.web.serving import start
    except ModuleNotFoundError as error:
        raise UsageError(f"The site needs {error.name}: install it with pip install 'bakeoff[web]'.") from None
    start(roots or [Path()], host, port, name or [], token, embedding, store)


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="A method's name, FILE.py, FILE.py:NAME or package.module:NAME.")],
    contest: Annotated[str | None, typer.Option(help="The contest, where a name is in several.")] = None,
    quick: Annotated[bool, typer.Option(help="Only what a comparison checks before it gives a method a row.")] = False,
    as_json: Json = False,
) -> int:
    """Run the common checks on a method, one of ours or your own."""
    from bakeoff import check as checks
    from bakeoff import registry

    if ".py" in name or ":" in name:
        method = registry.method_from(name)
    else:
        places = [contest] if contest else [c for c in registry.contest_names() if name in registry.methods(c)]
        method = registry.method(places[0] if places else "tune", name)
    results = checks.check(method, quick=quick)
    if as_json:
        print(json.dumps([vars(r) for r in results], indent=2))
    else:
        for r in results:
            print(f"{r.status:16} {r.name:18} {r.seconds:6.1f} s  {r.sentence}")
    return 1 if any(r.status == "failed" for r in results) else 0


@app.command()
def undo(
    model: Annotated[str, typer.Argument(help="A folder that `bakeoff apply merge`, `edit` or `unlearn` wrote.")],
    out: Annotated[
        str | None, typer.Option(help="Folder for the base. Default: it takes the place of the model.")
    ] = None,
) -> None:
    """Put back the model that an edit or a merge began with, bit for bit."""
    from bakeoff.weights import undo as undoing

    undoing.undo(Path(model), None if out is None else Path(out))
    print(f"{out or model} holds the base again; every file has the SHA-256 sum that was recorded.")


@app.command()
def score(
    model: Annotated[str, typer.Option(help="Model folder, hub id, or 'reference'.")],
    text: Annotated[str, typer.Option(help="Text file, data file or dataset folder.")],
    stride: Annotated[
        int | None, typer.Option(help="Tokens between windows over long texts; default: no overlap.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a model's perplexity on a text, by token, word and byte."""
    from bakeoff import lm
    from bakeoff.errors import DataError
    from bakeoff.lm.score import perplexity
    from bakeoff.text import read

    examples = read(text)
    if examples[0].kind != "text":
        raise DataError(f"{text} holds rows of kind {examples[0].kind}: score reads plain text (a column 'text').")
    loaded = lm.load(model)
    found = dataclasses.asdict(perplexity(loaded.model, loaded.tokenizer, [e.text for e in examples], stride=stride))
    if as_json:
        print(json.dumps({"model": model, "text": text, **found}, indent=2))
        return
    for name, value in found.items():
        print(
            f"{name.replace('_', ' '):18} {value:,.4f}"
            if isinstance(value, float)
            else f"{name.replace('_', ' '):18} {value:,}"
        )


@app.command()
def measure(
    measures: Annotated[
        list[str] | None, typer.Argument(help='Measures, with values as in "alice(trials=30)".')
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model folder, hub id, or 'reference'.")] = None,
    address: Annotated[str | None, typer.Option(help="OpenAI-compatible address, as http://localhost:8000/v1.")] = None,
    served: Annotated[str | None, typer.Option(help="The model's name at that address.")] = None,
    texts: Annotated[str | None, typer.Option(help="Text for measures that read some.")] = None,
    items: Annotated[str | None, typer.Option(help="A file or folder of tasks in the measure's own format.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Questions of each kind, at most.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="What questions and answers are drawn with.")] = 0,
    chat: Annotated[bool, typer.Option("--chat", help="Ask through the model's chat template.")] = False,
    dtype: Annotated[str, typer.Option(help="Precision of the weights: float32, bfloat16, or auto.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto.")] = "auto",
    tasks: Annotated[str | None, typer.Option(help="Tasks of lm-eval, with commas between (extra [eval]).")] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="Examples before each question of such a task.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of such a task, at most.")] = None,
    include: Annotated[str | None, typer.Option(help="A folder with lm-eval tasks of your own.")] = None,
    out: Annotated[str | None, typer.Option(help="Write the readings to this JSON file as well.")] = None,
    as_json: Json = False,
) -> int:
    """Measure one model, or whoever answers at an address: numbers with their standard errors."""
    from bakeoff import files
    from bakeoff.measuring import Measuring

    named = [task.strip() for task in (tasks or "").split(",") if task.strip()]
    if not measures and not named:
        raise UsageError("Nothing is asked for: name measures (`bakeoff list measure` shows them) or give --tasks.")
    found = Measuring(
        measures or (), model, address, served, texts, items, count, seed, chat, dtype, device, named, shots, limit,
        include,
    ).run()  # fmt: skip
    if out is not None:
        files.write_json(Path(out), found)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print_readings(found)
    return 1 if found["failures"] else 0


@app.command()
def study(
    slug: str,
    scale: Annotated[
        Literal["smoke", "laptop", "gpu"], typer.Option(help="How large: seconds, minutes, or with a GPU.")
    ] = "laptop",
    seed_base: Annotated[
        int, typer.Option(min=0, help="The first seed; another one repeats the study on fresh randomness.")
    ] = 0,
    store: StoreUrl = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File for the page with the curves. Default: one in the store.", show_default=False),
    ] = None,
    record: Annotated[bool, typer.Option(help="Write the verdict into the package, as the project's own.")] = False,
    quiet: Annotated[bool, typer.Option(help="No progress.")] = False,
    as_json: Json = False,
) -> None:
    """Run a paper's claim and judge it."""
    from bakeoff import study as studying
    from bakeoff.report.page import write_verdict

    kept = _store(store)
    with watching(quiet) as watch:
        verdict = studying.run(slug, scale, seed_base=seed_base, store=kept, watch=watch, notice=notice)
    if record:
        studying.record(verdict)
    if as_json:
        print(json.dumps(verdict, indent=2))
    else:
        print(studying.told(verdict))
    if out or not as_json:
        page = write_verdict(verdict, out or kept.work("studies", f"{slug}-{scale}-{seed_base}") / "curves.html")
        print(f"\nCurves are drawn in {page}.", file=sys.stderr if as_json else sys.stdout)


@app.command()
def studies(
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Every verdict with its effects, as markdown.")] = False,
) -> None:
    """List the claims that were run, with their verdicts."""
    from bakeoff import study as studying

    if markdown:
        from bakeoff.report.verdicts import page

        print(page(studying.recorded()), end="")
        return
    rows = studying.listed()
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'study':23} {'verdict':10} {'scale':7} {'seeds':>5} {'date':10} {'stale':5} hardware")
    for row in rows:
        known = [row[name] or "-" for name in ("slug", "verdict", "scale", "seeds", "date")]
        stale = "yes" if row["stale"] else "no"
        print("{:23} {:10} {:7} {:>5} {:10} {:5} {}".format(*known, stale, row["hardware"] or "-"))


@app.command()
def recipe(
    file: Annotated[Path, typer.Argument(help="YAML file with the stages.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the last stage's model.", show_default=False)] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="STAGE.FIELD=VALUE in place of what the file says; may be repeated.", show_default=False
        ),
    ] = None,
    store: StoreUrl = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    checkpoint_seconds: Annotated[float, typer.Option(min=0, help="Seconds between checkpoints of a stage.")] = 30.0,
    report_to: Annotated[
        str | None, typer.Option(help="Log every stage to experiment trackers as well, as `bakeoff compare` does.")
    ] = None,
    quiet: Annotated[bool, typer.Option(help="No progress.")] = False,
    as_json: Json = False,
) -> None:
    """Train in stages, each on the result of an earlier one, and save the last model."""
    from bakeoff.recipe import Recipe
    from bakeoff.report.card import recipe_card
    from bakeoff.running import only_writer

    chain, place = Recipe.read(file, override or []), _store(store)
    if dry_run:
        print_stages(chain.plan(place), as_json)
        return
    if out is None:
        raise UsageError("--out is needed, for example --out model.")
    _refuse_to_replace(out)
    more: dict[str, Any] = {}
    if report_to:
        from bakeoff.report.trackers import Trackers

        common = {"recipe": str(file), "seed": chain.seed, "override": list(override or ())}
        more["ended"] = Trackers(report_to, "bakeoff", out.with_name(f"{out.name}-tracking"), common, notice).ended
    with watching(quiet) as watch, only_writer(out, place):
        made = chain.run(
            place, out, recipe_card, checkpoint_seconds=checkpoint_seconds, watch=watch, notice=notice, **more
        )
    if as_json:
        print(json.dumps(made, indent=2))
        return
    for stage in made["stages"]:
        print(
            f"{stage['name']}: {stage['contest']} {stage['method']}, {stage['budget']}, {stage['cost']['seconds']:.1f} s"
        )
        for name, before in stage["before"].items():
            after = stage["after"][name]["value"]
            print(f"  {name:32} {before['value']:9.4f} -> {after:9.4f} {before['unit']} ({before['better']} is better)")
    print(f"\nModel: {out}, stages: {out / 'recipe.json'}")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder that `bakeoff compare` wrote.")], as_json: Json = False
) -> None:
    """Write report.html anew from a folder's results.json, and print the table."""
    from bakeoff.report.page import write_report
    from bakeoff.report.table import markdown
    from bakeoff.running import read_results

    results = read_results(folder)
    path = write_report(results, folder)
    print(json.dumps(results, indent=2) if as_json else f"{markdown(results)}\n\nReport: {path}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for results, report and model.")] = Path("demo"),
    store: StoreUrl = None,
    quiet: bool = False,
) -> int:
    """Compare five ways of fine-tuning the packaged model on real text: a few minutes on two cores."""
    from bakeoff import demo as demonstration
    from bakeoff.running import run_comparison

    with watching(quiet) as watch:
        comparison = demonstration.comparison(out, watch, notice)
        results = run_comparison(comparison, out, _store(store))
    print_results(results, out, False)
    print(demonstration.next_commands(out))
    return 0


def _store(url: str | None) -> Store:
    from bakeoff.store import Store

    return Store(url)
