"""Rank correlation of latencies that the roofline predicts with those measured here, for models in all their variants.

`python benchmarks/roofline_rank.py [--models NAME ...] [--rounds N]`: a Markdown table on stdout, everything in
build/roofline_rank.json. The profile is the one that fits this machine best. All variants are measured in turn, round
after round, on one thread; a variant's time is its least disturbed one. Spearman's coefficient with average ranks for
ties: the roofline knows no runtime, so it predicts one time for a precision in all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import onnx
import onnxruntime
import openvino
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from convert_speed import resnet50
from edgefleet_converters.analysis import Analysis, analyze
from edgefleet_device_profiles import catalogue, detect
from edgefleet_device_profiles.fit import fits
from edgefleet_device_profiles.profile import Precision, Profile, Runtime
from edgefleet_device_profiles.roofline import predict
from other_paths_models import MODELS as PUBLISHED

BUILD = Path(__file__).resolve().parent.parent / "build"
MODELS: Mapping[str, Callable[[], onnx.ModelProto]] = {**PUBLISHED, "resnet50": resnet50}
_SAMPLES, _SAMPLE_S = 32, 0.02
_OPENVINO = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
Array = NDArray[Any]
Feeds = list[dict[str, Array]]
Call = Callable[[], object]


@dataclass(slots=True)
class Timed:
    """One variant: what is predicted, and what was measured, in milliseconds."""

    model: str
    runtime: Runtime
    precision: Precision
    predicted_ms: float
    measured_ms: float = math.inf


class Clock:
    """One loaded variant; a sample is long enough for the timer."""

    def __init__(self, call: Call) -> None:
        self.call, self.calls = call, 1
        while self.sample_ms() * self.calls < _SAMPLE_S * 1e3:
            self.calls *= 2

    def sample_ms(self) -> float:
        started = time.perf_counter()
        for _ in range(self.calls):
            self.call()
        return (time.perf_counter() - started) / self.calls * 1e3


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Feeds) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)


def sampled(model: onnx.ModelProto) -> Feeds:
    """Seeded normal numbers for every input."""
    generator = np.random.default_rng(1)
    shapes = {item.name: [axis.dim_value for axis in item.type.tensor_type.shape.dim] for item in model.graph.input}
    return [
        {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(_SAMPLES)
    ]


# Variants, as callables --------------------------------------------------------------------------------


def in_litert(source: Path, precision: Precision, feeds: Feeds) -> Call:
    samples, made = source.with_suffix(".npz"), source.with_suffix(f".{precision}.tflite")
    stacked: dict[str, Any] = {name: np.stack([feed[name] for feed in feeds]) for name in feeds[0]}
    np.savez(samples, **stacked)
    command = [sys.executable, "-m", "edgefleet.cli", "convert", str(source), "--to", "litert", "--no-check"]
    command += ["--precision", precision, "-o", str(made)]
    command += ["--calibration", str(samples)] if precision is Precision.INT8 else []
    subprocess.run(command, check=True, capture_output=True)
    interpreter = Interpreter(model_path=str(made), num_threads=1)
    interpreter.allocate_tensors()
    for entry in interpreter.get_input_details():
        interpreter.set_tensor(entry["index"], feeds[0][entry["name"]].ravel().reshape(entry["shape"]))
    return interpreter.invoke  # type: ignore[no-any-return]


def in_onnxruntime(source: Path, precision: Precision, feeds: Feeds) -> Call:
    path = source
    if precision is Precision.INT8:
        prepared, path = source.with_suffix(".prepared.onnx"), source.with_suffix(".int8.onnx")
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(prepared, path, _Reader(feeds), QuantFormat.QDQ, per_channel=True, **kinds)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feeds[0])


def in_openvino(source: Path, precision: Precision, feeds: Feeds) -> Call:
    model = openvino.convert_model(source)
    if precision is Precision.INT8:
        model = nncf.quantize(model, nncf.Dataset(feeds), subset_size=len(feeds))
    request = openvino.Core().compile_model(model, "CPU", _OPENVINO).create_infer_request()
    for name, array in feeds[0].items():
        request.set_tensor(name, openvino.Tensor(array))
    return request.infer  # type: ignore[no-any-return]


VARIANTS: Mapping[Runtime, tuple[Callable[[Path, Precision, Feeds], Call], tuple[Precision, ...]]] = {
    Runtime.LITERT: (
        in_litert,
        (Precision.FP32, Precision.FP16, Precision.INT8, Precision.INT8_DYNAMIC, Precision.INT4_WEIGHTS),
    ),
    Runtime.ONNXRUNTIME: (in_onnxruntime, (Precision.FP32, Precision.INT8)),
    Runtime.OPENVINO: (in_openvino, (Precision.FP32, Precision.INT8)),
}


def variants(name: str, profile: Profile, folder: Path) -> Iterator[tuple[Timed, Clock]]:
    """Every variant of one model, loaded; one that a tool refuses is said on stderr and left out."""
    model, path = MODELS[name](), folder / f"{name}.onnx"
    onnx.save(model, path)
    analysis, feeds = analyze(model), sampled(model)
    for runtime, (load, precisions) in VARIANTS.items():
        for precision in precisions:
            print(f"making {name} {runtime} {precision}", file=sys.stderr)
            try:
                clock = Clock(load(path, precision, feeds))
            except Exception as error:  # noqa: BLE001 - whatever the tool raises
                print(f"left out: {type(error).__name__}: {error}", file=sys.stderr)
                continue
            yield Timed(name, runtime, precision, predicted_ms(analysis, profile, precision)), clock


def own_profile() -> Profile:
    """The nearest one of those that fit this machine."""
    known = {name: catalogue.load(name) for name in catalogue.names()}
    nearest = fits(known.values(), detect.detect())[0]
    print(f"profile {nearest.profile}: {nearest.reason}", file=sys.stderr)
    return known[nearest.profile]


def predicted_ms(analysis: Analysis, profile: Profile, precision: Precision) -> float:
    """On one thread."""
    found = predict((layer.work for layer in analysis.layers), profile, precision, threads=1)
    assert found is not None, f"the profile {profile.id} states no peak"
    return found.time_s * 1e3


def measure(found: Sequence[tuple[Timed, Clock]], rounds: int) -> None:
    """Each variant once a round, in both directions in turn."""
    for at in range(rounds):
        for timed, clock in found if at % 2 else found[::-1]:
            timed.measured_ms = min(timed.measured_ms, clock.sample_ms())


# Correlation -------------------------------------------------------------------------------------------


def ranks(values: Sequence[float]) -> Array:
    """From 0, the average of their places for equal values."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts + 1) / 2)[inverse])


def spearman(found: Sequence[Timed]) -> float:
    """Pearson's coefficient of the ranks; not a number where one side is all equal."""
    sides = [ranks([item.predicted_ms for item in found]), ranks([item.measured_ms for item in found])]
    if any(np.ptp(side) == 0 for side in sides):
        return math.nan
    return float(np.corrcoef(sides[0], sides[1])[0, 1])


def coefficients(found: Sequence[Timed]) -> dict[str, tuple[int, float]]:
    """Title → (variants, coefficient)."""
    rows: dict[str, list[Timed]] = {}
    for item in found:
        rows.setdefault(f"models in {item.runtime} {item.precision}", []).append(item)
    for item in found:
        rows.setdefault(f"all in {item.runtime}", []).append(item)
    models = list(dict.fromkeys(item.model for item in found))
    rows |= {f"variants of {name}": [item for item in found if item.model == name] for name in models}
    table = {title: (len(items), spearman(items)) for title, items in rows.items()}
    inner = [table[f"variants of {name}"][1] for name in models]
    table["variants of one model, mean"] = (len(models), float(np.nanmean(inner)))
    return {**table, "all": (len(found), spearman(found))}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=tuple(MODELS))
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    profile = own_profile()
    with tempfile.TemporaryDirectory() as folder:
        found = [item for name in options.models for item in variants(name, profile, Path(folder))]
        measure(found, options.rounds)
    timed = [item for item, _ in found]
    table = coefficients(timed)
    print(f"Profile {profile.id}.\n\n| over | variants | Spearman |\n|---|---|---|")
    for title, (count, coefficient) in table.items():
        print(f"| {title} | {count} | {coefficient:.3f} |")
    document = {"profile": profile.id, "variants": [asdict(item) for item in timed], "coefficients": table}
    BUILD.mkdir(exist_ok=True)
    (BUILD / "roofline_rank.json").write_text(json.dumps(document, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
