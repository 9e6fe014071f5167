"""The metrics: a table of names, and functions over a model's outputs and the labels.

Pure; nothing here knows about variants: `metrics` compares two models with them. A person's own is `hook`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.score.interval import Floats

Array = NDArray[np.generic]

# Labels whose variance is below this do not vary: it is rounding.
_STILL = 1e-12


@dataclass(frozen=True, slots=True)
class Counted:
    """A share of samples: `hits(outputs [N, …], labels [N]) → bool [N]`."""

    hits: Callable[[Array, Array], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class Weighted:
    """Any other number: `values(outputs [N, …], labels [N, …], weights [D, N]) → [D]`, NaN where it is not defined.

    The weights say how often each sample counts, so that one call does a whole bootstrap.
    """

    values: Callable[[Array, Array, Floats], Floats]
    higher_is_better: bool


def rows(array: Array) -> Floats:
    """[N, values of a sample]; what is not finite is 0, and a fault besides."""
    flat = array.reshape(len(array), -1).astype(np.float64)
    return np.nan_to_num(flat, copy=False, nan=0.0, posinf=0.0, neginf=0.0)


def top1(outputs: Array, labels: Array) -> NDArray[np.bool_]:
    """Whether the largest output is the label's; a NaN row counts as wrong."""
    finite = np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1)
    return np.asarray((rows(outputs).argmax(axis=1) == labels) & finite)


def top5(outputs: Array, labels: Array) -> NDArray[np.bool_]:
    """Whether the label's output is among the five largest; among equals the first counts."""
    finite = np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1)
    best = np.argsort(-rows(outputs), axis=1, kind="stable")[:, :5]
    return np.asarray((best == labels[:, np.newaxis]).any(axis=1) & finite)


def rmse(outputs: Array, labels: Array, weights: Floats) -> Floats:
    """Root of the mean squared error over all values."""
    squares = np.mean((rows(outputs) - rows(labels)) ** 2, axis=1)
    return np.asarray(np.sqrt(_mean(squares, weights)))


def mae(outputs: Array, labels: Array, weights: Floats) -> Floats:
    """Mean absolute error over all values."""
    return _mean(np.mean(np.abs(rows(outputs) - rows(labels)), axis=1), weights)


def r2(outputs: Array, labels: Array, weights: Floats) -> Floats:
    """Share of the labels' variance that is explained, all targets pooled; NaN where they do not vary."""
    found, truth = rows(outputs), rows(labels)
    errors = np.sum((found - truth) ** 2, axis=1)
    # Sums of squares around a far mean would cancel.
    truth = truth - truth.mean(axis=0)
    counts = weights.sum(axis=1)
    means = weights @ truth / counts[:, np.newaxis]
    spread = weights @ np.sum(truth**2, axis=1) - counts * np.sum(means**2, axis=1)
    return _ratio(spread - weights @ errors, np.where(spread > _STILL * counts, spread, 0))


def auc(outputs: Array, labels: Array, weights: Floats) -> Floats:
    """Area under the ROC curve; more than two classes: the mean of each class against the rest that is defined.

    With one output or two the larger label is the positive one, and the last output its score.
    """
    scores = rows(outputs)
    if scores.shape[1] <= 2:
        return _binary_auc(scores[:, -1], labels == labels.max(), weights)
    curves = np.stack([_binary_auc(scores[:, kind], labels == kind, weights) for kind in np.unique(labels)])
    return _ratio(np.nansum(curves, axis=0), np.sum(np.isfinite(curves), axis=0).astype(np.float64))


def _binary_auc(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """Share of (positive, negative) pairs in the right order, ties half (Mann and Whitney, 1947)."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    ordered, hits = weights[:, order], positive[order]
    positives = np.add.reduceat(ordered * hits, starts, axis=1)
    negatives = np.add.reduceat(ordered * ~hits, starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives
    won = np.sum(positives * (below + negatives / 2), axis=1)
    return _ratio(won, positives.sum(axis=1) * negatives.sum(axis=1))


def _mean(values: Floats, weights: Floats) -> Floats:
    return np.asarray(weights @ values / weights.sum(axis=1))


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.asarray(np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0))


METRICS: Mapping[str, Counted | Weighted] = MappingProxyType(
    {
        "top1": Counted(top1),
        "top5": Counted(top5),
        "auc": Weighted(auc, higher_is_better=True),
        "rmse": Weighted(rmse, higher_is_better=False),
        "mae": Weighted(mae, higher_is_better=False),
        "r2": Weighted(r2, higher_is_better=True),
    }
)
"""Name → metric over one output and the labels."""

GUESSES: Mapping[str, Callable[[int], float]] = MappingProxyType(
    {
        "top1": lambda classes: 1 / classes,
        "top5": lambda classes: min(5 / classes, 1.0),
        "auc": lambda _classes: 0.5,
    }
)
"""Name → what guessing among so many classes gives; other metrics have no such number."""
