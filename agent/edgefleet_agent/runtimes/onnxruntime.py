"""ONNX files in ONNX Runtime, on the execution providers that the settings name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefleet.errors import UnsupportedError
from edgefleet_agent.runtimes import Options

# Importing onnxruntime starts a report over the network unless this is set before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort


class _Model:
    def __init__(self, session: Any) -> None:
        self._session = session
        self._outputs = [output.name for output in session.get_outputs()]

    def infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """Run once."""
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))


def open_model(path: Path, options: Options) -> _Model:
    """Open an .onnx file; raises UnsupportedError where a provider that was asked for would not be used."""
    _check(path, options.providers, ort.get_available_providers(), "this onnxruntime has")
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    providers = [(name, dict(options.provider_options.get(name, {}))) for name in options.providers]
    session = ort.InferenceSession(str(path), settings, providers=providers)
    # One whose libraries cannot be loaded is left out with no more than a warning on stderr.
    _check(path, options.providers, session.get_providers(), "the session opened with")
    return _Model(session)


def _check(path: Path, wanted: tuple[str, ...], present: list[str], who: str) -> None:
    missing = [name for name in wanted if name not in present]
    if missing:
        found = f"no {', '.join(missing)}: {who} {', '.join(present)}"
        remedy = "correct runtime.providers in the agent's settings, or install that provider's onnxruntime"
        raise UnsupportedError(f"opening {path.name}", found, remedy)
