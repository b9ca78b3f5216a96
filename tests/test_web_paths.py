"""Paths that a visitor names stay within the folders of the site, whatever they are made of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bakeoff.errors import UsageError
from bakeoff.web import paths
from bakeoff.web.paths import confined, confined_value, listing


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two roots, a secret beside them, and links that lead out, in, and in a circle."""
    place = tmp_path_factory.mktemp("place").resolve()
    for folder in ("first/data", "first/models", "second", "first-beside", "outside"):
        (place / folder).mkdir(parents=True)
    for file in ("first/data/a.txt", "second/b.txt", "first-beside/c.txt", "outside/secret.txt"):
        (place / file).write_text("x\n")
    (place / "first/models (old)=1").mkdir()
    (place / "first/models (old)=1/d.txt").write_text("x\n")
    for link, target in (
        ("first/out", "outside"),
        ("first/out.txt", "outside/secret.txt"),
        ("first/across", "second"),
        ("first/in.txt", "first/data/a.txt"),
        ("first/round", "first/round"),
        ("first/dangling", "outside/absent"),
    ):
        (place / link).symlink_to(place / target)
    return place


def roots(place: Path) -> tuple[Path, Path]:
    return place / "first", place / "second"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("data/a.txt", "first/data/a.txt"),
        (".", "first"),
        ("./data/../data//a.txt", "first/data/a.txt"),
        ("absent/x", "first/absent/x"),
        ("in.txt", "first/data/a.txt"),
        ("across/b.txt", "second/b.txt"),
        ("../second/b.txt", "second/b.txt"),
        ("~/x", "first/~/x"),
        ("~root", "first/~root"),
        ("..\\..\\outside", "first/..\\..\\outside"),
        ("C:\\outside", "first/C:\\outside"),
        ("%2e%2e/x", "first/%2e%2e/x"),
        ("...", "first/..."),
        (" ", "first/ "),
        ("a\nb", "first/a\nb"),
    ],
)
def test_paths_within_the_roots(place: Path, text: str, named: str) -> None:
    assert confined(roots(place), text) == place / named
    assert confined(roots(place), str(place / "second")) == place / "second"


OUTSIDE = [
    "..", "../outside/secret.txt", "../first-beside/c.txt", "data/../../outside", "../first/../outside", "/", "/etc/passwd",
    "//etc/passwd", "out", "out/secret.txt", "out.txt", "out/../outside/secret.txt", "dangling", "across/../outside/secret.txt",
    "./" * 50 + "../" * 60 + "etc/passwd", "/proc/self/root/etc/passwd", "/proc/self/environ", "/dev/stdin",
]  # fmt: skip


@pytest.mark.parametrize("text", OUTSIDE)
def test_paths_outside_are_refused(place: Path, text: str) -> None:
    for check in (confined, confined_value):
        with pytest.raises(UsageError, match="outside the folders of this site"):
            check(roots(place), text)
    with pytest.raises(UsageError):
        confined(roots(place), str(place / "first" / text))


@pytest.mark.parametrize(
    "text", ["", "a\0b", "/etc/passwd\0.txt", "x" * 5000, "x" * 300 + "/" + "y" * 300, "round", "round/x", "\ud800"]
)
def test_what_is_no_path_is_refused(place: Path, text: str) -> None:
    with pytest.raises(UsageError) as refused:
        confined(roots(place), text)
    assert "\0" not in str(refused.value)
    assert len(str(refused.value)) < 400 + 2 * len(str(place))
    str(refused.value).encode()


@settings(max_examples=300, deadline=None)
@given(
    st.text()
    | st.lists(
        st.sampled_from(
            ["..", ".", "/", "out", "across", "data", "first", "outside", "\\", "~", "\0", "a.txt", "", "dangling"]
        ),
        max_size=9,
    ).map("/".join)
)
@example("across/../outside")
def test_whatever_is_let_through_is_inside(place: Path, text: str) -> None:
    try:
        path = confined(roots(place), text)
    except UsageError:
        return
    assert path.is_absolute()
    assert os.path.realpath(path) == str(path)
    assert any(os.path.commonpath([path, root]) == str(root) for root in roots(place))
    if path.exists():
        assert not path.samefile(place / "outside")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["..", "/", "out.txt", "data", "a.txt", "(", ")", "=", ":", ",", "~", "/etc/passwd", "task", " "]
        ),
        max_size=9,
    ).map("".join)
)
def test_no_part_of_a_value_is_a_path_that_leaves(place: Path, text: str) -> None:
    try:
        assert confined_value(roots(place), text) == text
    except UsageError:
        return
    if not os.path.lexists(place / "first" / text):
        assert (
            "/etc/passwd"
            not in text.replace("(", " ")
            .replace("=", " ")
            .replace(":", " ")
            .replace(",", " ")
            .replace(")", " ")
            .split()
        )
        assert not text.startswith("~")
    assert os.path.realpath(place / "first" / text).startswith((str(place / "first"), str(place / "second")))


@pytest.mark.parametrize(
    "text",
    [
        "reference", "float32", "installed:docstrings:300000", "fictitious:20", "task:sorting(symbols=50)", "1-5,10",
        "decoder(hidden_size=8)", "data/a.txt", "org/model", "0.5", "models (old)=1/d.txt", "lora(rank=4, targets=all)",
    ],
)  # fmt: skip
def test_values_are_returned_as_they_are(place: Path, text: str) -> None:
    assert confined_value(roots(place), text) == text


def test_an_absolute_path_of_something_within_may_have_any_name(tmp_path: Path) -> None:
    root = tmp_path.resolve() / "models (old)=1"
    root.mkdir()
    (root / "d.txt").touch()
    assert confined_value((root,), str(root / "d.txt")) == str(root / "d.txt")


def test_urls_and_long_texts_are_named_as_such(place: Path) -> None:
    with pytest.raises(UsageError, match="is a URL"):
        confined_value(roots(place), "s3://bucket/x")
    with pytest.raises(UsageError, match="5,000 characters is too long"):
        confined(roots(place), "a/" * 2500)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/x", "file:///etc/passwd", "simplecache::https://rebound.example/x", "hf://org/name", "~/x", "~", "~root/x",
        "task:lines(file=/etc/passwd)", "task:lines(file=../outside/secret.txt)", "base=~/model", "a.txt,/etc/passwd",
        "a.txt, ../outside/secret.txt", "task:x(file='/etc/passwd')", "one:out.txt", "", "a\0b",
    ],
)  # fmt: skip
def test_values_that_lead_out_are_refused(place: Path, text: str) -> None:
    with pytest.raises(UsageError):
        confined_value(roots(place), text)


def model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "vocab.txt"):
        (folder / name).write_text("{}")
    return folder


def test_listing_finds_models_and_data_and_passes_over_the_rest(tmp_path: Path) -> None:
    tmp_path = tmp_path.resolve()
    first, second = tmp_path / "first", tmp_path / "second"
    model(first / "models" / "small")
    model(first / "comparisons" / "one" / "winner")
    model(first / "a" / "b" / "c" / "deep")
    for passed in (".hidden", ".bakeoff/models", "node_modules", "a/b/c/d/too-deep", "venv/lib"):
        model(first / passed / "model")
    (first / "venv" / "pyvenv.cfg").touch()
    model(second / "other")
    for name in ("results.json", "progress.jsonl", "comparison.yaml", "cards.json"):
        (first / "comparisons" / "one" / name).write_text("{}")
    for name in (
        "train.jsonl",
        "b.txt",
        "c.csv",
        "d.parquet",
        "e.json",
        ".hidden.txt",
        "f.bin",
        "README.md",
        "<i>.txt",
    ):
        (first / name).write_text("x")
    outside = model(tmp_path / "outside")
    (outside / "secret.csv").write_text("x")
    (first / "linked").symlink_to(outside)
    (first / "linked.txt").symlink_to(outside / "vocab.txt")
    (first / "within.txt").symlink_to(first / "b.txt")
    (first / "dangling.txt").symlink_to(first / "absent.txt")
    (first / "folder.txt").mkdir()
    os.mkfifo(first / "pipe.txt")
    (second / "g.txt").write_text("x")
    with open(os.fsencode(first) + b"/\xff.txt", "w") as file:
        file.write("x")
    models, data = listing((first, second))
    assert models == [str(second / "other"), "a/b/c/deep", "comparisons/one/winner", "models/small"]
    names = ["<i>.txt", "b.txt", "c.csv", "d.parquet", "e.json", "train.jsonl", "within.txt"]
    assert data == [str(second / "g.txt"), *names]
    assert listing((first, first / "models")) == (models[1:], names)
    assert listing((tmp_path / "absent",)) == ([], [])


def test_listing_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        for number in range(30):
            (tmp_path / folder / f"{number:02}.txt").touch()
    monkeypatch.setattr(paths, "_NUMBER", 20)
    assert listing((tmp_path,))[1] == [f"a/{number:02}.txt" for number in range(20)]
    monkeypatch.setattr(paths, "_NUMBER", 1000)
    assert len(listing((tmp_path,))[1]) == 90
    monkeypatch.setattr(paths, "_ENTRIES", 40)
    assert len(listing((tmp_path,))[1]) == 37
