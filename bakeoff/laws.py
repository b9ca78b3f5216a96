"""Scaling laws: how loss falls with model size, data and ensemble members, how error follows loss, and how sure that is.

Every law here is linear in all its coefficients but the exponents. For given exponents the coefficients follow from
least squares with bounds, so that only the exponents are searched: on a grid, then by Gauss-Newton from its best points.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bakeoff.errors import UsageError

# scipy.optimize takes a third of a second to import, so the functions that need it import it themselves.

Floats = NDArray[np.float64]
Law = Callable[..., Floats]

FLOPS = 6.0
"""Floating-point operations of training for each parameter and token."""


def sizes(compute: ArrayLike, multiplier: ArrayLike) -> tuple[Floats, Floats]:
    """Parameters N and tokens D of a budget of `compute` C = 6 N D (FLOPs) at D / N = `multiplier` M.

    N = sqrt(C / (6 M)),  D = sqrt(C M / 6)
    """
    compute, multiplier = np.asarray(compute, float), np.asarray(multiplier, float)
    return np.sqrt(compute / (FLOPS * multiplier)), np.sqrt(compute * multiplier / FLOPS)


@dataclass(frozen=True)
class LossLaw:
    """L = irreducible + (a M^eta + b M^-eta) C^-eta, with C = 6 N D and M = D / N; called with (N, D).

    `at_bound` names the coefficients that the fit would have taken beyond their range, [0, inf), and left at its end.

    Source: Gadre et al. 2024, arXiv:2403.08540, section 2: "Chinchilla" with one exponent alpha = beta = 2 eta.
    """

    irreducible: float
    a: float
    b: float
    eta: float
    at_bound: tuple[str, ...] = ()

    def __call__(self, parameters: ArrayLike, tokens: ArrayLike) -> Floats:
        parameters, tokens = np.asarray(parameters, float), np.asarray(tokens, float)
        shares = self.a * (FLOPS * parameters**2) ** -self.eta + self.b * (FLOPS * tokens**2) ** -self.eta
        return np.asarray(self.irreducible + shares)

    @property
    def best_multiplier(self) -> float:
        """The M of the lowest loss at any C: (b / a)^(1 / (2 eta)). Far from the M that was fitted it means little."""
        return (self.b / self.a) ** (1 / (2 * self.eta)) if self.a and self.eta else math.inf


@dataclass(frozen=True)
class FreeExponents:
    """L = irreducible + a N^-alpha + b D^-beta; called with (N, D).

    Source: Hoffmann et al. 2022, arXiv:2203.15556, section 3.3.
    """

    irreducible: float
    a: float
    b: float
    alpha: float
    beta: float
    at_bound: tuple[str, ...] = ()

    def __call__(self, parameters: ArrayLike, tokens: ArrayLike) -> Floats:
        parameters, tokens = np.asarray(parameters, float), np.asarray(tokens, float)
        return np.asarray(self.irreducible + self.a * parameters**-self.alpha + self.b * tokens**-self.beta)


@dataclass(frozen=True)
class PowerLaw:
    """y = asymptote + scale / x^exponent, for x the parameters, the tokens, the compute or the members of an ensemble."""

    asymptote: float
    scale: float
    exponent: float
    at_bound: tuple[str, ...] = ()

    def __call__(self, x: ArrayLike) -> Floats:
        return np.asarray(self.asymptote + self.scale * np.asarray(x, float) ** -self.exponent)

    def inverse(self, y: ArrayLike) -> Floats:
        """The x at which the law reaches y; infinite at the asymptote and below."""
        above = np.maximum(np.asarray(y, float) - self.asymptote, 0.0)
        with np.errstate(divide="ignore"):
            return np.asarray((self.scale / above) ** (1 / self.exponent))


@dataclass(frozen=True)
class ErrorLaw:
    """Error = chance - k exp(-gamma L) for a loss L in nats; `chance` is at most 1.

    Source: Gadre et al. 2024, arXiv:2403.08540, section 2.
    """

    chance: float
    k: float
    gamma: float
    at_bound: tuple[str, ...] = ()

    def __call__(self, loss: ArrayLike) -> Floats:
        return np.asarray(self.chance - self.k * np.exp(-self.gamma * np.asarray(loss, float)))


def fit_loss(parameters: ArrayLike, tokens: ArrayLike, loss: ArrayLike) -> LossLaw:
    """The loss law of least squared residuals, eta in [0.005, 2].

    Args: parameters N, with embeddings; tokens D; loss in nats: each [points], of at least 4 points at 2 or more M.
    Raises: UsageError for points that are too few, not positive and finite, or that leave a coefficient free.
    """
    n, d, y = _columns(("parameters", parameters), ("tokens", tokens), ("loss", loss))
    terms = [(0, math.log(FLOPS) + 2 * np.log(n)), (0, math.log(FLOPS) + 2 * np.log(d))]
    (eta,), (irreducible, a, b), at_bound = _fit(
        "loss law", y, terms, (0.005, 2.0), ("eta", "irreducible", "a", "b"),
        "measure at several sizes, and at a second number of tokens per parameter",
    )  # fmt: skip
    return LossLaw(irreducible, a, b, eta, at_bound)


def fit_free_exponents(parameters: ArrayLike, tokens: ArrayLike, loss: ArrayLike) -> FreeExponents:
    """As `fit_loss` with an exponent each for N and D, in [0.01, 4]: at least 5 points."""
    n, d, y = _columns(("parameters", parameters), ("tokens", tokens), ("loss", loss))
    (alpha, beta), (irreducible, a, b), at_bound = _fit(
        "loss law with free exponents", y, [(0, np.log(n)), (1, np.log(d))], (0.01, 4.0),
        ("alpha", "beta", "irreducible", "a", "b"), "vary parameters and tokens apart from each other",
    )  # fmt: skip
    return FreeExponents(irreducible, a, b, alpha, beta, at_bound)


def fit_power(x: ArrayLike, y: ArrayLike) -> PowerLaw:
    """The power law of least squared residuals, for at least 3 different x; exponent in [0.01, 4], the rest >= 0."""
    of_x, of_y = _columns(("x", x), ("y", y))
    (exponent,), (asymptote, scale), at_bound = _fit(
        "power law", of_y, [(0, np.log(of_x))], (0.01, 4.0), ("exponent", "asymptote", "scale"),
        "measure at 3 or more different x",
    )  # fmt: skip
    return PowerLaw(asymptote, scale, exponent, at_bound)


def fit_error(loss: ArrayLike, error: ArrayLike) -> ErrorLaw:
    """The error law of least squared residuals, for at least 3 different losses; gamma in [0.01, 20] per nat, k >= 0."""
    of_loss, of_error = _columns(("loss", loss), ("error", error))
    (gamma,), (chance, k), at_bound = _fit(
        "error law", of_error, [(0, of_loss)], (0.01, 20.0), ("gamma", "chance", "k"),
        "measure at 3 or more different losses", rising=True,
    )  # fmt: skip
    return ErrorLaw(chance, k, gamma, at_bound)


def data_efficiency(law: PowerLaw, data: float, loss: ArrayLike) -> Floats:
    """How many times `data` the recipe whose loss over data follows `law` needs to reach `loss`; infinite if it never does.

    Source: Kim et al. 2025, arXiv:2509.14786.
    """
    return np.asarray(law.inverse(loss) / data)


@dataclass(frozen=True)
class Prediction:
    """What a fitted law says at one place, with a percentile interval over seeds.

    `leave_one_out`: what it says with the i-th point left out of the fit, None where the others leave the law free.
    """

    value: float
    low: float
    high: float
    leave_one_out: tuple[float | None, ...]


def predict(
    fit: Callable[..., Law],
    design: Sequence[ArrayLike],
    values: ArrayLike,
    at: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> Prediction:
    """What the law that fits the seeds' mean values says at `at`.

    Each resample draws seeds with replacement, for all points the same, and fits anew. With few seeds the interval is too
    narrow (the variance is (S - 1)/S of what it should be), and it knows nothing of a law that does not hold.

    Args:
        fit: of this module, a function of (*design, values).
        design: what the law depends on, each [points].
        values: [seeds, points].
        at: one value for each of `design`.
    Raises: as `fit`.
    """
    columns, measured = [np.asarray(column, float) for column in design], np.asarray(values, float)
    seeds, points = measured.shape
    every = np.arange(points)

    def predicted(rows: Sequence[int], kept: NDArray[np.int64]) -> float:
        mean = measured[list(rows)].mean(axis=0)
        return float(fit(*(column[kept] for column in columns), mean[kept])(*at))

    def without(point: int) -> float | None:
        try:
            return predicted(range(seeds), np.delete(every, point))
        except UsageError:
            return None

    value = predicted(range(seeds), every)
    draws = np.sort(np.random.default_rng(seed).integers(seeds, size=(resamples, seeds)), axis=1)
    different, place = np.unique(draws, axis=0, return_inverse=True)
    found = np.array([predicted(rows, every) for rows in different.tolist()])[place.ravel()]
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Prediction(value, float(low), float(high), tuple(without(point) for point in range(points)))


def _columns(*named: tuple[str, ArrayLike]) -> list[Floats]:
    """The columns as float64 [points]; UsageError unless they are of one length, finite and above 0, the last from 0 on."""
    columns = [np.asarray(column, float) for _, column in named]
    for (name, _), column in zip(named, columns, strict=True):
        if column.ndim != 1 or column.shape != columns[0].shape:
            raise UsageError(f"The {name} have shape {column.shape}: give one value for each point of {named[0][0]}.")
        allowed = (column > 0) | ((column == 0) & (column is columns[-1]))
        if (wrong := column[~(allowed & np.isfinite(column))]).size:
            raise UsageError(f"The {name} hold {wrong[0]:g}: give finite values above 0.")
    return columns


def _fit(
    law: str,
    y: Floats,
    terms: Sequence[tuple[int, Floats]],
    bounds: tuple[float, float],
    names: Sequence[str],
    advice: str,
    rising: bool = False,
) -> tuple[list[float], list[float], tuple[str, ...]]:
    """Exponents e, coefficients c >= 0 and the names of those at a bound, for y = c[0] + sum_i c[i + 1] exp(-e[j_i] s_i).

    `terms` are the pairs (j_i, s_i); `rising` subtracts the sum and keeps c[0] to at most 1; `names` are the exponents',
    then the coefficients'.
    """
    from scipy.optimize import least_squares

    free = len(names) - len(terms) - 1
    if len(y) < len(names):
        raise UsageError(f"The {law} has {len(names)} parameters, and {len(y)} points cannot tell them: {advice}.")
    shifts = [slope.min() for _, slope in terms]
    slopes = [slope - shift for (_, slope), shift in zip(terms, shifts, strict=True)]
    sign, most = (-1.0, 1.0) if rising else (1.0, math.inf)

    def columns(exponents: Floats) -> Floats:
        of_terms = [sign * np.exp(-exponents[j] * slope) for (j, _), slope in zip(terms, slopes, strict=True)]
        return np.stack([np.ones_like(y), *of_terms], axis=1)

    def residuals(logarithms: Floats) -> Floats:
        matrix = columns(np.exp(logarithms))
        return np.asarray(matrix @ _bounded(matrix, y, most) - y)

    low, high = np.log(bounds)
    grid = np.linspace(low, high, 60 if free == 1 else 40)
    starts = np.array(list(itertools.product(grid, repeat=free)))
    squares = [float(np.sum(residuals(start) ** 2)) for start in starts]
    fits = [
        least_squares(
            residuals, start, jac="3-point", bounds=(low, high), x_scale=0.1, xtol=1e-15, ftol=1e-15, gtol=1e-15
        )
        for start in starts[np.argsort(squares)[:3]]
    ]
    best = min(fits, key=lambda result: float(result.cost))
    exponents = np.exp(best.x)
    matrix = columns(exponents)
    derivatives = [
        sum(slope * matrix[:, i + 1] for i, ((j, _), slope) in enumerate(zip(terms, slopes, strict=True)) if j == which)
        for which in range(free)
    ]
    jacobian = np.concatenate([matrix, np.stack(derivatives, axis=1)], axis=1)
    norms = np.linalg.norm(jacobian, axis=0)
    singular = np.linalg.svd(jacobian / np.where(norms > 0, norms, 1), compute_uv=False)
    if not singular[-1] > 1e-9 * singular[0]:
        raise UsageError(f"These {len(y)} points do not tell the {len(names)} parameters of the {law} apart: {advice}.")
    scaled = _bounded(matrix, y, most)
    coefficients = [float(scaled[0])]
    for (j, _), value, shift in zip(terms, scaled[1:], shifts, strict=True):
        coefficients.append(float(value * np.exp(exponents[j] * shift)))
    ends = [np.isclose(exponents, bound, rtol=1e-3) for bound in bounds]
    limited = [*(ends[0] | ends[1]), scaled[0] in (0.0, most), *(scaled[1:] == 0.0)]
    return exponents.tolist(), coefficients, tuple(name for name, hit in zip(names, limited, strict=True) if hit)


def _bounded(matrix: Floats, y: Floats, most: float) -> Floats:
    """Least squares with coefficients at least 0, the first at most `most`."""
    from scipy.optimize import lsq_linear

    found = np.asarray(np.linalg.lstsq(matrix, y, rcond=None)[0], np.float64)
    if (found >= 0).all() and found[0] <= most:
        return found
    upper = np.full(matrix.shape[1], math.inf)
    upper[0] = most
    return np.asarray(lsq_linear(matrix, y, (0.0, upper), method="bvls").x)
