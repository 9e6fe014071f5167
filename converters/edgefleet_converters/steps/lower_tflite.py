"""Step: ONNX to a float32 .tflite file, by this project's own lowering.

Does not quantise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.tflite import lower


def run(artefact: Artefact, _calibration: NDArray[np.float32], folder: Path) -> Artefact:
    """ONNX in, float .tflite out; raises UnsupportedError naming what has no TFLite form."""
    lowered = lower(onnx.load(artefact.files[0]))
    path = folder / "model.tflite"
    path.write_bytes(lowered.content)
    return Artefact(files=(path,), inputs=lowered.inputs, outputs=lowered.outputs)
