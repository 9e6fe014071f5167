"""What is measured of a model: a metric and the output that it looks at, chosen from the labels where nobody says.

Pure; it neither runs a model nor computes a metric.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgefleet.errors import InputError
from edgefleet_converters.score.accuracy import METRICS
from edgefleet_converters.score.arrays import Arrays

AUTO = "auto"
AGREEMENT = "agreement"
"""Share of samples on which the fp32 source and the variant name the same class."""
SQNR = "sqnr"
"""Signal to noise, in dB, of the worst slice of any output."""
_CLASSIFYING = ("top1", "top5")
_DOING = "choosing the metric"


@dataclass(frozen=True, slots=True)
class Task:
    """A metric of `METRICS`, `agreement` or `sqnr` over one output, or a function of the person's own over all."""

    metric: str
    output: str | None = None
    """None: all of them."""
    function: str | None = None
    """`module:function`."""


def choose_task(wanted: str, outputs: Arrays, labels: NDArray[np.generic] | None) -> Task:
    """The task that `wanted` names: `auto`, a name of `METRICS`, `agreement`, `sqnr`, or `[NAME=]module:function`.

    `outputs` are the fp32 source's, [N, *shape]. Automatically: integer labels of a classifier ask for top-1 (AUC
    where it has one output), other labels for the root mean squared error; without labels a classifier must agree
    with its source, anything else (and a source that names one class for all samples) keep its signal.
    Raises InputError.
    """
    if ":" in wanted:
        return _own(wanted, labels)
    if wanted == AUTO:
        wanted = _automatic(outputs, labels)
    if wanted == SQNR:
        return Task(SQNR)
    if wanted == AGREEMENT:
        return Task(AGREEMENT, classes_output(outputs) or _integer_output(outputs))
    if wanted not in METRICS:
        known = ", ".join((AUTO, *METRICS, AGREEMENT, SQNR))
        own = " (mAP has no one form of boxes: map=your_module:your_function)" if wanted == "map" else ""
        raise InputError(_DOING, f"there is no metric {wanted!r}{own}", f"choose from {known}, or name module:function")
    if labels is None:
        raise InputError(_DOING, f"{wanted} needs labels, and the evaluation data have none", "store them as 'y'")
    return Task(wanted, _labelled_output(wanted, outputs, labels))


def classes_output(outputs: Arrays) -> str | None:
    """The first output that is one row of class scores for each sample, [N, 1, C] with C of at least 2."""
    return next((name for name, array in outputs.items() if array.dtype.kind == "f" and _classes(array) >= 2), None)


def _varies(array: NDArray[np.generic]) -> bool:
    """Whether the samples are not all of one class."""
    return len(np.unique(array.reshape(len(array), -1).argmax(axis=1))) > 1


def _classes(array: NDArray[np.generic]) -> int:
    """Length of the only axis of a sample that is longer than 1, where the first axis is the batch; else 0."""
    shape = array.shape[1:]
    return shape[1] if len(shape) >= 2 and shape[0] == 1 and set(shape[2:]) <= {1} else 0


def _integer_output(outputs: Arrays) -> str:
    for name, array in outputs.items():
        if array.dtype.kind in "iub":
            return name
    raise InputError(_DOING, "agreement is of classes, and no output has one row of them", "choose sqnr")


def _own(wanted: str, labels: NDArray[np.generic] | None) -> Task:
    name, _, function = wanted.rpartition("=")
    if labels is None:
        raise InputError(_DOING, f"{wanted} needs labels, and the evaluation data have none", "store them as 'y'")
    if name in (AUTO, *METRICS, AGREEMENT, SQNR):
        raise InputError(_DOING, f"{wanted} takes the name of a metric that is there already", "name it otherwise")
    return Task(name or function, function=function)


def _automatic(outputs: Arrays, labels: NDArray[np.generic] | None) -> str:
    if labels is None:
        floats = any(array.dtype.kind == "f" for array in outputs.values())
        classes = classes_output(outputs)
        # To agree with a source that always says the same proves nothing.
        return AGREEMENT if (classes and _varies(outputs[classes])) or not floats else SQNR
    if labels.dtype.kind not in "iub" or labels.size != len(labels):
        return "rmse"
    if classes_output(outputs):
        return "top1"
    return "auc" if set(np.unique(labels).tolist()) == {0, 1} else "rmse"


def _labelled_output(metric: str, outputs: Arrays, labels: NDArray[np.generic]) -> str:
    """The first output that the labels can be about."""
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise InputError(_DOING, f"{metric} of labels with NaN or infinite values", "leave those samples out")
    each = labels.size // max(len(labels), 1)
    for name, array in outputs.items():
        values = int(np.prod(array.shape[1:]))
        classes = _classes(array)
        if array.dtype.kind != "f":
            continue
        if metric in _CLASSIFYING:
            fits = classes >= 2 and each == 1
        elif metric == "auc":
            fits = (classes >= 2 or values == 1) and each == 1
        else:
            fits = values == each
        if fits:
            return name
    shapes = ", ".join(f"{name} {list(array.shape[1:])}" for name, array in outputs.items())
    found = f"{metric} of labels {labels.dtype} {list(labels.shape)} fits no float output ({shapes})"
    raise InputError(_DOING, found, "give labels of the output's shape, another metric, or module:function")
