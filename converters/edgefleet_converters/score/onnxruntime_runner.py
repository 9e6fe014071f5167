"""Runs an ONNX file in ONNX Runtime on the CPU.

Imports the runtime at the top, so only child processes import this module.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgefleet_converters.artefact import Artefact


class OnnxRuntimeRunner:
    """One session; on one thread it sums in one order, so the same bits on every run."""

    version = str(onnxruntime.__version__)

    def __init__(self, artefact: Artefact, threads: int) -> None:
        self._outputs = [spec.name for spec in artefact.outputs]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(artefact.files[0], options, providers=["CPUExecutionProvider"])

    def infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> Mapping[str, NDArray[np.generic]]:
        """Run one sample."""
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))


def open_model(artefact: Artefact, threads: int) -> OnnxRuntimeRunner:
    """Load a file; raises onnxruntime's own exceptions when it refuses it."""
    return OnnxRuntimeRunner(artefact, threads)
