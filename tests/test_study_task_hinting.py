"""The task-hinting study: all arms sort from the same examples, hints are half, tokens are equal where they are to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bakeoff.budget import Budget
from bakeoff.studies.task_hinting import ARMS, COUNT, DENSE, MORE, PLAIN, SUCCESSOR, UNRELATED, learn
from bakeoff.text import tasks
from bakeoff.training import worlds
from bakeoff.training.run import Run

STEPS, ROWS = 40, 10


def trained(monkeypatch: pytest.MonkeyPatch, folder: Path, label: str) -> tuple[list[tuple[str, ...]], int]:
    """What an arm trains on, as words of all rows of all steps, and how many tokens that are."""
    seen: list[tuple[str, ...]] = []
    words, tokens = tasks.make("sorting(symbols=30)").vocabulary, 0

    def watched(run: Run, batches: Any, **shape: Any) -> Any:
        nonlocal tokens
        for step in range(STEPS):
            batch = batches(step)
            tokens += batch.tokens
            seen.extend(tuple(words.words(i for i in row.tolist() if i)) for row in batch.input_ids)
        return worlds.decoder(0, vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=1)

    monkeypatch.setattr(worlds, "from_scratch", watched)
    own: dict[str, Any] = {"hint": "", "equal_to": "", "dense": False, "length_scale": False, **ARMS[label]}
    for key in ("hint", "equal_to"):
        own[key] = own[key].format(symbols=30, unique=True)
    learn(
        Run(Budget.parse(f"{STEPS}steps"), 5, folder), folder, steps=STEPS, rows=ROWS, symbols=30, unique=True, longest=6,
        tested=[6], items=4, width=8, layers=1, heads=1, rate=1e-3, **own,
    )  # fmt: skip
    return seen, tokens


def test_every_arm_sorts_the_same_lists_and_hints_are_half(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain, _ = trained(monkeypatch, tmp_path, PLAIN)
    assert len(plain) == STEPS * ROWS
    for label, mark in ((SUCCESSOR, "successor"), (COUNT, "occurrences"), (UNRELATED, "parity")):
        rows, _ = trained(monkeypatch, tmp_path, label)
        hints = [row for row in rows if mark in row]
        assert len(hints) == STEPS * ROWS
        assert sorted(set(rows) - set(hints)) == sorted(set(plain))


def test_equal_tokens_are_equal_and_all_of_sorting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows, tokens = trained(monkeypatch, tmp_path, MORE)
    _, hinted = trained(monkeypatch, tmp_path, SUCCESSOR)
    assert all(">" in row for row in rows)
    assert tokens == pytest.approx(hinted, rel=0.05)


def test_dense_lists_have_closer_neighbours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spans = []
    for label in (PLAIN, DENSE):
        rows, _ = trained(monkeypatch, tmp_path, label)
        spans.append(np.mean([int(row[-2]) - int(row[row.index(">") + 1]) for row in rows]))
        assert all(len(set(row[: row.index(">")])) == row.index(">") for row in rows)
    assert spans[1] < 0.8 * spans[0]


def test_without_positions_the_order_of_the_list_does_not_show_in_one_layer() -> None:
    model = worlds.decoder(
        0,
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        positions="none",
        length_scale=True,
    ).eval()
    rows = torch.tensor([[5, 9, 7, 3, 1], [3, 7, 5, 9, 1]])
    first, second = model(rows).logits[:, -1]
    assert torch.allclose(first, second, atol=1e-6)
    assert not torch.allclose(first, model(torch.tensor([[5, 9, 7, 4, 1]])).logits[0, -1], atol=1e-4)
