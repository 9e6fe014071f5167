"""Step: a float .tflite file with 4-bit weights where a kernel takes them, else 8-bit; activations at run time.

Does not look at the calibration samples, and leaves inputs and outputs as they are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.steps.tflite_precisions import quantize_artefact
from edgefleet_device_profiles.profile import Precision


def run(artefact: Artefact, _calibration: NDArray[np.float32], folder: Path) -> Artefact:
    """Float .tflite in, a smaller one with the same inputs and outputs out."""
    return quantize_artefact(artefact, Precision.INT4_WEIGHTS, folder)
