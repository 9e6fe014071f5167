"""The runtimes, one module each, loaded by name in the worker process only."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
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


@dataclass(frozen=True, slots=True)
class Options:
    """How a runtime is opened; each takes what it knows of it. `settings.RuntimeSettings` says the same in a file."""

    threads: int = 1
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    """ONNX Runtime's execution providers, the preferred one first."""
    provider_options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """ONNX Runtime: provider → its own options."""
    device: str = "CPU"
    """OpenVINO's device: CPU, GPU, NPU."""
    precision_hint: str = "f32"
    """What OpenVINO computes floating point in: f32, f16, bf16; `device`: what its plugin prefers."""


class Model(Protocol):
    """A model opened in a runtime."""

    def infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """Run once: input name → array in the file's own layout; returns output name → array."""
        ...


def load(runtime: str) -> ModuleType:
    """The module of a runtime; raises MissingExtraError."""
    module, extra = RUNTIMES[runtime]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"loading {runtime}", str(error.name), extra) from error


def open_model(runtime: str, path: Path, options: Options) -> Model:
    """Open a model file; raises MissingExtraError, UnsupportedError, or what the runtime raises for a file."""
    return cast("Model", load(runtime).open_model(path, options))
