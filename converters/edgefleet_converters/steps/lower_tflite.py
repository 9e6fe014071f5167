"""Step: ONNX to a float32 .tflite file, by this project's own lowering.

Does not quantise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from edgefleet.errors import UnsupportedError
from edgefleet.package.manifest import TensorSpec
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.tflite import LoweredTensor, lower


def run(artefact: Artefact, _calibration: NDArray[np.float32], folder: Path) -> Artefact:
    """ONNX in, float .tflite out; raises UnsupportedError naming what has no TFLite form."""
    lowered = lower(onnx.load(artefact.files[0]))
    path = folder / "model.tflite"
    path.write_bytes(lowered.content)
    return Artefact(
        files=(path,),
        inputs=tuple(_spec(tensor) for tensor in lowered.inputs),
        outputs=tuple(_spec(tensor) for tensor in lowered.outputs),
    )


def _spec(tensor: LoweredTensor) -> TensorSpec:
    if tensor.dtype != "float32":
        raise UnsupportedError(
            "packaging the .tflite file",
            f"{tensor.name!r} is {tensor.dtype}",
            "give the model float32 inputs and outputs: a package holds no others yet",
        )
    return TensorSpec(name=tensor.name, dtype="float32", shape=tensor.shape, permutation=tensor.permutation)
