"""Pages of comparisons: all of them, a new one, one while it runs, and what it found."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import functools
import io
import json
import math
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs

import starlette.concurrency
import yaml
from fastapi import APIRouter, Depends, Query
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response, StreamingResponse

from bakeoff import registry
from bakeoff.errors import UsageError
from bakeoff.progress import NAME as JOURNAL
from bakeoff.report import plots
from bakeoff.report.page import results_context
from bakeoff.running import read_results
from bakeoff.web import forms, jobs
from bakeoff.web.jobs import Seen
from bakeoff.web.paths import listing
from bakeoff.web.site import Site

router = APIRouter(prefix="/comparisons")

_SECONDS_BETWEEN = 0.5
_BEATS = 30  # checks without news before a heartbeat
_LARGEST = 100_000_000
_DAMAGED = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError)


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """While the site runs, comparisons that wait are started when their turn comes."""
    task = asyncio.create_task(jobs.tend(app.state.site))
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _form(request: Request) -> dict[str, list[str]]:
    return parse_qs((await request.body()).decode(), keep_blank_values=True)


Form = Annotated[dict[str, list[str]], Depends(_form)]


@router.get("")
def comparisons(request: Request) -> HTMLResponse:
    """All comparisons under the roots, newest first."""
    site: Site = request.app.state.site
    return site.page(request, "comparisons.html.jinja", jobs=jobs.listed(site), active=jobs.ACTIVE)


@router.get("/new")
def new(request: Request, contest: str = "", method: Annotated[list[str] | None, Query()] = None) -> HTMLResponse:
    """The form of a contest, with some methods chosen already; without a contest, the choice of one."""
    if not contest:
        known = {name: registry.contest(name).summary for name in registry.contest_names()}
        site: Site = request.app.state.site
        return site.page(request, "comparison_contest.html.jinja", contests=known)
    _known_contest(contest)
    return _form_page(request, contest, {"methods": method or []}, {}, fresh=True)


@router.post("/new")
def ask(request: Request, form: Form, contest: str = "") -> Response:
    """Start what the form asks for, or show it again with what is wrong."""
    site: Site = request.app.state.site
    _known_contest(contest)
    try:
        name, fields = forms.parse(contest, form, site)
    except forms.Wrong as wrong:
        return _form_page(request, contest, form, wrong.errors)
    folder = jobs.start(site, contest, fields, name)
    return RedirectResponse(f"/comparisons/{jobs.look(site, folder).id}", 303)


@router.get("/{id}")
def comparison(request: Request, id: str, sort: str = "", direction: str = "ascending") -> HTMLResponse:
    """One comparison: how far it is, or what it found."""
    site: Site = request.app.state.site
    job = _found(request, id)
    context: dict[str, Any] = {
        "job": job, "active": job.state in jobs.ACTIVE, "can_go_on": job.mine and job.state in jobs.INTERRUPTED,
        "log": jobs.log_tail(job.folder) if job.state in jobs.INTERRUPTED else "", "sentence": _sentence(job),
        "finished": False, "problem": "", "where": _where(site, job.folder),
    }  # fmt: skip
    if job.state == "done":
        try:
            context |= {**_drawn(*_results(job)), "finished": True}
        except (UsageError, HTTPException) as error:
            context["problem"] = getattr(error, "detail", "") or str(error)
        else:
            context |= _sorted(context, sort, direction)
    if not context["finished"] and job.progress:
        try:
            context |= _so_far(job)
        except _DAMAGED as error:
            context["problem"] = str(_damaged(job.folder / JOURNAL, error))
    return site.page(request, "comparison.html.jinja", **context)


@router.get("/{id}/again")
def again(request: Request, id: str) -> HTMLResponse:
    """The form as it was sent for a comparison, to be changed and sent for another one."""
    job = _found(request, id)
    if not job.mine or job.contest not in registry.contest_names():
        raise HTTPException(404, "The site did not start this comparison, so there is no form of it: ask anew.")
    path = job.folder / "comparison.yaml"
    if path.is_symlink():
        raise HTTPException(404, "The file comparison.yaml of this comparison is a link: ask anew.")
    try:
        form = forms.sent(job.contest, yaml.safe_load(path.read_text("utf-8")))
    except (OSError, yaml.YAMLError, *_DAMAGED) as error:
        raise _damaged(path, error) from None
    return _form_page(request, job.contest, form, {})


@router.post("/{id}/stop")
def stop(request: Request, id: str) -> Response:
    """Interrupt it, or take it out of the queue."""
    jobs.stop(request.app.state.site, _found(request, id).folder)
    return RedirectResponse(f"/comparisons/{id}", 303)


@router.post("/{id}/go-on")
def go_on(request: Request, id: str) -> Response:
    """Put it into the queue again."""
    jobs.go_on(request.app.state.site, _found(request, id).folder)
    return RedirectResponse(f"/comparisons/{id}", 303)


@router.get("/{id}/events")
async def events(request: Request, id: str) -> Response:
    """Server-sent events: a JSON object whenever something changed, until the comparison ends."""
    job = await starlette.concurrency.run_in_threadpool(_found, request, id)
    return StreamingResponse(_events(request, job), media_type="text/event-stream")


@router.get("/{id}/results.json")
def results_json(request: Request, id: str) -> Response:
    job = _found(request, id)
    path, *_ = _results(job)
    return FileResponse(path, media_type="application/json", filename=f"{_file_name(job)}.json")


@router.get("/{id}/results.csv")
def results_csv(request: Request, id: str) -> Response:
    """A row a trial: label, seed, status, and every argument, metric and cost."""
    job = _found(request, id)
    path, *_ = _results(job)
    try:
        text = as_csv(read_results(path.parent)["trials"])
    except _DAMAGED as error:
        raise _damaged(path, error) from None
    headers = {"content-disposition": f'attachment; filename="{_file_name(job)}.csv"'}
    return Response(text, media_type="text/csv", headers=headers)


def as_csv(trials: Sequence[Mapping[str, Any]]) -> str:
    """Trials of results as CSV; a text that a spreadsheet would take for a formula stands behind an apostrophe."""
    rows: list[dict[str, Any]] = []
    for trial in trials:
        values = {name: measured["value"] for name, measured in trial["metrics"].items()}
        rows.append(
            {
                **{name: trial[name] for name in ("label", "seed", "status")},
                **{f"argument {name}": value for name, value in (trial.get("args") or {}).items()},
                **{f"metric {name}": value for name, value in values.items()},
                **{f"cost {name}": value for name, value in trial["cost"].items()},
                **({"error": trial["error"]} if trial.get("error") else {}),
            }
        )
    columns = list(dict.fromkeys(column for row in rows for column in row))
    kinds = ("label", "seed", "status", "argument", "metric", "cost", "error")
    columns.sort(key=lambda column: kinds.index(column.split(" ")[0]))
    written = io.StringIO()
    writer = csv.writer(written)
    writer.writerow(columns)
    writer.writerows([_cell(row.get(column, "")) for column in columns] for row in rows)
    return written.getvalue()


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _known_contest(name: str) -> None:
    if name not in registry.contest_names():
        raise HTTPException(404, f"There is no contest called {name[:60]!r}: choose one of those that the form offers.")


def _form_page(
    request: Request, contest: str, form: forms.Form, errors: Mapping[str, str], fresh: bool = False
) -> HTMLResponse:
    site: Site = request.app.state.site
    models, data = listing(site.roots)
    question, own = forms.question_inputs(contest), forms.own_inputs(contest)
    chosen, methods = form.get("methods", []), registry.methods(contest)
    # Ticked ones first, as they were named; then baselines: what comes first is what effects are taken against.
    places = {name: place for place, name in enumerate(chosen)}
    known = dict(
        sorted(methods.items(), key=lambda item: (places.get(item[0], len(places)), bool(item[1].paper), item[0]))
    )
    values = {made.name: made.default if fresh else form.get(made.name, [""])[0] for made in [*question, *own]}
    return site.page(
        request, "comparison_new.html.jinja", 422 if errors else 200, contest=contest, summary=registry.contest(contest).summary,
        known=known, chosen=chosen, more=form.get("more_methods", [""])[0], values=values,
        near=sorted((made for made in [*question, *own] if made.near), key=lambda made: not made.required),
        rest=[*(made for made in own if not made.near), *(made for made in question if not made.near)],
        errors=errors, suggestions={"models": ["reference", *models], "data": ["installed:docstrings:300000", *data]},
        place=site.roots[0],
    )  # fmt: skip


def _found(request: Request, id: str) -> Seen:
    job = jobs.find(request.app.state.site, id)
    if job is None:
        raise HTTPException(404, "There is no such comparison under the folders of this site: it may have been moved.")
    return job


def _where(site: Site, folder: Path) -> str:
    return str(folder.relative_to(site.roots[0])) if folder.is_relative_to(site.roots[0]) else str(folder)


def _file_name(job: Seen) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", job.folder.name).strip(".-") or "results"


def _results(job: Seen) -> tuple[Path, int, int]:
    """The file of results, when it changed and how large it is; it must be no link, and of a size that can be shown."""
    path = job.folder / "results.json"
    if path.is_symlink() or not path.is_file():
        raise HTTPException(
            404, "There is no results.json in the folder of this comparison: it has not ended, or the file was moved."
        )
    facts = path.stat()
    if facts.st_size > _LARGEST:
        raise UsageError(f"{path} is larger than {_LARGEST // 10**6} MB: read it with another program.")
    return path, facts.st_mtime_ns, facts.st_size


@functools.lru_cache(maxsize=16)
def _drawn(path: Path, changed: int, size: int) -> dict[str, Any]:
    try:
        return results_context(read_results(path.parent))
    except _DAMAGED as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UsageError:
    return UsageError(
        f"{path} is damaged ({type(error).__name__}: {error}): start the comparison again; finished trials are kept."
    )


def _sorted(context: Mapping[str, Any], by: str, direction: str) -> dict[str, Any]:
    """The rows by their label or by the mean of a metric; those without it come last."""
    rows, down = list(context["summary"].rows), direction == "descending"
    if by == "method":
        rows.sort(key=lambda row: row.label, reverse=down)
    elif by in context["summary"].metrics:
        with_it = sorted((r for r in rows if by in r.measured), key=lambda r: r.measured[by][0], reverse=down)
        rows = [*with_it, *(row for row in rows if by not in row.measured)]
    return {"ordered": rows, "sort": {"by": by, "direction": "descending" if down else "ascending"}}


def _so_far(job: Seen) -> dict[str, Any]:
    """The trials that ended, and the losses of those that run or ran."""
    assert job.progress is not None
    trials = job.progress.trials
    contest = registry.contest(job.contest) if job.contest in registry.contest_names() else None
    order = [metric.name for metric in contest.metrics] if contest else []
    named = dict.fromkeys(name for trial in trials for name in trial["metrics"])
    metrics = sorted(named, key=lambda name: order.index(name) if name in order else len(order))
    return {
        "progress": job.progress,
        "metrics": metrics,
        **_losses(job.folder, job.progress.updated, job.methods),
    }


@functools.lru_cache(maxsize=16)
def _losses(folder: Path, updated: str, methods: tuple[str, ...]) -> dict[str, Any]:
    """The loss curves until now, each seed of a label by itself; `updated` is when there was news."""
    progress = jobs.follow(folder)
    assert progress is not None
    losses: dict[str, dict[int, Any]] = {}
    for what, points in progress.losses.items():
        label, _, seed = what.rpartition(", seed ")
        if label and seed.isdecimal():
            line = [point for point in points if all(map(math.isfinite, point))]
            losses.setdefault(label, {})[int(seed)] = line if len(line) > 1 else []
    labels = dict.fromkeys([*methods, *losses, *(str(trial["label"]) for trial in progress.trials)])
    places = {label: place for place, label in enumerate(labels)}
    # The seeds are not at the same points, nor equally far: there is no mean to draw.
    curves = plots.curves(losses, places, "share of the trial", means=False)
    return {"places": places, "several": None, "curves": curves}


def _sentence(job: Seen) -> str:
    """The state in words."""
    progress = job.progress
    done = f" {progress.over} of {progress.total} trials are over." if progress and progress.total else ""
    return {
        "waiting": "Waiting: another comparison runs, and this one comes after it.",
        "starting": "Starting.",
        "running": f"Running.{done}",
        "done": "Done.",
        "failed": f"Failed.{done}",
        "stopped": f"Stopped.{done}",
        "lost": f"Lost: its process ended without a word.{done}",
    }[job.state]


async def _events(request: Request, job: Seen) -> AsyncIterator[str]:
    site: Site = request.app.state.site
    before, silent = "", 0
    while True:
        news = _news(job)
        if news != before:
            yield f"data: {news}\n\n"
            before, silent = news, 0
        elif (silent := silent + 1) % _BEATS == 0:
            yield ": still here\n\n"
        if job.state not in jobs.ACTIVE or await request.is_disconnected():
            return
        await asyncio.sleep(_SECONDS_BETWEEN)
        job = await starlette.concurrency.run_in_threadpool(jobs.look, site, job.folder)


def _news(job: Seen) -> str:
    told: dict[str, Any] = {"state": job.state, "sentence": _sentence(job)}
    if job.progress:
        told |= {name: getattr(job.progress, name) for name in ("what", "over", "total", "fraction")}
        told["trains"] = job.progress.loss is not None
    return json.dumps(told)
