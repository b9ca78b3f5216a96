"""Dividing examples so that no part holds what another holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace

from bakeoff.errors import DataError, UsageError
from bakeoff.text.read import Example


def split(examples: Sequence[Example], shares: Mapping[str, float], seed: int) -> dict[str, list[Example]]:
    """Divides examples into named parts, by their contents and the seed alone: order and `where` do not matter.

    The distinct contents are ordered by hash, and each part takes the next ones, in number its share of them to within
    one and at least one. Equal examples thus fall into one part. Within a part the order is that of `examples`.

    shares: above 0, together 1. Raises DataError if there are fewer distinct examples than parts, UsageError for
    shares that are not shares.
    """
    if not shares or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise UsageError(f"The shares {dict(shares)} do not divide anything; give numbers above 0 that sum to 1.")
    digests = [_digest(example, seed) for example in examples]
    distinct = sorted(set(digests))
    if len(distinct) < len(shares):
        raise DataError(
            f"{len(shares)} parts ({', '.join(shares)}) need at least {len(shares)} different examples, but there are "
            f"{len(distinct)}; give more, or cut long documents into pieces first."
        )
    part_of: dict[bytes, str] = {}
    cumulative, begin = 0.0, 0
    for position, (name, share) in enumerate(shares.items()):
        cumulative += share
        later = len(shares) - position - 1
        end = min(max(round(cumulative * len(distinct)), begin + 1), len(distinct) - later) if later else len(distinct)
        part_of.update(dict.fromkeys(distinct[begin:end], name))
        begin = end
    parts: dict[str, list[Example]] = {name: [] for name in shares}
    for example, digest in zip(examples, digests, strict=True):
        parts[part_of[digest]].append(example)
    return parts


def pieces(example: Example, characters: int) -> list[Example]:
    """Cuts a text into contiguous pieces of half to one and a half times `characters`, which joined give it again.

    Cuts fall after the last blank line that leaves a piece of at most `characters`, else the last newline, else the
    last space, else anywhere. Raises UsageError for another kind of example or fewer than 2 characters.
    """
    if example.kind != "text" or characters < 2:
        raise UsageError(f"{example.where}: only texts are cut, and into pieces of at least 2 characters.")
    cut, begin, text = [], 0, example.text
    while begin < len(text):
        end = len(text)
        if end - begin > 1.5 * characters:
            end = begin + characters
            for mark in ("\n\n", "\n", " "):
                found = text.rfind(mark, begin + characters // 2, begin + characters)
                if found >= 0:
                    end = found + len(mark)
                    break
        where = f"{example.where}, characters {begin} to {end}"
        cut.append(replace(example, text=text[begin:end], where=where))
        begin = end
    return cut if len(cut) > 1 else [example]


def documents(examples: Iterable[Example], characters: int) -> list[Example]:
    """The examples, in order, with each text that is longer than 1.5 times `characters` cut into its `pieces`."""
    return [
        piece
        for example in examples
        for piece in (pieces(example, characters) if example.kind == "text" else [example])
    ]


def _digest(example: Example, seed: int) -> bytes:
    contents = asdict(replace(example, where=""))
    return hashlib.sha256(json.dumps([seed, contents], sort_keys=True).encode()).digest()
