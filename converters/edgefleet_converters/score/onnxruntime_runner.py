"""Runs an ONNX file in ONNX Runtime on the CPU.

Imports the runtime at the top, so only child processes import this module.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgefleet_converters.artefact import Artefact


class OnnxRuntimeRunner:
    """One session on one thread: sums in one order, so the same bits on every run."""

    version = str(onnxruntime.__version__)

    def __init__(self, artefact: Artefact) -> None:
        self._input, self._output = artefact.inputs[0].name, artefact.outputs[0].name
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(artefact.files[0], options, providers=["CPUExecutionProvider"])

    def infer(self, sample: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run one sample."""
        found: NDArray[np.float32] = self._session.run([self._output], {self._input: sample})[0]
        return found


def open_model(artefact: Artefact) -> OnnxRuntimeRunner:
    """Load a file; raises onnxruntime's own exceptions when it refuses it."""
    return OnnxRuntimeRunner(artefact)
