"""The emitter: what an operator's lowering writes TFLite operators with.

One method per TFLite operator; each checks the kernel table, infers its result and returns it as a Tensor.
"""

from __future__ import annotations

from edgefleet_converters.tflite.emitter.arithmetic import Arithmetic
from edgefleet_converters.tflite.emitter.core import Operand
from edgefleet_converters.tflite.emitter.matrices import Matrices
from edgefleet_converters.tflite.emitter.movement import Movement
from edgefleet_converters.tflite.emitter.reduction import Reduction

__all__ = ["Emitter", "Operand"]


class Emitter(Arithmetic, Movement, Reduction, Matrices):
    """Writes the TFLite form of one node; `call` is for operators that have no method of their own."""
