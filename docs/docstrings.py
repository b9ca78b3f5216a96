"""How docstrings become Markdown: formulas as code, what follows a label as a paragraph, arguments as a list."""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

from bakeoff.method import sections

_ITEM = re.compile(r"(?:^|(?<=[.;])\s+)(`?\w+`?(?:, `?\w+`?)*): ")


def markdown(text: str, departures: str = "") -> str:
    """The Markdown of a docstring.

    Args:
        departures: what the method's decorator says of them; takes the place of a docstring's reference to "the method's record".
    """
    paragraphs, labelled = sections(text)
    if departures and ("method's record" in labelled.get("Departures", "") or "Departures" not in labelled):
        labelled["Departures"] = departures
    shown = [_paragraph(paragraph) for paragraph in paragraphs]
    for label, body in labelled.items():
        items = _items(body) if label in ("Args", "Attributes", "Raises") else []
        shown.append(f"**{label}**\n\n{chr(10).join(items)}" if items else f"**{label}:** {_escaped(body)}")
    return "\n\n".join(shown)


def _paragraph(paragraph: str) -> str:
    if paragraph.startswith("    "):
        return paragraph
    formula = not re.search(r"[.:!?)]$", paragraph.rstrip()) or re.search(r"\S {2,}\S", paragraph)
    return f"```text\n{paragraph}\n```" if formula else _escaped(paragraph)


def _items(body: str) -> list[str]:
    """`name: what it is` for each name that a body explains; empty where it explains none."""
    before, *rest = _ITEM.split(body)
    if before.strip():
        return []
    return [f"- `{name.replace('`', '')}`: {_escaped(text)}" for name, text in zip(rest[::2], rest[1::2], strict=True)]


def _escaped(text: str) -> str:
    """With what Markdown would read as markup made plain, but for code in backticks."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*_<\[\]#|])", r"\\\1", p) for p in pieces)


class Docstrings(griffe.Extension):
    """Puts `markdown` in the place of every docstring."""

    def on_instance(self, *, obj: griffe.Object, **more: Any) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value, _departures(obj))


def _departures(obj: griffe.Object) -> str:
    for decorator in getattr(obj, "decorators", ()):
        called = ast.parse(str(decorator.value), mode="eval").body
        for keyword in getattr(called, "keywords", ()):
            if keyword.arg == "departures":
                value = keyword.value
                if isinstance(value, ast.Name):  # one sentence for several methods of a file
                    value = ast.parse(str(obj.module.members[value.id].value), mode="eval").body
                return str(value.value) if isinstance(value, ast.Constant) else ""  # an f-string is not read
    return ""
