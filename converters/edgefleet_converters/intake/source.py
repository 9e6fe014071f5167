"""A source model: what the person gave, and the forms of it that recipes can start from.

Holds paths and facts only; the readers of this folder make it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from edgefleet.package.manifest import TensorSpec
from edgefleet_converters.artefact import Artefact, Form


class SourceKind(StrEnum):
    """What the person's own model is."""

    ONNX = "onnx"
    """An .onnx file."""
    PYTORCH = "pytorch"
    """A torch.nn.Module with an example input, or a saved torch.export program."""
    KERAS = "keras"
    """An .h5 or .keras file, or a SavedModel folder."""
    TFLITE = "tflite"
    """A float .tflite file."""
    SKLEARN = "sklearn"
    """A fitted scikit-learn estimator."""


class Source(BaseModel):
    """A checked model with static shapes; every form has the same input and output names, in the same order."""

    model_config = ConfigDict(frozen=True)

    kind: SourceKind
    origin: str
    """As the person wrote it."""
    digest: str
    """sha256 of the original's bytes, and of what changes its meaning (shapes asked for)."""
    forms: Mapping[Form, Artefact] = Field(min_length=1)
    """Files in the work folder: the person's own may change while child processes read it."""
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    labels: tuple[str, ...] = ()
    """Names of the classes, where the model itself knows them."""
    notes: tuple[str, ...] = ()
    """What the person should be told."""

    @property
    def reference(self) -> tuple[Form, Artefact]:
        """The form that is run as the fp32 reference: ONNX where there is one."""
        form = Form.ONNX if Form.ONNX in self.forms else next(iter(self.forms))
        return form, self.forms[form]


def digest_of(original: Path, *meaning: object) -> str:
    """sha256 of a file or of all files in a folder, by their names, and of what changes their meaning."""
    found = hashlib.sha256()
    files = sorted(path for path in original.rglob("*") if path.is_file()) if original.is_dir() else [original]
    for path in files:
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        found.update(f"{path.relative_to(original)} {content}\n".encode())
    found.update("\n".join(map(repr, meaning)).encode())
    return found.hexdigest()
