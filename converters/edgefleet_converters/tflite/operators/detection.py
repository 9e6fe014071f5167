"""Boxes: suppression, region pooling.

Operators that are not here are refused.
"""

from __future__ import annotations

from edgefleet_converters.tflite.operators.contract import Lowering

OPERATORS: dict[str, Lowering] = {}
