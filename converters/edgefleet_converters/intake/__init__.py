"""Intake: a model of the person's own becomes a checked source, or one clear line.

Loads a reader, and what it needs, only for the kind of model that was given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from edgefleet.errors import InputError
from edgefleet_converters.intake.source import Source, SourceKind
from edgefleet_converters.progress import Progress


@dataclass(frozen=True, slots=True)
class Asked:
    """What the person says about the model: sizes of inputs and of symbolic axes; `trust`: code in it may run."""

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dims: Mapping[str, int] = field(default_factory=dict)
    trust: bool = False


SUFFIXES: Mapping[str, SourceKind] = MappingProxyType(
    {
        ".onnx": SourceKind.ONNX,
        ".tflite": SourceKind.TFLITE,
        ".keras": SourceKind.KERAS,
        ".h5": SourceKind.KERAS,
        ".hdf5": SourceKind.KERAS,
        ".pt2": SourceKind.PYTORCH,
        ".pt": SourceKind.PYTORCH,
        ".pth": SourceKind.PYTORCH,
        ".skops": SourceKind.SKLEARN,
        ".joblib": SourceKind.SKLEARN,
        ".pkl": SourceKind.SKLEARN,
        ".pickle": SourceKind.SKLEARN,
    }
)


def kind_of(model: str) -> SourceKind:
    """What a model is, by its name: `module:function` is PyTorch, a folder is a SavedModel; raises InputError."""
    path = Path(model)
    if path.is_dir():
        return SourceKind.KERAS
    known = SUFFIXES.get(path.suffix.lower())
    if known is not None:
        return known
    if ":" in model and not path.exists():
        return SourceKind.PYTORCH
    found = f"{path.suffix!r} is no kind of model that is known" if path.suffix else "it has no suffix"
    remedy = f"give a SavedModel folder, module:function, or a file that ends in {', '.join(SUFFIXES)}"
    raise InputError(f"reading the model {model}", found, remedy)


def read_source(model: str, work: Path, asked: Asked, progress: Progress) -> Source:
    """Read and check a model, and write its forms to `work`; raises an EdgefleetError."""
    kind = kind_of(model)
    refuse_streams(Path(model), f"reading the model {model}")
    return _READERS[kind](model, work, asked, progress)


def refuse_streams(path: Path, doing: str) -> None:
    """Raise InputError for a pipe, socket or device: reading one may never end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(doing, "it is neither a file nor a folder", "store it in a file")


def _onnx(model: str, work: Path, asked: Asked, _progress: Progress) -> Source:
    from edgefleet_converters.intake.onnx_file import read_onnx  # noqa: PLC0415 - only this kind needs it

    return read_onnx(Path(model), work, shapes=asked.shapes, dims=asked.dims)


def _tflite(model: str, work: Path, asked: Asked, _progress: Progress) -> Source:
    from edgefleet_converters.intake.tflite_file import read_tflite  # noqa: PLC0415 - only this kind needs it

    return read_tflite(model, work, shapes=asked.shapes, dims=asked.dims)


def _keras(model: str, work: Path, asked: Asked, progress: Progress) -> Source:
    from edgefleet_converters.intake.keras_model import read_keras  # noqa: PLC0415 - only this kind needs it

    return read_keras(model, work, shapes=asked.shapes, dims=asked.dims, trust=asked.trust, progress=progress)


def _sklearn(model: str, work: Path, asked: Asked, _progress: Progress) -> Source:
    from edgefleet_converters.intake.sklearn_model import read_sklearn  # noqa: PLC0415 - only this kind needs it

    return read_sklearn(model, work, shapes=asked.shapes, dims=asked.dims, trust=asked.trust)


def _torch(model: str, work: Path, asked: Asked, _progress: Progress) -> Source:
    from edgefleet_converters.intake.torch_program import read_torch  # noqa: PLC0415 - only this kind needs it

    return read_torch(model, work, shapes=asked.shapes, dims=asked.dims, trust=asked.trust)


_READERS: Mapping[SourceKind, Callable[[str, Path, Asked, Progress], Source]] = MappingProxyType(
    {
        SourceKind.ONNX: _onnx,
        SourceKind.TFLITE: _tflite,
        SourceKind.KERAS: _keras,
        SourceKind.SKLEARN: _sklearn,
        SourceKind.PYTORCH: _torch,
    }
)
