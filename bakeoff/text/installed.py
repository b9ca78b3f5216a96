"""Real English prose and real code that every installation carries: no download, no licence of its own to mind."""

from __future__ import annotations

import ast
import functools
import hashlib
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, cast, get_args

from bakeoff.errors import UsageError
from bakeoff.text.read import INSTALLED, Example

Kind = Literal["docstrings", "code", "reference"]

PACKAGES = (
    "stdlib",
    "numpy",
    "scipy",
    "sklearn",
    "pandas",
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "peft",
    "pydantic",
    "altair",
    "optuna",
    "fsspec",
    "rich",
    "jinja2",
)

# Tests hold little prose; vendored copies, caches and bundled installers hold other packages' text.
_SKIPPED_FOLDERS = re.compile(
    r"tests?|testing|idle_test|turtledemo|site-packages|dist-packages|pydoc_data|config-.*|_?vendor(ed)?|_bundled"
    r"|externals|third_party|__pycache__|node_modules|\..*"
)
_SKIPPED_FILES = re.compile(r"test_.*|.*_test|conftest|setup")
_COMMON_WORDS = frozenset(
    re.findall(r"\w+", "the a an of to in is are and or for with that this be by on as it if from not which")
)
_SHORTEST_DOCUMENT = 200
_OWN_DOCUMENT = 2000


def installed(kind: Kind, *, limit: int | None = None, packages: Sequence[str] | None = None) -> list[Example]:
    """Documents of kind text, the same in every process that has the same package versions, sorted by `where`.

    docstrings: English docstrings of the standard library and of the packages that bakeoff depends on (`PACKAGES`).
        A docstring of at least 2000 characters is a document; the shorter ones of one module are joined to one.
        Equal docstrings occur once; documents under 200 characters and files of tests are left out.
    code: Python source files, of the standard library unless `packages` says otherwise.
    reference: the Python language reference, one document for each topic of `pydoc_data.topics`.

    limit: characters; reading stops after the document that reaches it. The documents then come in equal parts from
        all packages, and within each from modules all over it. Without a limit, docstrings take a minute or two.
    packages: importable top-level names or "stdlib". Sources are parsed, never imported.
    Raises UsageError for an unknown kind, a limit below 1 and a package that is not installed.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; give a number of characters above 0, or leave it out.")
    if kind == "reference":
        if packages is not None:
            raise UsageError("packages cannot be chosen for kind 'reference'; leave it out.")
        streams = {"stdlib": _topics()}
    elif kind in ("docstrings", "code"):
        if packages is None:
            packages = [name for name in PACKAGES if kind == "docstrings" and _is_installed(name)] or ["stdlib"]
        seen: set[bytes] = set()
        streams = {name: _documents(kind, name, _root(name), seen) for name in packages}
    else:
        raise UsageError(f"There is no installed text of kind {kind!r}; choose docstrings, code or reference.")
    return sorted(_draw(streams, limit), key=lambda example: example.where)


@functools.lru_cache(maxsize=4)
def installed_text(name: str) -> tuple[Example, ...]:
    """The documents that a name stands for: `installed:docstrings`, or `installed:docstrings:400000` for that many characters.

    Raises UsageError for a name that is not understood.
    """
    kind, limit = installed_part(name)
    return tuple(installed(kind, limit=limit))


def installed_part(name: str) -> tuple[Kind, int | None]:
    """The kind and the limit in such a name; UsageError where it is not understood."""
    kind, colon, limit = name.removeprefix(INSTALLED).partition(":")
    if kind not in get_args(Kind) or (colon and not limit.isdecimal()):
        kinds = ", ".join(INSTALLED + known for known in get_args(Kind))
        raise UsageError(
            f"{name!r} is not understood: write one of {kinds}, and :400000 after it for that many characters."
        )
    return cast(Kind, kind), int(limit) if colon else None


def _draw(streams: dict[str, Iterator[Example]], limit: int | None) -> Iterator[Example]:
    characters = dict.fromkeys(streams, 0)
    while characters and (limit is None or sum(characters.values()) < limit):
        behind = min(characters, key=lambda name: characters[name])
        example = next(streams[behind], None)
        if example is None:
            # What an exhausted package gave still counts towards the limit.
            if limit is not None:
                limit -= characters[behind]
            del characters[behind]
            continue
        characters[behind] += len(example.text)
        yield example


def _is_installed(package: str) -> bool:
    return package == "stdlib" or find_spec(package) is not None


def _root(package: str) -> Path:
    if package == "stdlib":
        return Path(sysconfig.get_path("stdlib"))
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"The package {package!r} is not installed; name an importable package folder or 'stdlib'.")
    return Path(next(iter(spec.submodule_search_locations)))


def _modules(root: Path) -> list[Path]:
    found, folders = [], [root]
    while folders:
        for path in folders.pop().iterdir():
            if path.is_dir():
                if not _SKIPPED_FOLDERS.fullmatch(path.name):
                    folders.append(path)
            elif path.suffix == ".py" and not _SKIPPED_FILES.fullmatch(path.stem):
                found.append(path)
    # By hash, so that the first modules drawn under a limit are a spread of the whole package.
    return sorted(found, key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest())


def _is_new(text: str, seen: set[bytes]) -> bool:
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
    is_new = digest not in seen
    seen.add(digest)
    return is_new


def _documents(kind: Kind, package: str, root: Path, seen: set[bytes]) -> Iterator[Example]:
    for path in _modules(root):
        where = f"{package}/{path.relative_to(root).as_posix()}"
        try:
            with tokenize.open(path) as file:
                source = file.read()
        except (SyntaxError, UnicodeDecodeError):
            continue  # some packages carry files that are no Python of this version
        if kind == "docstrings":
            yield from _docstrings(source, where, seen)
        elif len(source) >= _SHORTEST_DOCUMENT and _is_new(source, seen):
            yield Example("text", where, text=source)


def _docstrings(source: str, where: str, seen: set[bytes]) -> Iterator[Example]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's sources
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError):
            return
    short: list[str] = []
    nodes: list[ast.AST] = [tree]
    for node in nodes:
        # No docstring stands in an expression, and most of a tree is expressions.
        nodes += [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr)]
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docstring = (ast.get_docstring(node) or "").strip()
        if not docstring or not _is_english(docstring) or not _is_new(docstring, seen):
            continue
        if len(docstring) >= _OWN_DOCUMENT:
            yield Example("text", f"{where}:{node.body[0].lineno}", text=docstring)
        else:
            short.append(docstring)
    joined = "\n\n".join(short)
    if len(joined) >= _SHORTEST_DOCUMENT:
        yield Example("text", where, text=joined)


def _is_english(text: str) -> bool:
    words = re.findall(r"[a-z]+", text.lower())
    return (
        len(text.encode("ascii", "ignore")) >= 0.98 * len(text)
        and sum(map(len, words)) >= 0.5 * len(text)
        and sum(word in _COMMON_WORDS for word in words) >= 0.1 * len(words)
    )


def _topics() -> Iterator[Example]:
    path = _root("stdlib") / "pydoc_data" / "topics.py"
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"This Python carries no language reference: {path} is missing; use 'docstrings'.") from error
    topics: dict[str, str] = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict)
    )
    seen: set[bytes] = set()
    for name in sorted(topics, key=lambda name: hashlib.sha256(name.encode()).digest()):
        text = topics[name].strip()
        if len(text) >= _SHORTEST_DOCUMENT and _is_new(text, seen):
            yield Example("text", f"reference/{name}", text=text)
