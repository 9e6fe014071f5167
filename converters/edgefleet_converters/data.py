"""Calibration and evaluation sets in the source model's layout, names and dtypes, with labels where there are any.

Does not shuffle, sample or normalise: what is in the file is what is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgefleet.errors import InputError
from edgefleet.package.manifest import TensorSpec
from edgefleet_converters.conversion.samples import load_samples
from edgefleet_converters.step import Samples

FEWEST_CALIBRATION_SAMPLES = 32
"""Below this the ranges that int8 is built on are guesses; a warning, not an error."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Held-out samples, and their labels [N, …]; None where there are none."""

    samples: Samples
    labels: NDArray[np.generic] | None


def count(samples: Samples) -> int:
    """How many samples there are."""
    return len(next(iter(samples.values()), ()))


def load_calibration(path: Path, inputs: Sequence[TensorSpec]) -> Samples:
    """Samples by input name, [N, *input shape]; raises InputError."""
    return load_samples(path, inputs)


def load_evaluation(path: Path, inputs: Sequence[TensorSpec]) -> Evaluation:
    """Samples, and the file's `y` as labels; raises InputError."""
    doing = f"reading the evaluation data {path}"
    samples = load_samples(path, inputs, doing)
    with np.load(path, allow_pickle=False) as arrays:
        labels = arrays["y"] if "y" in arrays.files else None
    if labels is not None and len(labels) != count(samples):
        found = f"y is {labels.dtype} {list(labels.shape)}, expected integers [{count(samples)}]"
        raise InputError(doing, found, "store one class number for each sample")
    return Evaluation(samples, labels)


def check_classes(labels: NDArray[np.generic], output: TensorSpec, doing: str) -> NDArray[np.int64]:
    """Labels as class numbers of an output [1, classes]; raises InputError."""
    classes = output.shape[-1]
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        found = f"y is {labels.dtype} {list(labels.shape)}, expected integers [{len(labels)}]"
        raise InputError(doing, found, "store one class number for each sample")
    if labels.min() < 0 or labels.max() >= classes:
        found = f"y has labels from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}"
        raise InputError(doing, found, "number the classes as the model's output does")
    return labels.astype(np.int64)
