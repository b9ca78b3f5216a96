"""How training at high learning rates goes wrong, in numbers, and the penalty that holds the output logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from bakeoff.training.batches import Batch
from bakeoff.training.objectives import Objective, logits_of, predicted


def z_loss(coefficient: float) -> Objective:
    """Cross-entropy (nats) with a penalty on the logarithm of the softmax's denominator, both means over labelled tokens.

        loss = mean(log Z - y_label) + coefficient mean((log Z)^2),   Z = sum_i exp(y_i)

    Adding a constant to all logits leaves the first term as it is; the second is least where log Z is 0.

    Source: Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, section 5, with coefficient 1e-4.
    """

    def objective(model: nn.Module, batch: Batch, step: int) -> Tensor:
        logits, labels = predicted(logits_of(model, batch.input_ids), batch.labels)
        return penalized(logits, labels, coefficient)

    return objective


def penalized(logits: Tensor, labels: Tensor, coefficient: float) -> Tensor:
    """The loss of `z_loss` on logits [tokens, vocabulary] and labels [tokens], in float32."""
    logits = logits.float()
    log_z = logits.logsumexp(-1)
    of_label = logits.gather(1, labels[:, None])[:, 0]
    return (log_z - of_label).mean() + coefficient * log_z.square().mean()


def sensitivity(losses: Sequence[float], initial: float) -> float:
    """Learning-rate sensitivity: how far the loss lies above the best of a sweep, on average over its rates (nats).

        mean over the rates of (min(loss(rate), initial) - min over the rates of loss)

    Args:
        losses: final losses at rates that are equally spaced in their logarithm; infinite or NaN where a run diverged.
        initial: the loss before training, which a diverged run counts as.

    Source: Wortsman et al. 2023, arXiv:2309.14322, section 2.2; the mean over a grid stands for their expectation.
    """
    values = np.asarray(losses, float)
    capped = np.minimum(np.where(np.isfinite(values), values, initial), initial)
    return float((capped - capped.min()).mean())


def breaking_rate(rates: Sequence[float], losses: Sequence[float], margin: float) -> float:
    """The learning rate, above the best, at which the loss first lies `margin` nats above its least.

    Between two rates of the sweep the loss is taken as linear in the rate's logarithm; where the loss never rises that far,
    the result is the sweep's last rate. Rates ascend; losses are finite.
    """
    best = int(np.argmin(losses))
    limit = losses[best] + margin
    for low in range(best, len(rates) - 1):
        if losses[low + 1] >= limit:
            part = (limit - losses[low]) / (losses[low + 1] - losses[low])
            return float(rates[low] * (rates[low + 1] / rates[low]) ** part)
    return float(rates[-1])


def extrapolate(
    sizes: Sequence[float], rates: Sequence[float], values: Sequence[float], size: float, at: Sequence[float]
) -> list[float]:
    """A positive quantity at a size beyond those measured, from a least-squares fit in logarithms.

        log value = a + b log size + c log rate + d (log rate)^2 [+ e (log size)^2 + f log size log rate]

    with the bracket where at least three sizes were measured, and d where at least three rates were.

    Args:
        sizes, rates, values: of each measurement, at two or more sizes and rates, all above 0; of one length.
        size, at: where to predict: one size and any number of learning rates.

    Source: Wortsman et al. 2023, arXiv:2309.14322, section 3.3 (a quadratic in both; from memory of the paper).
    """
    several, curved = len(set(sizes)) > 2, len(set(rates)) > 2

    def features(n: Sequence[float], r: Sequence[float]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        log_n, log_r = np.log(np.asarray(n, float)), np.log(np.asarray(r, float))
        columns = [np.ones_like(log_n), log_n, log_r]
        columns += [log_r**2] if curved else []
        columns += [log_n**2, log_n * log_r] if several else []
        return np.stack(columns, axis=1)

    fitted = np.linalg.lstsq(features(sizes, rates), np.log(np.asarray(values, float)), rcond=None)[0]
    return [float(value) for value in np.exp(features([size] * len(at), at) @ fitted)]
