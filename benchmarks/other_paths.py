"""The .tflite files of this project's lowering beside those of the other converters: size, latency, error, cost.

`python benchmarks/other_paths.py [--models NAME ...] [--paths NAME ...] [--pairs N] [--venvs FOLDER]`: a Markdown table
on stdout, everything in build/other_paths.json. Each other path gets an environment of its own, made once (2 to 3 GB
each); one that cannot be installed is said and left out. Ratios are ours to theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from other_paths_measure import fed
from other_paths_models import MODELS

_HERE = Path(__file__).resolve().parent
_BUILD = _HERE.parent / "build"
_SAMPLES, _TIMEOUT_S = 32, 900
_LATENCY, _BYTES = 1.05, 4096

# A process between, so that the peak is the command's own: a forked child's starts at that of its parent.
_WATCH = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
seconds = time.perf_counter() - started
text = (done.stdout + done.stderr)[-2000:]
print(json.dumps({"code": done.returncode, "seconds": seconds, "peak_mb": used.ru_maxrss / 1024, "text": text}))
"""
_QUANTIZE = """
import pathlib, sys, numpy
from ai_edge_litert.interpreter import Interpreter
from edgefleet_converters.steps.quantize_tflite import quantize
source, samples, result = map(pathlib.Path, sys.argv[1:])
name = next(iter(Interpreter(model_path=str(source)).get_signature_runner().get_input_details()))
result.write_bytes(quantize(source.read_bytes(), [{name: sample[None]} for sample in numpy.load(samples)]))
"""


class PathError(Exception):
    """A path could not be installed, or did not convert a model; the text is one line."""


@dataclass(frozen=True, slots=True)
class Work:
    """One model's folder: the graph, and calibration samples in its own layout (.npz) and channels last (.npy)."""

    folder: Path
    model: Path
    samples: Path
    samples_last: Path


@dataclass(frozen=True, slots=True)
class Made:
    """A file and what its conversion took as a whole process."""

    file: Path
    seconds: float
    peak_mb: float


@dataclass(frozen=True, slots=True)
class OtherPath:
    """A converter in its own environment: `convert` takes that environment's folder, the work and the precision."""

    requirements: tuple[str, ...]
    convert: Callable[[Path, Work, str], Made]


def watched(command: Sequence[str | Path], result: Path) -> Made:
    """Run a conversion in the result's folder; raises PathError when it fails or leaves no file."""
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", _WATCH, *map(str, command)],
        check=True,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        env=quiet,
        cwd=result.parent,
    )
    found = json.loads(done.stdout)
    if found["code"] or not result.exists():
        lines = [line for line in found["text"].splitlines() if line.strip()]
        raise PathError(f"exit status {found['code']}: {lines[-1] if lines else 'nothing said'}")
    return Made(result, found["seconds"], found["peak_mb"])


def ours(work: Work, precision: str) -> Made:
    """The command as a user gives it, without its check."""
    result = work.folder / f"ours_{precision}.tflite"
    start = "from edgefleet.cli import main; main()"
    command: list[str | Path] = [sys.executable, "-c", start, "convert", work.model, "--to", "litert", "--no-check"]
    command += ["--precision", precision, "-o", result]
    if precision == "int8":
        command += ["--calibration", work.samples]
    return watched(command, result)


def onnx2tf(venv: Path, work: Work, precision: str) -> Made:
    """onnx2tf by its command; int8 by its own calibration, with float32 inputs and outputs."""
    folder = work.folder / f"onnx2tf_{precision}"
    folder.mkdir()
    # It checks itself with photographs that it fetches, if a file of that name is not there; any numbers will do.
    images = np.random.default_rng(0).random((20, 128, 128, 3), dtype=np.float32)
    np.save(folder / "calibration_image_sample_data_20x128x128x3_float32.npy", images)
    # It overwrites its input.
    copy = folder / "model.onnx"
    copy.write_bytes(work.model.read_bytes())
    entry = onnx.load(copy).graph.input[0].name
    calibration = ["-oiqt", "-cind", entry, work.samples_last, "[[[[0]]]]", "[[[[1]]]]"] if precision == "int8" else []
    name = "model_integer_quant.tflite" if precision == "int8" else "model_float32.tflite"
    return watched([venv / "bin" / "onnx2tf", "-i", copy, "-o", folder, "-n", *calibration], folder / name)


def litert_torch(venv: Path, work: Work, precision: str) -> Made:
    """litert-torch from a torch twin; int8 by the quantiser that we use, from its float file."""
    result = work.folder / "litert_torch_fp32.tflite"
    made = watched([venv / "bin" / "python", _HERE / "other_paths_torch.py", work.model, result], result)
    if precision == "fp32":
        return made
    quantized = work.folder / "litert_torch_int8.tflite"
    more = watched([sys.executable, "-c", _QUANTIZE, result, work.samples_last, quantized], quantized)
    return Made(quantized, made.seconds + more.seconds, max(made.peak_mb, more.peak_mb))


PATHS: Mapping[str, OtherPath] = {
    "onnx2tf": OtherPath(
        (
            *("onnx2tf==1.29.24", "tensorflow==2.19.0", "tf-keras==2.19.0", "onnx==1.19.1", "numpy==1.26.4"),
            *("ai-edge-litert==2.1.0", "onnxruntime==1.23.0", "onnx-graphsurgeon==0.5.8", "protobuf==4.25.5"),
        ),
        onnx2tf,
    ),
    "litert-torch": OtherPath(("litert-torch==0.10.0", "torch==2.13.0", "onnx==1.23.2"), litert_torch),
}


def installed(name: str, folder: Path) -> Path:
    """The environment of a path, made if it is not there yet; raises PathError."""
    venv = folder / f"other-path-{name}"
    complete = venv / ".complete"
    wanted = "\n".join(PATHS[name].requirements)
    if complete.exists() and complete.read_text(encoding="utf-8") == wanted:
        return venv
    print(f"installing {name} into {venv}, once", file=sys.stderr)
    steps: tuple[list[str | Path], ...] = (
        [sys.executable, "-m", "venv", "--clear", venv],
        [venv / "bin" / "python", "-m", "pip", "install", "--quiet", *PATHS[name].requirements],
    )
    for step in steps:
        done = subprocess.run(step, check=False, capture_output=True, text=True)
        if done.returncode:
            raise PathError((done.stderr.strip().splitlines() or ["pip said nothing"])[-1])
    complete.write_text(wanted, encoding="utf-8")
    return venv


def prepared(name: str, folder: Path) -> Work:
    """A model and its calibration samples on disk."""
    folder.mkdir()
    work = Work(folder, folder / f"{name}.onnx", folder / "samples.npz", folder / "samples.npy")
    model = MODELS[name]()
    onnx.save(model, work.model)
    entry, first = fed(model, 0)
    samples = np.stack([first[0], *(fed(model, seed)[1][0] for seed in range(1, _SAMPLES))])
    arrays: dict[str, Any] = {entry: samples}
    np.savez(work.samples, **arrays)
    np.save(work.samples_last, np.ascontiguousarray(samples.transpose(0, 2, 3, 1)))
    return work


def compared(work: Work, mine: Made, other: Made, pairs: int) -> dict[str, Any]:
    """Both files measured in one process; raises PathError when that process dies."""
    script = _HERE / "other_paths_measure.py"
    command: list[str | Path] = [sys.executable, script, work.model, mine.file, other.file, str(pairs)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_TIMEOUT_S)
    if done.returncode:
        raise PathError(f"measuring: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    found: dict[str, Any] = json.loads(done.stdout)
    for facts, made in zip(found["files"], (mine, other), strict=True):
        facts.update(seconds=made.seconds, peak_mb=made.peak_mb)
    left, right = found["files"]
    found["extra_bytes"] = left["bytes_without_metadata"] - right["bytes_without_metadata"]
    found["within"] = bool(found["ratio"] <= _LATENCY and found["extra_bytes"] <= _BYTES)
    return found


_COLUMNS = (
    *("model", "precision", "other path", "bytes", "difference", "ms", "latency ratio", "error (int8: dB)"),
    *("TRANSPOSE", "outside XNNPACK", "seconds", "peak MB", "within"),
)


def line(name: str, precision: str, path: str, found: Mapping[str, Any] | str) -> str:
    """A row of the table; two values are ours / theirs."""
    if isinstance(found, str):
        return f"| {name} | {precision} | {path} | {found} |" + " |" * (len(_COLUMNS) - 4)
    left, right = found["files"]

    def both(key: str, form: str) -> str:
        return f"{left[key]:{form}} / {right[key]:{form}}"

    low, high = found["ratio_quartiles"]
    cells = (
        *(name, precision, path, both("bytes_without_metadata", ",d"), f"{found['extra_bytes']:+,d}"),
        " / ".join(f"{value:.3f}" for value in found["ms"]),
        f"{found['ratio']:.3f} ({low:.3f}–{high:.3f})",
        both("error", ".1e") if precision == "fp32" else both("sqnr_db", ".1f"),
        both("transposes", "d"),
        f"{len(left['outside_xnnpack'])} / {len(right['outside_xnnpack'])}",
        *(both("seconds", ".1f"), both("peak_mb", ".0f"), "yes" if found["within"] else "**no**"),
    )
    return "| " + " | ".join(cells) + " |"


def rows_of(name: str, venvs: Mapping[str, Path], pairs: int) -> list[dict[str, Any]]:
    """Every precision of a model by every path, each printed as it comes."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="edgefleet-paths-") as folder:
        work = prepared(name, Path(folder) / name)
        for precision in ("fp32", "int8"):
            mine = ours(work, precision)  # its failure ends the comparison: there is nothing to compare
            for path, venv in venvs.items():
                found: dict[str, Any] | str
                try:
                    found = compared(work, mine, PATHS[path].convert(venv, work, precision), pairs)
                except PathError as error:
                    found = f"failed: {str(error)[:160]}"
                print(line(name, precision, path, found), flush=True)
                rows.append({"model": name, "precision": precision, "path": path, "found": found})
    return rows


def main() -> None:
    """Install, convert, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=list(PATHS))
    parser.add_argument("--pairs", type=int, default=40, help="latency pairs; 20 or more")
    parser.add_argument("--venvs", type=Path, default=_BUILD / "venvs", help="folder of the environments")
    arguments = parser.parse_args()
    venvs, missing = {}, {}
    for path in arguments.paths:
        try:
            venvs[path] = installed(path, arguments.venvs.resolve())
        except PathError as error:
            missing[path] = str(error)
            print(f"{path} cannot be installed: {error}")
    print("| " + " | ".join(_COLUMNS) + " |\n|" + "---|" * len(_COLUMNS))
    rows = [row for name in arguments.models for row in rows_of(name, venvs, arguments.pairs)]
    report = {"rows": rows, "not_installed": missing, "pairs": arguments.pairs}
    _BUILD.mkdir(parents=True, exist_ok=True)
    (_BUILD / "other_paths.json").write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
