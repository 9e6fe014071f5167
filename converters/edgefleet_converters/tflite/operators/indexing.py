"""Operators that pick or place elements by index: Gather*, Scatter*, OneHot, TopK, ArgMax, ArgMin, NonZero.

Indices that may be negative at run time are made positive first.
"""

from __future__ import annotations

from edgefleet_converters.tflite.operators.contract import Lowering

OPERATORS: dict[str, Lowering] = {}
