"""What to type to run a method of the catalogue."""

from __future__ import annotations

from bakeoff import registry
from bakeoff.method import Method

_NAMES = {
    "model": "my-model", "base": "base-model", "models": "model-a model-b", "experts": "small-tuned", "train": "my-texts.txt",
    "keep": "keep.txt", "prompts": "prompts.txt", "facts": "facts.jsonl", "forget": "forget.jsonl", "retain": "retain.jsonl",
    "tasks": "a.jsonl b.jsonl", "texts": "held-out.txt", "architecture": '"decoder(num_hidden_layers=2)"',
}  # fmt: skip
"""What stands in a command for the files of a visitor, by option: the names of the documentation."""


def baseline(method: Method) -> str:
    """What one compares a method with: the plainest of its contest that comes from no paper of the catalogue."""
    plain = {"tune": "full", "decode": "greedy", "merge": "linear", "measure": "perplexity"}
    return plain.get(method.contest) or next(m.name for m in registry.methods(method.contest).values() if not m.paper)


def command(method: Method) -> str:
    """What to type to run a method beside its baseline, or to measure with it."""
    contest = registry.contest(method.contest)
    needed = [name for name, field in contest.question.model_fields.items() if field.is_required()]
    if method.contest == "measure":
        needed = ["model"]
    needed += [name for name in (need.split()[0] for need in method.needs) if name not in needed]
    given = " ".join(f"--{name} {_NAMES.get(name, f'my-{name}')}" for name in needed)
    if method.contest == "measure":
        return f"bakeoff measure {method.name} {given}"
    budget = "" if contest.budget else " --budget 60steps"
    names = " ".join(dict.fromkeys((baseline(method), method.name)))
    return f"bakeoff compare {method.contest} {names} {given}{budget} --seeds 3 --out results"
