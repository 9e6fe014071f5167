"""The protocol's datatypes beside numpy's names, and values to raw bytes and back. Pure, without numpy.

BYTES is missing: no variant takes or gives strings.
Source: Open Inference Protocol 2, "Tensor Data Types".
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

INFINITE = "a number that is not finite, or too large for the datatype"


@dataclass(frozen=True, slots=True)
class Datatype:
    """`name` is the protocol's; `code` is the struct module's for one value."""

    name: str
    code: str
    size_bytes: int


DATATYPES = {
    "bool": Datatype("BOOL", "?", 1),
    "uint8": Datatype("UINT8", "B", 1),
    "uint16": Datatype("UINT16", "H", 2),
    "uint32": Datatype("UINT32", "I", 4),
    "uint64": Datatype("UINT64", "Q", 8),
    "int8": Datatype("INT8", "b", 1),
    "int16": Datatype("INT16", "h", 2),
    "int32": Datatype("INT32", "i", 4),
    "int64": Datatype("INT64", "q", 8),
    "float16": Datatype("FP16", "e", 2),
    "float32": Datatype("FP32", "f", 4),
    "float64": Datatype("FP64", "d", 8),
}
"""By numpy's name of the type."""
FLOATS = "efd"


def packed(values: Sequence[object], datatype: Datatype) -> bytes:
    """Values as row-major, little-endian bytes; raises ValueError with what is wrong with them, in words."""
    if datatype.code == "?" and not all(type(value) is bool for value in values):
        raise ValueError("a value that is neither true nor false")
    try:
        data = struct.pack(f"<{len(values)}{datatype.code}", *values)
    except OverflowError as error:
        raise ValueError(INFINITE) from error
    except struct.error as error:
        raise ValueError("a value that is no number of this datatype") from error
    if datatype.code in FLOATS and not all_finite(values):
        raise ValueError(INFINITE)
    return data


def unpacked(data: bytes | memoryview, datatype: Datatype) -> tuple[float, ...]:
    """The values of raw bytes; numbers or booleans."""
    return struct.unpack(f"<{len(data) // datatype.size_bytes}{datatype.code}", data)


def all_finite(values: Sequence[object]) -> bool:
    """Whether no value is NaN or infinite; all of them are numbers."""
    # One pass in C settles it nearly always: a sum is finite only when all of its terms are.
    if math.isfinite(sum(values)):  # type: ignore[arg-type]
        return True
    return all(math.isfinite(value) for value in values)  # type: ignore[arg-type]


def well_formed(data: bytes | memoryview, datatype: Datatype) -> bool:
    """Whether every byte pattern is a value of the datatype: a BOOL is 0 or 1, of the others each one is."""
    return datatype.code != "?" or not bytes(data).translate(None, b"\x00\x01")
