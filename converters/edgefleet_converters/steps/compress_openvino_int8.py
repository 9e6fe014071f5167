"""Step: ONNX or TFLite to OpenVINO IR with int8 weights, one scale for each channel; arithmetic in float.

Does not look at the calibration samples.
"""

from __future__ import annotations

import nncf

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.step import Context
from edgefleet_converters.steps.openvino_model import name_by_position, names, read_float, save


def run(artefact: Artefact, context: Context) -> Artefact:
    """Float source in, IR with int8 weights out, with the same inputs and outputs."""
    model = read_float(artefact)
    known = names(model)
    compressed = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    name_by_position(compressed, known)
    return save(compressed, artefact, context.folder)
