"""Does a paper's claim hold on fresh randomness too? Runs its study with other seeds, beside the verdict on record."""

import argparse

from bakeoff import study
from bakeoff.store import Store

options = argparse.ArgumentParser(description=__doc__)
options.add_argument("slug", nargs="?", default="verbatim-memory", help="`bakeoff studies` lists them")
options.add_argument("--scale", default="laptop", help="smoke takes seconds and decides nothing")
options.add_argument("--seed-base", type=int, default=10, help="the first seed")
given = options.parse_args()

fresh = study.run(given.slug, given.scale, seed_base=given.seed_base, store=Store())
print(study.told(fresh))

for record in study.recorded():
    if record["slug"] == given.slug:
        print(f"\nOn record ({record['scale']}, {len(record['seeds'])} seeds): {record['verdict']}")
        for before, now in zip(record["expectations"], fresh["expectations"], strict=True):
            print(f"  {before['effect']:10.4g} then, {now['effect']:10.4g} now: {before['sentence']}")
