"""Seconds against length: the chunked delta rule, linear attention and routing heads against full softmax attention.

All mix one row with two heads of width 32 (float32, random input, forward pass only) on two threads; the projections
around them are left out, except that routing includes its own. The chunked delta rule is also timed against the plain
recurrence that it must equal. The slopes are those of the logarithm of the seconds against that of the length: 1 is
linear, 2 quadratic, and routing with as many clusters as the root of the length is expected at 1.5 or less.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from common import arguments, measure, report, seconds

from bakeoff.training.threads import keep_memory

THREADS = 2
HEADS, WIDTH = 2, 32
LENGTHS = (512, 1024, 2048, 4096, 8192)
RECURRENT_LENGTH = 512
TOLERANCE = 1e-4


def main() -> None:
    options = arguments("mixers of tokens by length, in tokens/s")
    keep_memory()

    import torch
    from torch.nn import functional

    from bakeoff.lm import DecoderConfig
    from bakeoff.lm.attention import Context
    from bakeoff.lm.delta_rule import delta_rule, delta_rule_recurrent, linear_attention
    from bakeoff.lm.routing import RoutingAttention

    torch.set_num_threads(THREADS)
    torch.set_grad_enabled(False)

    def vectors(length: int) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(length)
        q, k, v = torch.randn(3, 1, HEADS, length, WIDTH, generator=draw)
        return {"q": q, "k": functional.normalize(k, dim=-1), "v": v}

    def beta(length: int) -> Any:
        return torch.rand(1, HEADS, length, generator=torch.Generator().manual_seed(length))

    def routing(length: int) -> Callable[[], Any]:
        config = DecoderConfig(
            hidden_size=HEADS * WIDTH, num_attention_heads=HEADS, routing_heads=HEADS, max_position_embeddings=length
        )
        layer = RoutingAttention(config, 0).eval()
        torch.manual_seed(0)
        layer.initialize()
        x = torch.randn(1, length, HEADS * WIDTH, generator=torch.Generator().manual_seed(length))
        context = Context(torch.arange(length)[None])
        return lambda: layer(x, context)

    def attention(length: int) -> Callable[[], Any]:
        own = vectors(length)
        q, k, v = own["q"], own["k"], own["v"]
        return lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def chunked(length: int) -> Callable[[], Any]:
        own, weights = vectors(length), beta(length)
        return lambda: delta_rule(**own, beta=weights)

    def linear(length: int) -> Callable[[], Any]:
        own = vectors(length)
        return lambda: linear_attention(**own)

    plain = vectors(RECURRENT_LENGTH) | {"beta": beta(RECURRENT_LENGTH)}
    difference = float((delta_rule(**plain)[0] - delta_rule_recurrent(**plain)[0]).abs().max())
    if not difference <= TOLERANCE:
        raise SystemExit(
            f"The chunked delta rule differs from the recurrence by {difference:.1e}, so nothing is timed."
        )

    mixers = {"delta rule": chunked, "linear attention": linear, "routing": routing, "full attention": attention}
    if not options.json:
        print(f"{'milliseconds':18}" + "".join(f"{length:>10,}" for length in LENGTHS) + "     slope")
        for name, made in mixers.items():
            took = []
            for length in LENGTHS:
                work = made(length)
                work()
                took.append(statistics.median(seconds(work) for _ in range(options.repeats)))
            slope = np.polyfit(np.log(LENGTHS), np.log(took), 1)[0]
            print(f"{name:18}" + "".join(f"{1000 * s:10.2f}" for s in took) + f"{slope:10.2f}", flush=True)
    longest = LENGTHS[-1]
    ratios = {
        f"delta rule against the recurrence, {RECURRENT_LENGTH}": measure(
            chunked(RECURRENT_LENGTH),
            lambda: delta_rule_recurrent(**plain),
            RECURRENT_LENGTH,
            goal=5.0,
            repeats=options.repeats,
        )
    }
    for name, goal in (("delta rule", 2.0), ("routing", 2.0)):
        ratios[f"{name} against full attention, {longest}"] = measure(
            mixers[name](longest), attention(longest), longest, goal=goal, repeats=options.repeats
        )
    report("mixers", "tokens/s", ratios, json_only=options.json)


if __name__ == "__main__":
    main()
