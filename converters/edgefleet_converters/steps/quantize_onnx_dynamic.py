"""Step: an ONNX file with int8 weights in matrix products and embeddings; activations are quantised at run time.

Leaves convolutions in float, and refuses a model that mostly convolves.
"""

from __future__ import annotations

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from edgefleet_converters.analysis import analyze
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.step import Context
from edgefleet_converters.steps.onnx_layers import save_clean
from edgefleet_converters.steps.prepare_onnx import prepare
from edgefleet_converters.suitability import require_suitable
from edgefleet_device_profiles.profile import Precision, Runtime

OPERATORS = ("Gather", "Gemm", "LSTM", "MatMul")


def run(artefact: Artefact, context: Context) -> Artefact:
    """Float ONNX in, a smaller one with the same inputs and outputs out; raises UnsupportedError."""
    require_suitable(Runtime.ONNXRUNTIME, Precision.INT8_DYNAMIC, analyze(onnx.load(artefact.files[0])))
    prepared, path = context.folder / "prepared.onnx", context.folder / "model.onnx"
    prepare(artefact.files[0], prepared)
    quantize_dynamic(
        prepared, path, op_types_to_quantize=list(OPERATORS), per_channel=True, weight_type=QuantType.QInt8
    )
    save_clean(onnx.load(path), path)
    return artefact.model_copy(update={"files": (path,)})
