"""A comparison's table: markdown for a pipe, rich for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bakeoff.report.summary import (
    COSTS,
    Row,
    Summary,
    as_cell,
    change,
    cost_in_words,
    decided,
    mean_and_error,
    short_labels,
    summarise,
)

_WIDTH = 100
_STYLES = {"better": "green", "worse": "red", "undecided": "dim"}


def markdown(results: Mapping[str, Any]) -> str:
    """The results as markdown: what was measured, the effects against the baseline, the cost, the outcome."""
    summary = summarise(results)
    columns = [f"{name} ({m['unit']}, {m['better']} is better)" for name, m in summary.metrics.items()]
    parts = [
        f"Mean over {_seeds(summary)}{' ± standard error' if len(summary.seeds) > 1 else ''}:",
        _lines(["method", *columns], ([row.title, *_values(row, summary)] for row in summary.rows)),
    ]
    if summary.baselines:
        baseline = summary.baselines[0]
        parts += [
            f"Effect against {baseline}{', 95% interval' if len(summary.seeds) > 1 else ''}:",
            _lines(
                ["method", *columns],
                ([r.label, *_effects(r, baseline, summary)] for r in summary.rows if _compared(r, baseline)),
            ),
        ]
    if summary.costs:
        heads = [COSTS[cost] for cost in summary.costs]
        parts += [
            f"Cost of a trial, lower is better, mean over {_seeds(summary)}:",
            _lines(["method", *heads], ([row.title, *_costs(row, summary)] for row in summary.rows[1:])),
        ]
    parts += [f"{label} {what}: {' '.join(why.split())}" for label, what, why in summary.trouble]
    return "\n\n".join([*parts, summary.outcome])


def render(results: Mapping[str, Any], console: Console) -> None:
    """Print the results on a terminal, at most 100 columns wide: gain and harm metric by metric, then cost."""
    summary = summarise(results)
    width = min(_WIDTH, console.width)
    names = {label: escape(name) for label, name in short_labels((row.label for row in summary.rows), 34).items()}
    baseline = summary.baselines[0] if summary.baselines else ""
    table = Table(title=f"Gain and harm, mean over {_seeds(summary)}", width=width, title_justify="left")
    table.add_column("method", overflow="fold", ratio=11)
    table.add_column("mean ± error" if len(summary.seeds) > 1 else "value", overflow="fold", justify="right", ratio=7)
    if baseline:
        table.add_column(f"against {names[baseline]}", overflow="fold", ratio=10)
        table.add_column("which is", overflow="fold", ratio=7)
    for name, metric in summary.metrics.items():
        table.add_section()
        table.add_row(f"[bold]{escape(name)}", metric["unit"], f"{metric['better']} is better")
        for row in summary.rows:
            if name not in row.measured:
                continue
            cells = [f"  {names[row.label]}", mean_and_error(*row.measured[name])]
            if row.label == baseline:
                cells.append("baseline")
            if effect := row.effects.get((baseline, name)):
                cells += [change(effect).replace("[", "\\[")]
                cells += [f"[{_STYLES[effect['decided']]}]{decided(effect)}"] if effect["low"] is not None else []
            table.add_row(*cells)
    console.print(table)
    if summary.costs:
        table = Table(title="Cost of a trial, lower is better", width=width, title_justify="left")
        table.add_column("method", overflow="fold", ratio=2)
        for cost in summary.costs:
            table.add_column(COSTS[cost], justify="right", ratio=1)
        for row in summary.rows:
            if row.costs:
                table.add_row(names[row.label], *_costs(row, summary))
        console.print(table)
    for label, what, why in summary.trouble:
        console.print(f"[bold]{escape(label)}[/] {what}: {escape(why)}", width=width, highlight=False)
    console.print(f"\n[bold]{escape(summary.outcome)}[/]", width=width, highlight=False)


def _seeds(summary: Summary) -> str:
    return "1 seed" if len(summary.seeds) == 1 else f"{len(summary.seeds)} seeds"


def _values(row: Row, summary: Summary) -> list[str]:
    return [mean_and_error(*row.measured[name]) if name in row.measured else "" for name in summary.metrics]


def _compared(row: Row, baseline: str) -> bool:
    return row.label == baseline or any(base == baseline for base, _ in row.effects)


def _effects(row: Row, baseline: str, summary: Summary) -> list[str]:
    if row.label == baseline:
        return ["baseline"] * len(summary.metrics)
    effects = [row.effects.get((baseline, name)) for name in summary.metrics]
    return [f"{change(e)} {decided(e)}".strip() if e else "" for e in effects]


def _costs(row: Row, summary: Summary) -> list[str]:
    return [cost_in_words(cost, row.costs[cost]) if cost in row.costs else "" for cost in summary.costs]


def _lines(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [[as_cell(text) for text in line] for line in (heads, *rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(heads))]
    made = ["| " + " | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + " |" for line in cells]
    return "\n".join([made[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *made[1:]])
