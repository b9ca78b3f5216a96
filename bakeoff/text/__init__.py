"""Examples: reading, splitting, what is installed anyway, and tokenising. torch is imported when `encode` is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bakeoff.text.installed import installed
from bakeoff.text.read import Example, Message, fingerprint, read
from bakeoff.text.split import documents, pieces, split

if TYPE_CHECKING:
    from bakeoff.text.tokenise import Encoded, Item, encode

__all__ = [
    "Encoded",
    "Example",
    "Item",
    "Message",
    "documents",
    "encode",
    "fingerprint",
    "installed",
    "pieces",
    "read",
    "split",
]


def __getattr__(name: str) -> Any:
    if name in ("Encoded", "Item", "encode"):
        from bakeoff.text import tokenise

        return getattr(tokenise, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
