"""A variant opened in its runtime: arrays in the source model's layout and type go in, and come out.

It measures nothing and holds no process; worker and library both run models through it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefleet.package.quantization import dequantized, quantized
from edgefleet_agent.runtimes import Model, Options, open_model

Array = NDArray[np.generic]
Arrays = Mapping[str, Array]


class Variant:
    """A variant in its slot."""

    def __init__(self, slot: Path, spec: Mapping[str, Any], options: Options) -> None:
        """Open the model; `spec` is the settings layer, already validated. Raises as `open_model` does."""
        self.spec = spec
        self._model: Model = open_model(spec["runtime"], slot / spec["model_file"], options)

    def infer(self, inputs: Arrays) -> dict[str, Array]:
        """Run once; what the spec says of layout and type is applied on the way in and undone on the way out."""
        return self.restored(self.infer_prepared(self.prepared(inputs)))

    def prepared(self, inputs: Arrays) -> Arrays:
        """Inputs as the file takes them."""
        return {tensor["name"]: _stored(inputs[tensor["name"]], tensor) for tensor in self.spec["inputs"]}

    def infer_prepared(self, inputs: Arrays) -> Arrays:
        """The runtime's call alone: arrays as the file takes and gives them."""
        return self._model.infer(inputs)

    def restored(self, outputs: Arrays) -> dict[str, Array]:
        """Outputs as the source model would give them."""
        return {tensor["name"]: _restored(outputs[tensor["name"]], tensor) for tensor in self.spec["outputs"]}


def _stored(array: Array, tensor: Mapping[str, Any]) -> Array:
    """An input as the file takes it."""
    if tensor["permutation"] is not None:
        array = np.ascontiguousarray(array.transpose(tensor["permutation"]))
    border = tensor.get("quantization")
    return array if border is None else quantized(array, border["dtype"], border["scale"], border["zero_point"])


def _restored(array: Array, tensor: Mapping[str, Any]) -> Array:
    """An output as the source model would give it."""
    border = tensor.get("quantization")
    if border is not None:
        array = dequantized(array, border["scale"], border["zero_point"])
    return array if tensor["permutation"] is None else array.transpose(np.argsort(tensor["permutation"]))
