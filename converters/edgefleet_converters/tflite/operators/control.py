"""Control flow, sequences and optionals that were not settled before run time: refused, with the reason.

What can be settled has been resolved by then: taken branches, unrolled loops, sequences of known length.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.graph import Node, NotLowerableError
from edgefleet_converters.tflite.operators.contract import Lowering
from edgefleet_converters.tflite.unrolling import MOST_TURNS

_SEQUENCES = (
    "ConcatFromSequence",
    "Optional",
    "OptionalGetElement",
    "SequenceAt",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "SplitToSequence",
)

UNSETTLED: Mapping[str, str] = MappingProxyType(
    {
        "If": "a computed condition, and branches whose results differ in shape or type",
        "Loop": f"its number of turns is not known before run time, or more than {MOST_TURNS}",
        "Scan": f"its length is not known before run time, or more than {MOST_TURNS}",
        **dict.fromkeys(_SEQUENCES, "a sequence or optional whose parts are not known before run time"),
    }
)
"""Why an operator of this family is still there."""


def refused(reason: str) -> Lowering:
    """Lowering of an operator that always refuses."""

    def lowered(_node: Node, _e: Emitter) -> None:
        raise NotLowerableError(reason)

    return lowered


OPERATORS: dict[str, Lowering] = {operator: refused(reason) for operator, reason in UNSETTLED.items()}
