"""Operators that compute in float32 whichever float type they are given: inputs widened, outputs in their own type.

Does not narrow: 64-bit floats are refused.
"""

from __future__ import annotations

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor
from edgefleet_converters.tflite.graph import NotLowerableError

WORKING = "float32"


def widened(e: Emitter, position: int) -> Tensor:
    """An input of the node in float32; raises NotLowerableError for anything but float32 and float16."""
    value = e.input(position)
    if value.dtype not in (WORKING, "float16"):
        raise NotLowerableError(f"{value.dtype} values")
    return e.cast(value, WORKING)


def finish(e: Emitter, position: int, value: Tensor) -> None:
    """Hand out a result in the output's own type, if the node has that output."""
    if e.wants(position):
        e.into(e.node.outputs[position], e.cast(value, e.output(position).dtype))
