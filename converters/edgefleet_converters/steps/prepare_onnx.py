"""Step: ONNX Runtime's own clean-up before quantisation: shape inference and graph optimisation.

Does not change what the model computes, beyond rounding.
"""

from __future__ import annotations

from onnxruntime.quantization.shape_inference import quant_pre_process

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.step import Context


def run(artefact: Artefact, context: Context) -> Artefact:
    """Float ONNX in, float ONNX out. Shapes are static already, so the symbolic solver is not needed."""
    path = context.folder / "model.onnx"
    quant_pre_process(artefact.files[0], path, skip_symbolic_shape=True)
    return artefact.model_copy(update={"files": (path,)})
