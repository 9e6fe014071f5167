"""Confidence intervals of a loss that was measured on the same samples as its reference.

Pure; it knows counts, weights and numbers, not metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Two-sided 95 %: the standard normal's 97.5 % point.
_Z = 1.959963984540054
_UPPER = 0.975
_DRAWS = 1000
# Weights of so many draws are held at once: 8 MB for 10,000 samples.
_CHUNK = 100
_HALVINGS = 60

JACKKNIFE_GROUPS = 20
# Student's t with 19 degrees of freedom, 97.5 %.
_T_19 = 2.093024054408263


def paired_upper(lost: int, gained: int, samples: int) -> float:
    """Upper end of the 95 % interval of (lost - gained) / samples, from counts of samples that changed sides.

    Tango's score interval for the difference of paired proportions (Statistics in Medicine 17:891, 1998). Unlike the
    Wald interval it does not collapse where nothing was lost: the end is then z² / (samples + z²).
    """
    low, high = (lost - gained) / samples, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _score(lost, gained, samples, middle) > -_Z else (low, middle)
    return high


def _score(lost: int, gained: int, samples: int, loss: float) -> float:
    """Tango's statistic for one assumed loss; `shared` is the likeliest share of gained samples under it."""
    middle = -lost - gained + (2 * samples - lost + gained) * loss
    shared = (np.sqrt(middle**2 + 8 * samples * gained * loss * (1 - loss)) - middle) / (4 * samples)
    variance = samples * (2 * shared + loss * (1 - loss))
    distance = lost - gained - samples * loss
    return float(distance / np.sqrt(variance)) if variance > 0 else -np.inf * (distance < 0)


def bootstrap_upper(loss: Callable[[Floats], Floats], samples: int) -> float:
    """Upper end of the 95 % percentile bootstrap interval (Efron, 1979), seeded.

    `loss` takes weights [D, N], how often each sample was drawn, and gives the loss of each of the D draws; a draw on
    which the metric is not defined (NaN) does not count.
    """
    generator = np.random.default_rng(0)
    share = np.full(samples, 1 / samples)
    drawn = [
        loss(generator.multinomial(samples, share, size=_CHUNK).astype(np.float64)) for _ in range(_DRAWS // _CHUNK)
    ]
    found = np.concatenate(drawn)
    defined = found[np.isfinite(found)]
    return float(np.quantile(defined, _UPPER)) if len(defined) else float("nan")


def jackknife_groups(samples: int) -> list[NDArray[np.int64]]:
    """The samples that stay when each of 20 seeded random groups is left out; empty below 20 samples."""
    if samples < JACKKNIFE_GROUPS:
        return []
    groups = np.array_split(np.random.default_rng(0).permutation(samples), JACKKNIFE_GROUPS)
    return [np.setdiff1d(np.arange(samples), group) for group in groups]


def jackknife_upper(whole: float, parts: Sequence[float]) -> float:
    """Upper end of the 95 % interval from the loss without each group; for metrics too slow for the bootstrap.

    The delete-a-group jackknife (Kott, Journal of Official Statistics 17:521, 2001), with Student's t.
    """
    apart = np.asarray(parts, np.float64) - np.mean(parts)
    error = np.sqrt((len(parts) - 1) / len(parts) * np.sum(apart**2))
    return float(whole + _T_19 * error)
