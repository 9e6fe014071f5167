"""scikit-learn intake: a fitted estimator or pipeline, by way of ONNX; loaded in a child process only.

A pickle runs whatever code it names, so .pkl and .joblib files are opened only when the person trusts them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from edgefleet.errors import InputError, UnsupportedError
from edgefleet_converters import child
from edgefleet_converters.conversion.shapes import Shapes
from edgefleet_converters.intake.onnx_file import read_onnx
from edgefleet_converters.intake.source import Source, SourceKind, digest_of

TIMEOUT_S = 600.0
PICKLES = (".pkl", ".pickle", ".joblib")


class ExportJob(BaseModel):
    """One file to bring to ONNX; `origin` is what the person calls it."""

    origin: str
    model: Path
    output: Path
    trust: bool


class Exported(BaseModel):
    """Class names as text where the classes are not 0, 1, 2, …; notes for the person."""

    labels: tuple[str, ...]
    notes: tuple[str, ...]


def read_sklearn(model: str, work: Path, *, shapes: Shapes, dims: Mapping[str, int], trust: bool) -> Source:
    """Read a fitted model: input `x` float32 [1, features]; a classifier's outputs are probabilities, then label.

    Raises InputError or UnsupportedError, and MissingExtraError without the extra `convert-sklearn`.
    """
    doing, path = f"reading the model {model}", Path(model)
    if not path.is_file():
        raise InputError(doing, "No such file" if not path.exists() else "Is a directory", "check the path")
    if shapes or dims:
        found = "--shape and --dim: the number of features is what the estimator was fitted with"
        raise InputError(doing, found, "leave them out")
    if path.suffix in PICKLES and not trust:
        found = f"a {path.suffix} file is a pickle, which runs the code that it names when it is opened"
        raise InputError(doing, found, "save it with skops.io.dump, or give --trust if you trust whoever made it")
    output = work / "from-sklearn.onnx"
    job = ExportJob(origin=model, model=path.resolve(), output=output, trust=trust)
    try:
        exported = child.call("edgefleet_converters.intake.sklearn_export:export", job, Exported, timeout_s=TIMEOUT_S)
    except child.ChildFailedError as error:
        found = f"skl2onnx cannot bring it to ONNX ({error})"
        raise UnsupportedError(doing, found, "check that all its parts are scikit-learn's own") from error
    source = read_onnx(output, work, shapes={}, dims={}, kind=SourceKind.SKLEARN, origin=model)
    notes = (*source.notes, *exported.notes)
    return source.model_copy(update={"digest": digest_of(path), "labels": exported.labels, "notes": notes})
