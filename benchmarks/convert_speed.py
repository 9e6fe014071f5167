"""Time and peak memory of lowering ONNX to TFLite, as ratios to loading the file alone.

`python benchmarks/convert_speed.py [MODEL.onnx ...]`; without a model, made-up ones of several sizes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZES_MB = (1, 14, 100, 500)
REPEATS = 3
_IMPORTS = "import onnx, numpy, flatbuffers; from ai_edge_litert import schema_py_generated\n"
_LOAD = "import sys; model = onnx.load(sys.argv[1])\n"
_LOWER = """
import pathlib
from edgefleet_converters.tflite import lower
content = lower(model).content
pathlib.Path(sys.argv[2]).write_bytes(content)
"""
# In the child, so that memory is its own: ru_maxrss of a forked process starts at its parent's.
_REPORT = """
import time
print(time.perf_counter() - started, int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024)
"""
STAGES = {"imports": _IMPORTS, "and onnx.load": _IMPORTS + _LOAD, "and lower": _IMPORTS + _LOAD + _LOWER}


@dataclass(frozen=True, slots=True)
class Cost:
    """Median seconds and megabytes at the peak of a whole process, without the interpreter's own start."""

    seconds: float
    peak_mb: float


def cost(script: str, model: Path, output: Path) -> Cost:
    """Run a script on a model in fresh processes."""
    code = f"import time; started = time.perf_counter()\n{script}{_REPORT}"
    found = []
    for _ in range(REPEATS):
        done = subprocess.run(
            [sys.executable, "-c", code, str(model), str(output)], check=True, capture_output=True, text=True
        )
        found.append([float(word) for word in done.stdout.split()[-2:]])
    return Cost(median(seconds for seconds, _ in found), median(peak for _, peak in found))


def made_up(megabytes: int, path: Path) -> None:
    """A chain of 3 x 3 convolutions over 56 x 56 with about this much weight, the last part in two Gemm."""
    random, channels = np.random.default_rng(0), 256
    layers = max(1, round(megabytes * 0.7e6 / (channels * channels * 9 * 4)))
    if megabytes < 4:
        channels = 64
    tensors, nodes, value, filters = [], [], "x", 3
    for position in range(layers):
        tensors.append(_tensor(f"w{position}", random.normal(size=(channels, filters, 3, 3)) / filters))
        tensors.append(_tensor(f"b{position}", random.normal(size=channels)))
        inputs = [value, f"w{position}", f"b{position}"]
        nodes.append(helper.make_node("Conv", inputs, [f"c{position}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{position}"], [f"r{position}"]))
        value, filters = f"r{position}", channels
    hidden = max(8, round(megabytes * 0.3e6 / 4 / (channels * 49 + 10)))
    tensors += [_tensor("wg", random.normal(size=(hidden, channels * 49)) * 1e-3), _tensor("bg", np.zeros(hidden))]
    tensors += [_tensor("wo", random.normal(size=(10, hidden)) * 0.1), _tensor("bo", np.zeros(10))]
    nodes.append(helper.make_node("MaxPool", [value], ["p"], kernel_shape=[8, 8], strides=[8, 8]))
    nodes.append(helper.make_node("Flatten", ["p"], ["f"]))
    nodes.append(helper.make_node("Gemm", ["f", "wg", "bg"], ["g"], transB=1))
    nodes.append(helper.make_node("Gemm", ["g", "wo", "bo"], ["y"], transB=1))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 56, 56])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])
    graph = helper.make_graph(nodes, "made_up", [x], [y], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def _tensor(name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> onnx.TensorProto:
    return numpy_helper.from_array(array.astype(np.float32), name)


def report(name: str, model: Path, output: Path) -> None:
    """Print one model's lines."""
    costs = {stage: cost(script, model, output) for stage, script in STAGES.items()}
    loaded, size_mb = costs["and onnx.load"], model.stat().st_size / 2**20
    print(f"{name}, {size_mb:.1f} MB")
    for stage, found in costs.items():
        print(f"  {stage:14} {found.seconds:7.2f} s {found.peak_mb:8.0f} MB", end="")
        print(f" {found.seconds / loaded.seconds:6.2f} x {found.peak_mb / loaded.peak_mb:6.2f} x of loading")
    extra = (costs["and lower"].peak_mb - costs["imports"].peak_mb) / size_mb
    print(f"  at the peak {extra:.2f} x the file beyond the imports")


def main() -> None:
    """Measure the models given, or made-up ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgefleet-benchmark-") as folder:
        output = Path(folder) / "model.tflite"
        for model in arguments.models:
            report(model.name, model, output)
        for megabytes in () if arguments.models else SIZES_MB:
            made = Path(folder) / "made_up.onnx"
            made_up(megabytes, made)
            report("made up", made, output)


if __name__ == "__main__":
    main()
