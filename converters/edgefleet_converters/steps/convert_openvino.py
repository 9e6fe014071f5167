"""Step: ONNX to OpenVINO IR in float32.

Does not quantise, and does not compress weights to fp16: the next step measures on what it is given.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray

from edgefleet_converters.artefact import Artefact


def run(artefact: Artefact, _calibration: NDArray[np.float32], folder: Path) -> Artefact:
    """ONNX in; .xml and .bin out, with the same names and layout."""
    path = folder / "model.xml"
    openvino.save_model(openvino.convert_model(artefact.files[0]), path, compress_to_fp16=False)
    return artefact.model_copy(update={"files": (path, path.with_suffix(".bin"))})
