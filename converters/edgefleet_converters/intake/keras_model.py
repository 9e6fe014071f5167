"""Keras intake: .keras and .h5 files and SavedModel folders, by way of ONNX, in an environment of their own.

TensorFlow never shares ours. Python code that a file carries is not run, unless the person trusts it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from edgefleet.errors import InputError, UnsupportedError
from edgefleet_converters import environments
from edgefleet_converters.child import ChildFailedError
from edgefleet_converters.conversion.shapes import Shapes
from edgefleet_converters.intake.onnx_file import read_onnx
from edgefleet_converters.intake.source import Source, SourceKind, digest_of
from edgefleet_converters.progress import Progress

TIMEOUT_S = 900.0
_ENVIRONMENT = environments.ENVIRONMENTS["keras"]


_HDF5 = b"\x89HDF\r\n\x1a\n"


class _Job(BaseModel):
    model: Path
    output: Path
    shapes: dict[str, tuple[int, ...]]
    trust: bool


class _Answer(BaseModel):
    """Names in the source's order; `refused`: what was found and what to do."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    refused: tuple[str, str] | None


def _is_known(path: Path) -> bool:
    """Whether it is a zip or HDF5, and so worth an environment that takes minutes to make."""
    if zipfile.is_zipfile(path):
        return True
    with path.open("rb") as stream:
        return stream.read(len(_HDF5)) == _HDF5


def read_keras(
    model: str, work: Path, *, shapes: Shapes, dims: Mapping[str, int], trust: bool, progress: Progress
) -> Source:
    """Read a Keras model with a batch of 1 (or what `shapes` says); images stay NHWC.

    Raises InputError, UnsupportedError, and what making the environment raises.
    """
    doing = f"reading the model {model}"
    path = Path(model)
    if not path.exists():
        raise InputError(doing, "No such file or directory", "check the path")
    if dims:
        found = f"--dim {next(iter(dims))}: axes of Keras models have no names"
        raise InputError(doing, found, "give the whole shape with --shape NAME=1,…")
    if path.is_file() and not _is_known(path):
        raise InputError(doing, "neither a .keras nor an HDF5 file", "save it with model.save('model.keras')")
    output = work / "from-keras.onnx"
    job = _Job(model=path.resolve(), output=output, shapes=dict(shapes), trust=trust)
    try:
        answer = environments.call(
            _ENVIRONMENT, "keras_to_onnx:convert", job, _Answer, timeout_s=TIMEOUT_S, progress=progress
        )
    except ChildFailedError as error:
        found = f"tf2onnx cannot bring it to ONNX ({error})"
        raise UnsupportedError(doing, found, "export it to ONNX or TFLite where it was trained") from error
    if answer.refused is not None:
        raise InputError(doing, *answer.refused)
    source = read_onnx(output, work, shapes={}, dims={}, kind=SourceKind.KERAS, origin=model)
    return source.model_copy(update={"digest": digest_of(path, sorted(shapes.items()))})
