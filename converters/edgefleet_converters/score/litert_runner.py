"""Runs a .tflite file in LiteRT on the CPU.

Imports the runtime at the top, so only child processes import this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from edgefleet_converters.artefact import Artefact


class LitertRunner:
    """One signature of a .tflite file."""

    version = version("ai-edge-litert")

    def __init__(self, artefact: Artefact, threads: int) -> None:
        self._interpreter = Interpreter(model_path=str(artefact.files[0]), num_threads=threads)
        self._run = self._interpreter.get_signature_runner()

    def infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> Mapping[str, NDArray[np.generic]]:
        """Run one sample in the file's layout."""
        found: Mapping[str, NDArray[np.generic]] = self._run(**inputs)
        return found


def open_model(artefact: Artefact, threads: int) -> LitertRunner:
    """Load a file; raises ValueError or RuntimeError when LiteRT refuses it."""
    return LitertRunner(artefact, threads)
