"""From the options of `bakeoff serve` to a running site."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from bakeoff import registry
from bakeoff.catalogue.search import embedding_at_hand
from bakeoff.catalogue.status import entries
from bakeoff.console import notice
from bakeoff.errors import UsageError
from bakeoff.store import Store
from bakeoff.web.app import create_app
from bakeoff.web.server import hosts_for, refuse_without_token, serve
from bakeoff.web.site import Site


def start(
    roots: Sequence[Path],
    host: str,
    port: int,
    names: Sequence[str],
    token: str | None,
    embedding: str | None,
    store: str | None,
) -> None:
    """Serve until interrupted; what is slow to load is loaded before the address is told.

    Raises: UsageError for a root that is no folder, or an address beyond loopback without a token.
    """
    for root in roots:
        if not root.is_dir():
            raise UsageError(f"{root} is no folder: name the folders that hold your models and data.")
    refuse_without_token(host, token)
    if token is not None and token != "new" and len(token) < 16:
        raise UsageError("The token can be guessed: give one of at least 16 characters, or --token new.")
    places = tuple(root.resolve() for root in roots)
    kept = Store(store, notice=notice)
    given = store or os.environ.get("BAKEOFF_STORE")
    site = Site(
        places,
        kept.url if given else None,
        secrets.token_urlsafe(24) if token == "new" else token, hosts_for(host, names),
        embedding_at_hand(embedding, kept),
    )  # fmt: skip
    entries(), site.index
    for contest in registry.contest_names():
        registry.methods(contest)
    serve(site, host, port, app=create_app(site))
