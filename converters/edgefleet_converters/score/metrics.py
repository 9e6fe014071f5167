"""What the scores mean: the metric, agreement with the fp32 source, noise per slice, and the golden tolerances.

Pure functions over outputs; running the models is `infer`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgefleet.package.manifest import Score

# Kernels for different processors round an int8 requantisation one way or the other, and such steps add up
# over the layers: one .tflite was seen to differ by up to 10 steps of its output between x86 and ARM.
TOLERATED_STEPS = 10
INT8_STEPS = 255

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What one model file gave: every output [N, *output shape], and its repetitions [passes - 1, R, *output shape]."""

    outputs: Arrays
    repeated: Arrays
    runtime_version: str
    peak_rss_bytes: int


@dataclass(frozen=True, slots=True)
class Assessment:
    """A variant's score and what the gate needs besides.

    `faults` are findings that no score can make good: not finite, all the same number, not repeatable.
    """

    score: Score
    tolerances: Mapping[str, float]
    """Output name → how far a device's numbers may be from the golden ones."""
    faults: tuple[str, ...]


def assess(variant: Measured, source: Measured, labels: NDArray[np.int64]) -> Assessment:
    """Compare a variant with the fp32 source on the same samples; labels are class numbers [N]."""
    name = next(iter(source.outputs))
    mine, theirs = _rows(variant.outputs[name]), _rows(source.outputs[name])
    differences = [_difference(variant.outputs[key], source.outputs[key]) for key in source.outputs]
    score = Score(
        metric="top1",
        value=top1(mine, labels),
        reference=top1(theirs, labels),
        agreement=float(np.mean(mine.argmax(axis=1) == theirs.argmax(axis=1))),
        samples=len(labels),
        runtime_version=variant.runtime_version,
        max_abs_difference=max(differences),
    )
    tolerances = {key: tolerance(array) for key, array in variant.outputs.items()}
    return Assessment(score, tolerances, tuple(_faults(variant, tolerances)))


def tolerance(outputs: NDArray[np.generic]) -> float:
    """How far a device's outputs may be from the golden ones: 10 steps of 8 bits over their range; 0 for integers."""
    return TOLERATED_STEPS * float(np.ptp(outputs)) / INT8_STEPS if outputs.dtype.kind == "f" else 0.0


def _difference(found: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    return float(np.abs(np.subtract(found, expected, dtype=np.float64)).max(initial=0))


def _rows(outputs: NDArray[np.generic]) -> NDArray[np.float32]:
    return outputs.reshape(len(outputs), -1).astype(np.float32)


def _faults(variant: Measured, tolerances: Mapping[str, float]) -> list[str]:
    found = []
    if all(np.ptp(array) == 0 for array in variant.outputs.values()):
        found.append("every output is the same number")
    for name, again in variant.repeated.items():
        once = variant.outputs[name][: again.shape[1]]
        apart = _difference(again, once)
        if apart > tolerances[name]:
            found.append(f"the same input twice differs by {apart:.3g} in {name!r}, more than {tolerances[name]:.3g}")
    return found


def top1(outputs: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of samples whose largest output is the label's; a NaN row counts as wrong."""
    finite = np.isfinite(outputs).all(axis=1)
    return float(np.mean((outputs.argmax(axis=1) == labels) & finite))
