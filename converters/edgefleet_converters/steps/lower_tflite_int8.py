"""Step: ONNX to a float32 .tflite file whose operators stay on XNNPACK once they are int8.

Does not quantise.
"""

from __future__ import annotations

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.step import Context
from edgefleet_converters.steps.lower_tflite import lower_artefact


def run(artefact: Artefact, context: Context) -> Artefact:
    """ONNX in, float .tflite out; raises UnsupportedError naming what has no TFLite form."""
    return lower_artefact(artefact, context.folder, int8=True)
