"""Tensor parallel training: how much of a process's speed is left when two share a model (weak scaling efficiency).

One process with one thread trains our decoder of 2 layers and 1,024 tokens of vocabulary; then two processes with one
thread each train one of 4 layers and 2,048 tokens of vocabulary together, so that each has as much to multiply as the one had.
A step is forward, backward, clipping and AdamW on 4 x 128 tokens in float32. Both kinds of step are taken in turn by the
same two processes; the second waits while the first works alone. Efficiency is the ratio of GFLOP/s of a process.
It should rise with the width, since messages grow with the width and the work with its square.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from common import Ratio, arguments, report, seconds

from bakeoff.training.threads import keep_memory

PROCESSES = 2
WIDTHS = (128, 256, 512, 1024)
LAYERS, VOCABULARY, HEAD = 2, 1024, 32
ROWS, LENGTH = 4, 128
WARM_UP = 2
GOAL = 0.5
TOLERANCE = 1e-4


def main() -> None:
    options = arguments("tensor parallel training of our decoder: weak scaling from one process to two, on gloo")
    # Read by the processes' libraries when they start.
    os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as place:
        processes = [context.Process(target=play, args=(rank, place, options.repeats)) for rank in range(PROCESSES)]
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join()
                if process.exitcode:
                    raise SystemExit(f"A process ended with {process.exitcode}, so nothing is reported.")
        finally:
            for process in processes:
                if process.pid is not None:
                    process.kill()
                    process.join()
        rows = json.loads((Path(place) / "rates.json").read_text())
    ratios = {
        f"width {width}": Ratio(together, alone, GOAL) for width, (alone, together) in zip(WIDTHS, rows, strict=True)
    }
    if not options.json:
        print("ours: each of two processes; peer: one process alone")
    report("tensor_parallel", "GFLOP/s a process", ratios, json_only=options.json)


def play(rank: int, place: str, repeats: int) -> None:
    """One of the two processes; the first writes (alone, together) in GFLOP/s a process for each width."""
    keep_memory()
    import torch
    from torch import distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/meeting", rank=rank, world_size=PROCESSES)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    rows = []
    for width in WIDTHS:
        together, shared = step(width, PROCESSES, mesh)
        alone, own = step(width, 1, None) if rank == 0 else (lambda: None, 0.0)
        taken: dict[str, list[float]] = {"alone": [], "together": []}
        for repeat in range(WARM_UP + repeats):
            for name, work in (("alone", alone), ("together", together))[:: 1 if repeat % 2 else -1]:
                dist.barrier()
                took = seconds(work)
                if repeat >= WARM_UP:
                    taken[name].append(took)
        if rank == 0:
            speeds = own / statistics.median(taken["alone"]), shared / PROCESSES / statistics.median(taken["together"])
            rows.append([speed / 1e9 for speed in speeds])
    if rank == 0:
        (Path(place) / "rates.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


def step(width: int, processes: int, mesh: Any) -> tuple[Any, float]:
    """A training step over so many processes, and the floating-point operations of its matrix products in all."""
    import torch
    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

    from bakeoff.lm.decoder import DecoderConfig, DecoderForCausalLM
    from bakeoff.training.batches import Batch
    from bakeoff.training.tensor_parallel import cross_entropy, tensor_parallel

    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=VOCABULARY * processes,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=LAYERS * processes,
        num_attention_heads=width // HEAD,
    )
    model = DecoderForCausalLM(config).train()
    ids = torch.randint(0, VOCABULARY, (ROWS, LENGTH))
    batch = Batch(ids, ids, ids.numel())
    with FlopCounterMode(display=False) as counter:
        loss = cross_entropy(model, batch, 0)
        loss.backward()
    model.zero_grad()
    if mesh is not None:
        tensor_parallel(model, mesh)
        difference = abs(float(cross_entropy(model, batch, 0).detach()) - float(loss.detach()))
        if not difference <= TOLERANCE:
            raise SystemExit(f"width {width}: two processes differ from one by {difference:.1e}, so nothing is timed.")
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def work() -> None:
        optimizer.zero_grad()
        cross_entropy(model, batch, 0).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return work, counter.get_total_flops()


if __name__ == "__main__":
    main()
