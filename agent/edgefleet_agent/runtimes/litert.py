"""TFLite files in LiteRT, or in tflite-runtime where that is what the device has. Processor only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefleet_agent.runtimes import Options

try:
    from ai_edge_litert.interpreter import Interpreter
except ModuleNotFoundError:
    from tflite_runtime.interpreter import Interpreter

SIGNATURE = "serving_default"


class _Model:
    def __init__(self, interpreter: Any) -> None:
        runner = interpreter.get_signature_runner(SIGNATURE)
        self._interpreter = interpreter
        self._inputs = {name: detail["index"] for name, detail in runner.get_input_details().items()}
        self._outputs = {name: detail["index"] for name, detail in runner.get_output_details().items()}

    def infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """Run once."""
        for name, index in self._inputs.items():
            self._interpreter.set_tensor(index, inputs[name])
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(index) for name, index in self._outputs.items()}


def open_model(path: Path, options: Options) -> _Model:
    """Open a .tflite file with the signature `serving_default`."""
    interpreter = Interpreter(model_path=str(path), num_threads=options.threads)
    interpreter.allocate_tensors()
    return _Model(interpreter)
