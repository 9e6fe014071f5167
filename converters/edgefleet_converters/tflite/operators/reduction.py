"""Reductions over axes, and running sums.

Axes are attributes or constant inputs; computed axes are refused.
"""

from __future__ import annotations

from edgefleet_converters.tflite.operators.contract import Lowering

OPERATORS: dict[str, Lowering] = {}
