"""Runs a .pte file in ExecuTorch on the CPU.

Imports the runtime at the top, so only child processes import this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

import numpy as np
import torch
from executorch.runtime import Runtime
from numpy.typing import NDArray

from edgefleet_converters.artefact import Artefact


class ExecutorchRunner:
    """The method `forward` of a program; its tensors have places, not names."""

    version = version("executorch")

    def __init__(self, artefact: Artefact) -> None:
        self._inputs = [spec.name for spec in artefact.inputs]
        self._outputs = [spec.name for spec in artefact.outputs]
        # The method reads weights from the program, which must therefore live as long.
        self._program = Runtime.get().load_program(artefact.files[0])
        self._method = self._program.load_method("forward")

    def infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> Mapping[str, NDArray[np.generic]]:
        """Run one sample."""
        found = self._method.execute([torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self._inputs])
        # The next run writes to the same memory.
        return {name: tensor.numpy().copy() for name, tensor in zip(self._outputs, found, strict=True)}


def open_model(artefact: Artefact, _threads: int) -> ExecutorchRunner:
    """Load a program; raises RuntimeError when ExecuTorch refuses it. It takes as many threads as it likes."""
    return ExecutorchRunner(artefact)
