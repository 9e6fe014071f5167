"""A metric of the person's own, as the tests of packaging name it: a variant loses everything, or cannot be scored.

The labels are the fp32 model's outputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


def detections(outputs: Mapping[str, NDArray[np.generic]], labels: NDArray[np.generic]) -> float:
    """1 for outputs as float32 gives them, none for those far away; what lies between cannot be scored."""
    (found,) = outputs.values()
    apart = float(np.abs(np.subtract(found.reshape(labels.shape), labels, dtype=np.float64)).max())
    if 1e-4 < apart < 0.02:
        raise ValueError("no box is left to match")
    return float(apart <= 1e-4)
