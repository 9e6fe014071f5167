"""Step: ONNX to a float32 .tflite file, by this project's own lowering.

Does not quantise.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from edgefleet.package.manifest import TensorSpec
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.step import Context
from edgefleet_converters.tflite import LoweredTensor, lower


def run(artefact: Artefact, context: Context) -> Artefact:
    """ONNX in, float .tflite out; raises UnsupportedError naming what has no TFLite form."""
    return lower_artefact(artefact, context.folder)


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
    return TensorSpec.model_validate(
        {"name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape, "permutation": tensor.permutation}
    )
