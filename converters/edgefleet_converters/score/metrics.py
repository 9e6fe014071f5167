"""What the scores mean: top-1, agreement with the fp32 source, largest difference, and the golden tolerance.

Pure functions over outputs; running the models is `infer`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgefleet.package.manifest import Score

# Kernels for different processors round an int8 requantisation one way or the other, and such steps add up
# over the layers: one .tflite was seen to differ by up to 10 steps of its output between x86 and ARM.
TOLERATED_STEPS = 10
INT8_STEPS = 255


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Outputs float32 [N, classes] of one model file, and the first few of them a second time."""

    outputs: NDArray[np.float32]
    repeated: NDArray[np.float32]
    runtime_version: str


@dataclass(frozen=True, slots=True)
class Assessment:
    """A variant's score and what the gate needs besides."""

    score: Score
    output_range: float
    repeat_difference: float

    @property
    def tolerance(self) -> float:
        """How far a device's outputs may be from the golden ones: 10 steps of 8 bits over their range."""
        return TOLERATED_STEPS * self.output_range / INT8_STEPS


def assess(variant: Measured, source: Measured, labels: NDArray[np.int64]) -> Assessment:
    """Compare a variant with the fp32 source on the same samples; labels are class numbers [N]."""
    difference = np.abs(variant.outputs.astype(np.float64) - source.outputs)
    score = Score(
        metric="top1",
        value=top1(variant.outputs, labels),
        reference=top1(source.outputs, labels),
        agreement=float(np.mean(variant.outputs.argmax(axis=1) == source.outputs.argmax(axis=1))),
        samples=len(labels),
        runtime_version=variant.runtime_version,
        max_abs_difference=float(difference.max()),
    )
    again = np.abs(variant.outputs[: len(variant.repeated)] - variant.repeated)
    return Assessment(score, float(np.ptp(variant.outputs)), float(again.max()))


def top1(outputs: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of samples whose largest output is the label's; a NaN row counts as wrong."""
    finite = np.isfinite(outputs).all(axis=1)
    return float(np.mean((outputs.argmax(axis=1) == labels) & finite))
