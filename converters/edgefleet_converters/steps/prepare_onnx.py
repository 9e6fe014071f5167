"""Step: ONNX Runtime's own clean-up before quantisation: shape inference and graph optimisation.

Does not change what the model computes, beyond rounding.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgefleet_converters.artefact import Artefact


def run(artefact: Artefact, _calibration: NDArray[np.float32], folder: Path) -> Artefact:
    """Float ONNX in, float ONNX out. Shapes are static already, so the symbolic solver is not needed."""
    path = folder / "model.onnx"
    quant_pre_process(artefact.files[0], path, skip_symbolic_shape=True)
    return artefact.model_copy(update={"files": (path,)})
