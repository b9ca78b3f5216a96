"""What became of each paper here: derived from the code that implements it and the verdicts on record, never written down."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bakeoff import study
from bakeoff.catalogue.papers import Paper, papers

Status = Literal["holds", "fails", "undecided", "built", "not built"]
STATUSES: Mapping[Status, str] = {
    "holds": "its claim was run here and holds",
    "fails": "its claim was run here and fails",
    "undecided": "its claim was run here and the intervals leave it open",
    "built": "it can be run here; its claim has no verdict",
    "not built": "nothing runs here yet",
}
_SCALES = ("smoke", "laptop", "gpu")


@dataclass(frozen=True)
class Entry:
    """A paper with its status and the verdicts on its claim, the one at the largest scale first."""

    paper: Paper
    status: Status
    verdicts: Sequence[Mapping[str, Any]]


@functools.cache
def entries() -> Mapping[str, Entry]:
    """Every paper of the catalogue with what became of it, by slug."""
    recorded = sorted(study.recorded(), key=lambda verdict: -_SCALES.index(verdict["scale"]))
    by_slug: dict[str, list[Mapping[str, Any]]] = {}
    for verdict in recorded:
        by_slug.setdefault(verdict["slug"], []).append(verdict)
    return {slug: _entry(paper, by_slug) for slug, paper in papers().items()}


def _entry(paper: Paper, recorded: Mapping[str, Sequence[Mapping[str, Any]]]) -> Entry:
    own = [verdict for slug in paper.studies for verdict in recorded.get(slug, ())]
    status: Status = own[0]["verdict"] if own else "built" if paper.implemented_by else "not built"
    return Entry(paper, status, own)
