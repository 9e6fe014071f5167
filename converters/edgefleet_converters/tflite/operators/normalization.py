"""Normalisations that no pass folds into a neighbour: layer, instance, group, RMS, LRN, Lp.

Operators that are not here are lowered through their function bodies.
"""

from __future__ import annotations

from edgefleet_converters.tflite.operators.contract import Lowering

OPERATORS: dict[str, Lowering] = {}
