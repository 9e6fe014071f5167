"""User time of int8 conversions against Olive's run of the same job: OpenVINO and ONNX Runtime, in turns.

`python benchmarks/olive_ratio.py [--venv PATH] [--pairs N]`: a Markdown table on stdout, everything in
build/olive_ratio.json. `conversion` is the process that packaging starts for it, `command` all of `edgefleet convert`.
Olive gets an environment of its own below build/, made once (2 GB). Exit status 1 where a conversion takes more than
0.3 times Olive's user time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx

from edgefleet_converters.artefact import Form
from edgefleet_converters.convert import ConvertJob
from edgefleet_converters.data import load_calibration
from edgefleet_converters.intake.input_spec import InputSpec
from edgefleet_converters.intake.onnx_file import read_onnx
from edgefleet_demo import digits
from edgefleet_demo.scene import CALIBRATION_SAMPLES
from edgefleet_device_profiles.profile import Precision, Runtime
from published_networks import resnet8

_HERE = Path(__file__).resolve().parent
BUILD = _HERE.parent / "build"
PINS = _HERE / "olive.txt"
LIMIT = 0.3
RESNET_SAMPLES = 64
_ENDINGS = {Runtime.OPENVINO: ".xml", Runtime.ONNXRUNTIME: ".onnx"}
# What an int8 file of either tool is full of.
_MARKS = {Runtime.OPENVINO: b'type="FakeQuantize"', Runtime.ONNXRUNTIME: b"QuantizeLinear"}


@dataclass(frozen=True, slots=True)
class Task:
    """A model and its calibration samples (.npz, by input name, [N, *shape without the batch]), in a folder."""

    name: str
    model: Path
    samples: Path
    folder: Path


def environment(venv: Path | None) -> Path:
    """The `olive` command: of an environment that is there, or of ours, made if need be."""
    folder = venv or BUILD / "venvs" / "olive"
    complete, wanted = folder / ".complete", PINS.read_text(encoding="utf-8")
    if venv is None and not (complete.exists() and complete.read_text(encoding="utf-8") == wanted):
        print(f"installing Olive into {folder}, once", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", PINS], check=True)
        complete.write_text(wanted, encoding="utf-8")
    return folder / "bin" / "olive"


def tasks(work: Path) -> list[Task]:
    """The digits with their own samples, and a ResNet8 with seeded weights and noise."""
    found = []
    noise = np.random.default_rng(0).normal(size=(RESNET_SAMPLES, 3, 32, 32)).astype(np.float32)
    given = {"digits": (onnx.load(digits.model_path()), digits.load().train_x[:CALIBRATION_SAMPLES])}
    given["resnet8"] = (resnet8(), noise)
    for name, (model, samples) in given.items():
        folder = work / name
        folder.mkdir()
        onnx.save(model, folder / "source.onnx")
        np.savez(folder / "samples.npz", allow_pickle=False, **{model.graph.input[0].name: samples})
        found.append(Task(name, folder / "source.onnx", folder / "samples.npz", folder))
    return found


def conversion(task: Task, runtime: Runtime, folder: Path) -> Callable[[], None]:
    """The steps in a process of their own, as packaging runs them."""
    source = read_onnx(task.model, folder, shapes={}, dims={})
    samples = load_calibration(str(task.samples), source.inputs, InputSpec())
    np.savez(folder / "calibration.npz", allow_pickle=False, **samples)
    job = ConvertJob(
        runtime=runtime,
        precision=Precision.INT8,
        source=source.forms[Form.ONNX],
        calibration=folder / "calibration.npz",
        folder=folder / "steps",
    )
    module = [sys.executable, "-m", "edgefleet_converters.child", "edgefleet_converters.convert:run_steps"]
    variables = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}

    def run() -> None:
        shutil.rmtree(folder / "steps", ignore_errors=True)
        answer = folder / "outcome.json"
        said = job.model_dump_json().encode()
        subprocess.run([*module, answer], input=said, check=True, capture_output=True, env=variables)
        if json.loads(answer.read_bytes())["result"] is None:
            raise SystemExit(answer.read_text(encoding="utf-8"))

    return run


def whole_command(task: Task, runtime: Runtime, folder: Path) -> Callable[[], None]:
    """`edgefleet convert` as a person gives it, without its check: Olive checks nothing."""
    given = ["--to", runtime, "--precision", "int8", "--calibration", str(task.samples), "--no-check"]
    line = [sys.executable, "-m", "edgefleet.cli", "convert", str(task.model), *given]
    output = ["-o", str(folder / f"command{_ENDINGS[runtime]}")]

    def run() -> None:
        subprocess.run([*line, *output], check=True, capture_output=True)

    return run


def olive(command: Path, task: Task, runtime: Runtime, folder: Path) -> Callable[[], None]:
    """The same job in Olive: its cache emptied, its report of use off."""
    script = str(_HERE / "olive_samples.py")
    passes: dict[Runtime, dict[str, Any]] = {
        Runtime.ONNXRUNTIME: {
            "quantize": {
                "type": "OnnxStaticQuantization",
                "data_config": "samples",
                "precision": "int8",
                "activation_type": "uint8",
                "per_channel": True,
            }
        },
        Runtime.OPENVINO: {
            "convert": {"type": "OpenVINOConversion", "compress_to_fp16": False},
            "quantize": {
                "type": "OpenVINOQuantization",
                "data_config": "samples",
                "user_script": script,
                "transform_fn": "feed",
            },
        },
    }
    provider = {Runtime.ONNXRUNTIME: "CPUExecutionProvider", Runtime.OPENVINO: "OpenVINOExecutionProvider"}[runtime]
    data = {"type": "saved_samples", "params": {"path": str(task.samples)}}
    accelerator = {"device": "cpu", "execution_providers": [provider]}
    config = {
        "input_model": {"type": "ONNXModel", "model_path": str(task.model)},
        "systems": {"here": {"type": "LocalSystem", "accelerators": [accelerator]}},
        "target": "here",
        "host": "here",
        "evaluate_input_model": False,
        "clean_cache": True,
        "data_configs": [{"name": "samples", "user_script": script, "load_dataset_config": data}],
        "passes": passes[runtime],
        "output_dir": str(folder / "olive"),
        "cache_dir": str(folder / "olive-cache"),
    }
    file = folder / "olive.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    variables = {**os.environ, "OLIVE_DISABLE_TELEMETRY": "1"}

    def run() -> None:
        shutil.rmtree(folder / "olive", ignore_errors=True)
        subprocess.run([command, "run", "--config", file], check=True, capture_output=True, env=variables, cwd=folder)

    return run


def user_s(run: Callable[[], None]) -> float:
    """User time of the processes that a call starts and waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    run()
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def measured(command: Path, task: Task, runtime: Runtime, pairs: int) -> dict[str, Any]:
    """Medians of all three in turns, after one round that does not count; how much of the files is int8."""
    folder = task.folder / runtime
    folder.mkdir()
    ways = {
        "conversion": conversion(task, runtime, folder),
        "command": whole_command(task, runtime, folder),
        "olive": olive(command, task, runtime, folder),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(pairs + 1):
        for name, run in list(ways.items())[:: -1 if turn % 2 else 1]:
            spent = user_s(run)
            if turn:
                taken[name].append(spent)
    medians = {name: median(found) for name, found in taken.items()}
    ratios = {f"{name}_ratio": medians[name] / medians["olive"] for name in ("conversion", "command")}
    return {**medians, **ratios, "all": taken, "marks": [_marks(folder / at, runtime) for at in ("steps", "olive")]}


def _marks(folder: Path, runtime: Runtime) -> int:
    """Marks of int8 in a way's last file: evidence that both did the job."""
    files = [path for path in folder.rglob(f"*{_ENDINGS[runtime]}") if path.stem not in ("prepared", "source")]
    return max(path.read_bytes().count(_MARKS[runtime]) for path in files)


def line(name: str, found: Mapping[str, Any]) -> str:
    """A row of the table."""
    ratio = f"{found['conversion_ratio']:.2f}"
    cells = (
        *(name, f"{found['conversion']:.2f}", f"{found['command']:.2f}", f"{found['olive']:.2f}"),
        *(ratio if found["conversion_ratio"] <= LIMIT else f"**{ratio}**", f"{found['command_ratio']:.2f}"),
        " / ".join(map(str, found["marks"])),
    )
    return f"| {' | '.join(cells)} |"


_COLUMNS = ("job", "conversion, user s", "command", "Olive", "ratio: conversion", "command", "int8 marks")


def main() -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, help="an environment with Olive, instead of one below build/")
    parser.add_argument("--pairs", type=int, default=5, help="turns of which the median counts; 3 or more")
    given = parser.parse_args()
    command = environment(given.venv)
    print(f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}")
    rows = {}
    with tempfile.TemporaryDirectory(prefix="edgefleet-benchmark-") as work:
        for task in tasks(Path(work)):
            for runtime in (Runtime.OPENVINO, Runtime.ONNXRUNTIME):
                name = f"{task.name} {runtime} int8"
                rows[name] = measured(command, task, runtime, given.pairs)
                print(line(name, rows[name]), flush=True)
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "olive_ratio.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if any(found["conversion_ratio"] > LIMIT for found in rows.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
