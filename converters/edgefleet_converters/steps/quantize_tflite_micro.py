"""Step: static int8 of a float .tflite file, its inputs and outputs too, for LiteRT for Microcontrollers.

Does not write the C source; `write_micro_source` does, once the file is known to fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from edgefleet.errors import UnsupportedError
from edgefleet.package.manifest import Quantization, TensorSpec
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.step import Context, in_file_layout
from edgefleet_converters.steps.quantize_tflite import quantize
from edgefleet_converters.steps.tflite_ranges import find_ranges
from edgefleet_converters.tflite.writer import unpack


def run(artefact: Artefact, context: Context) -> Artefact:
    """Float .tflite in, int8 .tflite out; raises UnsupportedError where layers are to stay in float."""
    if context.settings.float_tensors:
        found = f"{len(context.settings.float_tensors)} layers are to stay in float"
        raise UnsupportedError("quantising for a microcontroller", found, "only int8 throughout is made for it")
    source, feeds = artefact.files[0].read_bytes(), in_file_layout(artefact, context.samples)
    content = quantize(source, feeds, border="int8", ranges=find_ranges(source, feeds, context.settings.ranges))
    path = context.folder / "model.tflite"
    path.write_bytes(content)
    model = unpack(content)
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    inputs, outputs = _places(signature.inputs), _places(signature.outputs)
    return Artefact(
        files=(path,),
        inputs=tuple(_quantized(spec, graph.tensors[inputs[spec.name]]) for spec in artefact.inputs),
        outputs=tuple(_quantized(spec, graph.tensors[outputs[spec.name]]) for spec in artefact.outputs),
    )


def _places(entries: Any) -> Mapping[str, int]:
    return {entry.name.decode(): int(entry.tensorIndex) for entry in entries}


def _quantized(spec: TensorSpec, tensor: Any) -> TensorSpec:
    """The spec with the scale that the file's own tensor has; one that was no float stays as it is."""
    found = tensor.quantization
    if tensor.type != schema.TensorType.INT8 or found is None or found.scale is None:
        return spec
    border = Quantization(dtype="int8", scale=float(found.scale[0]), zero_point=int(found.zeroPoint[0]))
    return spec.model_copy(update={"quantization": border})
