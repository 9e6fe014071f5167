"""OpenVINO IR on the device plugin that the settings name, at the precision that they name."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefleet.errors import UnsupportedError
from edgefleet_agent.runtimes import Options

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


def open_model(path: Path, options: Options) -> _Model:
    """Open an .xml file with its .bin beside it; raises UnsupportedError where the device is not there."""
    core = ov.Core()
    present = core.available_devices
    # A machine with two GPUs calls them GPU.0 and GPU.1; either is what GPU asks for.
    if not any(name == options.device or name.startswith(f"{options.device}.") for name in present):
        found = f"no device {options.device}: OpenVINO finds {', '.join(present)}"
        raise UnsupportedError(f"opening {path.name}", found, "correct runtime.device in the agent's settings")
    return _Model(core.compile_model(str(path), options.device, compile_settings(options)))


def compile_settings(options: Options) -> dict[str, str | int]:
    """What OpenVINO calls the options; threads are the processor plugin's alone."""
    settings: dict[str, str | int] = {"PERFORMANCE_HINT": "LATENCY"}
    if options.device == "CPU":
        settings["INFERENCE_NUM_THREADS"] = options.threads
    if options.precision_hint != "device":
        # The plugin would pick bf16 or fp16 by the processor; golden outputs were made at f32.
        settings["INFERENCE_PRECISION_HINT"] = options.precision_hint
    return settings
