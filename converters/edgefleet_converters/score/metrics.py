"""What the scores mean: the metric, agreement with the fp32 source, noise per slice, and the golden tolerances.

Compares outputs that `infer` has fetched; whether a variant may ship is `gate`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgefleet.errors import InputError
from edgefleet.package.manifest import Score
from edgefleet_converters.score.accuracy import GUESSES, METRICS, Counted, Weighted, rows
from edgefleet_converters.score.arrays import Arrays
from edgefleet_converters.score.faults import find_faults, largest_difference, tolerance
from edgefleet_converters.score.hook import Compared, compare_hook
from edgefleet_converters.score.interval import Floats, bootstrap_upper, paired_upper
from edgefleet_converters.score.sqnr import CEILING_DB, OutputNoise, measure_noise
from edgefleet_converters.score.task import AGREEMENT, AUTO, SQNR, Task, choose_task, classes_output
from edgefleet_device_profiles.profile import Precision


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What one model file gave: every output [N, *output shape], and its repetitions [passes - 1, R, *output shape]."""

    outputs: Arrays
    repeated: Arrays
    runtime_version: str
    peak_rss_bytes: int


@dataclass(frozen=True, slots=True)
class Assessment:
    """A variant's score and what the gate and the report need besides.

    `faults` are findings that no score can make good: not finite, standing still, not repeatable.
    """

    score: Score
    tolerances: Mapping[str, float]
    """Output name → how far a device's numbers may be from the golden ones."""
    faults: tuple[str, ...]
    noise: tuple[OutputNoise, ...] = ()
    """Every output against the source's."""
    metric_output: str | None = None
    """The output that the metric is about; None: all of them."""
    guess: float | None = None
    """What guessing gives: a source that is no better has nothing to lose. None: nobody knows."""


def assess(
    variant: Measured,
    source: Measured,
    labels: NDArray[np.generic] | None,
    *,
    precision: Precision = Precision.INT8,
    metric: str = AUTO,
) -> Assessment:
    """Compare a variant with the fp32 source on the same samples; labels are [N, …], `metric` as in `choose_task`.

    Raises InputError for a metric that does not fit, UnsupportedError when a function of the person's own fails.
    """
    task = choose_task(metric, source.outputs, labels)
    noise = tuple(measure_noise(name, variant.outputs[name], array) for name, array in source.outputs.items())
    compared = _compare(task, variant.outputs, source.outputs, labels, noise)
    tolerances = {name: tolerance(array, precision) for name, array in variant.outputs.items()}
    apart = [largest_difference(variant.outputs[name], array) for name, array in source.outputs.items()]
    classes = classes_output(source.outputs)
    score = Score(
        metric=task.metric,
        higher_is_better=compared.higher_is_better,
        value=compared.value,
        reference=compared.reference,
        drop_upper=compared.drop_upper,
        agreement=float(np.mean(_same(variant.outputs[classes], source.outputs[classes]))) if classes else None,
        sqnr_db=min((item.worst_db for item in noise if item.worst_db is not None), default=None),
        samples=len(next(iter(source.outputs.values()))),
        runtime_version=variant.runtime_version,
        max_abs_difference=max(apart),
    )
    faults = find_faults(variant.outputs, variant.repeated, source.outputs, tolerances)
    return Assessment(score, tolerances, faults, noise, task.output, _guess(task, score, source.outputs))


def _guess(task: Task, score: Score, outputs: Arrays) -> float | None:
    """What the metric is for guesses; a function of the person's own, such as mAP, is taken to start at 0."""
    if task.function is not None:
        return 0.0 if score.higher_is_better else None
    find = GUESSES.get(task.metric)
    return find(rows(outputs[task.output][:1]).shape[1]) if find is not None and task.output is not None else None


def check_source(source: Measured) -> None:
    """Raise InputError when the fp32 source's own outputs cannot be compared with: NaN, or not repeatable."""
    doing = "running the fp32 source on the evaluation data"
    for name, array in source.outputs.items():
        # Infinity may be meant, but not everywhere.
        values = array.reshape(len(array), -1)
        lost = np.isnan(values).any(axis=1) | ~np.isfinite(values).any(axis=1) if array.dtype.kind == "f" else None
        if lost is not None and lost.any():
            what = "NaN" if np.isnan(values).any() else "infinite"
            found = f"output {name!r} is {what} for {int(lost.sum())} of {len(array)} samples"
            raise InputError(doing, found, "mend the model, or leave these samples out")
    tolerances = {name: tolerance(array, Precision.FP32) for name, array in source.outputs.items()}
    faults = find_faults(source.outputs, source.repeated, source.outputs, tolerances)
    if faults:
        raise InputError(doing, faults[0], "take the random operators out of the model")


def _compare(
    task: Task, variant: Arrays, source: Arrays, labels: NDArray[np.generic] | None, noise: tuple[OutputNoise, ...]
) -> Compared:
    """The metric of both, and the upper end of the loss's interval, paired over the samples."""
    if task.metric == SQNR and task.function is None:
        worst = min((item.worst_db for item in noise if item.worst_db is not None), default=CEILING_DB)
        return Compared(value=worst, reference=CEILING_DB, higher_is_better=True, drop_upper=None)
    if task.function is not None and labels is not None:
        return compare_hook(task.function, variant, source, labels)
    name = task.output or next(iter(source))
    if task.metric == AGREEMENT or labels is None:
        same = _same(variant[name], source[name])
        return _counted(same, np.ones_like(same))
    metric = METRICS[task.metric]
    labels = labels.reshape(-1) if labels.size == len(labels) else labels
    if isinstance(metric, Counted):
        return _counted(metric.hits(variant[name], labels), metric.hits(source[name], labels))
    return _weighted(metric, variant[name], source[name], labels)


def _counted(mine: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> Compared:
    return Compared(
        value=float(np.mean(mine)),
        reference=float(np.mean(theirs)),
        higher_is_better=True,
        drop_upper=paired_upper(int(np.sum(theirs & ~mine)), int(np.sum(mine & ~theirs)), len(mine)),
    )


def _weighted(
    metric: Weighted, variant: NDArray[np.generic], source: NDArray[np.generic], labels: NDArray[np.generic]
) -> Compared:
    once = np.ones((1, len(labels)))
    mine, theirs = (float(metric.values(outputs, labels, once)[0]) for outputs in (variant, source))
    if not np.isfinite([mine, theirs]).all():
        found = "it is not defined on these labels: they hold one class only, or do not vary"
        raise InputError("computing the metric", found, "give labels of all classes, or choose another metric")
    sign = 1 if metric.higher_is_better else -1

    def loss(weights: Floats) -> Floats:
        apart = metric.values(source, labels, weights) - metric.values(variant, labels, weights)
        return np.asarray(sign * apart)

    upper = bootstrap_upper(loss, len(labels))
    return Compared(
        value=mine,
        reference=theirs,
        higher_is_better=metric.higher_is_better,
        drop_upper=upper if np.isfinite(upper) else None,
    )


def _same(mine: NDArray[np.generic], theirs: NDArray[np.generic]) -> NDArray[np.bool_]:
    """For each sample whether both name the same class; outputs of integers must be equal."""
    if theirs.dtype.kind != "f":
        return np.asarray((mine == theirs).reshape(len(theirs), -1).all(axis=1))
    finite = np.isfinite(mine) | ~np.isfinite(theirs)
    whole = finite.reshape(len(mine), -1).all(axis=1)
    return np.asarray((rows(mine).argmax(axis=1) == rows(theirs).argmax(axis=1)) & whole)
