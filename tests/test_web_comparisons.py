"""Pages of comparisons as a browser gets them: the form, one that runs, what it found, downloads, and what is refused."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest

pytest.importorskip("fastapi")

from test_report import METRICS, NASTY, described, fail, make

from bakeoff.progress import Journal, Reader
from bakeoff.report.page import write_report
from bakeoff.web import comparison_pages, jobs
from bakeoff.web.app import create_app
from bakeoff.web.comparison_pages import as_csv
from bakeoff.web.site import Site

HOST = "localhost:8000"


class Page(HTMLParser):
    """The tags of a page, with a check that they are closed in order."""

    VOID = frozenset({"meta", "link", "input", "br", "hr", "img"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.open, self.tags = source, list[str](), list[tuple[str, dict[str, str]]]()
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def check(self) -> None:
        """What every page keeps to: no style or script within, what is referred to exists, everything typed has a label."""
        assert self.all("script") == [{"src": "/static/site.js", "defer": ""}]
        assert not self.all("style")
        ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        labels = {label.get("for") for label in self.all("label")}
        for tag, attributes in self.tags:
            assert not any(name == "style" or name.startswith("on") for name in attributes)
            for name in ("aria-labelledby", "aria-describedby", "list"):
                assert set(attributes.get(name, "").split()) <= set(ids)
            if tag in ("textarea", "select", "progress") or (tag == "input" and attributes.get("type") != "hidden"):
                assert attributes["id"] in labels
            if attributes.get("href", "").startswith("#"):
                assert attributes["href"][1:] in ids


class Visitor:
    """A browser, as far as the site sees it: it keeps cookies and says where it comes from."""

    def __init__(self, site: Site) -> None:
        self.app, self.cookie = create_app(site), ""

    def ask(self, method: str, target: str, body: bytes = b"", origin: str = f"http://{HOST}") -> SimpleNamespace:
        path, _, query = target.partition("?")
        headers = {"host": HOST, "cookie": self.cookie}
        if method == "POST":
            headers |= {
                "content-type": "application/x-www-form-urlencoded",
                "content-length": str(len(body)),
                "origin": origin,
            }
        scope = {
            "type": "http", "http_version": "1.1", "method": method, "scheme": "http", "path": path, "raw_path": path.encode(),
            "query_string": query.encode(), "root_path": "", "server": ("127.0.0.1", 8000), "client": ("127.0.0.1", 1),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }  # fmt: skip
        sent: list[Any] = []
        left = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if left:
                return left.pop()
            await asyncio.sleep(60)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(self.app(scope, receive, send))
        found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        if "set-cookie" in found:
            self.cookie = found["set-cookie"].partition(";")[0]
        content = b"".join(message.get("body", b"") for message in sent)
        return SimpleNamespace(status=sent[0]["status"], headers=found, content=content, text=content.decode())

    def get(self, target: str) -> SimpleNamespace:
        return self.ask("GET", target)

    def page(self, target: str, status: int = 200) -> Page:
        answer = self.get(target)
        assert answer.status == status, answer.text
        made = Page(answer.text)
        made.check()
        return made

    def post(self, target: str, fields: dict[str, Any], **more: str) -> SimpleNamespace:
        csrf = re.search(r'name="csrf" value="(\w+)"', self.get("/comparisons/new?contest=tune").text)
        assert csrf
        return self.ask("POST", target, urlencode({"csrf": csrf[1], **fields}, doseq=True).encode(), **more)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    root = (tmp_path / "root").resolve()
    (root / "data").mkdir(parents=True)
    (root / "data" / "a.txt").write_text("words\n" * 20)
    return Site((root,))


@pytest.fixture
def visitor(site: Site) -> Visitor:
    return Visitor(site)


@pytest.fixture
def idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons that are started end at once and say nothing."""
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def finished(site: Site, results: dict[str, Any], name: str = "mine") -> str:
    folder = site.roots[0] / name
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results))
    return f"/comparisons/{jobs.look(site, folder).id}"


def news(journal: Journal, what: str, over: int, fraction: float, loss: float) -> None:
    journal._last = ("", -1, 0.0)
    journal.watch(what, over, 6, fraction, loss)


ASKED = {"methods": ["full", "hft"], "model": "reference", "train": "data/a.txt", "budget": "20steps", "seeds": "2"}


def test_the_list_leads_to_every_comparison(site: Site, visitor: Visitor) -> None:
    assert "None yet" in visitor.page("/comparisons").source
    address = finished(site, make())
    with Journal(site.roots[0] / "live") as journal:
        news(journal, "full, seed 0", 1, 0.5, 2.0)
        page = visitor.page("/comparisons")
        assert "1 of 6" in page.source
    assert address in [a["href"] for a in page.all("a")]
    assert "full, lora(rank=8)" in page.source


def test_the_form_has_every_method_and_field_of_the_contest(visitor: Visitor) -> None:
    radios = [i for i in visitor.page("/comparisons/new").all("input") if i.get("type") == "radio"]
    assert {radio["value"] for radio in radios} >= {"tune", "decode", "merge"}
    page = visitor.page("/comparisons/new?contest=tune&method=lora&method=full&method=unknown")
    boxes = [i for i in page.all("input") if i.get("name") == "methods"]
    assert [box["value"] for box in boxes if "checked" in box] == ["lora", "full"]
    assert [box["value"] for box in boxes][:2] == ["lora", "full"]
    assert len(boxes) > 5
    fields = {a["name"]: a for tag, a in page.tags if tag in ("input", "select", "textarea") and "name" in a}
    assert {"model", "train", "keep", "also", "budget", "seeds", "name", "max_length", "csrf", "more_methods"} <= set(
        fields
    )
    assert ("required" in fields["model"], fields["model"]["list"]) == (True, "suggested-models")
    assert {"reference", "data/a.txt"} <= {option.get("value") for option in page.all("option")}
    for contest in ("merge", "decode", "measure", "pretrain"):
        visitor.page(f"/comparisons/new?contest={contest}")
    assert visitor.get("/comparisons/new?contest=nope").status == 404


def test_wrong_fields_come_back_as_typed_with_a_sentence_beside_them(site: Site, visitor: Visitor) -> None:
    typed = {
        **ASKED,
        "train": f"../{NASTY}",
        "seeds": "many",
        "more_methods": "evil.py:run",
        "packing": "on",
        "name": "kept",
    }
    answer = visitor.post("/comparisons/new?contest=tune", typed)
    assert answer.status == 422
    page = Page(answer.text)
    page.check()
    assert "<script>alert" not in page.source
    fields = {a["name"]: a for tag, a in page.tags if tag in ("input", "textarea") and "name" in a}
    assert fields["train"]["value"] == typed["train"]
    assert (fields["seeds"]["value"], fields["name"]["value"], "checked" in fields["packing"]) == ("many", "kept", True)
    assert "evil.py:run" in page.source
    assert {name for name, field in fields.items() if field.get("aria-invalid")} == {"train", "seeds"}
    summary = [a["href"] for a in page.all("a") if a["href"].startswith("#") and a["href"] != "#main"]
    assert summary == ["#methods", "#train", "#seeds"]
    assert "train-wrong" in fields["train"]["aria-describedby"]
    assert not (site.roots[0] / "comparisons").exists()


@pytest.mark.usefixtures("idle")
def test_a_right_form_starts_a_comparison_and_leads_to_it(site: Site, visitor: Visitor) -> None:
    answer = visitor.post("/comparisons/new?contest=tune", {**ASKED, "name": f"A {NASTY}"})
    assert answer.status == 303
    (folder,) = [path for path in (site.roots[0] / "comparisons").iterdir() if path.is_dir()]
    assert "budget: 20steps" in (folder / "comparison.yaml").read_text()
    deadline = time.monotonic() + 30
    while jobs.look(site, folder).state != "lost":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    page = visitor.page(answer.headers["location"])
    assert "<script>alert" not in page.source
    assert [form["action"] for form in page.all("form")] == [f"{answer.headers['location']}/go-on"]
    again = visitor.page(f"{answer.headers['location']}/again")
    typed = {field["name"]: field.get("value") for field in again.all("input") if field.get("type") != "checkbox"}
    assert (typed["budget"], typed["model"], typed["name"]) == ("20steps", "reference", "")
    ticked = [field["value"] for field in again.all("input") if field["name"] == "methods" and "checked" in field]
    assert ticked == ASKED["methods"]
    (folder / "comparison.yaml").write_text("{")
    assert "is damaged" in visitor.get(f"{answer.headers['location']}/again").text
    (folder / "comparison.yaml").unlink()
    (folder / "comparison.yaml").symlink_to("/etc/passwd")
    assert visitor.get(f"{answer.headers['location']}/again").status == 404
    assert visitor.post(f"{answer.headers['location']}/go-on", {}).status == 303
    assert visitor.post(f"{answer.headers['location']}/stop", {}).status in (303, 400)


@pytest.mark.usefixtures("idle")
def test_forms_of_other_sites_and_unknown_fields_start_nothing(site: Site, visitor: Visitor) -> None:
    target = "/comparisons/new?contest=tune"
    assert visitor.post(target, ASKED, origin="http://evil.example").status == 403
    assert visitor.ask("POST", target, urlencode(ASKED, doseq=True).encode()).status == 403
    assert visitor.post(target, {**ASKED, "executor": "ray"}).status == 400
    assert visitor.post(target, {**ASKED, "train": "/etc/passwd"}).status == 422
    assert visitor.post("/comparisons/new?contest=../tune", ASKED).status == 404
    assert visitor.post("/comparisons/" + "0" * 16 + "/stop", {}).status == 404
    assert visitor.get("/comparisons/..%2f..%2fetc").status == 404
    assert not (site.roots[0] / "comparisons").exists()


def test_a_running_comparison_shows_its_progress_trials_and_losses(site: Site, visitor: Visitor) -> None:
    folder = site.roots[0] / "live"
    with Journal(folder) as journal:
        for seed in range(2):
            for step in range(4):
                news(journal, f"full, seed {seed}", seed, step / 4, 3.0 - step / 2 + seed)
            record = {
                "status": "done",
                "metrics": {"target_loss": described("target_loss", 2.25 + seed)},
                "cost": {"seconds": 90.0},
            }
            journal.ended("full", seed, record)
        journal.ended("lora", 0, {"status": "failed", "error": NASTY, "metrics": {}, "cost": {}})
        news(journal, f"{NASTY}, seed 0", 3, 0.5, 1.0)
        address = f"/comparisons/{jobs.look(site, folder).id}"
        page = visitor.page(address)
    assert "<script>alert" not in page.source
    assert NASTY in unescape(page.source)
    assert "Running. 3 of 6 trials are over." in page.source
    assert page.all("progress")[0] == {"id": "over", "max": "6", "value": "3.5"}
    assert [div["data-events"] for div in page.all("div") if "data-events" in div] == [f"{address}/events"]
    assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in page.source
    assert "2.250" in page.source
    assert "3.250" in page.source
    assert len([svg for svg in page.all("svg") if svg.get("role") == "img"]) == 1
    assert [form["action"] for form in page.all("form")] == [f"{address}/stop"]
    ended = visitor.page(address)
    assert "Done." in ended.source
    assert "no results.json" in ended.source
    assert "noscript" not in ended.source
    assert "data-events" not in ended.source


def test_a_failed_comparison_shows_why_and_what_it_said_last(site: Site, visitor: Visitor) -> None:
    folder = site.roots[0] / "broken"
    with pytest.raises(ValueError), Journal(folder):
        raise ValueError(NASTY)
    (folder / "log.txt").write_text("first\n" * 2000 + f"row 3 holds {NASTY}\x1b[0m\n")
    page = visitor.page(f"/comparisons/{jobs.look(site, folder).id}")
    assert "Failed." in page.source
    assert "<script>alert" not in page.source
    assert f"row 3 holds {NASTY}" in unescape(page.source)
    assert page.source.count("first") < 40
    assert not page.all("form")


def test_what_was_found_has_the_sections_of_the_report(site: Site, visitor: Visitor, tmp_path: Path) -> None:
    results = make(("full", f"{NASTY}.py:method", "broken"))
    fail(results, "broken", (0, 1, 2))
    results["comparison"]["question"] |= {"model": f"/models/{NASTY}", "train": NASTY}
    results["comparison"]["facts"]["texts"][NASTY] = {"rows": 1}
    name = f"other_loss:{NASTY}"
    results["comparison"]["untouched"][name] = described(name, 3.5)
    page = visitor.page(finished(site, results, "<b>bold"))
    assert "<script>alert" not in page.source
    assert "<b>bold" not in page.source
    report = write_report(results, tmp_path).read_text()
    headings = re.compile(r"<h2[^>]*>(.*?)</h2>")
    assert headings.findall(page.source) == headings.findall(report)
    assert len(headings.findall(report)) == 11
    assert page.source.count("<svg") == report.count("<svg")


def order(page: Page) -> list[str]:
    table = page.source.partition("<table>")[2].partition("</table>")[0]
    return [
        unescape(label) for label in re.findall(r'<th scope="row">.*?</svg>\s*<span>(.*?)</span>', table, re.DOTALL)
    ]


def test_the_table_is_sorted_by_links(site: Site, visitor: Visitor) -> None:
    results = make(("full", "b", "a"))
    fail(results, "b", (0, 1, 2))
    address = finished(site, results)
    page = visitor.page(address)
    assert order(page) == ["untouched", "full", "b", "a"]
    links = [a["href"] for a in page.all("a") if a["href"].startswith("?")]
    assert links == [
        f"?sort={name}&direction=ascending#measured"
        for name in ("method", "target_loss", "kept_loss", "target_accuracy")
    ]
    page = visitor.page(f"{address}?sort=target_loss&direction=ascending")
    assert order(page) == ["a", "full", "untouched", "b"]
    assert [th["aria-sort"] for th in page.all("th") if "aria-sort" in th] == ["ascending"]
    assert "?sort=target_loss&direction=descending#measured" in [a["href"] for a in page.all("a")]
    page = visitor.page(f"{address}?sort=target_loss&direction=descending")
    assert order(page) == ["untouched", "full", "a", "b"]
    assert order(visitor.page(f"{address}?sort=method")) == ["a", "b", "full", "untouched"]
    assert order(visitor.page(f"{address}?sort={NASTY.split()[0]}&direction=x")) == ["untouched", "full", "b", "a"]


def test_downloads_are_the_file_and_a_row_a_trial(site: Site, visitor: Visitor) -> None:
    results = make(("full", "=cmd|' /C calc'!A0"))
    fail(results, "full", (0,))
    results["trials"][0]["error"] = "-1+1"
    results["trials"][1]["args"] = {"rank": -8, "style": "@sum", "tab": "\tx"}
    results["trials"][1]["metrics"]["target_loss"]["value"] = -0.5
    address = finished(site, results)
    answer = visitor.get(f"{address}/results.json")
    assert json.loads(answer.text) == json.loads(json.dumps(results))
    assert answer.headers["content-disposition"] == 'attachment; filename="mine.json"'
    answer = visitor.get(f"{address}/results.csv")
    assert answer.headers["content-disposition"] == 'attachment; filename="mine.csv"'
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["label"], row["seed"], row["status"]) for row in rows[:2]] == [
        ("full", "0", "failed"),
        ("full", "1", "done"),
    ]
    assert rows[0]["error"] == "'-1+1"
    assert (rows[1]["argument rank"], rows[1]["argument style"], rows[1]["argument tab"]) == ("-8", "'@sum", "'\tx")
    assert rows[1]["metric target_loss"] == "-0.5"
    assert rows[3]["label"] == "'=cmd|' /C calc'!A0"
    assert {f"metric {name}" for name in METRICS} <= set(rows[0])
    assert rows[4]["cost tokens"] == "15360"


def test_names_of_columns_cannot_be_formulas() -> None:
    trial = {"label": "a", "seed": 0, "status": "done", "args": {}, "metrics": {"=1+1": {"value": 1}}, "cost": {}}
    assert as_csv([trial]).splitlines()[0] == "label,seed,status,metric =1+1"
    assert as_csv([]) == "\r\n"


@pytest.mark.parametrize(
    "content", ["{", '{"comparison": {}, "trials": [], "effects": [], "environment": {}}', "[]", "[" * 5000]
)
def test_damaged_results_are_said_to_be_damaged(site: Site, visitor: Visitor, content: str) -> None:
    address = finished(site, {})
    (site.roots[0] / "mine" / "results.json").write_text(content)
    assert "is damaged" in visitor.page(address).source
    assert visitor.get("/comparisons").status == 200


def test_results_that_are_a_link_missing_or_too_large_are_not_given(
    site: Site, visitor: Visitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = finished(site, make())
    monkeypatch.setattr(comparison_pages, "_LARGEST", 1000)
    assert visitor.get(f"{address}/results.json").status == 400
    assert "larger than" in visitor.page(address).source
    path = site.roots[0] / "mine" / "results.json"
    (tmp_path / "secret").write_text("{}")
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    for name in ("results.json", "results.csv", "report.html", "log.txt", "%2e%2e/%2e%2e/secret"):
        assert visitor.get(f"{address}/{name}").status == 404


def stream(site: Site, folder: Path, leave_after: int = 1000) -> Iterator[str]:
    """What the event stream sends, each part when it comes."""
    looks = iter(range(10**6))

    class Request:
        app = SimpleNamespace(state=SimpleNamespace(site=site))

        async def is_disconnected(self) -> bool:
            return next(looks) >= leave_after

    parts = comparison_pages._events(Request(), jobs.look(site, folder))  # type: ignore[arg-type]
    loop = asyncio.new_event_loop()
    try:
        while True:
            yield loop.run_until_complete(anext(parts))
    except StopAsyncIteration:
        return
    finally:
        loop.close()


def test_events_tell_what_changed_until_the_end(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert comparison_pages._SECONDS_BETWEEN >= 0.5
    monkeypatch.setattr(comparison_pages, "_SECONDS_BETWEEN", 0.01)
    monkeypatch.setattr(comparison_pages, "_BEATS", 3)
    folder = site.roots[0] / "live"
    with Journal(folder) as journal:
        parts = stream(site, folder)
        assert json.loads(next(parts).removeprefix("data: "))["state"] == "running"
        assert next(parts) == ": still here\n\n"
        news(journal, "full, seed 0\n\ndata: forged", 1, 0.5, 2.0)
        told = next(part for part in parts if part.startswith("data"))
        assert told.count("\n") == 2
        assert json.loads(told.removeprefix("data: ")) == {
            "state": "running", "sentence": "Running. 1 of 6 trials are over.", "what": "full, seed 0\n\ndata: forged", "over": 1,
            "total": 6, "fraction": 0.5, "trains": True,
        }  # fmt: skip
    assert [json.loads(p.removeprefix("data: "))["state"] for p in parts if p.startswith("data")] == ["done"]
    assert sum(1 for _ in stream(site, folder)) == 1


def test_a_stream_ends_with_its_viewer_and_all_viewers_share_one_reader(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison_pages, "_SECONDS_BETWEEN", 0.001)
    made = []

    class Counted(Reader):
        def __init__(self, folder: Path) -> None:
            made.append(folder)
            super().__init__(folder)

    monkeypatch.setattr(jobs, "Reader", Counted)
    folder = site.roots[0] / "watched"
    with Journal(folder) as journal:
        news(journal, "full, seed 0", 0, 0.5, 2.0)
        viewers = [threading.Thread(target=lambda: list(stream(site, folder, leave_after=5))) for _ in range(8)]
        for viewer in viewers:
            viewer.start()
        for viewer in viewers:
            viewer.join(30)
        assert not any(viewer.is_alive() for viewer in viewers)
    assert made == [folder]


def test_the_stream_of_a_comparison_that_ended_is_one_event(site: Site, visitor: Visitor) -> None:
    answer = visitor.get(f"{finished(site, make())}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text == 'data: {"state": "done", "sentence": "Done."}\n\n'


@pytest.mark.usefixtures("idle")
def test_while_the_site_runs_the_queue_is_tended(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "start_waiting", lambda site: None)
    folder = jobs.start(site, "tune", {"methods": ["full"]}, "x")
    assert jobs.look(site, folder).state == "waiting"
    monkeypatch.undo()
    monkeypatch.setattr(sys, "executable", "/bin/true")

    async def serve() -> None:
        async with comparison_pages.lifespan(SimpleNamespace(state=SimpleNamespace(site=site))):  # type: ignore[arg-type]
            while jobs.look(site, folder).state == "waiting":
                await asyncio.sleep(0.02)

    asyncio.run(asyncio.wait_for(serve(), 30))
