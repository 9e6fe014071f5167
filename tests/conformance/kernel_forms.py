"""What cases of the kernel probe are made of: inputs of any dtype and rank, and numpy's result.

Names no operator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Any type of element: the arithmetic below is the same for all.
Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """One operator on arrays; those at `constant` positions are written into the file."""

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    options: str = ""
    fields: tuple[tuple[str, object], ...] = ()
    constant: tuple[int, ...] = ()


Make = Callable[[str, tuple[int, ...]], Case | None]
_random = np.random.default_rng(0)


def sample(shape: tuple[int, ...], dtype: str, *, positive: bool = False, small: bool = False) -> Array:
    """Seeded values over most of the type's range; NaN-free."""
    if dtype == "bool":
        return np.asarray(_random.random(shape) > 0.5)
    if dtype.startswith("float"):
        return np.asarray(_random.random(shape) * 3 + 0.2 if positive else _random.normal(size=shape) * 2).astype(dtype)
    info = np.iinfo(dtype)
    bound = 3 if small else 11
    low = 1 if positive or info.min == 0 else -bound
    wide = np.asarray(_random.integers(low, bound, size=shape)).astype(dtype)
    return wide if positive or small else np.where(_random.random(shape) > 0.8, info.max // 2, wide).astype(dtype)


def unary(function: Callable[[Array], object], options: str = "", *, positive: bool = False) -> Make:
    def make(dtype: str, shape: tuple[int, ...]) -> Case:
        x = sample(shape, dtype, positive=positive, small=True)
        return Case((x,), (np.asarray(function(x)).astype(dtype),), options)

    return make


def binary(
    function: Callable[[Array, Array], object], options: str = "", *, positive: bool = False, compares: bool = False
) -> Make:
    """Both operands broadcast, over every second axis each."""

    def make(dtype: str, shape: tuple[int, ...]) -> Case:
        left = tuple(1 if axis % 2 else size for axis, size in enumerate(shape))
        right = tuple(size if axis % 2 else 1 for axis, size in enumerate(shape))
        a = sample(left, dtype, positive=positive, small=not compares)
        b = sample(right, dtype, positive=positive, small=not compares)
        y = np.asarray(function(a, b))
        return Case((a, b), (y if compares else y.astype(dtype),), options)

    return make


def reduction(function: Callable[..., object]) -> Make:
    def make(dtype: str, shape: tuple[int, ...]) -> Case | None:
        axes = tuple(range(0, len(shape), 2))
        x = sample(shape, dtype, positive=True, small=True)
        y = np.asarray(function(x, axis=axes)).astype(dtype)
        return Case((x, ints(*axes)), (y,), "Reducer", (("keepDims", False),), (1,)) if shape else None

    return make


def arg(function: Callable[..., object], options: str) -> Make:
    def make(dtype: str, shape: tuple[int, ...]) -> Case | None:
        x = sample(shape, dtype)
        if not shape:
            return None
        axis = np.array(len(shape) - 1, np.int32)
        return Case(
            (x, axis), (np.asarray(function(x, axis=-1)).astype(np.int64),), options, (("outputType", 4),), (1,)
        )

    return make


def ints(*values: int) -> Array:
    return np.array(values, np.int32)


def moves(build: Callable[[Array], Case], *, least: int = 1) -> Make:
    """An operator that moves elements; `least` is the smallest rank it is defined for."""
    return lambda dtype, shape: build(sample(shape, dtype)) if len(shape) >= least else None
