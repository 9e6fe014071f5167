"""Resize, Upsample, GridSample, AffineGrid.

Sizes and scales are constants.
"""

from __future__ import annotations

from edgefleet_converters.tflite.operators.contract import Lowering

OPERATORS: dict[str, Lowering] = {}
