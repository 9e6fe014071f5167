"""Step: ONNX or TFLite to OpenVINO IR with float16 weights, widened when OpenVINO loads the file.

Does not choose the arithmetic: that is the device's `INFERENCE_PRECISION_HINT`.
"""

from __future__ import annotations

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.step import Context
from edgefleet_converters.steps.openvino_model import read_float, save


def run(artefact: Artefact, context: Context) -> Artefact:
    """Source in; .xml and a .bin of half the size out, with the same names and layout."""
    return save(read_float(artefact), artefact, context.folder, compress_to_fp16=True)
