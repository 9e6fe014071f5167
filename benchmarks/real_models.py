"""Trained models from other hands, Keras → ONNX → TFLite, beside the files of tf.lite's own converter.

`python benchmarks/real_models.py [--models FOLDER] [--pairs N]`: a Markdown table on stdout, everything in
build/real_models.json. tf2onnx and TensorFlow get an environment of their own below build/, made once (2 GB); what they
make of the models stays in build/real_models. Ratios are ours to theirs. Exit status 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from other_paths_measure import Measured, latencies

_REPOSITORY = Path(__file__).resolve().parent.parent
BUILD = _REPOSITORY / "build"
FORMS = BUILD / "real_models"
REQUIREMENTS = ("tensorflow==2.21.0", "tf-keras==2.21.0", "tf2onnx==1.17.0", "onnx==1.23.2", "numpy==2.4.6")
MODELS = ("kws", "vww_96", "sww")
_SEEDS = range(3)
_ERROR, _LATENCY, _BYTES = 1e-4, 1.05, 4096
_COLUMNS = (
    *("model", "precision", "bytes", "difference", "ms", "latency ratio", "logits: error", "reference moves"),
    *("SQNR dB", "TRANSPOSE", "outside XNNPACK", "within"),
)


def environment() -> Path:
    """The Python with TensorFlow and tf2onnx, made if it is not there yet."""
    venv = BUILD / "venvs" / "keras"
    complete, wanted = venv / ".complete", "\n".join(REQUIREMENTS)
    if not (complete.exists() and complete.read_text(encoding="utf-8") == wanted):
        print(f"installing TensorFlow into {venv}, once", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([venv / "bin" / "python", "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
        complete.write_text(wanted, encoding="utf-8")
    return venv / "bin" / "python"


def make_forms(models: Path) -> None:
    """Every model as ONNX and as tf.lite makes it, unless that has been done."""
    if all((FORMS / f"{name}_fp32.tflite").exists() for name in MODELS) and (FORMS / "sww_int8.tflite").exists():
        return
    FORMS.mkdir(parents=True, exist_ok=True)
    script = Path(__file__).with_name("real_models_keras.py")
    subprocess.run([environment(), script, models, FORMS], check=True, stdout=sys.stderr)


def convert(model: Path, precision: str, samples: Path | None = None) -> Path:
    """The command as a user gives it, its check included."""
    result = model.with_name(f"{model.stem}_{precision}_ours.tflite")
    command: list[str | Path] = [sys.executable, "-m", "edgefleet.cli", "convert", model, "--to", "litert"]
    command += ["--precision", precision, "-o", result]
    if samples is not None:
        command += ["--calibration", samples]
    subprocess.run(command, check=True, capture_output=True)
    return result


def without_softmax(path: Path) -> Path:
    """The model up to its last Softmax, in a file beside it."""
    model = onnx.load(path)
    last = model.graph.node[-1]
    if last.op_type != "Softmax":
        return path
    logits = onnx.helper.make_empty_tensor_value_info(last.input[0])
    logits.type.CopyFrom(model.graph.output[0].type)
    del model.graph.node[-1], model.graph.output[:]
    model.graph.output.append(logits)
    result = path.with_name(f"{path.stem}_logits.onnx")
    onnx.save(model, result)
    return result


def fed(path: Path, seed: int) -> tuple[str, NDArray[np.float32]]:
    """The model's one input: an image or a spectrogram in 0..1, cepstral coefficients about 0."""
    entry = onnx.load(path).graph.input[0]
    shape = [axis.dim_value or 1 for axis in entry.type.tensor_type.shape.dim]
    random = np.random.default_rng(seed)
    drawn = random.normal(size=shape) * 3 if path.stem.startswith("kws") else random.random(shape)
    return entry.name, drawn.astype(np.float32)


def compared(source: Path, file: Path, feeds: list[dict[str, NDArray[Any]]]) -> dict[str, float]:
    """Largest max|d| / max|reference|, by how much the reference moves between samples, and SQNR over all of them."""
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    runner = Measured(file)
    wanted = [session.run(None, feed)[0].astype(np.float64) for feed in feeds]
    found = [runner.run(next(iter(feed.values())), want.shape) for feed, want in zip(feeds, wanted, strict=True)]
    pairs = list(zip(found, wanted, strict=True))
    scale = max(float(np.abs(want).max()) for want in wanted)
    noise = sum(float(((got - want) ** 2).sum()) for got, want in pairs)
    return {
        "error": max(float(np.abs(got - want).max() / np.abs(want).max()) for got, want in pairs),
        "moves": max(float(np.abs(want - wanted[0]).max()) for want in wanted) / scale,
        "sqnr_db": 10 * float(np.log10(sum(float((want**2).sum()) for want in wanted) / max(noise, 1e-30))),
    }


def measured(name: str, precision: str, pairs: int) -> dict[str, Any]:
    """One row: the file as users get it for size and latency, the one up to the softmax for what it computes."""
    source, samples = FORMS / f"{name}.onnx", FORMS / f"{name}.npz"
    given = samples if precision == "int8" else None
    mine, other = convert(source, precision, given), FORMS / f"{name}_{precision}.tflite"
    files = [Measured(path) for path in (mine, other)]
    timed: dict[str, Any] = latencies(files, pairs)
    feeds = [dict([fed(source, seed)]) for seed in _SEEDS]
    if given is not None:
        with np.load(given) as archive:
            feeds = [{key: array[at : at + 1] for key, array in archive.items()} for at in range(8)]
    logits = without_softmax(source)
    computed = compared(logits, convert(logits, precision, given), feeds)
    facts: list[dict[str, Any]] = [file.facts() for file in files]
    extra = facts[0]["bytes_without_metadata"] - facts[1]["bytes_without_metadata"]
    within = timed["ratio"] <= _LATENCY and extra <= _BYTES
    if precision == "fp32":
        within &= computed["error"] <= _ERROR < computed["moves"] / 10 and not facts[0]["transposes"]
    else:
        within &= not facts[0]["outside_xnnpack"]
    return {"files": facts, **timed, **computed, "extra_bytes": extra, "within": bool(within)}


def line(name: str, precision: str, found: Mapping[str, Any]) -> str:
    """A row of the table; two values are ours / theirs."""
    left, right = found["files"]
    low, high = found["ratio_quartiles"]
    cells = (
        *(name, precision, f"{left['bytes_without_metadata']:,} / {right['bytes_without_metadata']:,}"),
        *(f"{found['extra_bytes']:+,}", " / ".join(f"{value:.4f}" for value in found["ms"])),
        *(f"{found['ratio']:.3f} ({low:.3f}–{high:.3f})", f"{found['error']:.1e}", f"{found['moves']:.2f}"),
        *(f"{found['sqnr_db']:.1f}", f"{left['transposes']} / {right['transposes']}"),
        f"{len(left['outside_xnnpack'])} / {len(right['outside_xnnpack'])}",
        "yes" if found["within"] else "**no**",
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Make the forms, convert, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=_REPOSITORY.parent / "shared" / "models")
    parser.add_argument("--pairs", type=int, default=40, help="latency pairs; 20 or more")
    arguments = parser.parse_args()
    make_forms(arguments.models)
    print("| " + " | ".join(_COLUMNS) + " |\n|" + "---|" * len(_COLUMNS))
    rows = {}
    for name in MODELS:
        for precision in ("fp32", "int8") if (FORMS / f"{name}.npz").exists() else ("fp32",):
            rows[f"{name} {precision}"] = found = measured(name, precision, arguments.pairs)
            print(line(name, precision, found), flush=True)
    (BUILD).mkdir(parents=True, exist_ok=True)
    (BUILD / "real_models.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if not all(found["within"] for found in rows.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
