"""The form that starts a comparison: made from the fields of a contest's question, and checked again when it comes back."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from bakeoff import registry, running
from bakeoff.budget import Budget
from bakeoff.contest import UNTOUCHED
from bakeoff.errors import UsageError
from bakeoff.method import Method, Spec
from bakeoff.web.paths import confined_value

if TYPE_CHECKING:
    from bakeoff.web.site import Site

Form = Mapping[str, Sequence[str]]
"""What a browser sent: for each name its values."""

_MODELS = ("model", "base", "models", "experts", "retrained", "architecture", "tokenizer")
_DATA = (
    "train", "keep", "valid", "validation", "also", "prompts", "facts", "general", "forget", "retain", "paraphrases", "texts",
    "items", "tasks",
)  # fmt: skip
_NO_PATHS = ("stop",)
_LARGEST = 1_000_000
_METHODS, _LINES, _LONGEST = 40, 100, 500


@dataclass(frozen=True)
class Input:
    """One field of the form.

    Attributes: `kind`: what is typed, `lines` being one value a line; `suggested`: which paths are offered; `near`: whether
    it is seen without opening anything; `low`, `high`: bounds of a number, None without one.
    """

    name: str
    help: str
    kind: Literal["text", "lines", "whole", "number", "flag", "choice"]
    default: str = ""
    required: bool = False
    near: bool = True
    suggested: Literal["", "models", "data"] = ""
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    number_lines: bool = False

    @property
    def label(self) -> str:
        return self.name.replace("_", " ").capitalize()


class Wrong(Exception):
    """What was typed cannot be run; `errors` has a sentence for each field that is wrong."""

    def __init__(self, errors: Mapping[str, str]) -> None:
        super().__init__(" ".join(errors.values()))
        self.errors = dict(errors)


def question_inputs(contest: str) -> list[Input]:
    """The fields of a contest's question: first what is needed, then models and data, then the rest."""
    made = [_input(name, field) for name, field in registry.contest(contest).question.model_fields.items()]
    return sorted(made, key=lambda made: (not made.required, not made.near))


def own_inputs(contest: str) -> list[Input]:
    """The fields that every comparison has."""
    own = registry.contest(contest).budget
    return [
        Input("budget", "What each trial may spend: 60steps, 200ktokens, 10min.", "text", own, required=not own),
        Input("seeds", "Trials of each method, one a seed; fewer than 3 decide nothing.", "whole", "3", low=1, high=50),
        Input("name", "What this comparison is called here. Default: contest and date.", "text"),
        Input("baseline", f"A method as named above, or {UNTOUCHED}: effects are against it. Default: the first.", "text", near=False),
        Input("tune", "Configurations that each method tries first, on a validation split.", "whole", "0", near=False, low=0, high=200),
        Input("seed_base", "The first seed.", "whole", "0", near=False, low=0, high=2**31 - 1),
    ]  # fmt: skip


def parse(contest: str, form: Form, site: Site) -> tuple[str, dict[str, Any]]:
    """The name of a comparison, and its fields as `bakeoff.running.comparison_from` takes them.

    Raises: Wrong for what a visitor can mend in the form; UsageError for what no form of ours sends.
    """
    inputs = {made.name: made for made in [*question_inputs(contest), *own_inputs(contest)]}
    for name, values in form.items():
        if name not in {*inputs, "methods", "more_methods", "csrf"}:
            raise UsageError(f"The form has no field {name[:60]!r}: open it again and send what it shows.")
        if len(values) > 1 and name != "methods":
            raise UsageError(f"The field {name} was sent {len(values)} times: open the form again and send it once.")
    fields: dict[str, Any] = {}
    errors: dict[str, str] = {}
    for made in inputs.values():
        try:
            value = _value(made, form.get(made.name, [""])[0], site)
            if made.name == "budget" and value is not None:
                Budget.parse(value)
            if made.name == "baseline" and value is not None:
                Spec.parse(value)
        except UsageError as error:
            errors[made.name] = str(error)
        else:
            if value is not None:
                fields[made.name] = value
    try:
        fields["methods"] = _methods(contest, form, site)
    except UsageError as error:
        errors["methods"] = str(error)
    name = fields.pop("name", "")
    question = registry.contest(contest).question
    try:
        question(**{key: value for key, value in fields.items() if key in question.model_fields})
    except ValidationError as error:
        for wrong in error.errors():
            said = "is needed" if wrong["type"] == "missing" else f"is wrong: {wrong['msg']}"
            field = str(wrong["loc"][0]) if wrong["loc"] else "methods"
            errors.setdefault(field, f"{inputs[field].label if field in inputs else 'The question'} {said}.")
    if not errors:
        try:
            running.comparison_from(contest, fields)
        except UsageError as error:
            errors["baseline" if "baseline" in fields and "baseline" in str(error) else "methods"] = str(error)
    if errors:
        raise Wrong({made: errors[made] for made in ["methods", *inputs] if made in errors})
    return name, fields


def sent(contest: str, fields: Mapping[str, Any]) -> dict[str, list[str]]:
    """The form from which `parse` would make these fields."""
    form: dict[str, list[str]] = {}
    for made in [*question_inputs(contest), *own_inputs(contest)]:
        value = fields.get(made.name)
        if made.kind == "flag":
            text = "on" if value else ""
        elif made.kind == "lines":
            lines = [str(line) for line in value or ()]
            shown = [line.replace("\n", "\\n").replace("\t", "\\t") for line in lines]
            text = "\n".join(shown if made.name in _NO_PATHS else lines)
        else:
            text = "" if value is None else str(value)
        form[made.name] = [text]
    known, methods = registry.methods(contest), [str(method) for method in fields["methods"]]
    form["methods"] = [method for method in methods if method in known]
    form["more_methods"] = ["\n".join(method for method in methods if method not in known)]
    return form


def _input(name: str, field: FieldInfo) -> Input:
    kinds = [kind for kind in _kinds(field.annotation) if kind is not type(None)]
    kind = kinds[0]
    help = re.sub(r"--([a-z][a-z-]*)", lambda found: found[1].replace("-", " "), field.description or "")
    least = [getattr(bound, end) for bound in field.metadata for end in ("ge", "gt") if hasattr(bound, end)]
    suggested: Literal["", "models", "data"] = "models" if name in _MODELS else "data" if name in _DATA else ""
    required = field.is_required()
    shared: dict[str, Any] = {"required": required, "near": required or bool(suggested)}
    if get_origin(kind) is tuple:
        return Input(name, help, "lines", suggested=suggested, number_lines=get_args(kind)[0] is float, **shared)
    default = "" if required or field.default is None else str(field.default)
    if get_origin(kind) is Literal:
        return Input(name, help, "choice", default, choices=get_args(kind), **shared)
    if kind is bool:
        return Input(name, help, "flag", "on" if field.default else "", **shared)
    if kind in (int, float):
        low = float(least[0]) if least else None
        return Input(name, help, "whole" if kind is int else "number", default, low=low, high=_LARGEST, **shared)
    return Input(name, help, "text", default, suggested=suggested, **shared)


def _kinds(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _value(made: Input, typed: str, site: Site) -> Any:
    """What was typed, in the field's type; None where nothing was, so that the default holds."""
    if made.kind == "flag":
        if typed not in ("", "on"):
            raise UsageError(f"{made.label} is a box to tick: tick it or leave it.")
        return typed == "on"
    if made.kind == "lines":
        lines = [line.strip("\r") for line in typed.split("\n")]
        lines = [line if made.name in _NO_PATHS else line.strip() for line in lines if line.strip()]
        if len(lines) > _LINES:
            raise UsageError(f"{made.label} has {len(lines)} lines: give at most {_LINES}.")
        if made.required and not lines:
            raise UsageError(f"{made.label} is needed: write one a line.")
        if made.number_lines:
            return [_number(made, line) for line in lines] or None
        if made.name in _NO_PATHS:
            return [line.replace("\\n", "\n").replace("\\t", "\t") for line in lines] or None
        return [confined_value(site.roots, line) for line in lines] or None
    text = typed.strip()
    if not text:
        if made.required:
            raise UsageError(f"{made.label} is needed.")
        return None
    if made.kind in ("whole", "number"):
        return _number(made, text)
    if made.kind == "choice":
        return registry.pick(text, made.choices, made.label.lower())
    if made.name in ("name", "budget", "baseline") and (len(text) > 120 or not text.isprintable()):
        raise UsageError(f"{made.label} must be a line of at most 120 characters.")
    return text if made.name in ("name", "budget") else confined_value(site.roots, text)


def _number(made: Input, text: str) -> int | float:
    kind = int if made.kind == "whole" else float
    try:
        value = kind(text[:40])
    except ValueError:
        raise UsageError(
            f"{made.label} must be a {'whole ' if kind is int else ''}number, not {text[:40]!r}."
        ) from None
    low, high = -_LARGEST if made.low is None else made.low, _LARGEST if made.high is None else made.high
    if not math.isfinite(value) or not low <= value <= high:
        raise UsageError(f"{made.label} must lie between {low:,g} and {high:,g}, not {text[:40]!r}.")
    return value


def _methods(contest: str, form: Form, site: Site) -> list[str]:
    """The methods ticked and those written with values, each once and in this order; none from a file or another package."""
    written = [line.strip() for line in form.get("more_methods", [""])[0].splitlines() if line.strip()]
    texts = list(dict.fromkeys([*form.get("methods", []), *written]))
    if not texts:
        raise UsageError("Choose at least one method.")
    if len(texts) > _METHODS:
        raise UsageError(f"{len(texts)} methods are too many: choose at most {_METHODS}.")
    known = registry.methods(contest)
    return list(dict.fromkeys(str(_spec(contest, text, known, site)) for text in texts))


def _spec(contest: str, text: str, known: Mapping[str, Method], site: Site) -> Spec:
    if len(text) > _LONGEST:
        raise UsageError(f"The method {text[:40]!r}… is too long: write at most {_LONGEST} characters.")
    try:
        spec = Spec.parse(text)
    except (MemoryError, RecursionError, TypeError):  # what Python's parser makes of brackets in brackets
        raise UsageError(f"The method {text[:60]!r} is not understood: write a name, or as in lora(rank=8).") from None
    registry.pick(spec.name, known, f"{contest} method")
    known[spec.name].resolve(spec.arguments)
    for value in spec.arguments.values():
        if isinstance(value, str):
            confined_value(site.roots, value)
    return spec
