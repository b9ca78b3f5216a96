"""What the commands print: results, plans, readings, notices and progress."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bakeoff.catalogue.search import Found
    from bakeoff.catalogue.status import Entry
    from bakeoff.comparison import Comparison, Watch
    from bakeoff.method import Method


def print_results(results: dict[str, Any], out: Path, as_json: bool) -> None:
    """A comparison's table, or JSON, and where its files are."""
    from bakeoff.report.table import markdown, render

    if as_json:
        print(json.dumps(results, indent=2))
        return
    if sys.stdout.isatty():
        from rich.console import Console

        render(results, Console())
    else:
        print(markdown(results))
    makes = results["comparison"].get("makes", "model")
    model = f", {makes}: {out / 'winner'}" if results["comparison"]["winner"] else ""
    print(f"\nResults: {out / 'results.json'}, report: {out / 'report.html'}{model}")


def print_plan(comparison: Comparison, as_json: bool) -> int:
    """What a comparison would take; the exit code."""
    comparison = comparison.prepared()
    plan = comparison.predict()
    total = sum(p["trials"] * (p["seconds"] + p["exam_seconds"]) for p in plan)
    if as_json:
        print(json.dumps({"plan": plan, "budget": str(comparison.budget), "seeds": list(comparison.seeds), "total_seconds": total,
                          "question": comparison.opened().question.model_dump(mode="json")}, indent=2))  # fmt: skip
        return 0
    print(f"{'method':32} {'trials':>6} {'tokens':>12} {'seconds':>8} {'memory':>9}   (a trial)")
    for p in plan:
        print(
            f"{p['label']:32} {p['trials']:6} {p['tokens']:12,} {p['seconds']:8.1f} {p['peak_memory_bytes'] / 1e6:6.0f} MB"
        )
    print(
        f"\nBudget {comparison.budget}, seeds {', '.join(map(str, comparison.seeds))}; about {total:.0f} seconds in all, exams included."
    )
    return 0


def print_stages(plan: list[dict[str, Any]], as_json: bool) -> None:
    """What the stages of a recipe would take."""
    if as_json:
        print(json.dumps({"stages": plan}, indent=2))
        return
    print(f"{'stage':16} {'contest':10} {'method':32} {'budget':>14} {'begins with':16} {'state':7} seconds")
    for p in plan:
        seconds = "" if p["seconds"] is None else f"{p['seconds']:7.1f}"
        print(
            f"{p['name']:16} {p['contest']:10} {p['method']:32} {p['budget']:>14} {p['from'] or '-':16} {p['state']:7} {seconds}"
        )


def print_readings(found: dict[str, Any]) -> None:
    """What was measured, and on standard error what failed."""

    def line(name: str, row: dict[str, Any], unit: str) -> str:
        error = row["standard_error"]
        spread = "" if error is None else f" ± {error:.4f}"
        return f"  {name:34} {row['value']:10.4f}{spread:11} {unit:12} n={row['n']}, {row['better']} is better"

    for measured, result in found["measures"].items():
        print(f"{measured} of {found['subject']} ({result['seconds']:.1f} s)")
        for name, row in result["readings"].items():
            print(line(name, row, row["unit"]))
        for name, note in result["notes"].items():
            print(f"  {name}: {note}")
    for row in found["tasks"]:
        print(line(f"{row['task']} {row['metric']}", row, ""))
    for failure in found["failures"]:
        print(f"bakeoff: {failure['measure']} failed: {failure['why']}", file=sys.stderr)


def paper_row(entry: Entry) -> dict[str, Any]:
    """A paper of the catalogue as JSON."""
    paper = entry.paper
    return {
        "slug": paper.slug, "title": paper.title, "year": paper.year, "arxiv": paper.arxiv or None, "claim": paper.claim,
        "contest": paper.contest, "kind": paper.kind, "status": entry.status, "tags": list(paper.tags),
        "implemented_by": list(paper.implemented_by), "not_covered": paper.not_covered or None,
    }  # fmt: skip


def method_row(method: Method) -> dict[str, Any]:
    """A method as JSON."""
    from bakeoff.catalogue.commands import command
    from bakeoff.method import Range

    parameters = [
        {"name": p.name, "type": p.type.__name__, "default": p.default,
         "values": [p.values.low, p.values.high] if isinstance(p.values, Range) else list(p.values or [])}
        for p in method.parameters
    ]  # fmt: skip
    return {
        "method": method.name, "contest": method.contest, "paper": method.paper, "source": method.source,
        "needs": list(method.needs), "changes": method.changes, "departures": method.departures, "doc": method.doc,
        "parameters": parameters, "command": command(method),
    }  # fmt: skip


def print_papers(entries: Sequence[Entry]) -> None:
    """A line for each paper: slug, contest, status and claim."""
    slug, contest = (max((len(getattr(e.paper, name)) for e in entries), default=0) for name in ("slug", "contest"))
    for entry in entries:
        paper = entry.paper
        print(f"{paper.slug:{slug}}  {paper.contest:{contest}}  {entry.status:9}  {paper.claim}")


def print_found(found: Sequence[Found], by_meaning: bool) -> None:
    """The papers found, best first, with their rank by words and, where that was asked, by meaning."""
    from bakeoff.catalogue.status import entries

    for place, one in enumerate(found, 1):
        ranks = f"BM25 {one.bm25 or '-'}" + (f", embedding {one.embedding or '-'}" if by_meaning else "")
        print(f"{place:3}. {one.paper.slug} ({one.paper.contest}, {entries()[one.paper.slug].status}; {ranks})")
        print(textwrap.indent(f"{one.paper.title}\n{one.paper.claim}", "     "))


def print_paper(entry: Entry) -> None:
    """What the catalogue says of a paper, what runs of it and what came of its claim."""
    from bakeoff.catalogue.status import STATUSES

    paper = entry.paper
    where = f"arXiv:{paper.arxiv}" if paper.arxiv else "no arXiv id"
    print(f"{paper.title} ({paper.year}, {where})\n\n{paper.claim}\n")
    print(f"Status: {entry.status}: {STATUSES[entry.status]}.")
    for verdict in entry.verdicts:
        held = sum(e["outcome"] == "holds" for e in verdict["expectations"])
        print(
            f"  {verdict['verdict']} at scale {verdict['scale']}, {len(verdict['seeds'])} seeds, {verdict['date']}: "
            f"{held} of {len(verdict['expectations'])} expectations hold (bakeoff study {verdict['slug']})"
        )
    print(f"Contest: {paper.contest}, kind: {paper.kind}, tags: {', '.join(paper.tags)}")
    if paper.implemented_by:
        print(f"Implemented by: {', '.join(paper.implemented_by)}")
    if paper.not_covered:
        print(f"Not covered: {paper.not_covered}")


def print_method(method: Method) -> None:
    """What a method does, where it comes from, its parameters, and how it is run."""
    from bakeoff.catalogue.commands import command
    from bakeoff.method import Range

    print(f"\n{method.name} ({method.contest}){', paper ' + method.paper if method.paper else ''}\n\n{method.doc}\n")
    for label, value in (
        ("Source", method.source),
        ("Needs", ", ".join(method.needs)),
        ("Changes", method.changes),
        ("Departures", method.departures),
    ):
        if value:
            print(f"{label}: {value}")
    for p in method.parameters:
        values = (
            f"{p.values.low:g} to {p.values.high:g}"
            if isinstance(p.values, Range)
            else ", ".join(map(str, p.values or ()))
        )
        print(f"  {p.name} = {p.default!r}{'   (' + values + ')' if values else ''}")
    print(f"\nRun it: {command(method)}")


def notice(sentence: str) -> None:
    """A sentence on standard error."""
    print(f"bakeoff: {sentence}", file=sys.stderr)


@contextlib.contextmanager
def watching(quiet: bool) -> Iterator[Watch]:
    """A progress bar on standard error, silent when that is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda what, over, total, fraction, loss: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=1.0)

        def watch(what: str, over: int, total: int, fraction: float, loss: float) -> None:
            shown = "" if math.isnan(loss) else f"  loss {loss:.3f}"
            done = over + (0.0 if math.isnan(loss) else fraction)
            bar.update(task, total=total, completed=done, description=f"{over} of {total} trials  {what}{shown}")

        yield watch
