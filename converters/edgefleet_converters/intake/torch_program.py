"""PyTorch intake: a saved torch.export program, or a function that returns a module with an example of its inputs.

Loads neither torch nor the person's own code into this process: a child exports the model and hands back files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from edgefleet.errors import MissingExtraError, UnsupportedError
from edgefleet.package.manifest import TensorSpec
from edgefleet_converters import child
from edgefleet_converters.artefact import Artefact, Form
from edgefleet_converters.conversion.shapes import Shapes
from edgefleet_converters.intake.onnx_file import read_onnx
from edgefleet_converters.intake.source import Source, SourceKind

EXTRA = "convert-torch"
TIMEOUT_S = 1800.0
SUFFIXES = (".pt2", ".pt", ".pth")
FUNCTION = re.compile(r"(?P<module>.+\.py|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_]\w*)")
"""`package.module:function` or `path/to/file.py:function`."""
PROGRAM_FILE, ONNX_FILE = "program.pt2", "exported.onnx"
_PACKAGES = ("torch", "onnxscript", "onnxruntime")


class ExportJob(BaseModel):
    """What the child exports: `model` as the person wrote it, relative to `folder`; files go to `work`."""

    model_config = ConfigDict(frozen=True)

    model: str
    folder: Path
    work: Path
    shapes: dict[str, tuple[int, ...]]
    dims: dict[str, int]
    trust: bool


class Exported(BaseModel):
    """What the child left in `work`: PROGRAM_FILE and ONNX_FILE, with these tensors."""

    model_config = ConfigDict(frozen=True)

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    notes: tuple[str, ...]


def read_torch(model: str, work: Path, *, shapes: Shapes, dims: Mapping[str, int], trust: bool) -> Source:
    """Export a PyTorch model to `work` as ONNX and as a saved program, both with static shapes.

    `trust` lets files that hold pickled Python objects be loaded, which runs whatever code they carry. Raises
    InputError, UnsupportedError, and MissingExtraError where torch is not installed.
    """
    doing = f"reading the model {model}"
    for package in _PACKAGES:
        if find_spec(package) is None:
            raise MissingExtraError(doing, package, EXTRA)
    work = work.resolve()
    job = ExportJob(model=model, folder=Path.cwd(), work=work, shapes=dict(shapes), dims=dict(dims), trust=trust)
    try:
        exported = child.call(
            "edgefleet_converters.intake.torch_export:export_model", job, Exported, timeout_s=TIMEOUT_S
        )
    except child.ChildFailedError as error:
        raise UnsupportedError(doing, f"the export failed: {error}", "export it with torch.export yourself") from error
    found = read_onnx(work / ONNX_FILE, work, shapes={}, dims={})
    program = Artefact(files=(work / PROGRAM_FILE,), inputs=exported.inputs, outputs=exported.outputs)
    return found.model_copy(
        update={
            "kind": SourceKind.PYTORCH,
            "origin": model,
            "forms": {**found.forms, Form.TORCH: program},
            "notes": (*exported.notes, *found.notes),
        }
    )
