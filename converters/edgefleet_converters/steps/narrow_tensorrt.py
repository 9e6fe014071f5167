"""Step: an ONNX file that computes in float16, for an engine that TensorRT builds on the device.

Does not keep float32 inside: TensorRT computes in the types that the file has. Inputs and outputs stay float32.
"""

from __future__ import annotations

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.step import Context
from edgefleet_converters.steps.onnx_layers import save_clean
from edgefleet_converters.steps.prepare_onnx import prepare


def run(artefact: Artefact, context: Context) -> Artefact:
    """Float ONNX in, a file of half the size out, with the same inputs and outputs."""
    prepared, path = context.folder / "prepared.onnx", context.folder / "model.onnx"
    prepare(artefact.files[0], prepared)
    narrowed = OnnxModel(convert_float_to_float16(onnx.load(prepared), keep_io_types=True))
    # The tool adds the casts of the inputs at the end, and ONNX asks for nodes in the order of their inputs.
    narrowed.topological_sort(is_deterministic=True)
    save_clean(narrowed.model, path)
    return artefact.model_copy(update={"files": (path,)})
