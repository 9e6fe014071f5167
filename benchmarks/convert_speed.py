"""Time and peak memory of `edgefleet convert --precision fp32 --no-check` as a whole process, by size of model.

`python benchmarks/convert_speed.py [MODEL.onnx ...] [--runs N]`: a Markdown table on stdout, everything in
build/convert_speed.json; without a model, four published networks with seeded weights, and a warm node test. The ratios
are to a process that only imports onnx, numpy and the TFLite schema and loads the file: read them, not the seconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median

import onnx

from edgefleet.errors import EdgefleetError
from edgefleet_converters.tflite import lower
from published_networks import classified, mobilenet_v2, normed, relu, resnet8

_REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_REPOSITORY / "tests"))

from conformance import cases  # noqa: E402 - found by the line above
from conformance_graphs.building import Building  # noqa: E402

_LOAD = """
import sys
import numpy, onnx, flatbuffers
from ai_edge_litert import schema_py_generated
onnx.load(sys.argv[1])
"""
_MAKE = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import onnx
from convert_speed import NETWORKS
onnx.save(NETWORKS[sys.argv[2]].build(), sys.argv[3])
"""
# A process between, so that the peak is the command's own: a forked child's starts at that of its parent.
_WATCH = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
seconds = time.perf_counter() - started
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"seconds": seconds, "cpu_s": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1024}))
"""
_WARM_LIMIT_MS = 10.0


@dataclass(frozen=True, slots=True)
class Cost:
    """Medians of a whole process: wall clock, user and system time, and the most memory it held."""

    seconds: float
    cpu_s: float
    peak_mb: float


@dataclass(frozen=True, slots=True)
class Network:
    """A graph to build, and the most that converting it may take."""

    build: Callable[[], onnx.ModelProto]
    seconds: float
    peak_mb: float | None


def resnet50() -> onnx.ModelProto:
    """Bottleneck blocks over 224 x 224 images."""
    b = Building(3)
    data = relu(b, normed(b, b.input(1, 3, 224, 224), 64, 7, 2))
    data = b.node("MaxPool", data, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for filters, count, first_stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for stride in (first_stride, *[1] * (count - 1)):
            inner = relu(b, normed(b, data, filters, 1))
            inner = normed(b, relu(b, normed(b, inner, filters, 3, stride)), filters * 4, 1)
            short = data if b.shape(data)[1] == filters * 4 and stride == 1 else normed(b, data, filters * 4, 1, stride)
            data = relu(b, b.node("Add", inner, short))
    return classified(b, data)


def vgg19() -> onnx.ModelProto:
    """Sixteen convolutions over 224 x 224 images, and three dense layers that hold most of its 575 MB."""
    b = Building(4)
    data = b.input(1, 3, 224, 224)
    for filters, count in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(count):
            data = relu(b, b.conv(data, filters))
        data = b.node("MaxPool", data, kernel_shape=[2, 2], strides=[2, 2])
    data = b.node("Flatten", data, axis=1)
    for _ in range(2):
        data = relu(b, b.dense(data, 4096))
    return b.model(b.dense(data, 1000))


NETWORKS: Mapping[str, Network] = {
    "resnet8": Network(resnet8, 0.9, 130),
    "mobilenet_v2": Network(mobilenet_v2, 1.3, None),
    "resnet50": Network(resnet50, 3, 500),
    "vgg19": Network(vgg19, 10, 2000),
}


def costs(commands: Sequence[Sequence[str | Path]], runs: int) -> list[Cost]:
    """Run commands in turn, each in fresh processes."""
    found: list[list[Cost]] = [[] for _ in commands]
    for _ in range(runs):
        for command, seen in zip(commands, found, strict=True):
            watch = [sys.executable, "-S", "-c", _WATCH, *map(str, command)]
            seen.append(Cost(**json.loads(subprocess.run(watch, check=True, stdout=subprocess.PIPE).stdout)))
    return [
        Cost(
            median(cost.seconds for cost in seen),
            median(cost.cpu_s for cost in seen),
            median(cost.peak_mb for cost in seen),
        )
        for seen in found
    ]


def measured(model: Path, runs: int) -> dict[str, Cost]:
    """Converting a model, and only loading it."""
    with tempfile.TemporaryDirectory(prefix="edgefleet-benchmark-") as folder:
        convert: list[str | Path] = [
            sys.executable,
            "-m",
            "edgefleet.cli",
            "convert",
            model,
            "--to",
            "litert",
            "--precision",
            "fp32",
        ]
        convert += ["--no-check", "-o", Path(folder) / "model.tflite"]
        taken = costs([[sys.executable, "-c", _LOAD, model], convert], runs)
    return dict(zip(("load", "convert"), taken, strict=True))


def warm_node_ms() -> list[float]:
    """Milliseconds of lowering each ONNX node test, refused ones too, in a process that has already done so once."""
    models = [case.model for case in cases.load()]
    taken: list[float] = []
    for _ in range(2):
        taken.clear()
        for model in models:
            started = time.perf_counter()
            with suppress(EdgefleetError):
                lower(model, keep_layout=True)
            taken.append((time.perf_counter() - started) * 1e3)
    return sorted(taken)


def _limit(cost: Cost, network: Network) -> str:
    """What converting may take; bold where it takes more."""
    text, within = f"{network.seconds:g} s", cost.seconds <= network.seconds
    if network.peak_mb is not None:
        text, within = f"{text}, {network.peak_mb:g} MB", within and cost.peak_mb <= network.peak_mb
    return text if within else f"**{text}**"


def line(name: str, size_mb: float, found: Mapping[str, Cost], network: Network | None) -> str:
    """A row of the table."""
    cost, load = found["convert"], found["load"]
    cells = (
        *(name, f"{size_mb:.1f}", f"{cost.seconds:.2f}", f"{cost.cpu_s:.2f}", f"{cost.peak_mb:.0f}"),
        *(f"{load.seconds:.2f}", f"{load.cpu_s:.2f}", f"{load.peak_mb:.0f}"),
        *(f"{cost.seconds / load.seconds:.2f}", f"{cost.cpu_s / load.cpu_s:.2f}", f"{cost.peak_mb / load.peak_mb:.2f}"),
        "" if network is None else _limit(cost, network),
    )
    return "| " + " | ".join(cells) + " |"


_COLUMNS = (
    *("model", "MB", "s", "CPU s", "peak MB", "load: s", "CPU s", "peak MB"),
    *("ratio: s", "CPU", "peak", "at most"),
)


def main() -> None:
    """Measure the models given, or the built ones; print and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--runs", type=int, default=3, help="fresh processes of which the median counts")
    arguments = parser.parse_args()
    report: dict[str, object] = {"runs": arguments.runs}
    print("| " + " | ".join(_COLUMNS) + " |\n|" + "---|" * len(_COLUMNS))
    with tempfile.TemporaryDirectory(prefix="edgefleet-benchmark-") as folder:
        for name in arguments.models or NETWORKS:
            network, path = NETWORKS.get(name), Path(name)
            if network is not None:
                path = Path(folder) / "model.onnx"
                # In a child, because building holds the weights several times.
                subprocess.run([sys.executable, "-c", _MAKE, Path(__file__).parent, name, path], check=True)
            found, size_mb = measured(path, arguments.runs), path.stat().st_size / 2**20
            print(line(path.name if network is None else name, size_mb, found, network), flush=True)
            report[str(name)] = {stage: asdict(cost) for stage, cost in found.items()}
    warm = warm_node_ms()
    report["warm_node_ms"] = {"mean": mean(warm), "median": median(warm), "longest": warm[-1], "cases": len(warm)}
    print(f"\nA node test, warm, of {len(warm)}: mean {mean(warm):.1f} ms of {_WARM_LIMIT_MS:g}, ", end="")
    print(f"median {median(warm):.1f}, longest {warm[-1]:.0f}")
    (_REPOSITORY / "build").mkdir(exist_ok=True)
    (_REPOSITORY / "build").mkdir(parents=True, exist_ok=True)
    (_REPOSITORY / "build" / "convert_speed.json").write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
