"""The runtimes, one module each, loaded by name in the worker process only."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from edgefleet.errors import MissingExtraError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# runtime → (module with `open_model`, extra that installs it)
RUNTIMES: dict[str, tuple[str, str]] = {
    "litert": ("edgefleet_agent.runtimes.litert", "agent,litert"),
    "onnxruntime": ("edgefleet_agent.runtimes.onnxruntime", "agent,onnx"),
    "openvino": ("edgefleet_agent.runtimes.openvino", "agent,openvino"),
}


class Model(Protocol):
    """A model opened in a runtime."""

    def infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """Run once: input name → array in the file's own layout; returns output name → array."""
        ...


def open_model(runtime: str, path: Path, threads: int) -> Model:
    """Open a model file; raises MissingExtraError, or whatever the runtime raises for a file it refuses."""
    module, extra = RUNTIMES[runtime]
    try:
        return cast("Model", importlib.import_module(module).open_model(path, threads))
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"opening {path.name}", str(error.name), extra) from error
