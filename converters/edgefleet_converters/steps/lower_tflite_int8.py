"""Step: ONNX to a float32 .tflite file whose operators stay on XNNPACK once they are int8.

Does not quantise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.steps.lower_tflite import lower_artefact


def run(artefact: Artefact, _calibration: NDArray[np.float32], folder: Path) -> Artefact:
    """ONNX in, float .tflite out; raises UnsupportedError naming what has no TFLite form."""
    return lower_artefact(artefact, folder, int8=True)
