"""The papers: one TOML file each in `papers/`, and the problems they are about in `tags.toml`."""

from __future__ import annotations

import datetime
import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from bakeoff.errors import UsageError

Kind = Literal["method", "study", "metric", "model", "engine", "other-domain", "survey"]

_FOLDER = Path(__file__).parent
_CONTESTS = (
    "tune", "prefer", "reinforce", "distill", "pretrain", "optimize", "order", "select", "augment", "curate", "merge", "edit",
    "unlearn", "quantize", "prune", "decode", "retrieve", "detect", "probe", "measure", "engine", "catalogue", "generate",
    "science",
)  # fmt: skip


@dataclass(frozen=True)
class Paper:
    """One paper, as its file in the catalogue says.

    Attributes: `arxiv`: its identifier without version, empty where it has none; `contest`: where it belongs, a contest or one
    of engine, catalogue, generate and science; `claim`: one sentence of our own; `tags`: keys of TAGS; `implemented_by`:
    "CONTEST/METHOD" and "studies/STUDY"; `not_covered`: what these leave out of the paper; `added`: when it came into the
    catalogue.
    """

    slug: str
    title: str
    year: int
    contest: str
    kind: Kind
    claim: str
    tags: tuple[str, ...]
    implemented_by: tuple[str, ...]
    added: datetime.date
    arxiv: str = ""
    not_covered: str = ""

    @property
    def studies(self) -> tuple[str, ...]:
        """The slugs of the studies of its claim."""
        return tuple(name.removeprefix("studies/") for name in self.implemented_by if name.startswith("studies/"))

    @property
    def methods(self) -> tuple[tuple[str, str], ...]:
        """Contest and name of each of its methods."""
        return tuple(
            (contest, name)
            for contest, _, name in (what.partition("/") for what in self.implemented_by)
            if contest != "studies"
        )


@functools.cache
def papers() -> Mapping[str, Paper]:
    """All papers by slug, in alphabetical order.

    Raises: UsageError for a file that does not follow the form.
    """
    return {path.stem: _read(path) for path in sorted((_FOLDER / "papers").glob("*.toml"))}


@functools.cache
def tags() -> Mapping[str, str]:
    """What a paper can be about: tag -> the problem in a user's words."""
    return tomllib.loads((_FOLDER / "tags.toml").read_text("utf-8"))


def _read(path: Path) -> Paper:
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no TOML ({error}): mend it.") from None
    lists = {name: tuple(value) for name, value in content.items() if isinstance(value, list)}
    names = {field.name for field in fields(Paper)}
    needed = names - {"arxiv", "not_covered"}
    kinds = {"year": int, "added": datetime.date, "tags": list, "implemented_by": list}
    for wrong, what in (
        (sorted(needed - set(content)), "lacks {}"),
        (sorted(set(content) - names), "has the unknown field {}"),
        (
            [name for name, value in content.items() if type(value) is not kinds.get(name, str)],
            "has a {} of the wrong type",
        ),
        (sorted(set(lists.get("tags", ())) - set(tags())), "has the tag {}, which tags.toml does not have"),
        ([] if content.get("slug") == path.stem else [path.stem], "must have the slug {}"),
        ([] if content.get("contest") in _CONTESTS else [content.get("contest")], "names the unknown contest {}"),
        ([] if content.get("kind") in get_args(Kind) else [content.get("kind")], "is of the unknown kind {}"),
    ):
        if wrong:
            raise UsageError(f"{path} {what.format(wrong[0])}: mend it.")
    return Paper(**{**content, **lists})
