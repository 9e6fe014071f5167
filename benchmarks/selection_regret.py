"""How far the variant that a device chooses by measuring is from the best one, all of them measured again afterwards.

`python benchmarks/selection_regret.py [--models NAME ...] [--passes N]`: a Markdown table on stdout, everything in
build/selection_regret.json. For each model int8 and fp32 files of LiteRT, ONNX Runtime and OpenVINO, with one thread
and with two, compete in the agent's own benchmark, in real workers; then all of them are measured again, taking turns
forwards and backwards. Two neighbouring passes are a block, in which everyone had his turn twice. Regret is the chosen
one's 90th percentile over another's, block by block (the trimmed mean of the logarithms), for the other for which it is
largest; at least 1. Its upper bound is the 95 % one, by the bootstrap over blocks, the choice of the other included:
what a machine's load does to all of them is in no ratio, what it does to one is in the bound. The p90 columns are of
all runs. Exit status 1 above the limit.
"""

from __future__ import annotations

import argparse
import json
import select
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgefleet.confidence import trimmed
from edgefleet.package.digest import digest_of_file
from edgefleet.package.manifest import Golden, VariantSpec
from edgefleet_agent import benchmark
from edgefleet_agent.benchmark import Asked, Benchmark, Child, Entrant, Sensors
from edgefleet_agent.benchmark_decision import milliseconds
from edgefleet_agent.benchmark_measures import KEPT_RUNS, QUANTILE, quantile
from edgefleet_agent.power import open_meter
from edgefleet_agent.settings import RuntimeSettings, WorkerSettings
from edgefleet_agent.thermal import Thermal
from edgefleet_converters.artefact import Artefact, Form
from edgefleet_converters.convert import ConvertJob, convert
from edgefleet_converters.intake.onnx_file import read_onnx
from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.profile import Precision, Runtime
from published_networks import mobilenet_v2, resnet8

_OUTPUT = Path(__file__).resolve().parent.parent / "build" / "selection_regret.json"
LIMIT = 1.10
MODELS: dict[str, Callable[[], onnx.ModelProto]] = {"resnet8": resnet8, "mobilenet_v2": mobilenet_v2}
RUNTIMES = (Runtime.LITERT, Runtime.ONNXRUNTIME, Runtime.OPENVINO)
PRECISIONS = (Precision.INT8, Precision.FP32)
THREADS = (1, 2)
TURN_S, TAIL, RESAMPLES = 0.25, 0.05, 2000


def entrants(model: str, work: Path) -> list[Entrant]:
    """Every file of a model, in every setting."""
    onnx.save(MODELS[model](), work / "given.onnx")
    source = read_onnx(work / "given.onnx", work, shapes={}, dims={})
    generator = np.random.default_rng(0)
    samples = {one.name: generator.normal(size=(16, *one.shape)).astype(np.float32) for one in source.inputs}
    np.savez(work / "samples.npz", allow_pickle=False, **samples)
    found = []
    for runtime in RUNTIMES:
        for precision in PRECISIONS:
            name = f"{runtime}-{precision}"
            job = ConvertJob(
                runtime=runtime, precision=precision, source=source.forms[Form.ONNX],
                calibration=work / "samples.npz", folder=work / name,
            )  # fmt: skip
            found += _slot(work / f"{name}.slot", convert(job), name, runtime, precision)
    return found


def _slot(folder: Path, artefact: Artefact, name: str, runtime: Runtime, precision: Precision) -> list[Entrant]:
    """A variant's folder with golden inputs, once for each number of threads."""
    folder.mkdir()
    for file in artefact.files:
        (folder / file.name).write_bytes(file.read_bytes())
    generator = np.random.default_rng(1)
    arrays = {f"input:{one.name}": generator.normal(size=(1, *one.shape)).astype(one.dtype) for one in artefact.inputs}
    np.savez(folder / "golden.npz", allow_pickle=False, **arrays)
    spec = VariantSpec(
        name=name, runtime=runtime, precision=precision, runtime_version=">=0", model_file=artefact.files[0].name,
        inputs=artefact.inputs, outputs=artefact.outputs, architectures=("amd64", "arm64"),
        golden=Golden(samples=1, tolerances={one.name: 0.0 for one in artefact.outputs}),
    )  # fmt: skip
    size_bytes = sum(file.stat().st_size for file in artefact.files)
    return benchmark.entrants(digest_of_file(folder / spec.model_file), size_bytes, folder, spec, THREADS)


def start(entrant: Entrant) -> Child:
    """A worker as the agent starts it."""
    return benchmark.starter(RuntimeSettings(), WorkerSettings())(entrant)


def chosen(among: Sequence[Entrant]) -> tuple[int, dict[str, Any]]:
    """The agent's own benchmark: (place of the chosen one, what it said)."""
    profile = catalogue.load("generic-x86-64")
    sensors = Sensors(open_meter(Path("/"), profile, simulated=False), Thermal(Path("/"), profile))
    began_s = time.monotonic()
    running = Benchmark(among, Asked(), start, sensors, began_s)
    decision = None
    while decision is None:
        select.select(running.descriptors(), [], [], 0.1)
        decision = running.tick(time.monotonic())
    if decision.chosen is None:
        raise SystemExit(decision.reason)
    said = [f"{one.measured.candidate}: {one.standing}, {one.reason}" for one in decision.results]
    place = [one.candidate for one in among].index(decision.chosen)
    return place, {"reason": decision.reason, "results": said, "seconds": time.monotonic() - began_s}


def again(among: Sequence[Entrant], passes: int) -> list[list[list[float]]]:
    """Everyone once more, forwards and backwards: place, pass, seconds of inferences."""
    children = [start(one) for one in among]
    for child in children:
        _wait(child, "ready")
    found: list[list[list[float]]] = [[] for _ in among]
    try:
        for number in range(passes):
            places = range(len(among)) if number % 2 == 0 else range(len(among) - 1, -1, -1)
            for place in places:
                children[place].send({"kind": "run", "runs": 11, "seconds": TURN_S, "most": KEPT_RUNS})
                found[place].append(_wait(children[place], "ran")["end_to_end_s"][1:])
    finally:
        for child in children:
            child.kill()
    return found


def _wait(child: Child, kind: str) -> dict[str, Any]:
    while True:
        select.select([child.fileno()], [], [])
        said, ended = child.messages()
        for message in said:
            if message["kind"] == kind:
                return message
            raise SystemExit(f"a worker said {message}")
        if ended:
            raise SystemExit(child.exit_reason())


def p90(passes: Sequence[Sequence[float]]) -> float:
    """Of all runs."""
    return quantile([run for one in passes for run in one], QUANTILE)


def regret_of(place: int, found: Sequence[Sequence[Sequence[float]]]) -> tuple[float, float, int]:
    """(regret of the candidate at `place`, its upper bound, place of the best) from place, pass, seconds."""
    blocks = range(0, len(found[place]) - 1, 2)
    logs = np.log([[p90(one[first : first + 2]) for one in found] for first in blocks])
    behind = logs[:, [place]] - logs

    def worst(rows: np.ndarray) -> tuple[float, int]:
        return max((trimmed(column, TAIL)[1], other) for other, column in enumerate(rows.T.tolist()))

    generator = np.random.default_rng(0)
    drawn = [worst(behind[generator.integers(0, len(behind), len(behind))])[0] for _ in range(RESAMPLES)]
    (regret, best), upper = worst(behind), float(np.quantile(drawn, 1 - TAIL))
    return float(np.exp(regret)), float(np.exp(max(regret, upper))), place if regret == 0 else best


def measured(model: str, passes: int) -> dict[str, Any]:
    """One model from its files to its regret."""
    with tempfile.TemporaryDirectory() as folder:
        among = entrants(model, Path(folder))
        place, said = chosen(among)
        found = again(among, passes)
    p90s = [p90(one) for one in found]
    regret, upper, best = regret_of(place, found)
    return {
        **said,
        "chosen": str(among[place].candidate),
        "best": str(among[best].candidate),
        "p90_ms": {str(one.candidate): 1e3 * value for one, value in zip(among, p90s, strict=True)},
        "regret": regret,
        "upper": upper,
    }


def main() -> int:
    """Choose, measure again, print and store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--passes", type=int, default=80)
    options = parser.parse_args()
    results = {}
    print("| model | candidates | chosen | p90 | best afterwards | p90 | regret | upper bound | limit | seconds |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for model in options.models:
        found = results[model] = measured(model, options.passes)
        own, best = (milliseconds(found["p90_ms"][found[name]] / 1e3) for name in ("chosen", "best"))
        print(
            f"| {model} | {len(found['p90_ms'])} | {found['chosen']} | {own} | {found['best']} | {best} "
            f"| {found['regret']:.3f} | {found['upper']:.3f} | {LIMIT} | {found['seconds']:.0f} |",
            flush=True,
        )
    _OUTPUT.parent.mkdir(exist_ok=True)
    _OUTPUT.write_text(json.dumps(results, indent=1), encoding="utf-8")
    return int(any(found["upper"] > LIMIT for found in results.values()))


if __name__ == "__main__":
    sys.exit(main())
