"""Going on from prompts, many at once, with a cache of what has been read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def sample(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    stop: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    rows: int = 1024,
) -> list[list[int]]:
    """What a causal language model writes after each prompt: up to the token `stop` and with it, at most `tokens`.

    Args:
        prompts: token ids, at least one each, of any lengths.
        temperature: divides the logits before a token is drawn; 0 takes the likeliest.
        generator: on the model's device; what is drawn depends on it, on the prompts and on `rows`.
        rows: prompts that are gone on from together.
    """
    written: list[list[int]] = []
    for begin in range(0, len(prompts), rows):
        written += _together(model, prompts[begin : begin + rows], tokens, stop, temperature, generator)
    return written


def _together(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    stop: int,
    temperature: float,
    generator: torch.Generator | None,
) -> list[list[int]]:
    device, longest = next(model.parameters()).device, max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    seen = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    padded, cache, open_rows = not bool(seen.all()), None, list(range(len(prompts)))
    written: list[list[int]] = [[] for _ in prompts]
    for _ in range(tokens):
        told: dict[str, Tensor] = {}
        if padded:
            places = (seen.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            told = {"attention_mask": seen, "position_ids": places}
        output: Any = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **told)
        logits, cache = output.logits[:, -1].float(), output.past_key_values
        if temperature:
            ids = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        else:
            ids = logits.argmax(-1, keepdim=True)
        chosen = ids[:, 0].tolist()
        for row, token in zip(open_rows, chosen, strict=True):
            written[row].append(token)
        going = [place for place, token in enumerate(chosen) if token != stop]
        if not going:
            break
        if len(going) < len(chosen):
            kept = torch.tensor(going, device=device)
            cache.batch_select_indices(kept)
            ids, seen, open_rows = ids[kept], seen[kept], [open_rows[place] for place in going]
        seen = torch.cat((seen, torch.ones_like(ids)), 1)
    return written
