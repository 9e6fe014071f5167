"""Operators on text: refused, as TFLite's tensors of text have no kernels for them.

Tokens that are numbers are not text: see `tokens`.
"""

from __future__ import annotations

from edgefleet_converters.tflite.operators.contract import Lowering
from edgefleet_converters.tflite.operators.control import refused

OPERATORS: dict[str, Lowering] = dict.fromkeys(
    ("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit"), refused("TFLite has no kernels for text")
)
