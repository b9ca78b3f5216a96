"""The site: pages of the catalogue and of comparisons behind one guard."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

import bakeoff.report
from bakeoff.errors import BakeoffError
from bakeoff.web import catalogue_pages, comparison_pages
from bakeoff.web.safety import Guard
from bakeoff.web.site import Site

_HERE = Path(__file__).parent


def create_app(site: Site) -> ASGIApp:
    """The whole site as an ASGI application."""
    silent: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=comparison_pages.lifespan, telemetry=silent)
    app.state.site = site
    app.include_router(catalogue_pages.router)
    app.include_router(comparison_pages.router)
    style = (Path(bakeoff.report.__file__).parent / "templates" / "style.css").read_text("utf-8")
    app.add_api_route("/static/style.css", lambda: Response(style, media_type="text/css"), methods=["GET"])
    app.mount("/static", StaticFiles(directory=_HERE / "static"))

    @app.exception_handler(HTTPException)
    def not_found(request: Request, error: HTTPException) -> Response:
        unknown = error.detail == "Not Found"  # what the framework says of a path without a page
        sentence = (
            "This site has no such page: search the papers, or go by the links above." if unknown else error.detail
        )
        return site.page(request, "error.html.jinja", error.status_code, sentence=sentence)

    @app.exception_handler(BakeoffError)
    def refused(request: Request, error: BakeoffError) -> Response:
        return site.page(request, "error.html.jinja", 400, sentence=str(error))

    return Guard(app, site)
