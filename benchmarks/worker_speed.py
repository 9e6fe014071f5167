"""One inference through the worker process, against the runtime alone and a bare echo between two processes.

`python benchmarks/worker_speed.py [--rounds N]`: a Markdown table on stdout, everything in build/worker_speed.json.
ResNet8 int8 in LiteRT on one thread; the three take turns, and a ratio is the median over the rounds. int8: 3 KB go
in as the file takes them (`edgefleet convert --io int8`), and the echo carries as many. As packaged: 12 KB of float32
in the source model's layout, put into the file's on both sides of the comparison. Exit status 1 where the first ratio
is above its limit.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import onnx

from edgefleet.package.manifest import Golden, TensorSpec, VariantSpec
from edgefleet_agent import golden, supervise
from edgefleet_agent.inference_types import InferFailure, InferRequest, InferResult, RawTensor
from edgefleet_agent.runtimes import Options
from edgefleet_agent.settings import Settings
from edgefleet_agent.spin import Spin
from edgefleet_agent.supervise import Worker
from edgefleet_agent.variant import Arrays, Variant
from edgefleet_converters.artefact import Artefact, Form
from edgefleet_converters.conversion import flow
from edgefleet_converters.conversion.file_facts import Border
from edgefleet_converters.convert import ConvertJob, convert
from edgefleet_converters.intake.onnx_file import read_onnx
from edgefleet_device_profiles.profile import Precision, Runtime
from published_networks import resnet8

_OUTPUT = Path(__file__).resolve().parent.parent / "build" / "worker_speed.json"
LIMIT = 1.15
_WARM_UP, _TURN = 300, 200
_ECHO = "import os\nwhile data := os.read(0, 65536): os.write(1, data)"

PLACES = sorted(os.sched_getaffinity(0))

Turn = Callable[[], None]
Files = Callable[[Path], Artefact]


def source_files(work: Path) -> tuple[Path, Path]:
    """The source model, with seeded weights, and samples for its calibration."""
    model, samples = work / "given.onnx", work / "samples.npz"
    onnx.save(resnet8(), model)
    arrays = {"x": np.random.default_rng(0).normal(size=(32, 1, 3, 32, 32)).astype(np.float32)}
    np.savez(samples, allow_pickle=False, **arrays)
    return model, samples


def packaged(work: Path) -> Artefact:
    """The int8 file as packaging makes it: float32 in the source model's layout goes in and comes out."""
    model, samples = source_files(work)
    source = read_onnx(model, work, shapes={}, dims={})
    return convert(
        ConvertJob(
            runtime=Runtime.LITERT, precision=Precision.INT8, source=source.forms[Form.ONNX], calibration=samples,
            folder=work / "packaged",
        )
    )  # fmt: skip


def small(work: Path) -> Artefact:
    """The int8 file whose inputs and outputs are int8 too, for an application that has pixels."""
    model, samples = source_files(work)
    request = flow.Request(
        model, work / "small.tflite", precision="int8", calibration=samples, border="int8", check=False
    )
    made = flow.convert(request, print)
    inputs, outputs = (tuple(_as_it_is(one) for one in side) for side in (made.facts.inputs, made.facts.outputs))
    return Artefact(files=(made.path,), inputs=inputs, outputs=outputs)


def _as_it_is(border: Border) -> TensorSpec:
    return TensorSpec.model_validate({"name": border.name, "dtype": border.dtype, "shape": border.shape})


ROWS: dict[str, tuple[Files, int]] = {
    "3 KB of int8, two cores": (small, 2),
    "3 KB of int8, one core": (small, 1),
    "as packaged, two cores": (packaged, 2),
}
"""Which file, and how many cores the two processes have together."""


def slot(folder: Path, artefact: Artefact) -> VariantSpec:
    """A variant's folder with golden inputs; its spec."""
    folder.mkdir()
    for file in artefact.files:
        (folder / file.name).write_bytes(file.read_bytes())
    generator = np.random.default_rng(1)
    inputs = artefact.inputs
    arrays = {f"input:{one.name}": (generator.normal(size=(1, *one.shape)) * 30).astype(one.dtype) for one in inputs}
    np.savez(folder / "golden.npz", allow_pickle=False, **arrays)
    return VariantSpec(
        name="resnet8-int8", runtime=Runtime.LITERT, precision=Precision.INT8, runtime_version=">=2",
        model_file=artefact.files[0].name, inputs=inputs, outputs=artefact.outputs,
        golden=Golden(samples=1, tolerances={one.name: 0.0 for one in artefact.outputs}), architectures=("amd64",),
    )  # fmt: skip


class Echo:
    """A process that sends back what it is sent, over two pipes: as many bytes as the inputs have."""

    def __init__(self, size_bytes: int) -> None:
        self._content = bytes(size_bytes)
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", _ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.pid = self._process.pid
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()

    def __call__(self) -> None:
        os.write(self._to, self._content)
        os.read(self._from, 65536)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


class Asked:
    """A worker, and one request that is sent to it again and again."""

    def __init__(self, folder: Path, spec: VariantSpec, inputs: Arrays) -> None:
        settings = Settings.model_validate(
            {"profile": "p", "state_folder": folder, "source": {"kind": "replay", "path": folder / "none.npz"}}
        )
        self._worker: Worker = supervise.inference(folder, spec, "sha256:" + "1" * 64, settings)
        self.pid = self._worker.pid
        self._spin, self._poll = Spin(), select.poll()
        self._poll.register(self._worker, select.POLLIN)
        while not self._worker.ready:
            self._wait()
        self._worker.send({"kind": "begin"})
        tensors = (RawTensor(name, str(one.dtype), one.shape, one.tobytes()) for name, one in inputs.items())
        self._request = InferRequest(tuple(tensors))
        self.answer: InferResult | InferFailure | None = None

    def _wait(self) -> None:
        # As the agent waits for it.
        if not self._spin.found(self._poll.poll):
            self._poll.poll()
        _, ended = self._worker.messages()
        if ended:
            raise SystemExit(self._worker.exit_reason())

    def _done(self, answer: InferResult | InferFailure) -> None:
        self.answer = answer

    def __call__(self) -> None:
        self.answer = None
        self._worker.infer(self._request, self._done)
        while self.answer is None:
            self._wait()

    def stop(self) -> None:
        self._worker.stop()


def turn_us(call: Turn) -> float:
    """Microseconds of one call: the median of a turn."""
    taken = []
    for _ in range(_TURN):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return median(taken) * 1e6


def measured(work: Path, files: Files, cores: int, rounds: int) -> dict[str, Any]:
    """Microseconds of each, and the ratio of the worker to the sum of the others."""
    folder = work / "slot"
    spec = slot(folder, files(work))
    variant = Variant(folder, spec.model_dump(mode="json"), Options())
    inputs = golden.inputs(golden.load(folder / "golden.npz"), variant)[0]
    echo, asked = Echo(sum(one.nbytes for one in inputs.values())), Asked(folder, spec, inputs)

    def bare() -> None:
        variant.infer(inputs)

    # Where the kernel puts two processes that wake each other changes from one moment to the next.
    here, there = PLACES[0], PLACES[cores - 1]
    os.sched_setaffinity(0, {here})
    for pid in (echo.pid, asked.pid):
        os.sched_setaffinity(pid, {there})
    calls: dict[str, Turn] = {"runtime": bare, "echo": echo, "worker": asked}
    try:
        for call in calls.values():
            for _ in range(_WARM_UP):
                call()
        if not isinstance(asked.answer, InferResult):
            raise SystemExit(f"no result: {asked.answer}")
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for place in range(rounds):
            for name in list(calls)[:: -1 if place % 2 else 1]:
                taken[name].append(turn_us(calls[name]))
    finally:
        echo.stop()
        asked.stop()
        os.sched_setaffinity(0, PLACES)
    ratios = [w / (r + e) for r, e, w in zip(taken["runtime"], taken["echo"], taken["worker"], strict=True)]
    low, _, high = quantiles(ratios)
    return {"us": {name: median(one) for name, one in taken.items()}, "ratio": median(ratios), "quartiles": [low, high]}


_COLUMNS = ("tensors", "runtime alone µs", "pipe echo µs", "through the worker µs", "added µs", "ratio", "quartiles")


def main() -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="turns of each; 20 or more")
    rounds = parser.parse_args().rounds
    rows: dict[str, dict[str, Any]] = {}
    print(f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}")
    for name, (files, cores) in ROWS.items():
        with tempfile.TemporaryDirectory(prefix="edgefleet-benchmark-") as work:
            found = rows[name] = measured(Path(work), files, cores, rounds)
            us, (low, high) = found["us"], found["quartiles"]
            numbers = (us["runtime"], us["echo"], us["worker"], us["worker"] - us["runtime"])
            cells = (name, *(f"{value:.0f}" for value in numbers), f"{found['ratio']:.2f}", f"{low:.2f}–{high:.2f}")
            print(f"| {' | '.join(cells)} |", flush=True)
    _OUTPUT.parent.mkdir(exist_ok=True)
    _OUTPUT.write_text(json.dumps(rows, indent=1))
    sys.exit(int(next(iter(rows.values()))["ratio"] > LIMIT))


if __name__ == "__main__":
    main()
