"""A method: one decorated function whose keyword-only parameters are its hyper-parameters.

From the signature come the command line, validation, the search space and the reference documentation.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from bakeoff.errors import UsageError


@dataclass(frozen=True)
class Range:
    """The values a number may take, both ends included.

    `log`: a search steps through it by factors. `search`: whether a search varies it at all.
    """

    low: float
    high: float
    log: bool = False
    search: bool = True


@dataclass(frozen=True)
class Parameter:
    """One hyper-parameter: its name, type, default and the values it may take (a Range, a tuple of choices, or any)."""

    name: str
    type: type
    default: Any
    values: Range | tuple[Any, ...] | None

    def check(self, value: Any) -> Any:
        """The value in this parameter's type, or UsageError that says what is allowed."""
        if isinstance(self.values, tuple):
            if value not in self.values or type(value) not in {type(v) for v in self.values}:
                raise UsageError(f"{self.name} must be one of {', '.join(map(repr, self.values))}, not {value!r}.")
            return value
        number = self.type in (int, float)
        if number and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            if self.type is int and value != int(value):
                raise UsageError(f"{self.name} must be a whole number, not {value!r}.")
            if isinstance(self.values, Range) and not self.values.low <= value <= self.values.high:
                raise UsageError(
                    f"{self.name} must lie between {self.values.low:g} and {self.values.high:g}, not {value!r}."
                )
            return self.type(value)
        if number or not isinstance(value, self.type):
            raise UsageError(f"{self.name} must be of type {self.type.__name__}, not {value!r}.")
        return value

    @property
    def searched(self) -> bool:
        """Whether a search varies it: numbers do, choices do not, since each makes a method of its own to compare."""
        return isinstance(self.values, Range) and self.values.search

    def suggest(self, trial: Any) -> Any:
        """A value drawn by an Optuna trial; only for a parameter that is `searched`."""
        assert isinstance(self.values, Range)
        if self.type is int:
            return trial.suggest_int(self.name, int(self.values.low), int(self.values.high), log=self.values.log)
        return trial.suggest_float(self.name, self.values.low, self.values.high, log=self.values.log)


_LABEL = re.compile(
    r"(?:^[ \t]*|(?<=[.;]) +)(Source|Args|Attributes|Returns|Raises|Departures|Limits):\s", re.MULTILINE
)


def sections(doc: str) -> tuple[list[str], dict[str, str]]:
    """A docstring's paragraphs, as they stand, and what follows each of its labels (Source, Args, ...), on one line."""
    text, *labelled = _LABEL.split(doc)
    paragraphs = [part.strip("\n") for part in re.split(r"\n\s*\n", text) if part.strip()]
    return paragraphs, {
        label: " ".join(re.sub(r"(?<=\w-)\n\s*(?=\w)", "", body).split())
        for label, body in zip(labelled[::2], labelled[1::2], strict=True)
    }


def parameters_of(function: Callable[..., Any]) -> tuple[Parameter, ...]:
    """The keyword-only parameters of a method, in the order written. TypeError names one that cannot be used."""
    own = {n: p for n, p in inspect.signature(function).parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    # What the other annotations name may be imported for type checking alone.
    named = SimpleNamespace(__annotations__={n: a for n, a in function.__annotations__.items() if n in own})
    hints = get_type_hints(named, vars(sys.modules[function.__module__]), include_extras=True)
    found = []
    for name, parameter in own.items():
        hint = hints.get(name)
        values: Range | tuple[Any, ...] | None = None
        if get_origin(hint) is Annotated:
            hint, *notes = get_args(hint)
            values = next((note for note in notes if isinstance(note, Range)), None)
        if get_origin(hint) is Literal:
            values = get_args(hint)
            hint = type(values[0])
        elif hint is bool:
            values = (False, True)
        if parameter.default is inspect.Parameter.empty or not isinstance(hint, type):
            raise TypeError(
                f"{function.__name__}: the parameter {name} needs a default and a plain type (int, float, str, bool, Literal)."
            )
        made = Parameter(name, hint, parameter.default, values)
        made.check(parameter.default)
        found.append(made)
    return tuple(found)


@dataclass(frozen=True)
class Method:
    """One technique in a contest. Call it as the contest's protocol says: `method(model, data, run, **arguments)`.

    Attributes: `paper` is the slug in the catalogue, empty for a baseline; `source` the publication and section;
    `needs` what it must be given beyond the usual; `changes` what it changes; `departures` what differs from the paper;
    `exceptions` maps the name of a common check to the sentence why this method may fail it (an unexpected pass fails);
    `trains` is false where nothing is learned by gradient steps, so that no budget is spent;
    `checked_with` are arguments of the common checks where the defaults would take long.
    """

    contest: str
    function: Callable[..., Any]
    paper: str = ""
    source: str = ""
    needs: tuple[str, ...] = ()
    changes: str = "weights"
    departures: str = ""
    exceptions: Mapping[str, str] = field(default_factory=dict)
    trains: bool = True
    checked_with: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, *inputs: Any, **arguments: Any) -> Any:
        return self.function(*inputs, **self.resolve(arguments))

    @property
    def name(self) -> str:
        return self.function.__name__.strip("_").replace("_", "-")

    @property
    def doc(self) -> str:
        return inspect.getdoc(self.function) or ""

    @property
    def file(self) -> Path:
        return Path(inspect.getsourcefile(self.function) or "")

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        return parameters_of(self.function)

    @cached_property
    def source_hash(self) -> str:
        """SHA-256 of the file that defines the method: a change of the file makes its earlier results those of another method."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()

    def resolve(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments with defaults filled in, checked; UsageError names the method and what is allowed."""
        known = {parameter.name: parameter for parameter in self.parameters}
        if unknown := sorted(set(arguments) - set(known)):
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise UsageError(f"{self.name} has no parameter {unknown[0]!r}: {has}.")
        try:
            return {name: p.check(arguments.get(name, p.default)) for name, p in known.items()}
        except UsageError as error:
            raise UsageError(f"{self.name}: {error}") from None


@dataclass(frozen=True)
class Spec:
    """A method as it was asked for: its name and the arguments given, as in `lora(rank=8)`."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Read `hft` or `lora(rank=8, merge=True)`; values are Python literals. UsageError otherwise."""
        name, bracket, rest = text.strip().partition("(")
        wrong = UsageError(
            f'The method {text!r} is not understood: write a name, or a name with values such as "lora(rank=8)".'
        )
        name = name.strip()
        if not re.fullmatch(r"[\w-]+|[\w./~-]+\.py(:[\w-]+)?|[\w.]+:[\w-]+", name):
            raise wrong
        try:
            call = ast.parse(f"_({rest}" if bracket else "_()", mode="eval").body
            if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
                raise wrong
            arguments = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        except (SyntaxError, ValueError):
            raise wrong from None
        return cls(name if "." in name or ":" in name else name.replace("_", "-"), arguments)

    def __str__(self) -> str:
        if not self.arguments:
            return self.name
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.arguments.items())})"
