"""Attention and what surrounds it: rotary embeddings, linear attention.

Operators that are not here are lowered through their function bodies.
"""

from __future__ import annotations

from edgefleet_converters.tflite.operators.contract import Lowering

OPERATORS: dict[str, Lowering] = {}
