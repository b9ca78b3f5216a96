"""The scripts of examples/ run, and print what they are for."""

from __future__ import annotations

import random
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import WORDS, Said

from bakeoff import check, registry
from bakeoff.lm.tiny import save_tiny

pytest_plugins = ("helpers",)

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = {
    "compare_on_my_model": ("--model", "model", "--train", "train.txt", "--keep", "keep.txt", "--budget", "2steps", "--seeds", "1"),
    "judge_a_claim": ("task-hinting", "--scale", "smoke"),
    "my_method": ("--model", "model", "--train", "train.txt", "--keep", "keep.txt", "--budget", "2steps"),
}  # fmt: skip
SHOWN = {
    "compare_on_my_model": "| hft ",
    "judge_a_claim": "On record (laptop, ",
    "my_method": "upper-blocks",
}


def test_every_example_is_run() -> None:
    assert sorted(SMALL) == sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", SMALL)
def test_an_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text("utf-8").splitlines()) <= 40
    save_tiny(tmp_path / "model", "llama")
    for seed, file in enumerate(("train.txt", "keep.txt")):
        draw = random.Random(seed)
        texts = [" ".join(draw.choice(WORDS) for _ in range(50)) for _ in range(40)]
        (tmp_path / file).write_text("\n\n".join(texts), "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path), *SMALL[name]])
    monkeypatch.setattr(check, "quick_verdict", lambda method, store: None)  # every method's own test runs them
    runpy.run_path(str(path), run_name="__main__")
    assert SHOWN[name] in capsys.readouterr().out


def test_the_example_of_a_method_passes_the_checks(bakeoff: Callable[..., Said]) -> None:
    said = bakeoff("check", "--quick", EXAMPLES / "my_method.py")
    assert said.code == 0, said.out


def test_the_example_of_a_method_is_no_method_of_ours() -> None:
    assert "upper-blocks" not in registry.methods("tune")
