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
    return lower_artefact(artefact, folder)


def lower_artefact(artefact: Artefact, folder: Path, *, int8: bool = False) -> Artefact:
    """The source as a float .tflite file in `folder`; with `int8` in the forms that stay fast once quantised."""
    lowered = lower(onnx.load(artefact.files[0]), int8=int8)
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
