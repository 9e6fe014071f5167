"""Outputs of a model over a data set, and a walk over them that copies only a little at a time.

Computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[np.generic]]
"""Name → [N, …], the same N for all."""

_VALUES = 2**20


def in_chunks(*arrays: NDArray[np.generic]) -> Iterator[tuple[NDArray[np.generic], ...]]:
    """The same samples of each, about a million values of the first at a time: wider copies of all would not fit."""
    count = len(arrays[0])
    step = max(1, _VALUES // max(1, arrays[0].size // max(1, count)))
    for start in range(0, count, step):
        yield tuple(array[start : start + step] for array in arrays)
