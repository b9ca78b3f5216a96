"""What every page of the site shares: where it may read and write, who may see it, and how a page is made."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse

from bakeoff import __version__
from bakeoff.catalogue.papers import papers, tags
from bakeoff.catalogue.search import Embedding, Index
from bakeoff.catalogue.status import STATUSES
from bakeoff.report.page import templates
from bakeoff.store import DEFAULT_FOLDER, Store

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Site:
    """One running site.

    Attributes: `roots`: folders, resolved, in which every path that a visitor names must lie; the first holds the folder
    `comparisons` that the site writes into; `store`: as `--store`; `token`: what a visitor has to know, None on loopback alone;
    `hosts`: names, in lower case and without port, under which the site may be asked for; `secret`: 32 bytes that sign forms.
    """

    roots: tuple[Path, ...]
    store: str | None = None
    token: str | None = None
    hosts: frozenset[str] = LOOPBACK
    embedding: Embedding | None = None
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    @functools.cached_property
    def kept(self) -> Store:
        """The store of what the site starts."""
        return Store(self.store or self.roots[0] / DEFAULT_FOLDER)

    @functools.cached_property
    def index(self) -> Index:
        return Index(list(papers().values()), self.embedding)

    def page(self, request: Request, template: str, status: int = 200, **context: Any) -> HTMLResponse:
        """A template of `templates/`, with what all of them need."""
        shared: Mapping[str, Any] = {
            "path": request.url.path, "csrf": request.scope.get("csrf", ""), "version": __version__, "tags": tags(),
            "STATUSES": STATUSES,
        }  # fmt: skip
        return HTMLResponse(_environment().get_template(template).render({**shared, **context}), status)


@functools.cache
def _environment() -> jinja2.Environment:
    return templates(jinja2.PackageLoader("bakeoff.web"))
