"""Differences of one output between a source and a file, over all samples: of values, or of rows in any order.

Pure: runs nothing, and judges nothing; `check` does.
"""

from __future__ import annotations

import numpy as np

from edgefleet_converters.conversion.check import RANDOM_SAMPLES, Difference
from edgefleet_converters.conversion.tensors import Array


def of_values(name: str, found: list[Array], expected: list[Array]) -> Difference:
    """Largest difference of one output over all samples; values that are not finite must be the same ones."""
    shapes = (list(found[0].shape), list(expected[0].shape))
    if shapes[0] != shapes[1]:
        return Difference(name=name, unequal=f"its shape is {shapes[0]}, and {shapes[1]} in ONNX Runtime")
    if expected[0].dtype.kind not in "biufc":
        return Difference(name=name, unequal=f"its type {expected[0].dtype} is not compared")
    wide = np.complex128 if expected[0].dtype.kind == "c" else np.float64
    ours, theirs = np.stack(found).astype(wide), np.stack(expected).astype(wide)
    finite = np.isfinite(theirs) & np.isfinite(ours)
    strange = int(np.sum(~finite & ~((ours == theirs) | (np.isnan(ours) & np.isnan(theirs)))))
    gap = np.where(finite, np.abs(np.where(finite, ours, 0) - np.where(finite, theirs, 0)), 0)
    own = gap[RANDOM_SAMPLES:]
    return Difference(
        name=name,
        largest=float(gap.max(initial=0)),
        reference=float(np.abs(theirs[finite]).max(initial=0)),
        constant=len(theirs) > 1 and bool((theirs == theirs[0]).all()),
        golden=float(own.max(initial=0)) if len(own) else None,
        unequal=f"{strange} of {ours.size} values are NaN or infinite in only one of the two" if strange else "",
    )


def of_rows(name: str, found: list[Array], expected: list[Array]) -> Difference:
    """Rows of one output in only one of the two, over all samples; in any order, which rounding may change."""
    ours, theirs = [_rows(array) for array in found], [_rows(array) for array in expected]
    apart = [len(mine ^ other) for mine, other in zip(ours, theirs, strict=True)]
    return Difference(
        name=name,
        rows=True,
        largest=sum(apart),
        reference=sum(map(len, theirs)),
        constant=len(theirs) > 1 and all(rows == theirs[0] for rows in theirs),
        golden=sum(apart[RANDOM_SAMPLES:]) if apart[RANDOM_SAMPLES:] else None,
    )


def _rows(array: Array) -> set[tuple[object, ...]]:
    return {tuple(row) for row in array.tolist()}
