"""Float tensors of a file whose inputs and outputs are integers: to what the file takes, and back from what it gives.

Needs numpy, so only processes that run models import it. Source: LiteRT's 8-bit quantisation specification.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def quantized(array: NDArray[np.generic], dtype: str, scale: float, zero_point: int) -> NDArray[np.generic]:
    """Real numbers as the nearest integers of a type, what lies outside at its ends, NaN as 0.0."""
    limits = np.iinfo(dtype)
    levels = np.round(np.nan_to_num(array.astype(np.float64) / scale)) + zero_point
    return np.clip(levels, limits.min, limits.max).astype(dtype)


def dequantized(array: NDArray[np.generic], scale: float, zero_point: int) -> NDArray[np.float32]:
    """Stored integers as float32."""
    return ((array.astype(np.float64) - zero_point) * scale).astype(np.float32)
