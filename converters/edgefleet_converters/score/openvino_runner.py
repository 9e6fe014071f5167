"""Runs an OpenVINO IR in OpenVINO on the CPU.

Imports the runtime at the top, so only child processes import this module.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import openvino
from numpy.typing import NDArray

from edgefleet_converters.artefact import Artefact

# Left to itself, OpenVINO computes what is not int8 in bfloat16 or float16 where the processor can.
_SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}


class OpenvinoRunner:
    """One compiled model, one inference at a time."""

    version = openvino.__version__.partition("-")[0]

    def __init__(self, artefact: Artefact, threads: int) -> None:
        self._outputs = [spec.name for spec in artefact.outputs]
        self._model = openvino.Core().compile_model(
            artefact.files[0], "CPU", {**_SETTINGS, "INFERENCE_NUM_THREADS": threads}
        )

    def infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> Mapping[str, NDArray[np.generic]]:
        """Run one sample."""
        found = self._model(dict(inputs))
        return {name: np.array(found[name]) for name in self._outputs}


def open_model(artefact: Artefact, threads: int) -> OpenvinoRunner:
    """Load an IR; raises RuntimeError when OpenVINO refuses it."""
    return OpenvinoRunner(artefact, threads)
