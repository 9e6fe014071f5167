"""What a conversion step takes and gives: model files on disk with their inputs and outputs.

Pydantic models, because they cross from child processes as JSON.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from edgefleet.package.manifest import TensorSpec

SOURCE_SUFFIXES = (".cc", ".h")
"""Of files for a compiler."""


class Form(StrEnum):
    """In which form a source model can be handed to a recipe."""

    ONNX = "onnx"
    """One .onnx file."""
    TFLITE = "tflite"
    """One float .tflite file."""
    TORCH = "torch"
    """A saved torch.export program, .pt2."""


class Artefact(BaseModel):
    """Model files, the one that the runtime opens first; tensors in the source's layout and order."""

    model_config = ConfigDict(frozen=True)

    files: tuple[Path, ...] = Field(min_length=1)
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def size_bytes(self) -> int:
        """Size of what a device holds: all files together, without C source, whose array is the first of them."""
        return sum(path.stat().st_size for path in self.files if path.suffix not in SOURCE_SUFFIXES)
