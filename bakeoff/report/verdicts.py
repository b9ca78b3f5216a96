"""All recorded verdicts as one page of markdown, so that what the documentation says of them is what was recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bakeoff.study import hardware

_HEAD = """# Verdicts

What `bakeoff study SLUG` found, from the records in `bakeoff/verdicts`; `bakeoff studies --markdown` writes this page. A claim holds
here if every expectation's 95% interval lies beyond its bound, and fails here if one lies wholly on the wrong side; otherwise it is
undecided. All expectations stood before the recorded run. The [diary](diary.md) tells what was tried before, and what a pilot changed.
"""


def page(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """A table of all verdicts, then each with its expectations, effects and conditions."""
    counts = Counter(v["verdict"] for v in verdicts)
    told = ", ".join(f"{counts[outcome]} {words}" for outcome, words in _OUTCOMES.items() if counts[outcome])
    parts = [
        _HEAD,
        f"{len(verdicts)} claims were run: {told}.\n",
        "| study | verdict | scale | seeds | bounds that hold |",
        "|---|---|---|---|---|",
    ]
    for v in verdicts:
        held = sum(e["outcome"] == "holds" for e in v["expectations"])
        parts.append(
            f"| [`{v['slug']}`](#{v['slug']}) | {v['verdict']} | {v['scale']} | {len(v['seeds'])} | {held} of {len(v['expectations'])} |"
        )
    return "\n".join([*parts, *map(_section, verdicts)]) + "\n"


_OUTCOMES = {"holds": "hold here", "fails": "fail here", "undecided": "are undecided"}


def _section(verdict: Mapping[str, Any]) -> str:
    claim = verdict["claim"].rstrip(".")
    lines = [
        f"\n## {verdict['slug']}\n",
        f"{claim}. ({verdict['source']})\n",
        f"**{verdict['verdict'].capitalize()}** at scale {verdict['scale']}: seeds {verdict['seeds'][0]} to {verdict['seeds'][-1]}, "
        f"{verdict['seconds']:.0f} s on {hardware(verdict['environment'])}, {verdict['date']}.\n",
        "| expectation | outcome | effect | 95% interval | bound |",
        "|---|---|---|---|---|",
    ]
    for e in verdict["expectations"]:
        interval = "none" if e["low"] is None else f"{e['low']:.3g} to {e['high']:.3g}"
        bound = f"below {e['below']:g}" if e["above"] is None else f"above {e['above']:g}"
        sentence = e["sentence"].replace("|", "\\|")
        lines.append(f"| {sentence} | {e['outcome']} | {e['effect']:.3g} | {interval} | {bound} |")
    return "\n".join(lines)
