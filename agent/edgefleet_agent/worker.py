"""The worker: a child process that opens one variant and runs it, as a self-test or over a source.

It speaks JSON lines over an inherited socket and ends when that closes, so it never outlives its agent. It decides
nothing: a crash or hang of a runtime stays in here.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefleet.errors import EdgefleetError
from edgefleet.package.quantization import dequantized, quantized
from edgefleet_agent.runtimes import Model, open_model
from edgefleet_agent.sources.replay import Sample, open_replay

PR_SET_PDEATHSIG = 1
THREADS = 1
SELF_TEST_RUNS = 2
# Fewest runs for which a percentile is given. p90: 64, by MLPerf's early stopping (99 % confidence). p50: with 7
# runs the chance that none lies above the true median is below 1 %.
MIN_RUNS_P50 = 7
MIN_RUNS_P90 = 64

Array = NDArray[np.generic]
Arrays = dict[str, Array]


class Variant:
    """A variant in its slot: takes and gives arrays in the source model's layout."""

    def __init__(self, slot: Path, spec: dict[str, Any]) -> None:
        """Open the model; `spec` is the settings layer, already validated by the agent."""
        self.spec = spec
        self._model: Model = open_model(spec["runtime"], slot / spec["model_file"], THREADS)

    def infer(self, inputs: Arrays) -> Arrays:
        """Run once; what the spec says of layout and type is applied on the way in and undone on the way out."""
        outputs = self._model.infer({t["name"]: _stored(inputs[t["name"]], t) for t in self.spec["inputs"]})
        return {tensor["name"]: _restored(outputs[tensor["name"]], tensor) for tensor in self.spec["outputs"]}


def _stored(array: Array, tensor: dict[str, Any]) -> Array:
    """An input as the file takes it."""
    if tensor["permutation"] is not None:
        array = np.ascontiguousarray(array.transpose(tensor["permutation"]))
    border = tensor.get("quantization")
    return array if border is None else quantized(array, border["dtype"], border["scale"], border["zero_point"])


def _restored(array: Array, tensor: dict[str, Any]) -> Array:
    """An output as the source model would give it."""
    border = tensor.get("quantization")
    if border is not None:
        array = dequantized(array, border["scale"], border["zero_point"])
    return array if tensor["permutation"] is None else array.transpose(np.argsort(tensor["permutation"]))


def self_test(variant: Variant, golden_file: Path) -> dict[str, Any]:
    """Compare with the golden outputs, several times; {ok, reason, max_abs_difference}."""
    tolerances = variant.spec["golden"]["tolerances"]
    worst, reason = 0.0, None
    with np.load(golden_file, allow_pickle=False) as arrays:
        golden: Arrays = dict(arrays)
    for _ in range(SELF_TEST_RUNS):
        for sample in range(variant.spec["golden"]["samples"]):
            inputs = {t["name"]: golden[f"input:{t['name']}"][sample] for t in variant.spec["inputs"]}
            for name, output in variant.infer(inputs).items():
                found = _difference(output, golden[f"output:{name}"][sample])
                worst = max(worst, found)
                if found > tolerances[name]:
                    reason = f"golden output {name!r} differs by {found:.4g}, {tolerances[name]:.4g} is allowed"
    difference = worst if math.isfinite(worst) else None
    return {"ok": reason is None, "reason": reason, "max_abs_difference": difference}


def _difference(output: Array, expected: Array) -> float:
    """Largest absolute difference; infinite when the shapes differ or a value is not finite."""
    if output.shape != expected.shape:
        return math.inf
    # In float64, where unsigned numbers and booleans subtract too.
    difference = float(np.max(np.abs(np.subtract(output, expected, dtype=np.float64)), initial=0.0))
    return difference if math.isfinite(difference) else math.inf


@dataclass(slots=True)
class _Tally:
    """What happened since the window began."""

    started_at: float = field(default_factory=time.time)
    started_s: float = field(default_factory=time.perf_counter)
    latencies_ms: list[float] = field(default_factory=list)
    errors: int = 0
    correct: int = 0
    labelled: int = 0

    def report(self) -> dict[str, Any]:
        """The window as the agent's main process wants it; latency is the inference alone."""
        return {
            "started_at": self.started_at,
            "duration_s": time.perf_counter() - self.started_s,
            "count": len(self.latencies_ms),
            "errors": self.errors,
            "latency": latency_summary(self.latencies_ms),
            "accuracy": {"correct": self.correct, "labelled": self.labelled} if self.labelled else None,
        }


def latency_summary(latencies_ms: list[float]) -> dict[str, Any]:
    """p50 and p90 by nearest rank, each null with a reason where there are too few runs."""
    count = len(latencies_ms)
    ordered = sorted(latencies_ms)
    p50 = ordered[math.ceil(0.5 * count) - 1] if count >= MIN_RUNS_P50 else None
    p90 = ordered[math.ceil(0.9 * count) - 1] if count >= MIN_RUNS_P90 else None
    missing = [
        f"p{which} needs {wanted} runs"
        for which, wanted, value in ((50, MIN_RUNS_P50, p50), (90, MIN_RUNS_P90, p90))
        if value is None
    ]
    return {
        "p50_ms": p50,
        "p90_ms": p90,
        "reason": f"{count} runs: {', '.join(missing)}" if missing else None,
    }


def _run_one(variant: Variant, sample: Sample, tally: _Tally) -> None:
    inputs, label = sample
    before_s = time.perf_counter()
    try:
        outputs = variant.infer(inputs)
    except (RuntimeError, ValueError):
        tally.errors += 1
        return
    tally.latencies_ms.append((time.perf_counter() - before_s) * 1000)
    if label is not None:
        tally.labelled += 1
        tally.correct += int(np.argmax(outputs[variant.spec["outputs"][0]["name"]])) == label


def run(variant: Variant, source: Iterator[Sample], rate_per_s: float, window_s: float) -> Iterator[dict[str, Any]]:
    """Infer at `rate_per_s` for ever; yields each window's report, and `wait_s` between inferences."""
    due_s = time.perf_counter()
    tally = _Tally()
    for sample in source:
        _run_one(variant, sample, tally)
        now_s = time.perf_counter()
        if now_s - tally.started_s >= window_s:
            yield tally.report()
            tally = _Tally()
        # Late inferences are not caught up: the achieved rate is count ÷ duration.
        due_s = max(due_s + 1 / rate_per_s, now_s)
        yield {"wait_s": due_s - now_s}


class _Channel:
    """JSON lines to and from the agent."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._lines = self._socket.makefile("rb")

    def receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._lines.readline())
        return message

    def send(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def closed_within(self, wait_s: float) -> bool:
        """Wait; True when the agent closed its end meanwhile (it sends nothing after the plan)."""
        return bool(select.select([self._socket], [], [], max(0.0, wait_s))[0])


def work(channel: _Channel) -> None:
    """Receive a plan, open its variant, and do what its mode says."""
    plan = channel.receive()
    slot, spec = Path(plan["slot"]), plan["spec"]
    variant = Variant(slot, spec)
    if plan["mode"] == "self_test":
        channel.send({"kind": "self_test", **self_test(variant, slot / plan["golden_file"])})
        return
    source = open_replay(Path(plan["source"]["path"]), spec["inputs"])
    channel.send({"kind": "ready"})
    for report in run(variant, source, plan["source"]["rate_per_s"], plan["window_s"]):
        if "wait_s" not in report:
            channel.send({"kind": "window", **report})
        elif channel.closed_within(report["wait_s"]):
            return


def _end_with_the_agent() -> None:
    """Have the kernel kill this process when its agent dies, also in the middle of a runtime's call (prctl(2))."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    """Entry point: `python -m edgefleet_agent.worker DESCRIPTOR`."""
    _end_with_the_agent()
    channel = _Channel(int(sys.argv[1]))
    try:
        work(channel)
    except BrokenPipeError:
        return 0
    except EdgefleetError as error:
        channel.send({"kind": "failed", "reason": str(error)})
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - whatever a runtime raises becomes one line for the agent
        channel.send({"kind": "failed", "reason": f"{type(error).__name__}: {error}".splitlines()[0]})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
