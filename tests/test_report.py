"""The tables, the page and the card, on results written by hand whose numbers are worked out beside them."""

from __future__ import annotations

import io
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from bakeoff.budget import Budget
from bakeoff.errors import StoreError
from bakeoff.method import Method, Spec
from bakeoff.report.card import model_card
from bakeoff.report.page import write_report, write_verdict
from bakeoff.report.summary import (
    change,
    compact,
    compare_command,
    cost_in_words,
    decided,
    number,
    short_labels,
    signed,
)
from bakeoff.report.table import markdown, render

NASTY = "<script>alert('x')</script> & | pipe"
METRICS = {
    "target_accuracy": ("share", "higher"),
    "kept_loss": ("nats/token", "lower"),
    "target_loss": ("nats/token", "lower"),
}
UNTOUCHED = {"target_accuracy": 0.25, "kept_loss": 3.0, "target_loss": 4.0}
# Mean of target_loss 2.2 with standard deviation 0.2, so a standard error of 0.2 / sqrt(3) = 0.115.
BY_SEED = {"target_accuracy": (0.4, 0.5, 0.6), "kept_loss": (3.1, 3.2, 3.3), "target_loss": (2.0, 2.2, 2.4)}
COST = {
    "steps": 60, "tokens": 15_360, "forward_tokens": 0, "seconds": 150.0, "flops": 2.5e12,
    "peak_memory_bytes": 424_000_000, "trained_parameters": 1_250_000, "bytes_saved": 131_000,
}  # fmt: skip


def described(name: str, value: float) -> dict[str, Any]:
    unit, better = METRICS.get(name, ("nats/token", "lower"))
    return {"value": value, "unit": unit, "better": better}


def effect(method: str, baseline: str, metric: str, per_seed: list[float], decided: str = "better") -> dict[str, Any]:
    mean = sum(per_seed) / len(per_seed)
    one = len(per_seed) == 1
    return {
        "method": method, "baseline": baseline, "metric": metric, "unit": "", "better": METRICS[metric][1],
        "effect": mean, "low": None if one else mean - 0.1, "high": None if one else mean + 0.1,
        "p": None if one else 0.01, "p_adjusted": None if one else 0.02, "per_seed": per_seed,
        "decided": "undecided" if one else decided, "smallest_visible": None if one else 0.123,
    }  # fmt: skip


def make(labels: tuple[str, ...] = ("full", "lora(rank=8)"), seeds: int = 3) -> dict[str, Any]:
    """Results in which the methods measure alike, except that every next one is 0.5 lower in each loss."""
    trials, effects = [], []
    for place, label in enumerate(labels):
        for seed in range(seeds):
            metrics = {
                name: described(name, values[seed] - 0.5 * place * name.endswith("loss"))
                for name, values in BY_SEED.items()
            }
            curve = [(step, step * 256, 4.0 / step + seed / 10) for step in range(1, 61)]
            trials.append(
                {
                    "label": label, "key": f"{place}{seed}", "metrics": metrics, "cost": COST, "method": label.partition("(")[0],
                    "args": {"rank": 8}, "args_passed": {}, "seed": seed, "budget": "60 steps", "status": "done",
                    "weights_sha256": "ab" * 32, "reload_difference": 2.5e-7, "curve": curve, "notes": {},
                }
            )  # fmt: skip
        for name, values in BY_SEED.items():
            shift = 0.5 * place * name.endswith("loss")
            effects.append(effect(label, "untouched", name, [v - shift - UNTOUCHED[name] for v in values[:seeds]]))
            if place:
                verdict = "undecided" if name == "target_accuracy" else "better"
                effects.insert(0, effect(label, labels[0], name, [-shift] * seeds, verdict))
    winner = {
        "method": labels[-1], "seed": 0, "best_benefit": labels[-1], "undecided_with_best": [labels[-1]], "args": {},
        "weights_sha256": "ab" * 32, "rule": "least kept_loss among the methods level with the best in target_loss",
    }  # fmt: skip
    return {
        "comparison": {
            "contest": "tune",
            "question": {"model": "my model", "train": "a b.txt", "keep": "known.txt", "valid": None, "also": ["x.txt", "y.txt"]},
            "methods": list(labels), "budget": "60 steps", "seeds": list(range(seeds)), "baseline": labels[0],
            "benefit": "target_loss", "harm": "kept_loss",
            "facts": {"model_type": "llama", "parameters": 1_250_000, "texts": {"train": {"rows": 64, "tokens": 2048, "cut": 1}}},
            "untouched": {name: described(name, value) for name, value in UNTOUCHED.items()},
            "exam_seconds": 0.1, "refused": {}, "tune": 0, "tuning": {}, "winner": winner,
        },
        "trials": trials,
        "effects": effects,
        "environment": {"versions": {"bakeoff": "0.1.0", "python": "3.11.7"}, "commit": "cafe", "dirty": False, "cores": 2},
    }  # fmt: skip


def fail(results: dict[str, Any], label: str, seeds: tuple[int, ...]) -> None:
    for trial in results["trials"]:
        if trial["label"] == label and trial["seed"] in seeds:
            for name in ("weights_sha256", "reload_difference", "curve", "notes"):
                del trial[name]
            trial |= {"status": "failed", "error": NASTY, "metrics": {}, "cost": {}}
    results["effects"] = [e for e in results["effects"] if label not in (e["method"], e["baseline"])]
    results["comparison"]["winner"] = None


class Page(HTMLParser):
    """What the tests ask of a page; raises where tags are not closed in order."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text("utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page(results: dict[str, Any], folder: Path) -> Page:
    return Page(write_report(results, folder))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page(make(), tmp_path_factory.mktemp("report"))


def rendered(results: dict[str, Any]) -> str:
    stream = io.StringIO()
    render(results, Console(file=stream, width=140))
    return stream.getvalue()


def rows(table: str) -> dict[str, list[str]]:
    """The last table's cells of a markdown text, by the first cell."""
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines() if line.startswith("|")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_numbers_in_words() -> None:
    assert [number(v) for v in (0.0, 5.0, 0.017023578, 12345.6)] == ["0", "5.000", "0.01702", "12,346"]
    assert [signed(v) for v in (0.5, -1.2, 0.0)] == ["+0.500", "-1.20", "+0.00"]
    assert [cost_in_words("seconds", v) for v in (0.25, 90, 150, 9000)] == ["0.25 s", "90 s", "2.5 min", "2.5 h"]
    assert cost_in_words("bytes_saved", 131_000) == "131 kB"
    assert cost_in_words("trained_parameters", 1_250_000) == "1.25 M"
    assert compact({"rank": 4096, "merge": True, "rate": 3e-4}) == "rank=4096, merge=True, rate=0.0003"


def test_one_seed_has_no_decision_and_undecided_names_what_could_be_seen() -> None:
    one = effect("m", "b", "target_loss", [-0.5])
    assert (change(one), decided(one)) == ("-0.500", "")
    several = effect("m", "b", "target_loss", [-0.5, -0.5], "undecided")
    assert (change(several), decided(several)) == ("-0.500 [-0.600, -0.400]", "undecided (could see 0.12)")


def test_short_labels_lose_folders_and_stay_different() -> None:
    labels = ["/home/a/m.py:one", "/home/b/m.py:one", "lora(rank=8, alpha=1/2)", "a" * 50]
    names = short_labels(labels, 20)
    assert names[labels[0]] == "m.py:one"
    assert names[labels[1]] == "m.py:one #2"
    assert names[labels[3]] == "a" * 10 + "…" + "a" * 9
    assert len(set(names.values())) == 4


def test_markdown_has_a_row_a_method_with_mean_error_effect_and_cost() -> None:
    measured, effects, costs = (rows(part) for part in re.split(r"\n\n(?=Effect|Cost)", markdown(make())))
    assert measured["method"][:2] == [
        "target_loss (nats/token, lower is better)",
        "kept_loss (nats/token, lower is better)",
    ]
    assert measured["untouched"][0] == "4.000"
    assert measured["full"][0] == "2.200 ± 0.12"
    assert effects["full"] == ["baseline"] * 3
    assert effects["lora(rank=8)"][0] == "-0.500 [-0.600, -0.400] better"
    assert effects["lora(rank=8)"][2] == "+0.00 [-0.100, +0.100] undecided (could see 0.12)"
    assert costs["full"] == ["1.25 M", "2.5 min", "15.4 k", "2.5 T", "424 MB", "131 kB"]
    assert markdown(make()).endswith(
        "Winner: lora(rank=8), with the least kept_loss among the methods level with the best in target_loss."
    )


def test_terminal_tables_fit_in_100_columns_and_say_the_same() -> None:
    results = make(("full", "/a/very/long/path/" + "x" * 60 + ".py:method(learning_rate=0.003)", "[bold]lora"))
    fail(results, "[bold]lora", (0,))
    results["comparison"]["refused"]["[bold]lora"] = "It moves [red]parameters[/red] that it does not declare."
    text = rendered(results)
    assert max(map(len, text.splitlines())) <= 100
    for expected in (
        "2.200 ± 0.12",
        "-0.500 [-0.600, -0.400]",
        "better",
        "424 MB",
        "[bold]lora",
        "[red]parameters[/red]",
        NASTY,
    ):
        assert expected in text
    assert "Nothing helped" in text


@pytest.mark.parametrize("say", [markdown, rendered])
def test_one_seed_makes_no_verdict(say: Any) -> None:
    text = " ".join(say(make(seeds=1)).split())
    assert "Ahead: lora(rank=8)" in text
    assert "One seed makes no verdict" in text
    assert "undecided" not in text
    assert "±" not in text


def test_what_failed_is_told_with_its_seeds_and_stays_in_its_cell() -> None:
    results = make(("full", "a|b"))
    fail(results, "a|b", (0, 2))
    text = markdown(results)
    assert f"a|b failed with seeds 0, 2: {NASTY}" in text
    assert rows(text.split("\n\nEffect")[0])[r"a\|b (failed in 2 of 3 trials)"][0] == "1.700"


def test_page_is_whole_accessible_and_needs_nothing_else(whole: Page) -> None:
    assert not {"script", "link", "img", "iframe", "object", "image", "use", "foreignobject"} & {
        tag for tag, _ in whole.tags
    }
    for _, attributes in whole.tags:
        assert not {"src", "href", "xlink:href", "srcset", "action"} & set(attributes)
        assert not any(name.startswith("on") or name == "style" for name in attributes)
    assert not re.search(r"https?:|//\w|url\(|@import|data:", whole.source)
    assert all(heading.get("scope") in ("col", "row") for heading in whole.all("th"))
    charts = [svg for svg in whole.all("svg") if svg.get("role") == "img"]
    assert len(charts) == 1 + 2 * 3 + 2 + 6
    assert not any("role" in part for part in whole.all("g"))
    identifiers = [a["id"] for _, a in whole.tags if "id" in a]
    assert len(set(identifiers)) == len(identifiers)
    for chart in charts:
        assert set((chart["aria-labelledby"] or "").split()) <= set(identifiers)
    assert whole.all("html")[0]["lang"] == "en"


def test_page_says_what_the_results_say(whole: Page) -> None:
    for expected in (
        "Winner: lora(rank=8)", "2.200 ± 0.12", "-0.500 [-0.600, -0.400]", "undecided (could see 0.12)", "2.5 min",
        "Holm", "my model", "2,048", "60 steps", "target_loss falls by, nats/token", "kept_loss rises by, nats/token",
        "3.11.7", compare_command(make()["comparison"]),
    ):  # fmt: skip
        assert expected in whole.words


def test_five_methods_and_three_seeds_stay_under_400_kilobytes(tmp_path: Path) -> None:
    labels = (
        "full",
        "lora(rank=8)",
        "hft",
        "minifinetuning",
        "/home/someone/methods/" + "long_name_" * 12 + ".py:mine",
    )
    path = write_report(make(labels), tmp_path)
    assert 50_000 < path.stat().st_size < 400_000
    assert labels[-1] in Page(path).words


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_text_and_marks_have_the_contrast_of_wcag_aa_in_light_and_dark(whole: Page) -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    themes = [
        dict(re.findall(r"--(\w+): (#\w{6})", block))
        for block in re.findall(r":root \{(.*?)\}", whole.source, re.DOTALL)
    ]
    assert len(themes) == 2
    assert set(re.findall(r"var\(--(\w+)\)", whole.source)) <= set(themes[0]) == set(themes[1])
    for theme in themes:
        for ink in ("ink", "faint", "better", "worse"):
            assert min(contrast(theme[ink], theme["paper"]), contrast(theme[ink], theme["panel"])) >= 4.5
        assert min(contrast(theme[f"m{i}"], theme["paper"]) for i in range(8)) >= 3


def test_text_from_outside_is_never_markup(tmp_path: Path) -> None:
    label = f"{NASTY}.py:method"
    results = make(("full", label, "broken"))
    fail(results, "broken", (0, 1, 2))
    results["comparison"]["refused"]["full"] = NASTY
    results["comparison"]["question"] |= {"model": NASTY, "train": NASTY}
    results["comparison"]["tuning"] = {
        label: {"best": {}, "tried": [{"args": {"rank": 1}, "value": None, "error": NASTY}], "metric": NASTY}
    }
    results["comparison"]["facts"]["texts"][NASTY] = {"rows": 1}
    results["environment"]["processor"] = NASTY
    made = page(results, tmp_path)
    assert not made.all("script")
    assert "<script" not in made.source
    assert made.words.count("alert(") > 20


@pytest.mark.parametrize(
    "case", ["no keep set", "one seed", "one method", "all failed", "all refused", "other texts", "untrained"]
)
def test_every_shape_of_results_makes_tables_and_a_page(case: str, tmp_path: Path) -> None:
    results = make(("full",) if case == "one method" else ("full", "lora"), seeds=1 if case == "one seed" else 3)
    comparison = results["comparison"]
    for trial in results["trials"]:
        trial["cost"] = {"seconds": 90.0}
    expected = ""
    if case == "no keep set":
        del comparison["untouched"]["kept_loss"]
        results["effects"] = [e for e in results["effects"] if e["metric"] != "kept_loss"]
        for trial in results["trials"]:
            del trial["metrics"]["kept_loss"]
        expected = "kept_loss was not measured"
    elif case == "one seed":
        expected = "One seed makes no verdict"
    elif case == "one method":
        expected = "Against untouched"
    elif case == "all failed":
        for label in ("full", "lora"):
            fail(results, label, (0, 1, 2))
        expected = "No trial was finished"
    elif case == "all refused":
        comparison |= {"refused": {"full": "It moves.", "lora": "It leaks."}, "winner": None}
        results |= {"trials": [], "effects": []}
        expected = "It leaks."
    elif case == "other texts":
        name = "other_loss:<b>news"
        comparison["untouched"][name] = described(name, 3.5)
        for trial in results["trials"]:
            trial["metrics"][name] = described(name, 3.25)
        results["effects"].append({**effect("lora", "full", "kept_loss", [0.1, 0.2, 0.3], "worse"), "metric": name})
        expected = "other_loss:<b>news"
    else:
        for trial in results["trials"]:
            trial["curve"] = []
    made = page(results, tmp_path)
    assert expected in made.words
    assert ("Training loss" in made.words) == (case not in ("all failed", "all refused", "untrained"))
    assert markdown(results)
    assert rendered(results)


def test_baseline_without_all_its_trials_gives_way_to_untouched(tmp_path: Path) -> None:
    results = make()
    fail(results, "full", (1,))
    assert "Effect against untouched" in markdown(results)
    assert "The baseline asked for, full, has no complete set of trials." in page(results, tmp_path).words


def test_one_method_is_not_told_that_its_baseline_is_missing(tmp_path: Path) -> None:
    assert "The baseline asked for" not in page(make(("full",)), tmp_path).words


def test_report_that_cannot_be_written_is_a_clear_error_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = write_report(make(("full",)), tmp_path)
    before = path.read_bytes()
    broken = make(("full",))
    del broken["comparison"]["budget"]
    with pytest.raises(Exception, match="budget"):
        write_report(broken, tmp_path)
    assert path.read_bytes() == before
    with pytest.raises(StoreError, match="cannot write"):
        write_report(make(("full",)), path)


def test_command_is_the_recorded_one_or_made_from_the_fields() -> None:
    comparison = make(("full", "lora(rank=8)"))["comparison"]
    comparison |= {"seeds": [5, 6, 7], "baseline": "untouched", "tune": 4, "tuning": {"full": {"tried": [{}] * 4}}}
    words = shlex.split(compare_command(comparison))
    assert words[:5] == ["bakeoff", "compare", "tune", "full", "lora(rank=8)"]
    assert Spec.parse(words[4]).arguments == {"rank": 8}
    given = list(zip(words[5::2], words[6::2], strict=True))
    assert given == [
        ("--model", "my model"), ("--train", "a b.txt"), ("--keep", "known.txt"), ("--also", "x.txt"), ("--also", "y.txt"),
        ("--budget", "60steps"), ("--seeds", "3"), ("--seed-base", "5"), ("--baseline", "untouched"), ("--tune", "4"),
        ("--out", "again"),
    ]  # fmt: skip
    assert str(Budget.parse("60steps")) == comparison["budget"]
    assert compare_command({**comparison, "command": "bakeoff compare it"}) == "bakeoff compare it"


def half(model: Any, data: Any, run: Any, *, rank: int = 8) -> Any:
    """Half of each block's matrices learn,
    the other half stay.

    Args: rank: unused.
    """


def test_card_says_what_was_done_measured_and_proven() -> None:
    results = make()
    method = Method("tune", half, "a-paper", "Someone 2024, section 3", departures="No warm-up | none.")
    results["comparison"] |= {"inputs": {"model": "cd" * 32}}
    results["trials"][0] |= {"label": "full(x=1)", "args_passed": {"rank": 4}}
    card = model_card(method, results["trials"][0], results["comparison"], results["environment"])
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "base_model": "my model",
        "tags": ["bakeoff", "tune", "half"],
    }
    table = rows(body)
    assert table["target_loss"] == ["nats/token", "lower", "4.000", "2.000", "-2.00"]
    assert table["train"] == ["64", "2,048", "1"]
    assert table["model"] == ["cd" * 32]
    for expected in (
        "Half of each block's matrices learn, the other half stay.", "- arguments: rank=8", "- source: Someone 2024, section 3",
        r"No warm-up \| none.", "- budget: 60 steps", "- seed: 0", "- train: a b.txt", "`" + "ab" * 32 + "`", "at most 2.5e-07",
        "- time: 2.5 min", "- python: 3.11.7", "bakeoff apply tune 'full(rank=4)' --model 'my model'", "--budget 60steps --seed 0 --out",
    ):  # fmt: skip
        assert expected in body
    assert "Args" not in body
    assert str(Path(__file__).parent) not in card


def test_a_card_of_texts_does_not_call_them_a_model() -> None:
    results = make()
    results["comparison"]["makes"] = "texts"
    card = model_card(Method("tune", half), results["trials"][0], results["comparison"], results["environment"])
    assert "# Texts by half" in card
    assert "library_name" not in card
    assert "Is this the model" not in card


def test_card_without_proof_or_text_that_is_safe_says_only_what_is_known() -> None:
    results = make()
    del results["trials"][0]["reload_difference"]
    results["comparison"]["question"]["model"] = NASTY
    card = model_card(Method("tune", half), results["trials"][0], results["comparison"], results["environment"])
    assert "read back" not in card
    assert "departures from the source: none known" in card
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == NASTY
    assert re.search(r"(?<!\\)<script", card.split("---\n", 2)[2].split("```")[0]) is None


def test_a_verdict_becomes_a_page_with_its_curves(tmp_path: Path) -> None:
    verdict = {
        "slug": "made-up", "claim": "A <claim>.", "source": "nobody", "expectation": "more", "verdict": "holds",
        "scale": "laptop", "seeds": [5, 6], "date": "2026-01-01", "seconds": 3.2, "notes": {"lr": 0.1},
        "expectations": [
            {"sentence": "b less a", "outcome": "holds", "effect": 0.5, "low": 0.4, "high": 0.6, "above": 0.1, "below": None,
             "per_seed": [0.45, 0.55]},
            {"sentence": "c", "outcome": "undecided", "effect": 1.0, "low": None, "high": None, "above": None, "below": 2.0,
             "per_seed": [1.0]},
        ],
        "arms": {"a": {"loss": 1.0}, "b": {"loss": 1.5, "share": 0.25}},
        "curves": [
            {"title": "by length", "x": "length", "y": "loss", "lines": {"a": [[1.0, 2.0, 3.0], [100.0, 1.0, 1.0]], "b": [[1.0, 1.0, 1.0]]}}
        ],
        "environment": {"processor": "P", "cores": 2, "versions": {"bakeoff": "9.9"}},
    }  # fmt: skip
    page = write_verdict(verdict, tmp_path / "page.html").read_text("utf-8")
    assert "A &lt;claim&gt;." in page
    assert "<strong>Holds</strong> at scale laptop, 2 seeds" in page
    assert "bakeoff study made-up --scale laptop --seed-base 5" in page
    assert "0.4 to 0.6" in page
    assert "no interval" in page
    assert "below 2" in page
    assert "a from 2.5 to 1; b from 1 to 1" in page
    assert page.count('role="img"') == 1 + 2
    assert "Effect 0.5, expected above 0.1: holds." in page
    assert len(re.findall(r' id="made-up-laptop-\w+-\d-title"', page)) == 3
    without = write_verdict({**verdict, "curves": [], "notes": {}}, tmp_path / "page.html").read_text("utf-8")
    assert "Curves" not in without
