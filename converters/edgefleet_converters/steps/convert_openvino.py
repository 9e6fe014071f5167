"""Step: ONNX or TFLite to OpenVINO IR in float32.

Does not quantise, and does not compress weights.
"""

from __future__ import annotations

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.step import Context
from edgefleet_converters.steps.openvino_model import read_float, save


def run(artefact: Artefact, context: Context) -> Artefact:
    """Source in; .xml and .bin out, with the same names and layout."""
    return save(read_float(artefact), artefact, context.folder)
