"""Whether two variants give the same answer to the same input, and how often that may be asked.

Pure, and without numpy: it runs in the agent's main process. Who runs the second variant is `shadow`'s business.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Sequence

from edgefleet_agent.inference_types import RawTensor

DUTY = 0.05
"""Share of the time that the second variant may take."""
LEAST_WAIT_S = 1.0
MOST_VALUES = 65_536
"""Of an output: more take this process too long."""
SAME_DB = 10.0
"""Outputs that are no classes are the same answer while what differs is this far below what is there."""

# numpy's name → the code of `array`.
CODES = {
    "float32": "f", "float64": "d", "int8": "b", "uint8": "B", "int16": "h", "uint16": "H", "int32": "i",
    "uint32": "I", "int64": "q", "uint64": "Q", "bool": "B",
}  # fmt: skip


def wait_s(spent_s: float) -> float:
    """How long to leave the second variant alone after it took `spent_s` for one input."""
    return max(LEAST_WAIT_S, spent_s * (1 / DUTY - 1))


def same_answer(one: Sequence[RawTensor], other: Sequence[RawTensor]) -> bool | None:
    """Whether every output says the same; None where there is nothing to compare."""
    others = {tensor.name: tensor for tensor in other}
    found = [
        _same(tensor, others[tensor.name])
        for tensor in one
        if tensor.name in others and tensor.dtype in {*CODES, "float16"} and 0 < math.prod(tensor.shape) <= MOST_VALUES
    ]
    return all(found) if found else None


def _same(one: RawTensor, other: RawTensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    left, right = values(one), values(other)
    classes = one.shape[-1] if one.shape else 1
    if classes > 1 and len(left) == classes:
        return _largest(left) == _largest(right)
    return _close(left, right)


def values(tensor: RawTensor) -> Sequence[float]:
    """A tensor's values in row-major order; its type is one of CODES, or float16."""
    if tensor.dtype == "float16":
        return struct.unpack(f"<{math.prod(tensor.shape)}e", tensor.data)
    return array(CODES[tensor.dtype], bytes(tensor.data))


def _largest(scores: Sequence[float]) -> int | None:
    """The class with the highest score; None where a score is no number."""
    if any(math.isnan(score) for score in scores):
        return None
    return max(range(len(scores)), key=scores.__getitem__)


def _close(left: Sequence[float], right: Sequence[float]) -> bool:
    """Whether the difference is small against either of them; what is not finite must be the same."""
    signal = noise = 0.0
    for a, b in zip(left, right, strict=True):
        if a == b or (math.isnan(a) and math.isnan(b)):
            signal += a * b if math.isfinite(a) else 0.0
        elif not (math.isfinite(a) and math.isfinite(b)):
            return False
        else:
            signal += max(a * a, b * b)
            noise += (a - b) ** 2
    return noise * 10 ** (SAME_DB / 10) <= signal
