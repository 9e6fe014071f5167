"""Int8 files against fp32 ones, in every runtime: size, and latency of one inference on one thread.

`python benchmarks/int8_ratio.py [--rounds N]`: a Markdown table on stdout, everything in build/int8_ratio.json. All
files of a network take turns in this process; a ratio is the median over the rounds. The weights are seeded and say
nothing of accuracy. Bold is a ratio beyond its limit; exit status 1 where a network misses one in every runtime.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import onnx

from edgefleet_converters.artefact import Artefact, Form
from edgefleet_converters.convert import ConvertJob, convert
from edgefleet_converters.intake.onnx_file import read_onnx
from edgefleet_converters.score.infer import Runner, open_runner, stored_input
from edgefleet_converters.step import Samples
from edgefleet_device_profiles.profile import Precision, Runtime
from published_networks import mobilenet_v2, resnet8

_OUTPUT = Path(__file__).resolve().parent.parent / "build" / "int8_ratio.json"
RUNTIMES = (Runtime.LITERT, Runtime.OPENVINO, Runtime.ONNXRUNTIME)
PRECISIONS = (Precision.FP32, Precision.INT8)
LATENCY_LIMIT = 0.5
SAMPLES = 32
_WARM_UP_S, _TURN_S = 0.3, 0.03


@dataclass(frozen=True, slots=True)
class Network:
    """A graph, and how large its int8 file may be against its fp32 one."""

    build: Callable[[], onnx.ModelProto]
    size_limit: float


NETWORKS: Mapping[str, Network] = {"resnet8": Network(resnet8, 0.31), "mobilenet_v2": Network(mobilenet_v2, 0.29)}


class Timed:
    """A file that is open on one thread, and what it is fed in turn."""

    def __init__(self, runtime: Runtime, artefact: Artefact, samples: Samples) -> None:
        self._runner: Runner = open_runner(runtime, artefact)
        self.size_bytes = artefact.size_bytes
        self._feeds = [
            {spec.name: stored_input(samples[spec.name][place], spec) for spec in artefact.inputs}
            for place in range(SAMPLES)
        ]
        runs, start = 0, time.perf_counter()
        while time.perf_counter() - start < _WARM_UP_S:
            self._runner.infer(self._feeds[runs % SAMPLES])
            runs += 1
        self._runs = max(1, int(runs * _TURN_S / _WARM_UP_S))

    def turn_ms(self) -> float:
        """Milliseconds of one run: the median of a turn."""
        taken = []
        for place in range(self._runs):
            start = time.perf_counter()
            self._runner.infer(self._feeds[place % SAMPLES])
            taken.append(time.perf_counter() - start)
        return median(taken) * 1000


def made(network: Network, work: Path) -> tuple[dict[tuple[Runtime, Precision], Artefact], Samples]:
    """The files of all runtimes, as packaging makes them; the samples that calibrated them."""
    onnx.save(network.build(), work / "given.onnx")
    source = read_onnx(work / "given.onnx", work, shapes={}, dims={})
    generator = np.random.default_rng(0)
    samples = {spec.name: generator.normal(size=(SAMPLES, *spec.shape)).astype(np.float32) for spec in source.inputs}
    np.savez(work / "samples.npz", allow_pickle=False, **samples)
    jobs = {
        (runtime, precision): ConvertJob(
            runtime=runtime,
            precision=precision,
            source=source.forms[Form.ONNX],
            calibration=work / "samples.npz",
            folder=work / f"{runtime}-{precision}",
        )
        for runtime in RUNTIMES
        for precision in PRECISIONS
    }
    return {key: convert(job) for key, job in jobs.items()}, samples


def measured(network: Network, work: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """By runtime: bytes and milliseconds of fp32 and int8, and the ratio of each."""
    artefacts, samples = made(network, work)
    files = {key: Timed(key[0], artefact, samples) for key, artefact in artefacts.items()}
    taken: dict[tuple[Runtime, Precision], list[float]] = {key: [] for key in files}
    for turn in range(rounds):
        for key in list(files)[:: -1 if turn % 2 else 1]:
            taken[key].append(files[key].turn_ms())
    found: dict[str, dict[str, Any]] = {}
    for runtime in RUNTIMES:
        float_, int8 = ((runtime, precision) for precision in PRECISIONS)
        ratios = [quick / slow for quick, slow in zip(taken[int8], taken[float_], strict=True)]
        low, _, high = quantiles(ratios)
        found[runtime] = {
            "bytes": [files[float_].size_bytes, files[int8].size_bytes],
            "size_ratio": files[int8].size_bytes / files[float_].size_bytes,
            "ms": [median(taken[float_]), median(taken[int8])],
            "latency_ratio": median(ratios),
            "latency_quartiles": [low, high],
        }
    return found


def line(name: str, runtime: str, found: Mapping[str, Any], network: Network) -> str:
    """A row of the table."""
    size, latency = found["size_ratio"], found["latency_ratio"]
    low, high = found["latency_quartiles"]
    cells = (
        *(name, runtime, *(f"{count:,}" for count in found["bytes"])),
        f"{size:.3f}" if size <= network.size_limit else f"**{size:.3f}**",
        *(f"{value:.3f}" for value in found["ms"]),
        f"{latency:.2f}" if latency <= LATENCY_LIMIT else f"**{latency:.2f}**",
        f"{low:.2f}–{high:.2f}",
    )
    return f"| {' | '.join(cells)} |"


_COLUMNS = ("network", "runtime", "fp32 bytes", "int8 bytes", "ratio", "fp32 ms", "int8 ms", "ratio", "quartiles")


def main() -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="turns of every file; 20 or more")
    given = parser.parse_args()
    # openvino would report its use over the network.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # import machinery reads None as "not installed"
    print(f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}")
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    within = True
    for name, network in NETWORKS.items():
        with tempfile.TemporaryDirectory(prefix="edgefleet-benchmark-") as work:
            rows[name] = measured(network, Path(work), given.rounds)
        for runtime, found in rows[name].items():
            print(line(name, runtime, found, network), flush=True)
        within &= min(found["size_ratio"] for found in rows[name].values()) <= network.size_limit
        within &= min(found["latency_ratio"] for found in rows[name].values()) <= LATENCY_LIMIT
    _OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    _OUTPUT.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if not within:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
