"""Shared by all tests: one thread a worker, no network, poisoned uninitialised memory, a store of their own."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAKEOFF_STORE", str(tmp_path / "store"))


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The folder of real data, or the test is skipped."""
    place = os.environ.get("BAKEOFF_CORPORA")
    if not place:
        pytest.skip("BAKEOFF_CORPORA names no folder of real data")
    return Path(place)
