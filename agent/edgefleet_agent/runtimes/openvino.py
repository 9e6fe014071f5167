"""OpenVINO IR on the processor plugin, at float32 where the variant is not quantised."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Importing openvino reports the import over the network unless this module is absent; it then uses its own stub.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino as ov  # noqa: E402


class _Model:
    def __init__(self, compiled: Any) -> None:
        self._request = compiled.create_infer_request()
        self._outputs = {output.get_any_name(): output for output in compiled.outputs}

    def infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """Run once."""
        results = self._request.infer(dict(inputs))
        return {name: results[output] for name, output in self._outputs.items()}


def open_model(path: Path, threads: int) -> _Model:
    """Open an .xml file with its .bin beside it."""
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        # The plugin would pick bf16 or fp16 by the processor; golden outputs were made at f32.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    return _Model(ov.Core().compile_model(str(path), "CPU", settings))
