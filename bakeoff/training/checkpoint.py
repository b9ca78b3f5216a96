"""The state of a training run on disk: tensors as safetensors, the rest as JSON, whole or absent.

Tensors that are spread over processes (FSDP2, tensor parallelism) are written by torch.distributed.checkpoint, each process
its own part, and read as wholes, so that another number of processes can go on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.distributed.tensor import DTensor

from bakeoff import files
from bakeoff.errors import StoreError, UsageError
from bakeoff.training import parallel

_KEPT = 2
_SPREAD = "spread"


def pack(state: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Replace every tensor of a nested state by a reference and collect it under a name."""
    if isinstance(state, Tensor):
        name = path or "tensor"
        held = state.detach()
        tensors[name] = held if isinstance(held, DTensor) else held.cpu().contiguous().clone()
        return {"__tensor__": name}
    if isinstance(state, dict):
        return {"__dict__": [[key, pack(value, tensors, f"{path}/{key}")] for key, value in state.items()]}
    if isinstance(state, (list, tuple)):
        kind = "__tuple__" if isinstance(state, tuple) else "__list__"
        return {kind: [pack(value, tensors, f"{path}/{i}") for i, value in enumerate(state)]}
    return state


def unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    """The nested state that `pack` took apart."""
    if not isinstance(packed, dict):
        return packed
    (kind, value), *_ = packed.items()
    if kind == "__tensor__":
        return tensors[value]
    if kind == "__dict__":
        return {key: unpack(inner, tensors) for key, inner in value}
    items = [unpack(inner, tensors) for inner in value]
    return tuple(items) if kind == "__tuple__" else items


def write(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write a checkpoint, read it back, and only then remove all but the newest two; every process calls it.

    Errors: StoreError if what was written cannot be read back; the checkpoint before it stays.
    """
    tensors: dict[str, Tensor] = {}
    packed = pack(state, tensors)
    spread = {name: t for name, t in tensors.items() if isinstance(t, DTensor)}
    place = folder / f"step-{step:09d}"
    part = folder / f"part-{step:09d}"
    if spread:
        _write_spread(part, spread)

    def finish() -> None:
        blob = save({name: t for name, t in tensors.items() if name not in spread})
        shapes = {name: [list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in spread.items()}
        with files.replace_folder(place) as new:
            (new / "tensors.safetensors").write_bytes(blob)
            if spread:
                part.rename(new / _SPREAD)
            digests = {f"{_SPREAD}/{p.name}": files.digest(p) for p in sorted((new / _SPREAD).glob("*"))}
            digests["tensors.safetensors"] = hashlib.sha256(blob).hexdigest()
            (new / "state.json").write_text(json.dumps({"sha256": digests, "spread": shapes, "state": packed}))
        if _whole(place) is None:
            raise StoreError(f"The checkpoint {place} cannot be read back as written: check the disk.")
        for old in _newest_first(folder)[_KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    parallel.on_first(finish)


def read(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, or None. A damaged one is passed over for the one before it."""
    for candidate in _newest_first(folder):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, SafetensorError):
            if saved := _whole(candidate):
                tensors = load((candidate / "tensors.safetensors").read_bytes())
                if saved["spread"]:
                    tensors |= _read_spread(candidate / _SPREAD, saved["spread"])
                state: dict[str, Any] = unpack(saved["state"], tensors)
                return state
    return None


def _whole(place: Path) -> dict[str, Any] | None:
    """What the checkpoint's JSON says if every file is as it says."""
    try:
        saved: dict[str, Any] = json.loads((place / "state.json").read_text())
        return saved if all(files.digest(place / name) == digest for name, digest in saved["sha256"].items()) else None
    except (OSError, ValueError, KeyError, AttributeError, UsageError):
        return None


def _write_spread(place: Path, tensors: dict[str, Tensor]) -> None:
    import torch.distributed.checkpoint as dcp

    parallel.on_first(lambda: shutil.rmtree(place, ignore_errors=True))
    dcp.save(dict(tensors), storage_writer=dcp.HuggingFaceStorageWriter(str(place), save_distributed=True))


def _read_spread(place: Path, shapes: dict[str, Any]) -> dict[str, Tensor]:
    """Every tensor as a whole, whatever number of processes wrote it."""
    import torch.distributed.checkpoint as dcp

    held = {name: torch.zeros(shape, dtype=getattr(torch, kind)) for name, (shape, kind) in shapes.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        dcp.load(held, storage_reader=dcp.HuggingFaceStorageReader(str(place)), no_dist=True)
    return held


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*[0-9]"), reverse=True)
