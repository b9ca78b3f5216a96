"""A method of my own in one file: `bakeoff check examples/my_method.py` checks it, running the file compares it."""

import argparse
from pathlib import Path
from typing import Annotated

from torch import nn
from transformers import PreTrainedModel

from bakeoff import lm
from bakeoff.method import Range
from bakeoff.training.run import Run
from bakeoff.tune.contest import TuneData, tune


@tune.method(source="the usual practice")
def upper_blocks(
    model: PreTrainedModel, data: TuneData, run: Run, *, share: Annotated[float, Range(0.1, 1)] = 0.5
) -> nn.Module:
    """Only this share of the blocks learns, counted from the top and rounded up."""
    blocks = lm.anatomy(model).blocks
    learning = [part for block in blocks[int(len(blocks) * (1 - share)) :] for part in block.parts]
    names = {name: None for part in learning for name in (part.name, part.bias_name) if name}
    return run.train(lm.clone(model, learning=names), data.batches(run), learning_rate=1e-3, parameters=names)


if __name__ == "__main__":
    from bakeoff.report.table import markdown
    from bakeoff.running import comparison_from, run_comparison
    from bakeoff.store import Store

    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", default="reference")
    options.add_argument("--train", default="installed:reference:200000")
    options.add_argument("--keep", default="installed:docstrings:200000")
    options.add_argument("--budget", default="40steps")
    fields = {"methods": ["full", f"{__file__}:upper-blocks"], "dtype": "bfloat16", **vars(options.parse_args())}
    print(markdown(run_comparison(comparison_from("tune", fields), Path("results"), Store())))
