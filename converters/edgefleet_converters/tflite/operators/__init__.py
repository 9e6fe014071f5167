"""Operator lowering: the table from ONNX operators to the functions that write their TFLite form.

A new operator is a new function in its family's module and a row in that module's own OPERATORS.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from edgefleet_converters.tflite.operators import (
    activations,
    attention,
    bitwise,
    borders,
    comparison,
    control,
    convolution,
    dense,
    detection,
    einsum,
    elementwise,
    indexing,
    integers,
    losses,
    normalization,
    pooling,
    quantization,
    recurrent,
    reduction,
    resizing,
    running,
    sampling,
    scattering,
    shaping,
    signal,
    text,
    tokens,
    transposed,
    trigonometry,
)
from edgefleet_converters.tflite.operators.contract import Lowering

_FAMILIES = (
    activations,
    attention,
    bitwise,
    borders,
    comparison,
    control,
    convolution,
    dense,
    detection,
    einsum,
    elementwise,
    indexing,
    integers,
    losses,
    normalization,
    pooling,
    quantization,
    recurrent,
    reduction,
    resizing,
    running,
    sampling,
    scattering,
    shaping,
    signal,
    text,
    tokens,
    transposed,
    trigonometry,
)


def _merged() -> dict[str, Lowering]:
    table: dict[str, Lowering] = {}
    for family in _FAMILIES:
        twice = table.keys() & family.OPERATORS.keys()
        if twice:
            raise ValueError(f"{family.__name__} repeats {sorted(twice)}")
        table.update(family.OPERATORS)
    return table


OPERATORS: Mapping[str, Lowering] = MappingProxyType(_merged())

FOLDED = ("Constant", "Dropout", "Shape", "Size")
"""Operators that have no row because an earlier pass turns them into others; one that is left is refused."""
