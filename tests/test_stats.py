"""Statistics against values worked by hand, against brute force, and against simulated comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from bakeoff.errors import BakeoffError, UsageError
from bakeoff.stats import Effect, decide, holm, paired_effect, paired_effect_by_seed, smallest_visible, within

Floats = NDArray[np.float64]
BINS = 15


def ratio(totals: Floats) -> Floats:
    return totals[..., 0] / totals[..., 1]


def calibration_error(totals: Floats) -> Floats:
    """Sum over bins of |confidence sum - correct sum| / count, from [..., 3 BINS] with the three laid bin by bin."""
    bins = totals.reshape(*totals.shape[:-1], BINS, 3)
    return np.abs(bins[..., 1] - bins[..., 2]).sum(-1) / bins[..., 0].sum(-1)


def test_paired_t_by_hand() -> None:
    # Differences 1, 2, 6: mean 3, sum of squares about it 4 + 1 + 9 = 14, variance 14 / 2 = 7,
    # standard error sqrt(7 / 3) = 1.527525. The 97.5% quantile of t with 2 degrees of freedom: 4.302653.
    # For 2 degrees of freedom P(T > t) = (1 - t / sqrt(2 + t^2)) / 2; t^2 = 9 / (7 / 3) = 27 / 7, so
    # t / sqrt(2 + t^2) = sqrt(27 / 41) and p = 1 - sqrt(27 / 41) = 0.188497.
    found = paired_effect_by_seed(np.array([11.0, 12.0, 16.0]), np.array([10.0, 10.0, 10.0]))
    assert found.per_seed == (1.0, 2.0, 6.0)
    assert found.effect == pytest.approx(3)
    assert found.standard_error == pytest.approx(1.527525, abs=1e-6)
    assert found.degrees_of_freedom == pytest.approx(2)
    assert found.low == pytest.approx(3 - 4.302653 * 1.527525, abs=1e-5)
    assert found.high == pytest.approx(3 + 4.302653 * 1.527525, abs=1e-5)
    assert found.p == pytest.approx(0.188497, abs=1e-6)


def test_only_differences_between_pairs_count() -> None:
    rng = np.random.default_rng(0)
    difficulty = 100 * rng.normal(size=(3, 20, 1))
    difference = rng.normal(size=(3, 20, 1))
    alone = paired_effect(difference, np.zeros_like(difference), lambda totals: totals[..., 0] / 20)
    found = paired_effect(difficulty + difference, difficulty, lambda totals: totals[..., 0] / 20)
    assert found.low == pytest.approx(alone.low)
    assert found.high == pytest.approx(alone.high)


def test_crossed_variances_by_hand() -> None:
    # Differences of 3 seeds (rows) on 4 items:   3 0 1 0 | mean 1     The column means are 4, 2, 1, 1: mean 2.
    #                                             3 2 0 3 | mean 2     V_seed = 1 / 3
    #                                             6 4 2 0 | mean 3
    # V_item: variance of the column means (4 + 0 + 1 + 1) / 3 = 2, over 4 items: 0.5
    # V_cell: each seed's differences about the column means, -1 -2 0 -1 | -1 0 -1 2 | 2 2 1 -1, have means -1, 0, 1 and
    #   sums of squares about them 2, 6, 6, so variances 2/3, 2, 2; mean 14/9, over 4 items 7/18, over S - 1 = 2: 7/36
    # Variance: 1/3 + 1/2 - 7/36 = 23/36; w = (1/3) / (23/36) = 12/23; 1/df = 12/23 / 2 + 11/23 / 3 = 29/69
    difference = np.array([[3.0, 0, 1, 0], [3, 2, 0, 3], [6, 4, 2, 0]])[..., None]
    found = paired_effect(difference, np.zeros_like(difference), lambda totals: totals[..., 0] / 4, resamples=100_000)
    assert found.per_seed == (1.0, 2.0, 3.0)
    assert found.standard_error == pytest.approx(math.sqrt(23 / 36), rel=0.01)
    assert found.degrees_of_freedom == pytest.approx(69 / 29, rel=0.01)


def test_ratio_of_sums_weighs_items_by_their_tokens() -> None:
    # Seed 0: method (2 + 30) / (1 + 9) = 3.2, baseline (4 + 27) / 10 = 3.1. Seed 1: (1 + 36) / 10 = 3.7, (3 + 36) / 10
    # = 3.9. Effects 0.1 and -0.2, mean -0.05. The mean over items of the items' ratios would give -1.08333 instead.
    method = np.array([[[2.0, 1], [30, 9]], [[1, 1], [36, 9]]])
    baseline = np.array([[[4.0, 1], [27, 9]], [[3, 1], [36, 9]]])
    found = paired_effect(method, baseline, ratio)
    assert found.per_seed == pytest.approx((0.1, -0.2))
    assert found.effect == pytest.approx(-0.05)


def test_nonlinear_metric_agrees_with_brute_force() -> None:
    rng = np.random.default_rng(1)
    seeds, items, tokens = 3, 30, 40

    def measured(overconfidence: float) -> Floats:
        confidence = rng.uniform(0, 1, (seeds, items, tokens))
        correct = rng.uniform(size=confidence.shape) < confidence ** (1 + overconfidence)
        inside = np.eye(BINS)[np.minimum((confidence * BINS).astype(int), BINS - 1)]
        parts = np.stack([np.ones_like(confidence), confidence, correct], -1)
        return np.einsum("sitb,sitc->sibc", inside, parts).reshape(seeds, items, 3 * BINS)

    method, baseline = measured(0.8), measured(0.2)
    found = paired_effect(method, baseline, calibration_error, resamples=4000)

    drawn = np.empty((4000, seeds))
    for row in drawn:
        chosen = rng.integers(0, items, items)
        for s in range(seeds):
            sides = [sum((side[s, i] for i in chosen), np.zeros(3 * BINS)) for side in (method, baseline)]
            row[s] = calibration_error(sides[0]) - calibration_error(sides[1])
    v_seed = np.var(found.per_seed, ddof=1) / seeds
    v_item = drawn.mean(1).var() * items / (items - 1)
    v_cell = (drawn.var(0).mean() * items / (items - 1) - v_item) / (seeds - 1)
    # Both standard errors carry the bootstrap's own error, of about 1 / sqrt(2 * 4000) = 1% each.
    assert found.standard_error == pytest.approx(math.sqrt(v_seed + max(0, v_item - v_cell)), rel=0.05)
    assert found.effect == pytest.approx(
        np.mean([calibration_error(method[s].sum(0)) - calibration_error(baseline[s].sum(0)) for s in range(seeds)])
    )


def test_same_seed_same_interval() -> None:
    rng = np.random.default_rng(2)
    baseline = rng.uniform(1, 2, (3, 50, 2))
    method = baseline + rng.uniform(0, 1, (50, 2))
    assert paired_effect(method, baseline, ratio) == paired_effect(method, baseline, ratio)
    assert paired_effect(method, baseline, ratio).high != paired_effect(method, baseline, ratio, seed=1).high


def test_one_seed_makes_no_verdict() -> None:
    found = paired_effect(np.full((1, 9, 2), 2.0), np.ones((1, 9, 2)), lambda totals: totals[..., 0])
    assert found == Effect(9.0, None, None, None, None, None, (9.0,))
    assert decide(found, None, "higher") == "undecided"
    assert smallest_visible(found) == math.inf
    assert within(found, 0, 10) is None


@pytest.mark.parametrize("shape", [(3, 25, 2), (3, 200, 3), (5, 33, 3), (2, 1, 2)])
def test_identical_trials_have_no_effect(shape: tuple[int, int, int]) -> None:
    same = np.random.default_rng(3).uniform(1, 2, shape)
    found = paired_effect(same, same.copy(), ratio)
    assert (found.effect, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert smallest_visible(found) == 0
    assert within(found, -0.1, 0.1) == 0


def test_an_exact_effect_is_decided() -> None:
    found = paired_effect_by_seed(np.array([700, 700, 700]), np.array([500, 500, 500]))
    assert (found.effect, found.low, found.high, found.p) == (200, 200, 200, 0)
    assert decide(found, found.p, "lower") == "worse"
    assert within(found, -100, 100) == 1


def test_one_item_leaves_the_seeds() -> None:
    rng = np.random.default_rng(4)
    method, baseline = rng.uniform(1, 2, (2, 4, 1, 2))
    found = paired_effect(method, baseline, ratio)
    expected = stats.ttest_rel(ratio(method[:, 0]), ratio(baseline[:, 0]))
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_seeds_that_agree_leave_the_items() -> None:
    difference = np.repeat(np.random.default_rng(5).normal(size=(1, 60, 1)), 3, axis=0)
    mean = lambda totals: totals[..., 0] / 60  # noqa: E731
    found = paired_effect(difference, np.zeros_like(difference), mean, resamples=20_000)
    assert found.degrees_of_freedom == pytest.approx(59)
    assert found.standard_error == pytest.approx(stats.sem(difference[0, :, 0]), rel=0.02)


@pytest.mark.parametrize(
    ("method", "baseline", "error", "said"),
    [
        (np.ones((3, 5, 2)), np.ones((2, 5, 2)), UsageError, "3 seeds and the baseline 2"),
        (np.ones((3, 5, 2)), np.ones((3, 4, 2)), UsageError, "5 items and the baseline 4"),
        (np.ones((3, 5, 2)), np.ones((3, 5, 1)), UsageError, "2 components and the baseline 1"),
        (np.ones((3, 5)), np.ones((3, 5)), UsageError, r"shape \(3, 5\)"),
        (np.ones((3, 0, 2)), np.ones((3, 0, 2)), UsageError, r"shape \(3, 0, 2\)"),
        (np.zeros((3, 5, 2)), np.ones((3, 5, 2)), BakeoffError, "metric of the method is infinite or not a number"),
        (np.ones((3, 5, 2)), np.zeros((3, 5, 2)), BakeoffError, "metric of the baseline is infinite or not a number"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_cannot_be_compared_is_refused(
    method: Floats, baseline: Floats, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        paired_effect(method, baseline, ratio)


def test_not_a_number_is_named() -> None:
    broken = np.ones((3, 5, 2))
    broken[2, 4, 0] = np.nan
    with pytest.raises(BakeoffError, match=r"the method measured nan \(seed 2, item 4, component 0"):
        paired_effect(broken, np.ones((3, 5, 2)), ratio)
    with pytest.raises(BakeoffError, match=r"the baseline measured inf \(seed 1"):
        paired_effect_by_seed(np.ones(2), np.array([1, np.inf]))


def test_reduce_must_drop_the_last_axis_only() -> None:
    with pytest.raises(UsageError, match="drop the last axis only"):
        paired_effect(np.ones((3, 5, 2)), np.ones((3, 5, 2)), np.sum)


def test_holm_by_hand() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04; the last is raised to 0.06 before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, None, 0.04, 0.03, None, 0.005]) == [0.03, None, 0.06, 0.06, None, 0.02]
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([0.02]) == [0.02]
    assert holm([None, None]) == [None, None]
    assert holm([]) == []


def test_decide() -> None:
    up = Effect(2.0, 1.0, 3.0, 0.01, 0.5, 10.0, (2.0, 2.0))
    assert decide(up, 0.01, "higher") == "better"
    assert decide(up, 0.01, "lower") == "worse"
    assert decide(up, 0.06, "higher") == "undecided"
    assert decide(up, 0.06, "higher", alpha=0.1) == "better"
    assert decide(up, None, "higher") == "undecided"


def test_the_interval_and_the_p_value_decide_alike() -> None:
    rng = np.random.default_rng(6)
    decided = 0
    for seed in range(200):
        method, baseline = rng.normal([[[0.5]], [[0.0]]], 1, (2, 4, 12))[..., None]
        found = paired_effect(method, baseline, lambda totals: totals[..., 0] / 12, resamples=100, seed=seed)
        assert found.low is not None
        assert found.high is not None
        assert (found.low > 0 or found.high < 0) == (decide(found, found.p, "higher") != "undecided")
        decided += decide(found, found.p, "higher") == "better"
    assert 20 < decided < 180


def test_within_by_hand() -> None:
    # 2 degrees of freedom: P(T > t) = (1 - t / sqrt(2 + t^2)) / 2. From effect 1 to the nearer margin 4 it is 3
    # standard errors of 1: (1 - 3 / sqrt(11)) / 2 = 0.047733. Beyond the margin, at 5: P(T > -1) = (1 + 1/sqrt(3)) / 2.
    assert within(Effect(1.0, -3.3, 5.3, 0.42, 1.0, 2.0, (1.0,) * 3), -4, 4) == pytest.approx(0.047733, abs=1e-6)
    assert within(Effect(5.0, 0.7, 9.3, 0.04, 1.0, 2.0, (5.0,) * 3), -4, 4) == pytest.approx((1 + 3**-0.5) / 2)
    assert within(Effect(1.0, -3.3, 5.3, 0.42, 1.0, 2.0, (1.0,) * 3), -math.inf, 4) == pytest.approx(0.047733, abs=1e-6)
    with pytest.raises(UsageError, match="margin"):
        within(Effect(1.0, -3.3, 5.3, 0.42, 1.0, 2.0, (1.0,) * 3), 2, -2)


def test_within_errs_at_its_level_on_the_margin() -> None:
    rng = np.random.default_rng(7)
    found = [paired_effect_by_seed(rng.normal(1, 0.3, 5), np.zeros(5)) for _ in range(2000)]
    p_values = [within(effect, -1, 1) for effect in found]
    # The true effect lies on the margin, so 5% are declared inside; 3 standard deviations of that share are 1.5%.
    assert np.mean([p is not None and p < 0.05 for p in p_values]) == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize(("seeds", "comparisons"), [(3, 1), (3, 5), (10, 1), (10, 5)])
def test_the_smallest_visible_effect_is_seen_four_times_in_five(seeds: int, comparisons: int) -> None:
    # Differences with standard deviation 1, so the true standard error of their mean is 1 / sqrt(seeds).
    truth = Effect(0.0, -1.0, 1.0, 1.0, seeds**-0.5, seeds - 1.0, (0.0,) * seeds)
    visible = smallest_visible(truth, comparisons=comparisons)
    rng = np.random.default_rng(8)
    p_values = [paired_effect_by_seed(rng.normal(visible, 1, seeds), np.zeros(seeds)).p or 0.0 for _ in range(2000)]
    # Three standard deviations of a share of 0.8 in 2,000 are 2.7%.
    assert np.mean(np.array(p_values) < 0.05 / comparisons) == pytest.approx(0.8, abs=0.027)


def test_holm_keeps_the_family_error() -> None:
    rng = np.random.default_rng(9)
    wrong = 0
    for _ in range(1000):
        baseline = rng.normal(size=4)
        p_values = [paired_effect_by_seed(rng.normal(size=4), baseline).p for _ in range(5)]
        assert min(p for p in holm(p_values) if p is not None) >= min(p for p in p_values if p is not None)
        wrong += any(p is not None and p < 0.05 for p in holm(p_values))
    # At most 5% of families, and 2 standard deviations of that share, 1.4%.
    assert wrong / 1000 <= 0.064


Interval = Callable[[Floats, Floats, int], tuple[float | None, float | None]]


def ours(method: Floats, baseline: Floats, seed: int) -> tuple[float | None, float | None]:
    found = paired_effect(method, baseline, ratio, resamples=200, seed=seed)
    return found.low, found.high


def percentile_over_seeds(method: Floats, baseline: Floats, seed: int) -> tuple[float | None, float | None]:
    per_seed = ratio(method.sum(1)) - ratio(baseline.sum(1))
    drawn = np.random.default_rng(seed).choice(per_seed, (200, len(per_seed))).mean(1)
    return float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


def items_of_one_seed(method: Floats, baseline: Floats, seed: int) -> tuple[float | None, float | None]:
    return ours(np.repeat(method[:1], 2, axis=0), np.repeat(baseline[:1], 2, axis=0), seed)


def coverage(
    interval: Interval, seeds: int, items: int, parts: tuple[float, float, float], weighted: bool, count: int = 1000
) -> float:
    """Share of simulated comparisons whose interval holds the true effect 1.

    An item of n tokens has loss n (item's difficulty + seed's level) for the baseline, and n (1 + a_s + b_i + e_si)
    more for the method; parts are what a, b and e each add to the variance of the mean effect.
    """
    rng = np.random.default_rng(10)
    scale = np.sqrt(np.array(parts) * (seeds, items, seeds * items))
    held = 0
    for k in range(count):
        tokens = np.broadcast_to(rng.integers(5, 60, items) if weighted else np.ones(items), (seeds, items))
        baseline = 3 + 5 * rng.normal(size=items) + 2 * rng.normal(size=(seeds, 1))
        difference = 1 + scale[0] * rng.normal(size=(seeds, 1)) + scale[1] * rng.normal(size=items)
        difference = difference + scale[2] * rng.normal(size=(seeds, items))
        low, high = interval(
            np.stack([tokens * (baseline + difference), tokens], -1), np.stack([tokens * baseline, tokens], -1), k
        )
        assert low is not None
        assert high is not None
        held += low <= 1 <= high
    return held / count


SEEDS, ITEMS, MIXED, NOISE = (1, 0.05, 0.05), (0.02, 1, 0.05), (1, 1, 0.3), (0, 0, 1)


@pytest.mark.parametrize("weighted", [False, True], ids=["mean", "ratio"])
@pytest.mark.parametrize(
    ("seeds", "items", "parts"),
    [(3, 40, SEEDS), (3, 40, ITEMS), (3, 40, MIXED), (3, 40, NOISE), (5, 40, SEEDS), (5, 200, MIXED), (5, 200, NOISE)],
)
def test_intervals_cover(seeds: int, items: int, parts: tuple[float, float, float], weighted: bool) -> None:
    assert 0.93 <= coverage(ours, seeds, items, parts, weighted) <= 0.97


@pytest.mark.parametrize("broken", [percentile_over_seeds, items_of_one_seed])
def test_the_check_of_coverage_catches_a_broken_interval(broken: Interval) -> None:
    assert coverage(broken, 3, 40, SEEDS, weighted=False, count=200) < 0.85
