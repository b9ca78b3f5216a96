"""What the documentation says is true: every command and every piece of code in README.md and docs/ runs, on small inputs.

Each page has a folder of its own, with the files that docs/index.md names. Commands run there one after the other, in this process,
reduced by the tables below: budgets, numbers of seeds and of questions become small, and methods are spared their quick checks, which
their own tests run. The few commands that need what a test machine lacks are read by the command line without being run.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
import yaml
from helpers import WORDS, Said
from typer.exceptions import TyperException

from bakeoff import check, cli, lm, registry
from bakeoff.catalogue.status import STATUSES
from bakeoff.lm.tiny import save_tiny
from bakeoff.recipe import Recipe
from bakeoff.running import comparison_from
from bakeoff.text import tasks
from bakeoff.text.tasks.task import TokenTask

pytest_plugins = ("helpers",)

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TASKS = {
    m[1]: m[0] for m in re.finditer(r"^\| `([\w-]+)` \|.*$", (ROOT / "docs" / "tasks.md").read_text("utf-8"), re.M)
}
LANGUAGES = {"sh", "python", "yaml", "json", "text"}

REDUCED = {
    "--budget": "2steps", "--seeds": "1", "--tune": "1", "--count": "2", "--max-new-tokens": "8", "--scale": "smoke",
    "--per-device-train-batch-size": "2",
}  # fmt: skip
"""What stands in the place of the value that a page gives to an option."""

ADDED: dict[str, dict[str, str]] = {
    "compare": {
        "--budget": "2steps", "--seeds": "1", "--exam-items": "4", "--max-length": "32", "--max-new-tokens": "8", "--count": "2",
        "--general": "keep.txt",
    },
    "apply": {"--budget": "2steps", "--max-length": "32", "--max-new-tokens": "8"},
    "measure": {"--count": "2"},
    "study": {"--scale": "smoke"},
    "check": {"--quick": ""},
}  # fmt: skip
"""What is added to a command where it takes the option and the page does not give it; a synthetic task has a length of its own."""

STAGES = {"budget": "2steps", "max_length": "32", "exam_items": "4"}
"""What is set for every stage of a recipe."""

NOT_RUN = {
    "make ": "installs, or runs what other tests run",
    "source .venv": "is of the shell",
    "accelerate launch": "several processes: test_parallel.py and test_tensor_parallel.py",
    "ray start": "several machines",
    "--executor ray": "a Ray cluster: test_executor.py",
    "--executor joblib": "processes that import torch anew: test_executor.py",
    "--address http": "somebody who answers there: test_measure_alice.py and others",
    "--tasks arc_easy": "lm-eval and a data set from a hub: test_harness.py",
    "--smtp": "a mail server",
    "bakeoff serve": "answers until it is stopped",
}
"""Commands that are read and not run, by how they begin or by an option, each with what it would need."""

LACKING = {"--report-to tensorboard": "tensorboard"}
"""Commands that are run only where a package is installed that is no part of bakeoff."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    title: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[list[str]]:
        """The words of each command of a `sh` block."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    found = []
    for match in re.finditer(r"^ *```(\w*)([^\n]*)\n(.*?)^ *```$", text, re.M | re.S):
        title = re.search(r'title="([^"]+)"', match[2])
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, match[1], title[1] if title else "", match[3]))
    return found


def commands(*pages: Path) -> Iterator[tuple[Block, list[str]]]:
    for block in (block for page in pages for block in blocks(page) if block.language == "sh"):
        for words in block.commands():
            yield block, words


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def own(words: list[str]) -> list[str]:
    """What of a command the command line of bakeoff reads; empty where it is another program's."""
    begin = next(
        (n + 1 for n, word in enumerate(words) if word == "bakeoff" and (n == 0 or words[n - 1] == "-m")), None
    )
    return [] if begin is None else cli._repeated(words[begin:])


def read(words: list[str]) -> None:
    """Let the command line read a command, every option and argument of it, without running it."""
    context = cli.command(words).make_context("bakeoff", list(words))  # type: ignore[attr-defined]
    while left := hasattr(context.command, "commands") and [*context._protected_args, *context.args]:
        name, command, rest = context.command.resolve_command(context, left)
        context = command.make_context(name, rest, parent=context)


def taken(words: list[str]) -> set[str]:
    """The options that a command takes."""
    command: Any = cli.command(words)
    for word in words:
        if word not in getattr(command, "commands", ()):
            break
        command = command.commands[word]
    return {option for parameter in command.params for option in parameter.opts}


def short(text: str) -> str:
    """Text that every installation carries, cut to 20,000 characters; any other word as it is."""
    return re.sub(r"^(installed:\w+).*", r"\1:20000", text)


def smaller(words: list[str]) -> list[str]:
    """A command as it is run here."""
    words = [short(REDUCED.get(before, word)) for before, word in zip(["", *words], words, strict=False)]
    has = taken(words) if words[0] in ADDED else set()
    for option, value in ADDED.get(words[0], {}).items():
        if option in has and option not in words and not (option == "--max-length" and "--difficulty" in words):
            words = [*words, option, *([value] if value else [])]
    if words[0] == "recipe":
        for stage in yaml.safe_load(Path(words[1]).read_text("utf-8"))["stages"]:
            fields = {**STAGES, "train": short(stage["train"])}
            words = [
                *words,
                *(w for name, value in fields.items() for w in ("--set", f"{stage['name']}.{name}={value}")),
            ]
    return words


@pytest.fixture(scope="session")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that docs/index.md names."""
    place = tmp_path_factory.mktemp("cast")
    draw = random.Random(0)

    def sentence() -> str:
        return " ".join(draw.choice(WORDS) for _ in range(30))

    models = [
        "my-model", "base-model", "model-a", "model-b", "large-model", "small-base", "small-tuned",
        *(f"step-{step}" for step in (100, 200, 300, 400)),
    ]  # fmt: skip
    for seed, name in enumerate(models):
        save_tiny(place / name, "llama", seed)
        settings = json.loads((place / name / "config.json").read_text())
        (place / name / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 4096}))
    for name in ("my-texts", "keep", "held-out"):
        (place / f"{name}.txt").write_text("\n\n".join(sentence() for _ in range(40)), "utf-8")
    pairs = [{"prompt": f"{a} plus {b} is", "completion": f" {a + b}"} for a in range(6) for b in range(6)]
    rows: dict[str, list[dict[str, Any]]] = {
        "a": [{"prompt": row["prompt"], "completion": " a number"} for row in pairs],
        "b": [{"prompt": row["prompt"], "completion": " not known"} for row in pairs],
        "forget": pairs[:12],
        "retain": pairs[12:],
        "questions": [{"prompt": row["prompt"], "answer": row["completion"].strip()} for row in pairs[:4]],
        "choices": [
            {"question": f"What is {n} and {n}?", "choices": [str(n), str(2 * n), str(n + 7)], "answer": str(2 * n)}
            for n in range(1, 9)
        ],
        "facts": [
            {"subject": name, "prompt": f"people in {name} speak", "target_new": new, "answer": old}
            for name, new, old in (("Mobar", "Velish", "Ostrian"), ("Tolin", "Ostrian", "Velish"))
        ],
    }
    for name, found in rows.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), "utf-8")
    for task in "ab":
        learned(place / f"model-{task}", [row["prompt"] + row["completion"] for row in rows[task]])
    (place / "prompts.txt").write_text("the cat\nthe old dog ran\n", "utf-8")
    return place


def learned(folder: Path, texts: list[str]) -> None:
    """Teach a model some texts, so that it answers at least one of them right."""
    loaded = lm.load(str(folder))
    optimizer = torch.optim.Adam(loaded.model.parameters(), lr=0.01)
    for _ in range(30):
        ids = loaded.tokenizer(texts[:8], return_tensors="pt", padding=True, padding_side="left").input_ids
        loss = torch.nn.functional.cross_entropy(
            loaded.model(ids).logits[:, -10:-1].flatten(0, 1), ids[:, -9:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    loaded.model.save_pretrained(folder)


@pytest.fixture
def folder(cast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page's own folder, and a store that all pages share, so that what two of them show is trained once."""
    place = tmp_path / "page"
    place.mkdir()
    for entry in [*cast.iterdir(), ROOT / "examples", *(ROOT / "recipes").glob("*.jsonl")]:
        (place / entry.name).symlink_to(entry)
    monkeypatch.chdir(place)
    monkeypatch.setenv("BAKEOFF_STORE", str(cast / "store"))
    monkeypatch.setattr(check, "quick_verdict", lambda method, store: None)
    return place


def written(block: Block, folder: Path) -> None:
    """Make the file whose content a block shows."""
    place = folder / block.title
    place.unlink(missing_ok=True)
    place.write_text(block.text, "utf-8")


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=named)
def test_a_page_runs_from_top_to_bottom(page: Path, folder: Path, bakeoff: Callable[..., Said]) -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    done: set[tuple[str, ...]] = set()
    for block in blocks(page):
        if block.title:
            written(block, folder)
        if block.language == "python":
            exec(compile(block.text, block.where, "exec"), space)
        elif block.language == "json":
            for line in block.text.splitlines():
                json.loads(line)
        elif block.language == "yaml":
            loaded = yaml.safe_load(block.text)
            if "stages" in loaded:
                Recipe.read(folder / block.title, [])
            else:
                comparison_from(loaded.pop("contest"), loaded)
        elif block.language == "sh":
            for words in block.commands():
                if _not_run(words) or words[0] != "bakeoff" or _lacks(words):
                    continue
                small = smaller(words[1:])
                if tuple(small) in done:
                    continue
                done.add(tuple(small))
                said = bakeoff(*small)
                assert said.code == 0, f"{block.where}: {shlex.join(small)}\n{said.out}\n{said.err}"


def _not_run(words: list[str]) -> list[str]:
    """The reasons why a command is only read: how it begins, or an option with its value."""
    line = " ".join(words) + " "
    return [part for part in NOT_RUN if (part in line if part.startswith("--") else line.startswith(part))]


def _lacks(words: list[str]) -> bool:
    return any(part in " ".join(words) and not importlib.util.find_spec(needed) for part, needed in LACKING.items())


@pytest.mark.parametrize("page", [p for p in PAGES if any(commands(p))], ids=named)
def test_the_command_line_reads_every_command(page: Path, folder: Path) -> None:
    for block, words in commands(page):
        try:
            read(own(words))
        except TyperException as error:
            pytest.fail(f"{block.where}: {shlex.join(words)}: {error.format_message()}")


def test_only_what_needs_more_is_not_run() -> None:
    parts: set[str] = set()
    for block, words in commands(*PAGES):
        reasons = _not_run(words)
        assert words[0] == "bakeoff" or reasons, f"{block.where}: no test runs {shlex.join(words)}"
        if words[0] == "make":
            assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M) for target in words[1:])
        if words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2])
        parts.update(reasons)
        parts.update(part for part in LACKING if part in " ".join(words))
    assert parts == {*NOT_RUN, *LACKING}, "an entry that no page needs any more"


def test_the_rules_of_reduction_are_used() -> None:
    found = list(commands(*PAGES))
    assert all(any(option in words for _, words in found) for option in REDUCED)
    assert all(any(words[:2] == ["bakeoff", name] for _, words in found) for name in ADDED)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_command_escapes(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block.where}: a block needs a language, one of {sorted(LANGUAGES)}"
        assert block.language == "sh" or not re.search(r"^\$? *bakeoff [a-z]", block.text, re.M), block.where
    text = page.read_text("utf-8")
    plain = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S)
    known = set(cli.command([]).commands)  # type: ignore[attr-defined]
    loose = rf"^ *(```|~~~)|^\s*\$? *bakeoff ({'|'.join(known)})\b"
    assert not re.search(loose, plain, re.M), f"{page}: a command outside of the `sh` blocks"
    for line in re.findall(r"`bakeoff ([a-z][^`]*)`", text):
        words = line.split()
        assert words[0] in known, f"{page}: there is no command {words[0]}"
        options = {word for word in words if word.startswith("--")} - {"--help"}
        assert options <= taken(words[:2] if words[0] in ("compare", "apply") else words[:1]), f"{page}: {line}"


def test_the_home_page_names_the_files_of_the_examples(cast: Path) -> None:
    rows = re.findall(r"^\| (`.+?`) \| ", (ROOT / "docs" / "index.md").read_text("utf-8"), re.M)
    said = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert said == {entry.name for entry in cast.iterdir()} - {"store"}


def test_the_recipe_shown_is_the_one_that_is_there() -> None:
    shown = next(block.text for block in blocks(ROOT / "docs" / "recipes.md") if block.language == "yaml")
    assert yaml.safe_load(shown) == yaml.safe_load((ROOT / "recipes" / "telechat.yaml").read_text("utf-8"))


def test_every_method_has_its_place_in_the_reference() -> None:
    for contest in registry.contest_names():
        page = (ROOT / "docs" / "reference" / f"{contest}.md").read_text("utf-8")
        functions = [method.function for method in registry.methods(contest).values()]
        expected = sorted(f"{function.__module__}.{function.__name__}" for function in functions)
        assert sorted(re.findall(r"^::: (\S+)$", page, re.M)) == expected, f"docs/reference/{contest}.md"


def test_every_contest_has_a_page_that_names_every_method() -> None:
    for contest in registry.contest_names():
        page = (ROOT / "docs" / f"{contest}.md").read_text("utf-8")
        assert {name for name in registry.methods(contest) if f"`{name}`" not in page} == set(), contest


def test_the_benefits_and_harms_are_those_of_the_contests() -> None:
    page = (ROOT / "docs" / "reading-results.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| `(\w+)` \|$", page, re.M)
    assert rows == [
        (n, registry.contest(n).benefit, registry.contest(n).harm) for n in sorted(registry.contest_names())
    ]


def test_the_page_on_the_catalogue_tells_every_status() -> None:
    page = (ROOT / "docs" / "catalogue.md").read_text("utf-8")
    rows, _, _ = page.partition("## What is new")
    assert dict(re.findall(r"^\| `([a-z ]+)` \| (.+) \|$", rows, re.M)) == STATUSES


def test_the_page_on_tasks_names_every_task() -> None:
    assert sorted(TASKS) == sorted(tasks.found())


@pytest.mark.parametrize("name", TASKS)
def test_a_row_of_the_page_on_tasks_is_true(name: str) -> None:
    task, kind = tasks.make(name), tasks.found()[name]
    assert f"| {task.unit}, {task.least} to {task.greatest} |" in TASKS[name]
    assert all(f"{f.name}={f.default!r}" in TASKS[name] for f in dataclasses.fields(kind))  # type: ignore[arg-type]
    if isinstance(task, TokenTask):
        shown = re.search(r"`([^`]+)` → `([^`]+)`", TASKS[name].replace("\\|", "|"))
        assert shown
        assert task.joiner.join(task.solve(shown[1].split(task.joiner))) == shown[2]


def test_the_example_of_a_new_task_works() -> None:
    code = next(block.text for block in blocks(ROOT / "docs" / "tasks.md") if block.title == "doubling.py")
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(code, space)
    task = space["Doubling"]()
    for question, answer in task.examples("test", 4, 20).rows():
        words = task.vocabulary.words(question)
        assert task.vocabulary.words(answer) == task.solve(words)
        assert words[-1] == ">"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    place = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)], cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    return place


class Links(HTMLParser):
    """What a page loads, where its links go, and the places in it that links may go to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.goes: list[str] = []
        self.places: set[str] = set()
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.places.update(given[name] for name in ("id", "name") if name in given)
        if tag == "a" and "href" in given:
            self.goes.append(given["href"])
        elif tag == "link" and given.get("rel") != "canonical":
            self.loads.append(given["href"])
        self.loads.extend(given[name] for name in ("src", "srcset", "data", "poster") if name in given and tag != "a")


def test_the_site_loads_nothing_from_another_host(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(list((ROOT / "docs").rglob("*.md"))) - 1
    for page in pages:
        assert [place for place in Links(page).loads if urlsplit(place).netloc] == [], page
        assert "@import" not in page.read_text("utf-8")
    for style in site.rglob("*.css"):
        assert re.findall(r"url\([\"']?(?:https?:)?//[^)]*\)|@import", style.read_text("utf-8")) == [], style


def test_the_links_within_the_site_arrive(site: Path) -> None:
    known = {page: Links(page) for page in site.rglob("*.html")}
    for page, links in known.items():
        for link in (urlsplit(link) for link in [*links.goes, *links.loads]):
            if link.scheme or link.netloc or page.name == "404.html":
                continue
            place = (page.parent / unquote(link.path)).resolve() if link.path else page
            target = place / "index.html" if place.is_dir() else place
            assert target.is_file(), f"{page.relative_to(site)}: {link.geturl()}"
            if link.fragment and target in known and link.fragment != "__tabbed":
                assert unquote(link.fragment) in known[target].places, f"{page.relative_to(site)}: {link.geturl()}"


def test_the_docstring_of_a_method_is_readable(site: Path) -> None:
    page = (site / "reference" / "tune" / "index.html").read_text("utf-8")
    assert re.search(r"<code>(<[^>]+>)*theta &lt;- theta - lr \* m \* grad,", page)
    assert all(f"<li><code>{name}</code>: " in page for name in ("fraction", "unit", "stages"))
    assert "<strong>Source:</strong> Hui et al. 2024, arXiv:2404.18466, section 3.</p>" in page
    decode = (site / "reference" / "decode" / "index.html").read_text("utf-8")
    assert len(re.findall(r"<strong>Departures:</strong> \w", decode)) >= 3
    assert "the method's record" not in decode.replace("&#39;", "'")
