"""The report of a comparison, and of a study: one HTML file that needs nothing else, no network and no script."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml

from bakeoff import files
from bakeoff.report import plots
from bakeoff.report.summary import (
    COSTS,
    UNTOUCHED,
    Summary,
    as_table,
    change,
    compact,
    compare_command,
    cost_in_words,
    decided,
    mean_and_error,
    number,
    summarise,
)


def templates(*loaders: jinja2.BaseLoader) -> jinja2.Environment:
    """An environment in which the templates of the page render, `results.html.jinja` and `judged.html.jinja` among them.

    What `loaders` find comes before the templates of the report.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([*loaders, jinja2.PackageLoader("bakeoff.report")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "compact": compact}
    environment.globals |= {
        "change": change, "decided": decided, "mean_and_error": mean_and_error, "cost_in_words": cost_in_words,
        "colour": plots.colour, "shape": plots.shape, "COSTS": COSTS, "UNTOUCHED": UNTOUCHED,
    }  # fmt: skip
    return environment


def results_context(results: Mapping[str, Any]) -> dict[str, Any]:
    """What `outcome.html.jinja` and `results.html.jinja` show of what `Comparison.run` returned, with all plots drawn.

    `ordered` are the rows of the table of gains as they stand in it, and `sort` is None; where `sort` holds `by` (the name of
    a metric, `method`, or empty) and `direction` (`ascending` or `descending`), the heads of that table are links.
    """
    comparison, trials = results["comparison"], results["trials"]
    summary = summarise(results)
    places = {label: place for place, label in enumerate(comparison["methods"])}
    facts = comparison["facts"]
    return {
        "comparison": comparison,
        "environment": results["environment"],
        "trials": trials,
        "summary": summary,
        "ordered": summary.rows,
        "sort": None,
        "several": len(summary.seeds) > 1,
        "baseline": summary.baselines[0] if summary.baselines else "",
        "incomplete": [row.label for row in summary.rows if row.note],
        "places": places,
        "plain_facts": {name: value for name, value in facts.items() if not isinstance(value, Mapping)},
        "tables": [(name, as_table(value)) for name, value in facts.items() if isinstance(value, Mapping)],
        "command": compare_command(comparison),
        "pareto": _pareto(summary, comparison, places),
        "forests": _forests(summary),
        "curves": _curves(trials, places),
        "cost_plots": [
            (COSTS[c], plots.costs(summary.rows, c, places, f"cost-{i}")) for i, c in enumerate(summary.costs)
        ],
    }


def write_report(results: Mapping[str, Any], folder: Path) -> Path:
    """Write `report.html` into a folder, from what `Comparison.run` returned, and return its path.

    Raises: StoreError if it cannot be written; a report that was there is then untouched.
    """
    path = Path(folder) / "report.html"
    files.write_text(path, templates().get_template("report.html.jinja").render(results_context(results)))
    return path


def verdict_context(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """What `judged.html.jinja` shows of a study's verdict, with its curves drawn."""
    drawn = []
    for place, curve in enumerate(verdict.get("curves", [])):
        marks = {label: place for place, label in enumerate(curve["lines"])}
        drawn.append((curve, marks, plots.lines(curve, marks, f"{verdict['slug']}-{verdict['scale']}-curve-{place}")))
    return {
        "verdict": verdict,
        "expected": [
            (expected, plots.expectation(expected, f"{verdict['slug']}-{verdict['scale']}-expected-{place}"))
            for place, expected in enumerate(verdict["expectations"])
        ],
        "curves": drawn,
        "names": sorted({name for values in verdict["arms"].values() for name in values}),
        "notes": yaml.safe_dump(verdict["notes"], sort_keys=False, width=110).rstrip() if verdict["notes"] else "",
    }


def write_verdict(verdict: Mapping[str, Any], path: Path) -> Path:
    """Write a study's verdict with its curves as a page of its own, and return its path.

    Raises: StoreError if it cannot be written; what was there is then untouched.
    """
    files.write_text(Path(path), templates().get_template("verdict.html.jinja").render(verdict_context(verdict)))
    return Path(path)


def _pareto(summary: Summary, comparison: Mapping[str, Any], places: Mapping[str, int]) -> Any:
    benefit, harm = comparison["benefit"], comparison["harm"]
    return plots.pareto(summary, benefit, harm, places) if {benefit, harm} <= set(summary.metrics) else None


def _forests(summary: Summary) -> list[tuple[str, list[tuple[str, Any]]]]:
    made = []
    for b, baseline in enumerate(summary.baselines):
        drawn = [
            (name, plots.forest(summary, name, baseline, f"effect-{b}-{m}")) for m, name in enumerate(summary.metrics)
        ]
        made.append((baseline, [(name, svg) for name, svg in drawn if svg is not None]))
    return [(baseline, drawn) for baseline, drawn in made if drawn]


def _curves(trials: list[dict[str, Any]], places: Mapping[str, int]) -> list[tuple[str, Any]]:
    losses: dict[str, dict[int, Any]] = {label: {} for label in places}
    for trial in trials:
        losses[trial["label"]][trial["seed"]] = plots.thinned(trial.get("curve") or [])
    return plots.curves(losses, places, "training step")
