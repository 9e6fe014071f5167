"""Loops and branches whose course is not known before run time.

A branch with a known condition is taken by the expansion, not here.
"""

from __future__ import annotations

from edgefleet_converters.tflite.operators.contract import Lowering

OPERATORS: dict[str, Lowering] = {}
