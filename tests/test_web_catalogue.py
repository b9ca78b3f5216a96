"""Pages of the catalogue as a browser gets them: searching, filters, a paper, the contests, and one's own runs of a claim."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from test_web_comparisons import Visitor

from bakeoff import registry, study
from bakeoff.catalogue.status import entries
from bakeoff.web.catalogue_pages import SHOWN
from bakeoff.web.site import Site

LARGEST = 150_000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site((tmp_path_factory.mktemp("root").resolve(),))


@pytest.fixture
def visitor(site: Site) -> Visitor:
    return Visitor(site)


def slugs(text: str) -> list[str]:
    return re.findall(r'<h2><a href="/papers/([\w.-]+)">', text)


def test_the_first_page_is_small_and_begins_with_what_holds(visitor: Visitor) -> None:
    visitor.page("/")
    answer = visitor.get("/")
    static = [visitor.get(f"/static/{name}") for name in ("style.css", "site.css", "site.js")]
    assert {part.status for part in static} == {200}
    assert len(answer.content) + sum(len(part.content) for part in static) < LARGEST
    found = slugs(answer.text)
    assert len(found) == SHOWN
    statuses = [entries()[slug].status for slug in found]
    held = sum(entry.status == "holds" for entry in entries().values())
    assert statuses[:held] == ["holds"] * min(held, SHOWN)


def test_every_paper_can_be_seen_at_once(visitor: Visitor) -> None:
    assert sorted(slugs(visitor.get("/?show=all").text)) == sorted(entries())


def test_a_search_with_filters(visitor: Visitor) -> None:
    visitor.page("/?q=stop+forgetting")
    found = slugs(visitor.get("/?q=half+fine-tuning&show=all").text)
    assert found[0] == "hft"
    tagged = slugs(visitor.get("/?tag=forgetting&contest=tune&show=all").text)
    assert set(tagged) == {
        slug for slug, e in entries().items() if "forgetting" in e.paper.tags and e.paper.contest == "tune"
    }
    failed = slugs(visitor.get("/?status=fails&show=all").text)
    assert set(failed) == {slug for slug, entry in entries().items() if entry.status == "fails"}
    for query in ("/?tag=nothing", "/?status=holds&contest=engine&tag=law-and-finance", "/?q=xyzzyqq"):
        assert "No paper fits" in visitor.get(query).text
    assert len(slugs(visitor.get("/?q=%3F%3F").text)) == SHOWN


def test_what_was_typed_comes_back_as_text(visitor: Visitor) -> None:
    answer = visitor.get("/?q=%3Cscript%3Ealert(1)%3C/script%3E&tag=%22%3E%3Cb%3E")
    assert answer.status == 200
    assert "<script>alert" not in answer.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in answer.text
    assert visitor.get("/?q=" + "a" * 1000).status == 200


def test_a_paper_with_method_study_and_verdict(visitor: Visitor) -> None:
    page = visitor.page("/papers/hft")
    text = visitor.get("/papers/hft").text
    entry = entries()["hft"]
    assert "bakeoff compare tune full hft --model my-model --train my-texts.txt" in text
    assert "/comparisons/new?contest=tune&amp;method=full&amp;method=hft" in text
    assert f"Verdict at scale laptop: {entry.status}" in text
    plots = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(plots) >= len(entry.verdicts[0]["expectations"])
    assert "has changed since" not in text


def test_papers_without_code_and_of_a_measure(visitor: Visitor) -> None:
    visitor.page("/papers/cut")
    assert "Nothing of this paper can be run here yet" in visitor.get("/papers/cut").text
    visitor.page("/papers/alice")
    assert "bakeoff measure alice --model my-model" in visitor.get("/papers/alice").text


def test_a_paper_that_is_none(visitor: Visitor) -> None:
    for target in ("/papers/hftt", "/papers/..%2Fhft", "/papers/%3Cb%3E", "/nothing"):
        answer = visitor.get(target)
        assert answer.status == 404
        assert "<b>" not in answer.text
    assert "no such page" in visitor.get("/nothing").text


def test_the_contests_name_every_method(visitor: Visitor) -> None:
    visitor.page("/contests")
    text = visitor.get("/contests").text
    for contest in registry.contest_names():
        assert f"/comparisons/new?contest={contest}" in text
        assert all(f'<th scope="row">{name}</th>' in text for name in registry.methods(contest))


def test_a_verdict_whose_code_changed_says_so(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    from bakeoff.web import catalogue_pages

    catalogue_pages._drawn.cache_clear()
    monkeypatch.setitem(vars(study.found()["hft"]), "code_hash", "another")
    assert "has changed since" in visitor.get("/papers/hft").text
    catalogue_pages._drawn.cache_clear()


def test_ones_own_runs_of_a_claim_are_shown(tmp_path: Path) -> None:
    site = Site((tmp_path.resolve(),))
    visitor = Visitor(site)
    assert "Your own runs" not in visitor.get("/papers/hft").text
    recorded = entries()["hft"].verdicts[0]
    site.kept.put("studies", "hft-smoke-40", {**recorded, "scale": "smoke", "seeds": [40], "verdict": "undecided"})
    text = visitor.get("/papers/hft").text
    assert "Your own runs" in text
    assert "at scale smoke, seeds 40" in text
