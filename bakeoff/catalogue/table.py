"""The papers as one page of markdown, so that what the documentation says of their status is what code and verdicts say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from bakeoff.catalogue.status import STATUSES, Entry

_HEAD = """# Papers

Every paper of the catalogue with its claim in our words, and what became of it here; `bakeoff list --papers --markdown` writes this
page from the catalogue, the code and the recorded [verdicts](verdicts.md).
"""


def page(entries: Sequence[Entry]) -> str:
    """A table for each contest."""
    counts = Counter(entry.status for entry in entries)
    told = "\n".join(
        f"- {counts[status]} *{status}*: {meaning}" for status, meaning in STATUSES.items() if counts[status]
    )
    parts = [_HEAD, f"{len(entries)} papers:\n\n{told}"]
    ordered = sorted(
        entries, key=lambda entry: (entry.paper.contest, list(STATUSES).index(entry.status), entry.paper.slug)
    )
    for contest, own in groupby(ordered, key=lambda entry: entry.paper.contest):
        parts += [f"\n## {contest}\n", "| paper | claim | here |", "|---|---|---|", *map(_row, own)]
    return "\n".join(parts) + "\n"


def _row(entry: Entry) -> str:
    paper = entry.paper
    title = f"[{paper.title}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else paper.title
    status = f"[{entry.status}](verdicts.md#{entry.verdicts[0]['slug']})" if entry.verdicts else entry.status
    cells = (f"`{paper.slug}` {title}, {paper.year}", paper.claim, status)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
