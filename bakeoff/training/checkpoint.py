"""The state of a training run on disk: tensors as safetensors, the rest as JSON, whole or absent."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from bakeoff import files

_KEPT = 2


def pack(state: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Replace every tensor of a nested state by a reference and collect it under a name."""
    if isinstance(state, Tensor):
        name = path or "tensor"
        tensors[name] = state.detach().cpu().contiguous().clone()
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
    """Write a checkpoint, then remove all but the newest two."""
    tensors: dict[str, Tensor] = {}
    packed = pack(state, tensors)
    blob = save(tensors)
    with files.replace_folder(folder / f"step-{step:09d}") as new:
        (new / "tensors.safetensors").write_bytes(blob)
        (new / "state.json").write_text(json.dumps({"sha256": hashlib.sha256(blob).hexdigest(), "state": packed}))
    for old in _newest_first(folder)[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def read(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, or None. A damaged one is passed over for the one before it."""
    for candidate in _newest_first(folder):
        try:
            blob = (candidate / "tensors.safetensors").read_bytes()
            saved = json.loads((candidate / "state.json").read_text())
            if hashlib.sha256(blob).hexdigest() == saved["sha256"]:
                state: dict[str, Any] = unpack(saved["state"], load(blob))
                return state
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            continue
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*[0-9]"), reverse=True)
