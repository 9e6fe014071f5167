"""Step: ONNX to OpenVINO IR in float32.

Does not quantise, and does not compress weights to fp16: the next step measures on what it is given.
"""

from __future__ import annotations

import openvino

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.step import Context


def run(artefact: Artefact, context: Context) -> Artefact:
    """ONNX in; .xml and .bin out, with the same names and layout."""
    path = context.folder / "model.xml"
    openvino.save_model(openvino.convert_model(artefact.files[0]), path, compress_to_fp16=False)
    return artefact.model_copy(update={"files": (path, path.with_suffix(".bin"))})
