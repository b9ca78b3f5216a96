"""Pages of the catalogue: searching, a paper, a contest with its methods."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse

from bakeoff import registry, study
from bakeoff.catalogue.commands import baseline, command
from bakeoff.catalogue.status import STATUSES, Entry, entries
from bakeoff.method import sections
from bakeoff.report.page import verdict_context
from bakeoff.web.site import Site

router = APIRouter()

SHOWN = 30
_ORDER = tuple(STATUSES)


@router.get("/")
def home(
    request: Request, q: str = "", tag: str = "", contest: str = "", status: str = "", show: str = ""
) -> HTMLResponse:
    """Papers that fit a query and filters, best first; without a query those with a verdict first."""
    site: Site = request.app.state.site
    known, query = entries(), q.strip()[:300]
    if query and any(character.isalnum() for character in query):
        chosen = [known[found.paper.slug] for found in site.index.search(query, len(known))]
    else:
        chosen = sorted(known.values(), key=lambda entry: (_ORDER.index(entry.status), entry.paper.title.lower()))
    filters = {"tag": tag, "contest": contest, "status": status}
    fitting = [entry for entry in chosen if _fits(entry, **filters)]
    return site.page(
        request, "home.html.jinja", query=query, filters=filters, shown=fitting if show == "all" else fitting[:SHOWN],
        count=len(fitting), total=len(known), contests=_contests(), everything=request.url.include_query_params(show="all").query,
    )  # fmt: skip


def _fits(entry: Entry, tag: str, contest: str, status: str) -> bool:
    return (
        (not tag or tag in entry.paper.tags)
        and (not contest or contest == entry.paper.contest)
        and (not status or status == entry.status)
    )


@functools.cache
def _contests() -> list[str]:
    return sorted({entry.paper.contest for entry in entries().values()})


@router.get("/papers/{slug}")
def paper(request: Request, slug: str) -> HTMLResponse:
    """What a paper claims, what runs of it here and how, and what came of its claim."""
    site: Site = request.app.state.site
    if slug not in entries():
        raise HTTPException(404, f"The catalogue has no paper {slug}: search for it by its title.")
    entry, known = entries()[slug], study.found()
    methods = [registry.methods(contest)[name] for contest, name in entry.paper.methods]
    return site.page(
        request, "paper.html.jinja", entry=entry, methods=[(method, baseline(method), command(method)) for method in methods],
        studies=[known[name] for name in entry.paper.studies], sections=sections, own=_own(site, entry),
        verdicts=[_drawn(slug, place) for place in range(len(entry.verdicts))],
    )  # fmt: skip


def _own(site: Site, entry: Entry) -> list[tuple[Mapping[str, Any], str]]:
    """The verdicts that studies of a paper came to in the site's store, newest first, each with its machine."""
    found = [verdict for verdict in site.kept.records("studies") if verdict["slug"] in entry.paper.studies]
    ordered = sorted(found, key=lambda verdict: verdict["date"], reverse=True)
    return [(verdict, study.hardware(verdict["environment"])) for verdict in ordered]


@router.get("/contests")
def contests(request: Request) -> HTMLResponse:
    """Every contest with its methods."""
    site: Site = request.app.state.site
    known = {name: (registry.contest(name), list(registry.methods(name).values())) for name in registry.contest_names()}
    return site.page(request, "contests.html.jinja", known=known, papers=entries())


@functools.lru_cache(maxsize=512)
def _drawn(slug: str, place: int) -> dict[str, Any]:
    """A verdict with its plots, and whether its code has changed since."""
    verdict = entries()[slug].verdicts[place]
    own = study.found()[verdict["slug"]]
    return {
        **verdict_context(verdict),
        "stale": verdict["code_hash"] != own.code_hash,
        "hardware": study.hardware(verdict["environment"]),
    }
