"""The main flow of `edgefleet convert --to litert`: read, fix shapes, lower, quantise, check, write.

Loads no runtime and no quantiser into this process: they run in child processes, and only where they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Literal

import onnx

from edgefleet.errors import EdgefleetError, InputError, UnsupportedError
from edgefleet_converters.conversion.file_facts import FileFacts, read_facts
from edgefleet_converters.conversion.output import replacing, write_bytes
from edgefleet_converters.conversion.parting import joined
from edgefleet_converters.conversion.shapes import fix_shapes
from edgefleet_converters.conversion.source import read_model
from edgefleet_converters.tflite import Lowered, lower
from edgefleet_converters.tflite.graph import permuted
from edgefleet_converters.tflite.importer import Source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgefleet_converters.conversion.check import Comparison
    from edgefleet_converters.conversion.samples import Samples

Warn = Callable[[str], None]
Layout = Literal["nchw", "nhwc"]
BorderType = Literal["float32", "uint8", "int8"]
CALIBRATED = ("int8", "int16x8")
"""Precisions whose ranges come from samples; they are lowered to the forms that have integer kernels."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to convert, and how; `mean` and `std` are the image normalisation in levels 0 to 255."""

    model: Path
    output: Path
    precision: str = "fp32"
    calibration: Path | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dims: Mapping[str, int] = field(default_factory=dict)
    input_layout: Mapping[str, Layout] = field(default_factory=dict)
    keep_layout: bool = False
    border: BorderType = "float32"
    mean: float | None = None
    std: float | None = None
    check: bool = True
    bisect: bool = False


@dataclass(frozen=True, slots=True)
class Converted:
    """The file that was written, what is in it, and what was measured; seconds by stage."""

    path: Path
    size_bytes: int
    precision: str
    facts: FileFacts
    comparison: Comparison | None
    bisected: str
    seconds: Mapping[str, float]


def convert(request: Request, warn: Warn) -> Converted:
    """Convert one model; raises an EdgefleetError, and has written nothing then."""
    clock = _Clock()
    with replacing(request.output, request.model) as partial:
        _check_request(request)
        with clock.stage("reading"):
            source = [_source(request, warn)]
        with clock.stage("lowering"):
            lowered = _lowered(source, request)
        samples = _samples(request, lowered, warn)
        content = lowered.content
        if request.precision != "fp32":
            with clock.stage("quantising"):
                content = _described(_quantized(request, lowered, samples, warn), request, lowered)
        write_bytes(partial, content)
        comparison, bisected = None, ""
        if request.check:
            with clock.stage("checking"):
                comparison, bisected = _checked(request, lowered, samples, partial)
    facts = read_facts(content, lowered.inputs, lowered.outputs)
    if comparison is not None:
        for note in comparison.notes:
            warn(note)
    return Converted(request.output, len(content), request.precision, facts, comparison, bisected, clock.seconds)


class _Clock:
    """Seconds by stage, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a block."""
        start = perf_counter()
        yield
        self.seconds[name] = perf_counter() - start


def _check_request(request: Request) -> None:
    """Refuse what cannot work before any work is done."""
    doing = f"converting to {request.precision}"
    if request.precision in CALIBRATED and request.calibration is None:
        remedy = "give --calibration with 32 or more samples, or use int8-dynamic, which needs none"
        found = f"{request.precision} needs samples to find its ranges, and there are none"
        raise InputError(doing, found, remedy)
    if request.bisect and not request.check:
        raise InputError(doing, "--bisect and --no-check", "leave one of them out")
    if request.precision == "fp32" and request.border == "float32" and request.mean is None and request.std is None:
        return
    from edgefleet_converters.conversion.quantizing import Borders  # noqa: PLC0415 - costs time that fp32 never needs
    from edgefleet_device_profiles.profile import Precision  # noqa: PLC0415 - the same

    Borders(request.border, request.mean, request.std).check(Precision(request.precision))


def _check_layouts(model: onnx.ModelProto, request: Request) -> None:
    ranks = {item.name: len(item.type.tensor_type.shape.dim) for item in model.graph.input}
    for name, layout in request.input_layout.items():
        doing = f"choosing --input-layout {name}={layout}"
        if name not in ranks:
            raise InputError(doing, "the model has no such input", f"its inputs are: {', '.join(ranks)}")
        if ranks[name] != 4:
            raise InputError(doing, f"the input has {ranks[name]} axes", "only inputs with 4 axes have such a layout")


def _source(request: Request, warn: Warn) -> Source:
    """The model with static input shapes."""
    source = read_model(request.model)
    for note in fix_shapes(source.model, request.shapes, request.dims):
        warn(note)
    _check_layouts(source.model, request)
    return source


def _lowered(source: list[Source], request: Request) -> Lowered:
    """Takes the model out of the list, so that nobody holds it once the lowering has its weights."""
    try:
        return lower(
            source.pop(),
            keep_layout=request.keep_layout,
            input_layout=request.input_layout,
            int8=request.precision in CALIBRATED,
        )
    except EdgefleetError:
        raise
    except Exception as error:
        found = f"the lowering failed: {type(error).__name__}: {error}"
        remedy = "check the model with onnx.checker, and report it if that finds nothing"
        raise UnsupportedError(f"lowering {request.model} to TFLite", found, remedy) from error


def _samples(request: Request, lowered: Lowered, warn: Warn) -> Samples | None:
    """The person's own samples, for int8 and for the check."""
    if request.calibration is None:
        return None
    from edgefleet_converters.conversion import samples  # noqa: PLC0415 - only where there are any

    found = samples.load_samples(request.calibration, lowered.inputs)
    if request.precision in CALIBRATED and samples.count(found) < samples.FEWEST:
        few = f"{request.precision} ranges from fewer than {samples.FEWEST} are guesses"
        warn(f"only {samples.count(found)} calibration samples; {few}")
    return found


def _quantized(request: Request, lowered: Lowered, samples: Samples | None, warn: Warn) -> bytes:
    from edgefleet_converters.conversion.quantizing import Borders, quantize  # noqa: PLC0415 - fp32 never needs it
    from edgefleet_device_profiles.profile import Precision  # noqa: PLC0415 - the same

    if request.mean is not None and request.mean != round(request.mean):
        warn(f"a zero point is a whole level: the mean {request.mean:g} is taken as {round(request.mean)}")
    borders = Borders(request.border, request.mean, request.std)
    return quantize(lowered, Precision(request.precision), samples, borders)


def _described(content: bytes, request: Request, lowered: Lowered) -> bytes:
    """The file with the normalisation as metadata, where one was given and channels are the last axis."""
    if request.mean is None or request.std is None:
        return content
    from edgefleet_converters.tflite.metadata import Description, Image, attach  # noqa: PLC0415 - rarely asked for

    shapes = {
        item.name: permuted(item.shape, item.permutation or tuple(range(len(item.shape))))
        for item in lowered.inputs
        if item.dtype == "float32"
    }
    images = {
        name: Image({1: "gray", 3: "rgb"}[shape[3]], (float(round(request.mean)),), (request.std,))
        for name, shape in shapes.items()
        if len(shape) == 4 and shape[3] in (1, 3)
    }
    return attach(content, Description(request.model.stem, "", "edgefleet", images))


def _checked(request: Request, lowered: Lowered, samples: Samples | None, file: Path) -> tuple[Comparison, str]:
    """Compare the file with the source; raises GateError when it is wrong."""
    from edgefleet_converters.conversion import check  # noqa: PLC0415 - its processes are what --no-check saves
    from edgefleet_device_profiles.profile import Precision  # noqa: PLC0415 - the same

    feeds = check.make_feeds(lowered.inputs, samples)
    comparison = check.compare(request.model, file, (lowered.inputs, lowered.outputs), feeds)
    said_before: list[str] = []
    bisected, hint = "", "look for the first tensor that differs with --bisect; --no-check writes the file even so"
    if request.bisect:
        from edgefleet_converters.conversion.bisect import first_difference  # noqa: PLC0415 - rarely asked for

        bisected = first_difference(
            joined(_source(request, said_before.append)),
            feeds,
            keep_layout=request.keep_layout,
            input_layout=request.input_layout,
            int8=request.precision in CALIBRATED,
        )
        hint = f"in the float file, {bisected}"
    check.judge(comparison, Precision(request.precision), hint)
    return comparison, bisected
