"""A random graph while Hypothesis draws it: values with the bounds that keep a comparison of results meaningful.

Knows no operators: those are steps, in a module of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import onnx
from hypothesis import reject
from hypothesis import strategies as st
from numpy.typing import NDArray

from conformance_graphs.building import Building

Array = NDArray[Any]
T = TypeVar("T")
KINDS = {"float32": 1, "int32": 6, "int64": 7, "bool": 9}
NUMBERS = ("float32", "int32", "int64")
# Rounding errors grow with values: with floats up to here, 1e-4 tells a mistake from another order of summation.
_LARGEST: Mapping[str, float] = {"float32": 64.0, "int32": 1e6, "int64": 1e6, "bool": 1.0}
_MOST_ELEMENTS = 400


@dataclass(frozen=True)
class Value:
    """A tensor of the graph; `exact` where rounding cannot have touched it, so that steps may look at its bits."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bound: float
    exact: bool


@dataclass
class Drawing:
    """A graph while Hypothesis draws it."""

    draw: st.DrawFn
    b: Building
    values: list[Value] = field(default_factory=list)

    def one_of(self, choices: Iterable[T]) -> T:
        listed = list(choices)
        return listed[self.draw(st.integers(0, 2**20)) % len(listed)]

    def whole(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def pick(self, dtypes: Sequence[str], *, rank: int = 0, exact: bool = False, bound: float = np.inf) -> Value:
        """One of the values of these types, with at least so many axes; rejects the draw if there is none."""
        fitting = [
            value
            for value in self.values
            if value.dtype in dtypes and len(value.shape) >= rank and value.exact >= exact and value.bound <= bound
        ]
        return self.one_of(fitting) if fitting else reject()

    def axis(self, value: Value) -> int:
        """An axis, sometimes counted from the end."""
        return self.whole(-len(value.shape), len(value.shape) - 1)

    def beside(self, value: Value) -> Value:
        """Another of its type that it broadcasts with, or a constant."""
        fitting = [other for other in self.values if other.dtype == value.dtype and joined(other.shape, value.shape)]
        if self.draw(st.booleans()):
            return self.one_of(fitting)
        last = value.shape[self.whole(0, len(value.shape)) :]
        shape = tuple(size if self.draw(st.booleans()) else 1 for size in last)
        return self.constant(value.dtype, shape)

    def constant(self, dtype: str, shape: tuple[int, ...], *, least: int = -8) -> Value:
        """Quarters, or whole numbers; never 0 when `least` is above it."""
        array = drawn_array(self.b.random, dtype, shape, least)
        bound = float(np.abs(array.astype(np.float64)).max(initial=0))
        return Value(self.b.constant(array), dtype, shape, bound, exact=True)

    def add(self, operator: str, *inputs: Value | str, bound: float, exact: bool = True, **attributes: object) -> None:
        """A node, but for one whose values or shape grow too large; exact if it and all that it reads are exact."""
        self.add_several(operator, inputs, [bound], exact=exact, **attributes)

    def add_several(
        self,
        operator: str,
        inputs: Sequence[Value | str],
        bounds: Sequence[float],
        *,
        exact: bool,
        **attributes: object,
    ) -> None:
        """The same with an output per bound."""
        exact = exact and all(item.exact for item in inputs if isinstance(item, Value))
        read = [item.name if isinstance(item, Value) else item for item in inputs]
        made = [
            self._value(name, bound, exact=exact)
            for name, bound in zip(self.b.nodes_of(operator, read, len(bounds), **attributes), bounds, strict=True)
        ]
        if all(value.bound <= _LARGEST[value.dtype] and _is_small(value.shape) for value in made):
            self.values.extend(made)
        else:
            self.b.nodes.pop()

    def _value(self, name: str, bound: float, *, exact: bool) -> Value:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self.b.types[name].tensor_type.elem_type)).name
        return Value(name, dtype, self.b.shape(name), bound, exact)


def _is_small(shape: tuple[int, ...]) -> bool:
    return 0 < math.prod(shape) <= _MOST_ELEMENTS and len(shape) <= 5


def joined(left: tuple[int, ...], right: tuple[int, ...]) -> bool:
    try:
        np.broadcast_shapes(left, right)
    except ValueError:
        return False
    return True


def drawn_array(random: np.random.Generator, dtype: str, shape: Sequence[int], least: int = -8) -> Array:
    if dtype == "bool":
        return random.integers(0, 2, shape).astype(np.bool_)
    whole = random.integers(least, 9, shape)
    return (whole / 4 if dtype == "float32" else whole).astype(dtype)
