"""Time of each conversion step against the tool's own direct call, in one process and in turns.

`python benchmarks/steps_overhead.py [CASE ...] [--runs N]`: a Markdown table on stdout, everything in
build/steps_overhead.json. A case runs in a process of its own; `child` is the same recipe as packaging runs it, the
start of its process and its imports included. Read the ratios, not the seconds: a step may take 1.2 times its tool.
"""

# ruff: noqa: PLC0415 - each case loads its own tool, and nothing of the others

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx

from edgefleet_converters.artefact import Form
from edgefleet_converters.convert import ConvertJob, convert
from edgefleet_converters.intake.onnx_file import read_onnx
from edgefleet_converters.recipes import RECIPES
from edgefleet_converters.step import Context, in_file_layout
from edgefleet_device_profiles.profile import Precision, Runtime
from published_networks import mobilenet_v2

_REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_REPOSITORY / "tests"))

from conformance_graphs.building import Building  # noqa: E402 - found by the line above

SAMPLES = 16
LIMIT = 1.2


@dataclass(frozen=True, slots=True)
class Direct:
    """What the direct call is given: the source, feeds for calibration, and where to write."""

    source: Path
    feeds: list[dict[str, Any]]
    folder: Path


@dataclass(frozen=True, slots=True)
class Case:
    """A recipe, the network it is timed on, and the same work by the tool alone."""

    runtime: Runtime
    precision: Precision
    network: Callable[[], onnx.ModelProto]
    direct: Callable[[Direct], None]


def dense() -> onnx.ModelProto:
    """Eight products with 1,024 x 1,024 weights: 33 MB of what a transformer mostly is."""
    b = Building(9)
    data = b.input(1, 16, 1024)
    for _ in range(8):
        data = b.node("Relu", b.linear(data, 1024))
    return b.model(data)


def _copied(given: Direct) -> None:
    onnx.save(onnx.load(given.source), given.folder / "direct.onnx")


def _prepared(given: Direct) -> Path:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = given.folder / "prepared.onnx"
    quant_pre_process(given.source, path, skip_symbolic_shape=True)
    return path


def _all_float16(given: Direct) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(_prepared(given))
    onnx.save(convert_float_to_float16(model, keep_io_types=True), given.folder / "direct.onnx")


def _static(given: Direct) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc] # onnxruntime ships no types
        def __init__(self) -> None:
            self._left = iter(given.feeds)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._left, None)

    path = given.folder / "direct.onnx"
    types = {"weight_type": QuantType.QInt8, "activation_type": QuantType.QUInt8}
    quantize_static(_prepared(given), path, Reader(), per_channel=True, **types)


def _dynamic(given: Direct) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = given.folder / "direct.onnx"
    quantize_dynamic(_prepared(given), path, per_channel=True, weight_type=QuantType.QInt8)


def _four_bits(given: Direct) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    tool = MatMulNBitsQuantizer(onnx.load(_prepared(given)), block_size=32, accuracy_level=4)
    tool.process()
    tool.model.save_model_to_file(str(given.folder / "direct.onnx"))


def _ir(change: Callable[[Any, Direct], Any], *, compress_to_fp16: bool = False) -> Callable[[Direct], None]:
    """Convert, change and save with OpenVINO and NNCF alone."""

    def direct(given: Direct) -> None:
        import openvino

        model = change(openvino.convert_model(given.source), given)
        openvino.save_model(model, given.folder / "direct.xml", compress_to_fp16=compress_to_fp16)

    return direct


def _nothing(model: Any, _given: Direct) -> Any:
    return model


def _nncf_static(model: Any, given: Direct) -> Any:
    import nncf

    return nncf.quantize(model, nncf.Dataset(given.feeds), subset_size=len(given.feeds))


def _nncf_weights(mode: str, **options: Any) -> Callable[[Any, Direct], Any]:
    def change(model: Any, _given: Direct) -> Any:
        import nncf

        return nncf.compress_weights(model, mode=getattr(nncf.CompressWeightsMode, mode), **options)

    return change


ORT, OPENVINO = Runtime.ONNXRUNTIME, Runtime.OPENVINO
CASES: Mapping[str, Case] = {
    f"{case.runtime}-{case.precision}": case
    for case in (
        Case(ORT, Precision.FP32, mobilenet_v2, _copied),
        Case(ORT, Precision.FP16, mobilenet_v2, _all_float16),
        Case(ORT, Precision.INT8, mobilenet_v2, _static),
        Case(ORT, Precision.INT8_DYNAMIC, dense, _dynamic),
        Case(ORT, Precision.INT4_WEIGHTS, dense, _four_bits),
        Case(OPENVINO, Precision.FP32, mobilenet_v2, _ir(_nothing)),
        Case(OPENVINO, Precision.FP16, mobilenet_v2, _ir(_nothing, compress_to_fp16=True)),
        Case(OPENVINO, Precision.INT8, mobilenet_v2, _ir(_nncf_static)),
        Case(OPENVINO, Precision.INT8_WEIGHTS, dense, _ir(_nncf_weights("INT8_ASYM"))),
        Case(OPENVINO, Precision.INT4_WEIGHTS, dense, _ir(_nncf_weights("INT4_ASYM", group_size=32))),
    )
}


def measure(name: str, runs: int) -> dict[str, float | str]:
    """Medians of one case in this process: the step, the direct call, and the whole child."""
    # As in packaging's children: openvino and nncf would report their use over the network.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    case = CASES[name]
    with tempfile.TemporaryDirectory(prefix="edgefleet-overhead-") as text:
        work = Path(text)
        onnx.save(case.network(), work / "given.onnx")
        source = read_onnx(work / "given.onnx", work, shapes={}, dims={}).forms[Form.ONNX]
        generator = np.random.default_rng(0)
        samples = {
            spec.name: generator.normal(size=(SAMPLES, *spec.shape)).astype(np.float32) for spec in source.inputs
        }
        np.savez(work / "samples.npz", allow_pickle=False, **samples)
        (step_name,) = RECIPES[case.runtime, case.precision].steps[Form.ONNX]
        step = importlib.import_module(f"edgefleet_converters.steps.{step_name}")
        feeds = in_file_layout(source, samples)

        def ours(folder: Path) -> None:
            step.run(source, Context(samples, folder))

        def theirs(folder: Path) -> None:
            case.direct(Direct(source.files[0], feeds, folder))

        def child(folder: Path) -> None:
            job = ConvertJob(
                runtime=case.runtime,
                precision=case.precision,
                source=source,
                calibration=work / "samples.npz",
                folder=folder,
            )
            convert(job)

        return _timed({"step_s": ours, "direct_s": theirs, "child_s": child}, work, runs)


def _timed(jobs: Mapping[str, Callable[[Path], None]], work: Path, runs: int) -> dict[str, float | str]:
    """Median seconds of each, there and back after one round that does not count; a tool that is missing says so."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    missing = ""
    for turn in range(runs + 1):
        for name, job in list(jobs.items())[:: -1 if turn % 2 else 1]:
            folder = work / f"{turn}-{name}"
            folder.mkdir()
            start = time.perf_counter()
            try:
                job(folder)
            except ModuleNotFoundError as error:
                missing = f"needs {error.name}"
                continue
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {**{name: median(found) for name, found in seconds.items() if found}, "missing": missing}


def _row(name: str, found: Mapping[str, Any]) -> str:
    if "direct_s" not in found:
        return f"| {name} | {found['step_s']:.3f} | – ({found['missing']}) | – | {found['child_s']:.3f} |"
    ratio = found["step_s"] / found["direct_s"]
    shown = f"**{ratio:.2f}**" if ratio > LIMIT else f"{ratio:.2f}"
    return f"| {name} | {found['step_s']:.3f} | {found['direct_s']:.3f} | {shown} | {found['child_s']:.3f} |"


def main() -> None:
    """One process a case; the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="default: all")
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--measure", metavar="CASE", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.runs)))
        return
    results = {}
    print("| step | step, s | direct, s | ratio | child, s |\n|---|---|---|---|---|")
    for name in given.cases or CASES:
        command = [sys.executable, __file__, "--measure", name, "--runs", str(given.runs)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        results[name] = json.loads(done.stdout.strip().splitlines()[-1])
        print(_row(name, results[name]), flush=True)
    output = _REPOSITORY / "build" / "steps_overhead.json"
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
