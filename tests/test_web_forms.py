"""The form of a comparison: made from every contest's question, and refused where a browser could send what it must not."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from bakeoff import registry, running
from bakeoff.errors import UsageError
from bakeoff.web.forms import Input, Wrong, own_inputs, parse, question_inputs, sent
from bakeoff.web.site import Site

TUNE = {
    "methods": ["full", "hft"], "more_methods": [""], "model": ["reference"], "train": ["data/a.txt"], "budget": ["20steps"],
    "seeds": ["2"], "csrf": ["ab" * 32],
}  # fmt: skip


@pytest.fixture
def site(tmp_path: Path) -> Site:
    root = (tmp_path / "root").resolve()
    (root / "data").mkdir(parents=True)
    (root / "data" / "a.txt").write_text("a text\n" * 40)
    (tmp_path / "secret.txt").write_text("a secret")
    (root / "out.txt").symlink_to(tmp_path / "secret.txt")
    return Site((root,))


def inputs(contest: str) -> dict[str, Input]:
    return {made.name: made for made in question_inputs(contest)}


@pytest.mark.parametrize("contest", registry.contest_names())
def test_every_question_becomes_inputs_once_with_the_needed_ones_first(contest: str) -> None:
    fields = registry.contest(contest).question.model_fields
    made = question_inputs(contest)
    assert sorted(m.name for m in made) == sorted(fields)
    assert [m.required for m in made] == sorted((m.required for m in made), reverse=True)
    assert {m.name for m in made if m.required} == {name for name, field in fields.items() if field.is_required()}
    assert all(m.near for m in made if m.required)
    assert all(m.help and "--" not in m.help for m in made)
    own = {m.name for m in own_inputs(contest)}
    assert not own & {m.name for m in made}
    assert not {"methods", "more_methods", "csrf"} & (own | set(fields))


def test_kinds_bounds_and_suggestions_come_from_the_annotations() -> None:
    tune, merge, measure = inputs("tune"), inputs("merge"), inputs("measure")
    assert (tune["model"].kind, tune["model"].suggested, tune["model"].required) == ("text", "models", True)
    assert (tune["keep"].suggested, tune["keep"].near, tune["keep"].default) == ("data", True, "")
    assert (tune["also"].kind, tune["also"].suggested) == ("lines", "data")
    assert (tune["max_length"].kind, tune["max_length"].default, tune["max_length"].low) == ("whole", "", 8)
    assert (tune["packing"].kind, tune["packing"].default, tune["packing"].near) == ("flag", "", False)
    assert (tune["compile"].kind, tune["compile"].choices) == ("choice", ("auto", "always", "never"))
    assert (merge["models"].kind, merge["models"].suggested, merge["models"].required) == ("lines", "models", True)
    assert (measure["reference"].kind, measure["reference"].number_lines) == ("lines", True)
    assert (inputs("unlearn")["relearn_learning_rate"].kind, own_inputs("tune")[0].required) == ("number", True)
    assert (own_inputs("decode")[0].default, own_inputs("decode")[0].required) == ("0steps", False)


def test_a_form_becomes_the_fields_of_a_comparison(site: Site) -> None:
    form = {
        **TUNE, "more_methods": ["lora(rank=4)\r\n hft \r\n"], "name": ["  My first  "], "also": ["data/a.txt\r\n\r\n"],
        "packing": ["on"], "max_length": ["64"], "baseline": ["lora(rank=4)"], "compile": ["never"], "keep": [""],
    }  # fmt: skip
    name, fields = parse("tune", form, site)
    assert name == "My first"
    assert fields == {
        "methods": ["full", "hft", "lora(rank=4)"], "model": "reference", "train": "data/a.txt", "budget": "20steps", "seeds": 2,
        "also": ["data/a.txt"], "packing": True, "max_length": 64, "baseline": "lora(rank=4)", "compile": "never",
        "gradient_checkpointing": False,
    }  # fmt: skip
    comparison = running.comparison_from("tune", fields)
    assert comparison.question.max_length == 64  # type: ignore[attr-defined]
    assert comparison.baseline == "lora(rank=4)"


@pytest.mark.parametrize(
    ("contest", "form"),
    [
        ("tune", {**TUNE, "more_methods": ["lora(rank=4)"], "also": ["data/a.txt"], "packing": ["on"], "tune": ["3"]}),
        (
            "decode",
            {"methods": ["greedy"], "model": ["reference"], "prompts": ["data/a.txt"], "stop": ["</s>\n\\n\\n"]},
        ),
        ("measure", {"methods": ["perplexity"], "models": ["reference\nreference"], "reference": ["1\n2.5"]}),
    ],
)
def test_the_form_of_some_fields_gives_them_again(contest: str, form: dict[str, list[str]], site: Site) -> None:
    _, fields = parse(contest, form, site)
    assert parse(contest, sent(contest, fields), site) == ("", {**defaults(contest), **fields})


def defaults(contest: str) -> dict[str, object]:
    """What the form sends where the fields say nothing: boxes that are not ticked."""
    return {made.name: False for made in question_inputs(contest) if made.kind == "flag"}


def test_stops_are_texts_and_not_paths(site: Site) -> None:
    form = {"methods": ["greedy"], "model": ["reference"], "prompts": ["data/a.txt"], "stop": ["</s>\n\\n\\n"]}
    _, fields = parse("decode", form, site)
    assert fields["stop"] == ["</s>", "\n\n"]
    assert "budget" not in fields


@pytest.mark.parametrize(
    ("field", "typed", "said"),
    [
        ("train", "../secret.txt", "outside"),
        ("train", "/etc/passwd", "outside"),
        ("train", "data/../../secret.txt", "outside"),
        ("train", "out.txt", "outside"),
        ("train", "~/.ssh/id_rsa", "home"),
        ("train", "https://example.org/a.txt", "URL"),
        ("train", "a\0b", "path"),
        ("train", "x" * 5000, "long"),
        ("train", "", "needed"),
        ("train", "task:sorting(file=/etc/passwd):3:10", "outside"),
        ("model", "..", "outside"),
        ("also", "data/a.txt\n../secret.txt", "outside"),
        ("also", "\n".join(["data/a.txt"] * 101), "at most 100"),
        ("device", "/dev/sda", "outside"),
        ("budget", "much", "not understood"),
        ("budget", "60 steps/min", "not understood"),
        ("budget", "9" * 400 + "steps", "at most 120"),
        ("budget", "", "needed"),
        ("seeds", "0", "between 1 and 50"),
        ("seeds", "51", "between 1 and 50"),
        ("seeds", "1e3", "whole number"),
        ("seeds", "9" * 4000, "between"),
        ("tune", "-1", "between"),
        ("max_length", "7", "between 8"),
        ("max_length", "10000000", "between 8"),
        ("exam_items", "many", "whole number"),
        ("compile", "maybe", "compile"),
        ("packing", "yes", "tick"),
        ("baseline", "lora", "baseline"),
        ("baseline", "full(", "not understood"),
        ("name", "a\x07b", "characters"),
        ("methods", "", "at least one"),
        ("methods", "fulll", "full"),
        ("methods", "evil.py:method", "no tune method"),
        ("methods", "os:system", "no tune method"),
        ("methods", "mine.py", "no tune method"),
        ("methods", "greedy", "no tune method"),
        ("methods", "lora(rank=0)", "rank"),
        ("methods", "lora(rank=__import__('os'))", "not understood"),
        ("methods", "lora(" + "[" * 400, "not understood"),
        ("methods", "lora(rank=" + "1" * 600 + ")", "too long"),
        ("methods", "\n".join(f"lora(rank={n})" for n in range(1, 43)), "at most 40"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_one_sentence_beside_its_field(site: Site, field: str, typed: str, said: str) -> None:
    form = {**TUNE, field: [typed]}
    if field == "methods":
        form |= {"methods": [], "more_methods": [typed]}
    with pytest.raises(Wrong) as wrong:
        parse("tune", form, site)
    assert list(wrong.value.errors) == [field]
    assert said in wrong.value.errors[field]
    assert wrong.value.errors[field].endswith((".", "?"))


def test_a_ticked_method_is_checked_like_a_written_one(site: Site) -> None:
    with pytest.raises(Wrong, match="no tune method"):
        parse("tune", {**TUNE, "methods": ["full", "evil.py:method"]}, site)


def test_texts_among_the_values_of_a_method_are_confined(site: Site) -> None:
    form = {
        "methods": [],
        "more_methods": ["eft(weights='/etc/passwd')"],
        "model": ["reference"],
        "prompts": ["data/a.txt"],
    }
    with pytest.raises(Wrong, match="outside"):
        parse("decode", form, site)


def test_several_errors_are_told_in_the_order_of_the_form(site: Site) -> None:
    with pytest.raises(Wrong) as wrong:
        parse("tune", {**TUNE, "train": [""], "seeds": ["x"], "model": ["/"]}, site)
    assert list(wrong.value.errors) == ["model", "train", "seeds"]


@pytest.mark.parametrize(
    "more", [{"executor": ["ray"]}, {"store": ["/tmp"]}, {"__class__": ["x"]}, {"seeds": ["2", "3"]}]
)
def test_fields_that_the_form_does_not_show_are_refused(site: Site, more: dict[str, list[str]]) -> None:
    with pytest.raises(UsageError, match="form"):
        parse("tune", {**TUNE, **more}, site)
