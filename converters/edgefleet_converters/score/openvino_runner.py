"""Runs an OpenVINO IR in OpenVINO on the CPU.

Imports the runtime at the top, so only child processes import this module.
"""

from __future__ import annotations

import numpy as np
import openvino
from numpy.typing import NDArray

from edgefleet_converters.artefact import Artefact

# Left to itself, OpenVINO computes what is not int8 in bfloat16 or float16 where the processor can.
_SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}


class OpenvinoRunner:
    """One compiled model on one thread."""

    version = openvino.__version__.partition("-")[0]

    def __init__(self, artefact: Artefact) -> None:
        self._input, self._output = artefact.inputs[0].name, artefact.outputs[0].name
        self._model = openvino.Core().compile_model(artefact.files[0], "CPU", _SETTINGS)

    def infer(self, sample: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run one sample."""
        found = self._model({self._input: sample})
        return np.array(found[self._output], np.float32)


def open_model(artefact: Artefact) -> OpenvinoRunner:
    """Load an IR; raises RuntimeError when OpenVINO refuses it."""
    return OpenvinoRunner(artefact)
