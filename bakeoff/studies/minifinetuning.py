"""Whether corrective self-distillation breaks less for what it gains than full fine-tuning and LoRA, at 500 samples."""

from __future__ import annotations

from itertools import pairwise

from bakeoff.method import Spec
from bakeoff.study import Arm, Lab, study
from bakeoff.text import documents, installed, read

TARGET, KEPT = "target_loss", "kept_loss"


@study(
    slug="minifinetuning",
    claim="Better specialisation to degeneralisation than full fine-tuning and LoRA at 500 samples.",
    source="Belcak et al. 2025, arXiv:2506.15702, abstract",
    expectation="S is the fall of the loss on held-out passages of a playwright, D the rise of the loss on encyclopedia text, "
    "both from the starting model, in nats per token (the paper: perplexities). Minifinetuning at threshold 0.2, full "
    "fine-tuning and LoRA are each trained at the rate best for S and at a third of it, to several lengths. Minifinetuning "
    "has S above 0. At the greatest S that both sides reach, full fine-tuning and LoRA have a greater D: full fine-tuning at "
    "least 1.3 times as great, so that S/D is 1.3 times better at equal S. D between two lengths of training is "
    "interpolated; of several ways to reach an S each side's best counts. Reported without an expectation: other "
    "thresholds, one weight for all tokens, and threshold 1, which should equal full fine-tuning.",
    methods=("full", "lora", "minifinetuning"),
    scales={
        "smoke": {"seeds": 1, "samples": 20, "budgets": (1, 2), "length": 32, "items": 6, "rates": (1e-3,), "lora_rates": (3e-3,)},
        "laptop": {
            "seeds": 3, "samples": 500, "budgets": (10, 25, 63), "length": 128, "items": 48,
            "rates": (3e-4, 1e-3, 3e-3), "lora_rates": (1e-3, 3e-3, 1e-2),
        },
        "gpu": {
            "seeds": 10, "samples": 500, "budgets": (4, 8, 16, 32, 63, 126, 252), "length": 128, "items": 400,
            "rates": (1e-4, 3e-4, 1e-3, 3e-3), "lora_rates": (1e-3, 3e-3, 1e-2, 3e-2),
        },
    },
)  # fmt: skip
def minifinetuning(
    lab: Lab, *, samples: int, budgets: tuple[int, ...], length: int, items: int,
    rates: tuple[float, ...], lora_rates: tuple[float, ...],
) -> None:  # fmt: skip
    passages, held_out, general = _texts(lab, samples)
    setting = lab.open(
        "tune", model="reference", train=lab.write("passages", [{"text": t} for t in passages]),
        valid=lab.write("held_out", [{"text": t} for t in held_out]), keep=general, max_length=length, dtype="bfloat16",
        exam_items=items,
    )  # fmt: skip
    last, start = f"{budgets[-1]}steps", lab.untouched(setting)

    def best_rate(spec: str, among: tuple[float, ...]) -> float:
        chosen = Spec.parse(lab.choose(spec, setting, last, "learning_rate", among, TARGET))
        return float(chosen.arguments["learning_rate"])

    def curves(name: str, rate: float) -> list[list[Arm]]:
        plans = ((rate, budgets), (rate / 3, budgets[1:]))
        return [
            [start, *(lab.arm(f"{name}(learning_rate={r:.3g})", setting, f"{n}steps") for n in steps)]
            for r, steps in plans
        ]

    full_rate, own_rate = best_rate("full", rates), best_rate("minifinetuning", rates)
    rivals = {"full": curves("full", full_rate), "lora": curves("lora", best_rate("lora", lora_rates))}
    own = curves("minifinetuning", own_rate)
    others = [
        lab.arm(f"minifinetuning({options}, learning_rate={own_rate})", setting, last)
        for options in ("threshold=0.1", "threshold=0.4", "mixing='constant'")
    ]
    one = lab.arm(f"minifinetuning(threshold=1.0, learning_rate={full_rate})", setting, f"{budgets[1]}steps")

    lab.expect("S of minifinetuning", lab.contrast(TARGET, {start: 1, own[0][-1]: -1}), above=0)
    for name, times in (("full", 1.0), ("lora", 1.0), ("full", 1.3)):
        level = max(min(arm.mean(TARGET) for curve in both for arm in curve) for both in (own, rivals[name]))
        weights = {start: 1 - times}
        for arm, share in matched(own, level).items():
            weights[arm] = weights.get(arm, 0) + times * share
        for arm, share in matched(rivals[name], level).items():
            weights[arm] = weights.get(arm, 0) - share
        equal = f"at S of {start.mean(TARGET) - level:.2f}"
        lab.expect(
            f"{times:g} times D of minifinetuning, less D of {name}, {equal}", lab.contrast(KEPT, weights), below=0
        )

    lab.notes["threshold 1 less full fine-tuning, kept loss"] = one.mean(KEPT) - rivals["full"][0][2].mean(KEPT)
    lab.notes["S and D"] = {
        a.label: {"S": start.mean(TARGET) - a.mean(TARGET), "D": a.mean(KEPT) - start.mean(KEPT)}
        for a in (*others, one, *(a for both in (own, *rivals.values()) for curve in both for a in curve[1:]))
    }


def matched(curves: list[list[Arm]], level: float) -> dict[Arm, float]:
    """Weights, summing to 1, of the neighbours on a curve between which the target loss falls to `level`.

    Where it does so several times, those with the lowest kept loss; where never, the arm with the lowest target loss.
    """
    crossings = []
    for curve in curves:
        for before, after in pairwise(curve):
            high, low = before.mean(TARGET), after.mean(TARGET)
            if high > level >= low:
                crossings.append({before: (level - low) / (high - low), after: (high - level) / (high - low)})
    if not crossings:
        return {min((arm for curve in curves for arm in curve), key=lambda arm: arm.mean(TARGET)): 1.0}
    return min(crossings, key=lambda weights: sum(share * arm.mean(KEPT) for arm, share in weights.items()))


def _texts(lab: Lab, samples: int) -> tuple[list[str], list[str], str]:
    """Passages to learn (the tenth beyond `samples` is for choosing), later ones for the exam, a file of general text."""
    if lab.scale == "smoke":
        domain = installed("code", limit=40_000)
        general = lab.write("general", [{"text": e.text} for e in installed("reference", limit=20_000)])
    else:
        domain = read(lab.corpus("text/tinyshakespeare_first_half.txt"))
        general = str(lab.corpus("text/wikitext2_raw_test.txt"))
    passages = list(dict.fromkeys(e.text for e in documents(domain, 160) if e.text.strip()))
    return passages[: 3 * round(samples / 0.9) : 3], passages[-(len(passages) // 4) :], general
