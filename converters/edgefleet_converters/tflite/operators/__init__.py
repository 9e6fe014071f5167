"""Operator lowering: the table from ONNX operators to the functions that write their TFLite form.

A new operator is a new function in its family's module and a row in that module's own OPERATORS.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType

from edgefleet_converters.tflite.operators.contract import Lowering

_FAMILIES = (
    "activations",
    "attention",
    "bitwise",
    "borders",
    "comparison",
    "control",
    "convolution",
    "dense",
    "detection",
    "einsum",
    "elementwise",
    "indexing",
    "integers",
    "losses",
    "normalization",
    "pooling",
    "quantization",
    "recurrent",
    "reduction",
    "resizing",
    "running",
    "sampling",
    "scattering",
    "shaping",
    "signal",
    "text",
    "tokens",
    "transposed",
    "trigonometry",
)
"""Modules of this package that have rows."""


def _merged() -> dict[str, Lowering]:
    table: dict[str, Lowering] = {}
    for family in _FAMILIES:
        rows: Mapping[str, Lowering] = import_module(f"{__name__}.{family}").OPERATORS
        twice = table.keys() & rows.keys()
        if twice:
            raise ValueError(f"{family} repeats {sorted(twice)}")
        table.update(rows)
    return table


OPERATORS: Mapping[str, Lowering] = MappingProxyType(_merged())

FOLDED = ("Constant", "Dropout", "Shape", "Size")
"""Operators that have no row because an earlier pass turns them into others; one that is left is refused."""
