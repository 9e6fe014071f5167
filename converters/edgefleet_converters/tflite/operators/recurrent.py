"""Recurrent layers: LSTM, GRU, RNN.

Sequences of a length known only at run time are refused.
"""

from __future__ import annotations

from edgefleet_converters.tflite.operators.contract import Lowering

OPERATORS: dict[str, Lowering] = {}
