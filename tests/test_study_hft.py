from __future__ import annotations

from pathlib import Path

import pytest

from bakeoff import lm, study
from bakeoff.store import Store


def test_the_smoke_scale_runs_and_counts_as_the_matrix_of_losses_says(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    verdict = study.run("hft", "smoke", store=store)
    assert verdict["verdict"] == "undecided", "one seed makes no verdict"
    assert len(verdict["expectations"]) == 4

    half, full = (next(s for s in verdict["notes"] if s.startswith(name)) for name in ("hft", "full"))
    matched, arms = verdict["notes"]["full at equal learning"], verdict["arms"]

    def forgetting(spec: str) -> float:
        return float(
            arms[f"{spec} after code"]["other_loss:reference"] - arms[f"{spec} after reference"]["target_loss"]
        )

    def learned(spec: str) -> float:
        return float(arms[f"{spec} after reference"]["target_loss"] + arms[f"{spec} after code"]["target_loss"]) / 2

    start = (arms["untouched"]["other_loss:reference"] + arms["untouched"]["other_loss:code"]) / 2
    expected = [
        forgetting(half) - forgetting(full),
        arms[f"{half} after code"]["kept_loss"] - arms[f"{full} after code"]["kept_loss"],
        learned(half) - 0.9 * learned(full) - 0.1 * start,
        forgetting(half) - forgetting(matched),
    ]
    assert [e["effect"] for e in verdict["expectations"]] == pytest.approx(expected)
    assert learned(matched) >= learned(half)
    assert verdict["notes"][half]["forgetting"] == pytest.approx(forgetting(half))

    trials = {
        record["seed"]: (record["setting"]["inputs"]["model"], store.artifact("trials", key))
        for key in store.keys("trials")
        if (record := store.get("trials", key))
        and record["args"].get("unit") == "category"
        and record["setting"]["inputs"].get("exam") != "validation"
    }
    assert set(trials) == {0, 1000}, "each task has a seed, and so masks, of its own"
    assert trials[0][0] == lm.fingerprint("reference")
    assert trials[1000][0] == lm.fingerprint(trials[0][1]), "the second task starts from the first one's result"
