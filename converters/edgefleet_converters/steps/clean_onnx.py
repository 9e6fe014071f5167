"""Step: the float32 ONNX file without what no runtime needs. It computes the same bits as the source.

Does not optimise: ONNX Runtime does that when it loads the file, for the processor that it finds.
"""

from __future__ import annotations

import onnx

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.step import Context
from edgefleet_converters.steps.onnx_layers import save_clean


def run(artefact: Artefact, context: Context) -> Artefact:
    """Float ONNX in, float ONNX out."""
    path = context.folder / "model.onnx"
    save_clean(onnx.load(artefact.files[0]), path)
    return artefact.model_copy(update={"files": (path,)})
