"""Quantised operators and the conversions between real and stored numbers.

int8 and uint8 tensors that a kernel reads as quantised carry their parameters.
"""

from __future__ import annotations

from edgefleet_converters.tflite.operators.contract import Lowering

OPERATORS: dict[str, Lowering] = {}
