"""A .tflite file as C++ source for a microcontroller: the bytes, the arena they need, and the operators to register.

Text only: knows nothing of conversions, and the same file gives the same text.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgefleet_converters.tflite.micro_arena import ALIGNMENT, Arena
from edgefleet_converters.tflite.micro_operators import RESOLVER_METHODS

_BYTES_A_LINE = 32


def header(size_bytes: int, arena: Arena, kernels: str, operators: Sequence[str]) -> str:
    """model_data.h: declarations, the sizes, and the resolver's calls as a comment, to be copied."""
    calls = "\n".join(f"//   resolver.{RESOLVER_METHODS[name]}();" for name in operators)
    return f"""// The model for LiteRT for Microcontrollers, made by edgefleet.
#ifndef EDGEFLEET_MODEL_DATA_H_
#define EDGEFLEET_MODEL_DATA_H_

// The .tflite file; inputs and outputs are int8.
extern const unsigned char model_data[];
extern const unsigned int model_data_size;

#define MODEL_DATA_SIZE {size_bytes}

// Tensor arena with {kernels} kernels, in bytes: {arena.planned_bytes} for tensors and scratch, planned, and
// {arena.persistent_bytes} for what the runtime keeps, estimated from above. MicroInterpreter::arena_used_bytes() says
// what it really is. The arena must be aligned to {ALIGNMENT} bytes.
#define MODEL_ARENA_SIZE {arena.size_bytes}

// Operators to register:
//   tflite::MicroMutableOpResolver<MODEL_OPERATOR_COUNT> resolver;
{calls}
#define MODEL_OPERATOR_COUNT {len(operators)}

#endif  // EDGEFLEET_MODEL_DATA_H_
"""


def definition(content: bytes) -> str:
    """model_data.cc: the bytes, aligned for the runtime, which reads them in place.

    Decimal and without spaces: the text is 3.6 times as large as the file, not 6 times.
    """
    rows = (content[start : start + _BYTES_A_LINE] for start in range(0, len(content), _BYTES_A_LINE))
    listed = "\n".join("".join(f"{byte}," for byte in row) for row in rows)
    return f"""#include "model_data.h"

alignas({ALIGNMENT}) const unsigned char model_data[] = {{
{listed}
}};
const unsigned int model_data_size = sizeof(model_data);
"""
