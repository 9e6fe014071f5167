"""Faults: findings about a model's outputs that no score can make good, and how far a device's may be from ours.

Pure functions over the outputs of a variant and of its fp32 source on the same samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.score.arrays import Arrays, in_chunks
from edgefleet_device_profiles.profile import Precision

# Kernels for different processors round an int8 requantisation one way or the other, and such steps add up over the
# layers: one .tflite was seen to differ by up to 10 steps of its output between x86 and ARM.
_TEN_STEPS = 10 / 255
TOLERATED: Mapping[Precision, float] = MappingProxyType(
    {
        # Other orders of summation and fused multiply-adds: 24 bits, a few of them lost over deep sums.
        Precision.FP32: 1e-3,
        # Processors with half-precision arithmetic use it for such files: 11 bits.
        Precision.FP16: 1e-2,
    }
)
"""Precision → how far a device's outputs may be from the golden ones, as a share of their range; else 10 int8 steps."""
_LEAST = 1e-6
# The same process on the same input has no reason for any step at all.
_REPEAT_SHARE = 0.1
# A source that itself hardly moves proves nothing about a variant that stands still.
_MOVES = 0.01


def tolerance(outputs: NDArray[np.generic], precision: Precision) -> float:
    """How far one output may be from the golden one on a device: a share of its range with 0, as int8 scales have it.

    0 for outputs that are not float; never 0 for float ones.
    """
    if outputs.dtype.kind != "f":
        return 0.0
    finite = outputs[np.isfinite(outputs)].astype(np.float64)
    span = float(finite.max(initial=0) - finite.min(initial=0))
    return max(TOLERATED.get(precision, _TEN_STEPS) * span, _LEAST)


def largest_difference(found: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    """Largest |difference| where both are finite."""
    largest = 0.0
    for mine, theirs in in_chunks(found, expected):
        with np.errstate(invalid="ignore"):
            apart = np.abs(np.subtract(mine, theirs, dtype=np.float64))
        largest = max(largest, float(apart.max(initial=0, where=np.isfinite(apart))))
    return largest


def find_faults(
    outputs: Arrays, repeated: Arrays, reference: Arrays, tolerances: Mapping[str, float]
) -> tuple[str, ...]:
    """One line for each fault: not finite, standing still, or not repeatable.

    Outputs are [N, *shape], repetitions [passes - 1, R, *shape] of the first R samples.
    """
    found = []
    for name, expected in reference.items():
        found += _not_finite(name, outputs[name], expected)
        found += _standing_still(name, outputs[name], expected)
    for name, again in repeated.items():
        found += _unsteady(name, again, outputs[name][: again.shape[1]], tolerances[name])
    return tuple(found)


def _not_finite(name: str, found: NDArray[np.generic], expected: NDArray[np.generic]) -> list[str]:
    if found.dtype.kind != "f":
        return []
    lost = ~np.isfinite(found) & np.isfinite(expected)
    samples = int(np.sum(lost.reshape(len(lost), -1).any(axis=1)))
    return [f"{name!r} has NaN or infinite values in {samples} of {len(found)} samples"] if samples else []


def _standing_still(name: str, found: NDArray[np.generic], expected: NDArray[np.generic]) -> list[str]:
    peak = float(np.abs(_finite(expected)).max(initial=0))
    if found.size > 1 and _range(found) == 0 and _range(expected) > _MOVES * peak:
        return [f"every value of {name!r} is the same number, and not in the fp32 source"]
    if len(found) > 1 and _spread(found) == 0 and _spread(expected) > _MOVES * peak:
        return [f"{name!r} is the same for every sample, and not in the fp32 source"]
    return []


def _unsteady(name: str, again: NDArray[np.generic], once: NDArray[np.generic], allowed: float) -> list[str]:
    apart = largest_difference(again, np.broadcast_to(once, again.shape))
    limit = _REPEAT_SHARE * allowed
    if apart <= limit:
        return []
    return [f"the same input twice differs by {apart:.3g} in {name!r}, more than {limit:.3g}"]


def _finite(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """The array itself where nothing is to be done: outputs may be large."""
    if array.dtype.kind == "f" and np.isfinite(array).all():
        return array
    return np.nan_to_num(array.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _range(array: NDArray[np.generic]) -> float:
    return float(np.ptp(_finite(array))) if array.size else 0.0


def _spread(array: NDArray[np.generic]) -> float:
    """How far any one element moves over the samples."""
    return float(np.ptp(_finite(array), axis=0).max(initial=0)) if array.size else 0.0
