"""The site in a real browser: what visitors do there, what every page keeps to, and what must never happen.

Each visit, whatever its test looks at, also fails on a request beyond the site, on an error or a violation of the content
security policy in the browser's console, and on any script that came with data, names or errors.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import AutoModelForCausalLM, LlamaConfig

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("playwright")
pytest.importorskip("axe_playwright_python")
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Locator, Page, Request, expect, sync_playwright

from bakeoff import progress
from bakeoff.catalogue.status import entries
from bakeoff.lm.tiny import LENGTH, VOCAB_SIZE, tiny_tokenizer
from bakeoff.progress import Journal
from bakeoff.web.app import create_app
from bakeoff.web.site import Site

expect.set_options(timeout=30_000)
CHROMIUM = os.environ.get("BAKEOFF_CHROMIUM") or shutil.which("chromium")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
SCRIPT = "<img src=x onerror=alert(1)><script>alert(2)</script>"
MODEL = "<img src=x onerror=alert(3)>"
TOKEN = "a token that nobody guesses"
LONG = "a-name-without-any-place-to-break-it-" * 3
PAGES = {
    "home": "/",
    "results": "/?q=stop+forgetting&tag=forgetting",
    "no results": f"/?q={LONG}&tag=forgetting&contest=merge&status=holds",
    "paper with a verdict": "/papers/hft",
    "paper that is not built": "/papers/rft-forgetting",
    "methods": "/contests",
    "comparisons": "/comparisons",
    "choice of a contest": "/comparisons/new",
    "form": "/comparisons/new?contest=tune&method=full&method=hft",
    "not found": "/papers/none",
}
"""Pages that are there before any comparison."""

# The element that has the focus, whether a ring shows it, and whether it lies in the window.
FOCUSED = """() => {
  const one = document.activeElement, style = getComputedStyle(one), box = one.getBoundingClientRect();
  const ring = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
  const seen = box.width > 0 && box.height > 0 && box.bottom > 0 && box.right > 0 && box.top < innerHeight && box.left < innerWidth;
  window.stops ??= new Map();
  if (!window.stops.has(one)) window.stops.set(one, window.stops.size);
  return {stop: window.stops.get(one), body: one === document.body, shown: ring && seen, what: one.outerHTML.slice(0, 120)};
}"""


class Server:
    """`bakeoff serve` in a process of its own; started again, it listens where it did before."""

    def __init__(self, root: Path, store: Path) -> None:
        self.root, self.store, self.port = root, store, 0

    def start(self) -> None:
        command = [
            sys.executable, "-m", "bakeoff", "serve", str(self.root), "--port", str(self.port), "--embedding", "none",
            "--store", str(self.store),
        ]  # fmt: skip
        with open(self.store.with_suffix(".err"), "ab") as errors:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert self.process.stdout
        said = self.process.stdout.readline()
        found = re.search(r"the site is at (http://127\.0\.0\.1:(\d+))/", said)
        assert found, said + self.store.with_suffix(".err").read_text()
        self.url, self.port = found[1], int(found[2])

    def end(self, signal_: signal.Signals) -> int:
        self.process.send_signal(signal_)
        assert self.process.stdout
        self.process.stdout.close()
        return self.process.wait(60)


@dataclass(frozen=True)
class Compared:
    """A comparison that was started by the form and watched until it ended."""

    path: str
    folder: Path
    name: str
    sentences: list[str]
    documents: int

    @property
    def results(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "results.json").read_text()))


@dataclass(frozen=True)
class Running:
    """A comparison that another process runs: this one. It goes on when the test says so."""

    path: str
    journal: Journal


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("there is no chromium here, nor does BAKEOFF_CHROMIUM name one")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data with a script in a row, and a model whose name is one."""
    root = tmp_path_factory.mktemp("site") / "root"
    root.mkdir()
    for name in ("train", "keep"):
        texts = [f"the cat {number} of {name} sat on the mat and ran up the big red hill" for number in range(60)]
        texts[::7] = [f"{text} {SCRIPT}" for text in texts[::7]]
        (root / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=LENGTH,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(root / MODEL)
    tiny_tokenizer().save_pretrained(root / MODEL)
    return root


@pytest.fixture(scope="module")
def served(root: Path) -> Iterator[Server]:
    server = Server(root, root.parent / "store")
    server.start()
    yield server
    for path in root.glob("comparisons/*/job.json"):
        with contextlib.suppress(psutil.Error):  # what a test that failed has left
            process = psutil.Process(json.loads(path.read_text())["pid"])
            if str(path.parent) in process.cmdline():
                process.kill()
    server.end(signal.SIGINT)


@pytest.fixture
def visit(browser: Browser, served: Server) -> Iterator[Callable[..., Page]]:
    """Opens a window of a new visitor; at the end nothing may have gone wrong in any of them."""
    visits: list[tuple[Page, list[str]]] = []

    def new(bears: str = "", url: str = served.url, **options: Any) -> Page:
        page, wrong = opened(browser, url, bears, **options)
        visits.append((page, wrong))
        return page

    yield new
    for page, wrong in visits:
        close(page, wrong)


@pytest.fixture(scope="module")
def finished(browser: Browser, served: Server) -> Compared:
    """Two methods on the packaged model, by the form."""
    page, wrong = opened(browser, served.url)
    page.goto("/comparisons/new?contest=tune&method=full&method=hft")
    ask(page, model="reference", keep="keep.jsonl", budget="2steps", seeds="2", name=SCRIPT)
    watched = page.url
    # A document that is loaded anew knows nothing of these.
    page.evaluate(
        """() => {
          const state = document.getElementById("state");
          window.sentences = [state.textContent];
          const observer = new MutationObserver(() => window.sentences.push(state.textContent));
          observer.observe(state, {childList: true, subtree: true, characterData: true});
        }"""
    )
    documents: list[str] = []
    page.on("domcontentloaded", lambda loaded: documents.append(loaded.url))
    expect(page.get_by_role("heading", name="Gain against harm")).to_be_visible(timeout=120_000)
    expect(page.locator("#state")).to_have_text("Done.")
    sentences = page.evaluate("window.sentences")
    close(page, wrong)
    return Compared(watched.removeprefix(served.url), newest(served), SCRIPT, sentences, len(documents))


@pytest.fixture
def running(browser: Browser, served: Server) -> Iterator[Running]:
    """A comparison that began elsewhere under the root, with scripts and long names wherever something can be named."""
    folder = served.root / f"{LONG}{time.monotonic_ns()}" / MODEL
    folder.mkdir(parents=True)
    methods = ["full", f"hft(unit='{LONG}')", MODEL]
    (folder / "comparison.yaml").write_text(json.dumps({"contest": "tune", "methods": methods}))
    with Journal(folder) as journal:
        for number in range(3):
            journal.watch(f"full, seed {number}", 0, 4, 0.5, 4.0 - number)
        journal.ended(methods[1], 0, {"status": "failed", "error": f"{SCRIPT} {LONG}"})
        page = browser.new_page(base_url=served.url)
        page.goto("/comparisons")
        link = page.get_by_role("link", name=folder.parent.name)
        path = link.get_attribute("href")
        page.context.close()
        assert path
        yield Running(path, journal)
    shutil.rmtree(folder.parent)


def opened(browser: Browser, url: str, bears: str = "", width: int = 1200, **options: Any) -> tuple[Page, list[str]]:
    """A window, and a list to which it adds what goes wrong; `bears`: the console messages that belong to what is tested."""
    context = browser.new_context(base_url=url, viewport={"width": width, "height": 800}, **options)
    page, wrong = context.new_page(), []
    page.set_default_timeout(60_000)

    def requested(request: Request) -> None:
        if not request.url.startswith((url + "/", "data:,")):
            wrong.append(f"asked for {request.url}")

    def told(message: ConsoleMessage) -> None:
        # What a browser says of a page that is an error page, not of what the page loads.
        status = re.search(r"responded with a status of (401|404|422) ", message.text)
        meant = (status and message.location["url"] == page.url) or (bears and re.search(bears, message.text))
        if message.type in ("error", "warning") and not meant:
            wrong.append(f"console of {page.url}: {message.text} {message.location['url']}")

    def asked(dialog: Dialog) -> None:
        wrong.append(f"a script ran: {dialog.message}")
        dialog.dismiss()

    page.on("request", requested)
    page.on("console", told)
    page.on("pageerror", lambda error: wrong.append(f"{page.url}: {error}"))
    page.on("dialog", asked)
    return page, wrong


def close(page: Page, wrong: list[str]) -> None:
    pictures = page.locator("img").count()
    page.context.close()
    assert not wrong
    assert not pictures  # the site has none of its own


def newest(served: Server) -> Path:
    """The folder of the comparison that the site was asked for last."""
    return max(
        served.root.glob("comparisons/*/job.json"), key=lambda path: json.loads(path.read_text())["asked"]
    ).parent


def ask(page: Page, **fields: str) -> None:
    """Fill in a form of the contest tune with what is small in every way, and these fields; send it."""
    page.get_by_text("More settings").click()
    small = {"train": "train.jsonl", "max_length": "32", "exam_items": "6", "per_device_train_batch_size": "2"}
    for name, value in {**small, **fields}.items():
        page.locator(f"#{name}").fill(value)
    page.get_by_role("button", name="Start").click()
    page.wait_for_url(re.compile("/comparisons/[0-9a-f]+$"))


def hold(folder: Path, but: int = 0) -> psutil.Process:
    """Wait until the comparison of a folder trains, in another process than `but`, and stop that where it is."""
    end = time.monotonic() + 120
    while (found := progress.read(folder)) is None or not found.what or found.pid == but:
        assert time.monotonic() < end, (folder / "log.txt").read_text()
        time.sleep(0.01)
    process = psutil.Process(found.pid)
    process.suspend()
    return process


def tab_to(page: Page, target: Locator) -> None:
    """Press Tab until the target has the focus; on the way all that has it is seen, and nothing has it twice."""
    stops: list[int] = []
    while True:
        page.keyboard.press("Tab")
        at = page.evaluate(FOCUSED)
        assert at["shown"] or at["body"], at
        assert at["stop"] not in stops, f"the focus goes round without coming to {target}"
        stops.append(at["stop"])
        if target.evaluate("one => one === document.activeElement"):
            return


def serious(page: Page, *rules: str) -> list[tuple[str, list[str]]]:
    """What axe-core finds serious or critical on a page: by all its rules, or those of some tags."""
    options = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
    found = Axe().run(page, options=options).response["violations"]
    return [
        (one["id"], [node["html"][:200] for node in one["nodes"]][:3])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


def test_search_and_filters_lead_to_a_paper_its_verdict_and_a_form(visit: Callable[..., Page]) -> None:
    page, status = visit(), entries()["hft"].status
    page.goto("/")
    titles = page.locator("ol.papers h2")
    expect(titles).to_have_count(30)
    page.get_by_label("Problem, technique or title").fill("stop forgetting")
    page.keyboard.press("Enter")
    page.wait_for_url("**/?q=stop+forgetting*")
    said = page.get_by_role("status")
    found = int(said.inner_text().split()[0])
    assert found > 30
    page.get_by_label("Problem", exact=True).select_option("forgetting")
    page.get_by_label("Contest").select_option("tune")
    page.get_by_label("Status").select_option(status)
    page.get_by_role("button", name="Search").click()
    page.wait_for_url(f"**status={status}*")
    fitting = titles.count()
    assert 0 < fitting < 30
    expect(said).to_have_text(re.compile(rf"^{fitting} of \d+ papers"))
    expect(page.locator("ol.papers .status")).to_have_text([f"{status} here"] * fitting)
    expect(page.locator("ol.papers").get_by_role("link", name="forgetting", exact=True)).to_have_count(fitting)
    expect(page.get_by_label("Problem, technique or title")).to_have_value("stop forgetting")
    page.get_by_role("link", name="HFT: Half Fine-Tuning").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("HFT: Half Fine-Tuning for Large Language Models")
    verdict = page.get_by_role("region", name="Verdict at scale").first
    expect(verdict.get_by_role("heading", level=2).first).to_have_text(re.compile(rf"^Verdict at scale \w+: {status}$"))
    expect(verdict.locator("svg.plot").first).to_be_visible()
    page.get_by_role("link", name="Compare hft with full").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("New comparison: tune")
    assert page.locator("[name=methods]:checked").evaluate_all("all => all.map(one => one.value)") == ["full", "hft"]


def test_a_comparison_is_watched_to_its_end_without_a_reload(finished: Compared) -> None:
    assert finished.documents == 0
    assert any(sentence.startswith("Running.") for sentence in finished.sentences)
    assert finished.sentences[-1].strip() == "Done."
    assert [trial["status"] for trial in finished.results["trials"]] == ["done"] * len(finished.results["trials"])


def test_what_it_found_stands_in_table_and_plots(finished: Compared, visit: Callable[..., Page]) -> None:
    page = visit()
    page.goto(finished.path)
    expect(page.get_by_role("heading", level=1)).to_have_text(finished.name)
    table = page.get_by_role("region", name="What was gained and what was lost").get_by_role("table")
    names = table.get_by_role("columnheader").get_by_role("link").all_inner_texts()
    place = names.index("target_loss")
    for label in ("full", "hft"):
        values = [
            trial["metrics"]["target_loss"]["value"] for trial in finished.results["trials"] if trial["label"] == label
        ]
        cells = table.get_by_role("row").filter(has=page.get_by_role("rowheader", name=label)).get_by_role("cell")
        shown = cells.nth(place - 1).inner_text()
        assert float(shown.split()[0]) == pytest.approx(sum(values) / 2, abs=6e-4)
        assert len(values) == 2
    effect = next(e for e in finished.results["effects"] if (e["method"], e["metric"]) == ("hft", "target_loss"))
    low, high = re.findall(r"[-+][0-9.]+", shown)[-2:]
    assert (float(low), float(high)) == pytest.approx((effect["low"], effect["high"]), rel=1e-2)
    pareto = page.get_by_role("img", name="Gain in target_loss against harm to kept_loss")
    expect(pareto).to_be_visible()
    expect(pareto.locator(".layer_5_marks path")).to_have_count(4)  # two seeds of two methods
    forest = page.get_by_role("img", name="target_loss, effect against full")
    expect(forest.locator(".layer_1_marks line")).to_have_count(1)
    expect(forest.locator(".layer_2_marks path")).to_have_count(2)
    for label in ("full", "hft"):
        expect(page.get_by_role("img", name=f"Training loss of {label}")).to_be_visible()


def test_a_click_on_a_column_sorts_by_it(finished: Compared, visit: Callable[..., Page]) -> None:
    page = visit()
    page.goto(finished.path)
    table = page.get_by_role("region", name="What was gained and what was lost").get_by_role("table")
    for column, read in (("target_loss", lambda row: float(row.split("\t")[1].split()[0])), ("method", str)):
        for direction in ("ascending", "descending"):
            table.get_by_role("link", name=column).click()
            page.wait_for_url(f"**sort={column}&direction={direction}*")
            expect(table.locator("[aria-sort]")).to_have_attribute("aria-sort", direction)
            expect(table.locator("[aria-sort]")).to_contain_text(column)
            rows = [read(row.replace("\n", " ")) for row in table.locator("tbody tr").all_inner_texts()]
            assert len(set(rows)) == 3
            assert rows == sorted(rows, reverse=direction == "descending")


def test_downloads_are_what_lies_on_the_disk(finished: Compared, visit: Callable[..., Page]) -> None:
    page = visit()
    page.goto(finished.path)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download as JSON").click()
    assert Path(download.value.path()).read_bytes() == (finished.folder / "results.json").read_bytes()
    assert download.value.suggested_filename.endswith(".json")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download as CSV").click()
    assert download.value.suggested_filename.endswith(".csv")
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
    trials = finished.results["trials"]
    assert len(rows) == len(trials)
    for row, trial in zip(rows, trials, strict=True):
        assert (row["label"], row["seed"], row["status"]) == (trial["label"], str(trial["seed"]), trial["status"])
        for name, measured in trial["metrics"].items():
            assert float(row[f"metric {name}"]) == measured["value"]
        for name, value in trial["cost"].items():
            assert float(row[f"cost {name}"]) == value
    assert page.url.endswith(finished.path)


def test_a_form_that_is_wrong_says_where_and_keeps_what_was_typed(visit: Callable[..., Page]) -> None:
    page = visit()
    page.goto("/comparisons/new?contest=tune&method=full")
    typed = {
        "model": "../elsewhere",
        "train": "",
        "budget": MODEL,
        "seeds": "many",
        "name": LONG,
        "more_methods": "lora(",
    }
    for name, value in typed.items():
        page.locator(f"#{name}").fill(value)
    page.locator("#method-hft").check()
    page.get_by_role("button", name="Start").click()
    summary = page.get_by_role("group", name="5 fields need a change")
    expect(summary).to_be_focused()
    for name, words in {"model": "outside", "train": "needed", "budget": MODEL, "seeds": "'many'"}.items():
        field = page.locator(f"#{name}")
        expect(field).to_have_attribute("aria-invalid", "true")
        beside = page.locator(f"#{name}-wrong")
        expect(beside).to_contain_text(words)
        assert f"{name}-wrong" in (field.get_attribute("aria-describedby") or "").split()
        expect(summary.get_by_role("link", name=beside.inner_text())).to_have_attribute("href", f"#{name}")
    expect(page.locator("#methods-wrong")).to_contain_text("lora(")
    assert "methods-wrong" in (page.locator("#methods").get_attribute("aria-describedby") or "").split()
    for name, value in typed.items():
        expect(page.locator(f"#{name}")).to_have_value(value)
    assert page.locator("[name=methods]:checked").evaluate_all("all => all.map(one => one.value)") == ["full", "hft"]
    for place, name in enumerate(("methods", "model", "train", "budget", "seeds")):
        summary.get_by_role("link").nth(place).press("Enter")
        expect(page.locator(f"#{name}")).to_be_focused()


def test_a_page_shows_how_far_a_comparison_is_while_it_runs(running: Running, visit: Callable[..., Page]) -> None:
    page = visit()
    page.goto(running.path)
    page.evaluate("() => { window.kept = 1; }")
    bar, state, rows = page.locator("#over"), page.locator("#state"), page.locator("#ended-scroll tbody tr")
    expect(rows).to_have_count(1)
    running.journal.watch("full, seed 3", 1, 4, 0.25, 2.0)
    expect(state).to_have_text("Running. 1 of 4 trials are over.")
    expect(page.locator("label[for=over]")).to_have_text("full, seed 3")
    expect(bar).to_have_js_property("value", 1.25)
    running.journal.watch("full, seed 3", 2, 4, 0.5, 1.5)
    metrics = {"target_loss": {"value": 1.25, "unit": "nats/token", "better": "lower"}}
    running.journal.ended("full", 3, {"status": "done", "metrics": metrics, "cost": {"seconds": 2.0}})
    running.journal.watch("full, seed 4", 3, 4, 0.5, 1.5)
    expect(rows).to_have_count(2)
    expect(rows.last).to_contain_text("1.25")
    assert page.evaluate("window.kept") == 1


def test_scripts_and_markup_from_data_and_names_are_text(
    running: Running, finished: Compared, visit: Callable[..., Page]
) -> None:
    page = visit()
    page.goto(running.path)
    expect(page.get_by_role("heading", level=1)).to_contain_text(MODEL)
    expect(page.locator("small.why")).to_contain_text(SCRIPT)
    page.goto(finished.path)
    expect(page).to_have_title(f"{SCRIPT} · bakeoff")
    page.goto("/comparisons")
    expect(page.get_by_role("link", name=SCRIPT, exact=True)).to_be_visible()
    page.goto("/comparisons/new?contest=tune")
    assert MODEL in page.locator("#suggested-models option").evaluate_all("all => all.map(one => one.value)")
    page.goto("/")
    page.get_by_label("Problem, technique or title").fill(SCRIPT)
    page.keyboard.press("Enter")
    expect(page).to_have_title(f"{SCRIPT} · bakeoff")
    page.goto(f"/comparisons/new?contest={MODEL}")
    expect(page.locator(".notice")).to_contain_text(MODEL)


def test_the_keyboard_starts_stops_and_goes_on_with_a_comparison_and_the_server_may_be_killed(
    served: Server, visit: Callable[..., Page]
) -> None:
    page = visit(bears="net::ERR_")  # while there is no server
    page.goto("/")
    tab_to(page, page.get_by_role("link", name="Skip to the content"))
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    tab_to(page, page.get_by_label("Problem, technique or title"))
    page.keyboard.type("half fine-tuning")
    tab_to(page, page.get_by_label("Status"))
    page.keyboard.type(entries()["hft"].status)
    tab_to(page, page.get_by_role("button", name="Search"))
    page.keyboard.press("Space")
    page.wait_for_url("**status=*")
    tab_to(page, page.get_by_role("link", name="HFT: Half Fine-Tuning"))
    page.keyboard.press("Enter")
    page.wait_for_url("**/papers/hft")
    tab_to(page, page.get_by_role("link", name="Compare hft with full"))
    page.keyboard.press("Enter")
    page.wait_for_url("**/comparisons/new?*")
    tab_to(page, page.locator("#method-hft"))
    page.keyboard.press("Space")
    expect(page.locator("#method-hft")).not_to_be_checked()
    for name, value in {"model": MODEL, "train": "train.jsonl", "budget": "40steps", "seeds": "2"}.items():
        tab_to(page, page.locator(f"#{name}"))
        page.keyboard.press("Control+A")
        page.keyboard.type(value)
    tab_to(page, page.get_by_text("More settings"))
    page.keyboard.press("Enter")
    for name, value in {"max_length": "32", "exam_items": "6"}.items():
        tab_to(page, page.locator(f"#{name}"))
        page.keyboard.press("Control+A")
        page.keyboard.type(value)
    tab_to(page, page.get_by_role("button", name="Start"))
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/comparisons/[0-9a-f]+$"))
    folder = newest(served)
    process = hold(folder)
    expect(page.locator("#state")).to_contain_text("Running.")
    tab_to(page, page.get_by_role("button", name="Stop"))
    with page.expect_navigation():
        page.keyboard.press("Enter")
    process.resume()
    expect(page.locator("#state")).to_contain_text("Stopped.")
    assert not (folder / "results.json").exists()
    tab_to(page, page.get_by_role("button", name="Go on"))
    with page.expect_navigation():
        page.keyboard.press("Space")
    process = hold(folder, but=process.pid)
    assert served.end(signal.SIGKILL) == -signal.SIGKILL
    served.start()
    other = visit()
    other.goto(page.url)
    expect(other.locator("#state")).to_contain_text("Running.")
    process.resume()
    for window in (other, page):  # the page that was open all the time finds the server again
        expect(window.locator("#state")).to_have_text("Done.", timeout=120_000)
        expect(window.get_by_role("heading", name="Gain against harm")).to_be_attached()
        expect(window.get_by_role("definition").filter(has_text=MODEL)).to_be_visible()
    trials = json.loads((folder / "results.json").read_text())["trials"]
    assert {(t["label"], t["seed"]) for t in trials if t["status"] == "done"} >= {("full", 0), ("full", 1)}


def test_the_keyboard_is_caught_nowhere(finished: Compared, visit: Callable[..., Page]) -> None:
    page = visit()
    for path in (PAGES["no results"], PAGES["paper with a verdict"], PAGES["form"], finished.path):
        page.goto(path)
        stops, focusable = [], "a[href], input:not([type=hidden]), select, textarea, button, summary, [tabindex='0']"
        every = page.locator(focusable).evaluate_all("all => all.filter(one => one.checkVisibility()).length")
        while True:
            page.keyboard.press("Tab")
            at = page.evaluate(FOCUSED)
            if at["body"] or at["stop"] in stops:
                break
            assert at["shown"], at
            stops.append(at["stop"])
        assert at["body"] or at["stop"] == stops[0], at
        assert len(stops) == every


def test_every_page_is_there_without_javascript_and_fits_a_small_screen(
    running: Running, finished: Compared, visit: Callable[..., Page]
) -> None:
    page = visit(width=360, java_script_enabled=False)

    def check(name: str) -> None:
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        expect(page.get_by_role("navigation").get_by_role("link")).to_have_count(4)
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 360, name
        beyond = page.locator("main *").evaluate_all(
            """all => all.filter(one => one.getBoundingClientRect().right > innerWidth + 1 && !one.closest(".scroll, svg"))
            .map(one => one.outerHTML.slice(0, 120))"""
        )
        assert not beyond, (name, beyond)

    for name, path in {**PAGES, "running": running.path, "finished": finished.path}.items():
        page.goto(path)
        for summary in page.locator("details:not([open]) > summary").all():
            summary.click()
        check(name)
    expect(page.locator("svg.plot").first).to_be_visible()
    regions = page.locator(".scroll")
    wider = "all => all.some(one => one.scrollWidth > one.clientWidth)"
    reached = "all => all.every(one => one.tabIndex === 0 && getComputedStyle(one).overflowX === 'auto')"
    assert regions.evaluate_all(wider)
    assert regions.evaluate_all(reached)
    page.goto("/comparisons/new?contest=tune")
    page.locator("#budget").fill(LONG)
    page.locator("#more_methods").fill(LONG)
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#errors")).to_be_focused()
    check("form with errors")
    page.goto(running.path)
    running.journal.watch("full, seed 3", 1, 4, 0.25, 2.0)
    expect(page.locator("#state")).to_have_text("Running. 1 of 4 trials are over.", timeout=60_000)  # by itself


def test_axe_finds_nothing_serious_in_light_or_dark(
    running: Running, finished: Compared, visit: Callable[..., Page]
) -> None:
    page = visit()

    def check(name: str) -> None:
        page.emulate_media(color_scheme="light")
        assert not serious(page), name
        ground, ink = lightness()
        page.emulate_media(color_scheme="dark")
        assert not serious(page, "cat.color"), f"{name}, dark"  # nothing but colours depends on it
        assert ink < ground
        dark_ground, dark_ink = lightness()
        assert dark_ground < dark_ink
        assert dark_ground < ground

    def lightness() -> list[int]:
        colours = page.evaluate(
            "(({backgroundColor, color}) => [backgroundColor, color])(getComputedStyle(document.body))"
        )
        return [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours]

    for name, path in {**PAGES, "running": running.path, "finished": finished.path}.items():
        page.goto(path)
        for summary in page.locator("details:not([open]) > summary").all():
            summary.click()
        check(name)
    page.goto("/comparisons/new?contest=tune")
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#errors")).to_be_visible()
    check("form with errors")


def test_a_site_with_a_token_lets_in_who_has_it(root: Path, visit: Callable[..., Page]) -> None:
    server = uvicorn.Server(
        uvicorn.Config(create_app(Site((root,), token=TOKEN)), port=0, log_level="error", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        page = visit(url=f"http://127.0.0.1:{port}", width=360)
        page.goto("/comparisons")
        expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
        assert not serious(page)
        page.emulate_media(color_scheme="dark")
        assert not serious(page, "cat.color")
        page.get_by_label("Token").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.get_by_role("search")).to_be_visible()
    finally:
        server.should_exit = True
        thread.join()
