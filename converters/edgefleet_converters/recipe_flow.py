"""The main flow of `edgefleet convert` for ONNX Runtime and OpenVINO: read, run a recipe's steps, check, write.

Loads no runtime and no toolchain into this process. LiteRT's flow is `conversion.flow`, which has more to choose.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from types import MappingProxyType

import numpy as np
import onnx

from edgefleet.errors import GateError, InputError, UnsupportedError
from edgefleet.package.manifest import TensorSpec
from edgefleet_converters import child
from edgefleet_converters.artefact import Artefact, Form
from edgefleet_converters.conversion import check
from edgefleet_converters.conversion.check import Comparison
from edgefleet_converters.conversion.output import replacing, write_bytes
from edgefleet_converters.conversion.samples import FEWEST, Samples, count, load_samples
from edgefleet_converters.convert import TIMEOUT_S, ConvertJob
from edgefleet_converters.intake.onnx_file import read_onnx
from edgefleet_converters.recipes import RECIPES
from edgefleet_converters.score.compare import CompareJob
from edgefleet_device_profiles.profile import Precision, Runtime

Warn = Callable[[str], None]

SUFFIXES: Mapping[Runtime, tuple[str, ...]] = MappingProxyType(
    {Runtime.ONNXRUNTIME: (".onnx",), Runtime.OPENVINO: (".xml", ".bin")}
)
"""Endings of a runtime's files, that of the one that it opens first."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to convert, for which runtime, and how."""

    runtime: Runtime
    model: Path
    output: Path
    precision: Precision = Precision.FP32
    calibration: Path | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dims: Mapping[str, int] = field(default_factory=dict)
    check: bool = True


@dataclass(frozen=True, slots=True)
class Converted:
    """The files that were written, the one that the runtime opens first, and what was measured; seconds by stage."""

    paths: tuple[Path, ...]
    size_bytes: int
    precision: Precision
    operators: Mapping[str, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    comparison: Comparison | None
    seconds: Mapping[str, float]


def convert(request: Request, warn: Warn) -> Converted:
    """Convert one model; raises an EdgefleetError, and has written nothing then."""
    _check_request(request)
    seconds: dict[str, float] = {}
    with ExitStack() as stack:
        partials = [stack.enter_context(replacing(path, request.model)) for path in _paths(request)]
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgefleet-convert-")))
        with _timed("reading", seconds):
            source = read_onnx(request.model, work, shapes=request.shapes, dims=request.dims)
            for note in source.notes:
                warn(note)
            samples = _samples(request, source.inputs, warn)
        with _timed("converting", seconds):
            made = _made(request, source.forms[Form.ONNX], samples, work)
        comparison = None
        if request.check:
            with _timed("checking", seconds):
                comparison = _checked(request, source.forms[Form.ONNX], made, samples, work)
            for note in comparison.notes:
                warn(note)
        for partial, file in zip(partials, made.files, strict=True):
            write_bytes(partial, file.read_bytes())
        operators = OPERATORS[request.runtime](made.files[0])
        size = made.size_bytes
    return Converted(
        _paths(request), size, request.precision, operators, made.inputs, made.outputs, comparison, seconds
    )


@contextmanager
def _timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    start = perf_counter()
    yield
    seconds[stage] = perf_counter() - start


def _paths(request: Request) -> tuple[Path, ...]:
    return tuple(request.output.with_suffix(suffix) for suffix in SUFFIXES[request.runtime])


def _check_request(request: Request) -> None:
    """Refuse what cannot work before any work is done."""
    doing = f"converting to {request.runtime} {request.precision}"
    if RECIPES[request.runtime, request.precision].calibrated and request.calibration is None:
        remedy = "give --calibration with 32 or more samples, or choose a precision that needs none, such as fp16"
        raise InputError(doing, "it needs samples to find its ranges, and there are none", remedy)
    suffix = SUFFIXES[request.runtime][0]
    if request.output.suffix != suffix:
        found = f"the output {request.output} does not end in {suffix}"
        raise InputError(doing, found, f"name it {request.output.with_suffix(suffix).name}")


def _samples(request: Request, inputs: tuple[TensorSpec, ...], warn: Warn) -> Samples | None:
    if request.calibration is None:
        return None
    found = load_samples(request.calibration, inputs)
    if RECIPES[request.runtime, request.precision].calibrated and count(found) < FEWEST:
        warn(f"only {count(found)} calibration samples; ranges from fewer than {FEWEST} are guesses")
    return found


def _made(request: Request, source: Artefact, samples: Samples | None, work: Path) -> Artefact:
    job = ConvertJob(
        runtime=request.runtime,
        precision=request.precision,
        source=source,
        calibration=_saved(samples, work / "calibration.npz") if samples is not None else None,
        folder=work / "steps",
    )
    try:
        return child.call("edgefleet_converters.convert:run_steps", job, Artefact, timeout_s=TIMEOUT_S)
    except child.ChildFailedError as error:
        doing = f"converting to {job.label}"
        raise UnsupportedError(
            doing, f"the toolchain failed: {error}", "choose another precision or runtime"
        ) from error


def _saved(samples: Samples, path: Path) -> Path:
    np.savez(path, allow_pickle=False, **samples)
    return path


def _checked(request: Request, source: Artefact, made: Artefact, samples: Samples | None, work: Path) -> Comparison:
    """Compare the file with the source; raises GateError when it is wrong."""
    feeds = _saved(check.make_feeds(source.inputs, samples), work / "feeds.npz")
    job = CompareJob(runtime=request.runtime, source=source, artefact=made, samples=feeds)
    hint = "--no-check writes the file even so"
    try:
        comparison = child.call("edgefleet_converters.score.compare:run_job", job, Comparison, timeout_s=TIMEOUT_S)
    except child.ChildFailedError as error:
        raise GateError(f"checking the file in {request.runtime}", f"it does not run: {error}", hint) from error
    check.judge(comparison, request.precision, hint)
    return comparison


def _onnx_operators(path: Path) -> Mapping[str, int]:
    return dict(Counter(node.op_type for node in onnx.load(path).graph.node).most_common())


# Not by an XML reader: the file is OpenVINO's own, and this is all that is wanted of it.
_LAYER = re.compile(r'<layer [^>]*\btype="([^"]+)"')
_NO_OPERATORS = ("Const", "Parameter", "Result")


def _ir_operators(path: Path) -> Mapping[str, int]:
    kinds = (match[1] for match in _LAYER.finditer(path.read_text(encoding="utf-8")))
    return dict(Counter(kind for kind in kinds if kind not in _NO_OPERATORS).most_common())


OPERATORS: Mapping[Runtime, Callable[[Path], Mapping[str, int]]] = MappingProxyType(
    {Runtime.ONNXRUNTIME: _onnx_operators, Runtime.OPENVINO: _ir_operators}
)
"""Operators of a runtime's file, by name with their counts."""
