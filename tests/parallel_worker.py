"""What two processes of a launcher run in the tests: every kind of sharing, in one pair of processes.

Called as `python tests/parallel_worker.py FOLDER`, with the variables that a launcher sets. PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from bakeoff.budget import Budget
from bakeoff.errors import BakeoffError
from bakeoff.lm.tiny import tiny
from bakeoff.text.tokenise import Item
from bakeoff.training import parallel
from bakeoff.training.batches import Shuffled
from bakeoff.training.run import Run

FAMILIES = ("llama", "gpt2", "decoder")
STEPS = 6
UNEVEN = {"step_rows": 5, "accumulation": 3}  # two processes have 2 and 3 rows, two of them at a time


def rows() -> list[Item]:
    """Rows of differing lengths; some learn only their end, so that no two processes have equally many labels."""
    draw = torch.Generator().manual_seed(3)
    made = []
    for i in range(16):
        ids = torch.randint(0, 250, (6 + i % 7,), generator=draw)
        labels = ids.clone()
        if i % 3 == 0:
            labels[: len(ids) - 2] = -100
        made.append(Item(ids, labels, f"row {i}"))
    return made


def adam(parameters: list[torch.nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Its epsilon keeps rounding from deciding where a gradient is zero but for rounding, as of the biases of keys."""
    return torch.optim.AdamW(parameters, lr=learning_rate, eps=1e-4, weight_decay=0.0)


def train(folder: Path, family: str, budget: str = f"{STEPS}steps", **more: Any) -> tuple[Run, torch.nn.Module]:
    run = Run(
        Budget.parse(budget), 0, folder, checkpoint_seconds=1e9, gradient_accumulation_steps=more.pop("accumulation", 1)
    )
    model = tiny(family)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    run.train(model, Shuffled(rows(), more.pop("step_rows", 4), 0), learning_rate=1e-2, optimizer=adam, **more)
    return run, model


def told(run: Run, model: torch.nn.Module) -> dict[str, Any]:
    names = dict(model.named_parameters())
    return {
        "losses": [point[2] for point in run.curve],
        "weights": {name: p.detach().double().flatten().tolist() for name, p in names.items()},
        "flops": run.meter.flops,
    }


def interrupted(folder: Path, kind: str) -> None:
    """Stop a training after three steps, with a checkpoint written after each."""

    class Stop(Exception):
        pass

    def progress(fraction: float, loss: float) -> None:
        if fraction > 0.6:
            raise Stop  # in every process after the same step, before this step's checkpoint

    run = Run(Budget.parse(f"{STEPS}steps"), 0, folder, checkpoint_seconds=0, progress=progress)
    try:
        run.train(tiny("llama"), Shuffled(rows(), 4, 0), learning_rate=1e-2, optimizer=adam)
    except Stop:
        return
    raise AssertionError(f"{kind} was not stopped")


def main(folder: Path) -> None:
    results: dict[str, Any] = {}
    os.environ.update(ACCELERATE_USE_CPU="true")
    kinds = {
        "data": {},
        "fsdp": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
        "tensor": {"PARALLELISM_CONFIG_TP_SIZE": str(parallel.processes())},
    }
    for kind, variables in kinds.items():
        os.environ.update(variables)
        for family in FAMILIES:
            results[f"{kind} {family}"] = told(*train(folder / f"{kind}-{family}", family))
        interrupted(folder / f"{kind}-half", kind)
        if parallel.is_first():
            shutil.copytree(folder / f"{kind}-half", folder / f"{kind}-half-alone")
        parallel.gathered(None)
        results[f"{kind} resumed"] = told(*train(folder / f"{kind}-half", "llama"))
        for name in variables:
            del os.environ[name]
    os.environ.update(kinds["fsdp"])
    results["masked"] = told(*train(folder / "masked", "llama", parameters=masks()))
    for name in kinds["fsdp"]:
        del os.environ[name]
    results["uneven"] = told(*train(folder / "uneven", "llama", **UNEVEN))
    try:
        Run(Budget.parse("2steps"), 0, folder / "few").train(tiny("llama"), Shuffled(rows(), 1, 0), learning_rate=1e-2)
    except BakeoffError as error:
        results["too few rows"] = str(error)
    if parallel.is_first():
        (folder / "results.json").write_text(json.dumps(results))
    parallel.leave()


def masks() -> dict[str, torch.Tensor | None]:
    draw = torch.Generator().manual_seed(5)
    return {name: torch.rand(p.shape, generator=draw) < 0.5 for name, p in tiny("llama").named_parameters()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
