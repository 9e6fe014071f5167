"""Step: the C++ source of an int8 .tflite file beside it, if a microcontroller's operators and arena suffice.

Leaves the .tflite file as it is: that one is scored, and its bytes are the source's array.
"""

from __future__ import annotations

from edgefleet.errors import UnsupportedError
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.step import Context
from edgefleet_converters.tflite.micro_arena import plan_arena
from edgefleet_converters.tflite.micro_operators import lacking
from edgefleet_converters.tflite.micro_source import definition, header
from edgefleet_converters.tflite.wiring import wirings
from edgefleet_converters.tflite.writer import unpack

_DOING = "writing the source for a microcontroller"
_KIB = 1024


def run(artefact: Artefact, context: Context) -> Artefact:
    """An int8 .tflite in, the same and its source out; raises UnsupportedError with what is missing, or need and have.

    Raises ValueError where the settings say nothing of the microcontroller.
    """
    micro = context.settings.micro
    if micro is None:
        raise ValueError("this step needs settings.micro")
    content = artefact.files[0].read_bytes()
    model = unpack(content)
    if len(model.subgraphs) != 1:
        found = f"the file has {len(model.subgraphs)} graphs, for control flow"
        raise UnsupportedError(_DOING, found, "export the model without loops and conditions")
    (wiring,) = wirings(model)
    operators = tuple(dict.fromkeys(wiring.name(operator) for operator in wiring.table.operators))
    missing = lacking(operators)
    if missing:
        found = f"LiteRT for Microcontrollers has no {', '.join(missing)}"
        raise UnsupportedError(_DOING, found, "use other layers, or a device with a system")
    arena = plan_arena(model, micro.kernels)
    if arena.size_bytes > micro.arena_bytes:
        need, have = -(-arena.size_bytes // _KIB), micro.arena_bytes // _KIB
        found = f"the tensor arena needs {need} KiB with {micro.kernels} kernels, the device has {have} KiB"
        raise UnsupportedError(_DOING, found, "use a smaller input, or fewer channels in the first layers")
    files = (context.folder / "model.tflite", context.folder / "model_data.h", context.folder / "model_data.cc")
    files[0].write_bytes(content)
    files[1].write_text(header(len(content), arena, micro.kernels, operators), encoding="utf-8")
    files[2].write_text(definition(content), encoding="utf-8")
    return artefact.model_copy(update={"files": files})
