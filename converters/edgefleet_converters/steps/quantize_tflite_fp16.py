"""Step: a float .tflite file with float16 weights, widened to float32 when the file is loaded.

Does not look at the calibration samples, and leaves inputs and outputs as they are.
"""

from __future__ import annotations

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.step import Context
from edgefleet_converters.steps.tflite_precisions import quantize_artefact
from edgefleet_device_profiles.profile import Precision


def run(artefact: Artefact, context: Context) -> Artefact:
    """Float .tflite in, a smaller one with the same inputs and outputs out."""
    return quantize_artefact(artefact, Precision.FP16, context.folder)
