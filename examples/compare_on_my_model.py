"""Which way of fine-tuning suits my model and my text? Prints the table, and where the winner's model lies."""

import argparse
from pathlib import Path

from bakeoff.report.table import markdown
from bakeoff.running import comparison_from, run_comparison
from bakeoff.store import Store

options = argparse.ArgumentParser(description=__doc__)
options.add_argument("--model", default="reference", help="model folder; by default the packaged model")
options.add_argument("--train", default="installed:reference:200000", help="text to learn")
options.add_argument("--keep", default="installed:docstrings:200000", help="text that it should go on knowing")
options.add_argument("--budget", default="40steps")
options.add_argument("--seeds", type=int, default=3)
options.add_argument("--out", type=Path, default=Path("results"))
given = options.parse_args()

comparison = comparison_from(
    "tune",
    {
        "model": given.model,
        "train": given.train,
        "keep": given.keep,
        "methods": ["full", "lora(rank=8)", "hft"],
        "budget": given.budget,
        "seeds": given.seeds,
        "max_length": 128,
        "dtype": "bfloat16",
    },
)
results = run_comparison(comparison, given.out, Store())
print(markdown(results))
if results["comparison"]["winner"]:
    print(f"The winner's model: {given.out / 'winner'}")
