"""Time of packaging the digits for five profiles, with an empty cache and a warm one; memory of packaging 14 MB.

`python benchmarks/package_cost.py [--runs N] [--skip time|memory]`: Markdown tables on stdout, everything in
build/package_cost.json. Each run is the whole command `edgefleet package`. Memory is the proportional set size of its
process tree, summed, and looked at every 50 ms. Exit status 1 where a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx

from edgefleet_demo import digits
from edgefleet_demo.scene import write_data
from published_networks import mobilenet_v2

_OUTPUT = Path(__file__).resolve().parent.parent / "build" / "package_cost.json"
PROFILES = ("raspberry-pi-5", "intel-nuc", "generic-x86-64", "android-phone", "jetson-orin-nano")
THREE_RUNTIMES = ("raspberry-pi-5", "intel-nuc")
COLD_S, WARM_S, PEAK_MB = 40.0, 2.0, 1500.0
# Not one per processor, so that the peak is of the same work on any machine.
JOBS = 2
_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Cost:
    """A whole command: wall clock, processor time of it and all that it started, and variants."""

    seconds: float
    cpu_s: float
    variants: int
    scored: int
    timed: int


@dataclass(frozen=True, slots=True)
class Peak:
    """Most memory at one time of a tree of processes, in MB; `largest_mb` is the resident peak of one of them."""

    tree_mb: float
    largest_mb: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Job:
    """What is packaged."""

    model: Path
    calibration: Path
    evaluation: Path
    profiles: tuple[str, ...]


def command(job: Job, folder: Path) -> list[str]:
    """The command as a person gives it."""
    profiles = [part for name in job.profiles for part in ("--profile", name)]
    data = ["--calibration", str(job.calibration), "--evaluation", str(job.evaluation)]
    package = ["--name", "benchmark", "--version", "1", "--release", "1", "--jobs", str(JOBS), "-o", str(folder)]
    return [sys.executable, "-m", "edgefleet.cli", "package", str(job.model), *profiles, *data, *package]


def timed(job: Job, work: Path, runs: int) -> dict[str, list[Cost]]:
    """Runs with an empty cache, each followed by one that finds everything in it."""
    found: dict[str, list[Cost]] = {"cold": [], "warm": []}
    for run in range(runs):
        for name, costs in found.items():
            costs.append(_one(job, work / f"{name}-{run}", work / f"cache-{run}"))
    return found


def _one(job: Job, folder: Path, cache: Path) -> Cost:
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    variables = {**os.environ, "EDGEFLEET_CACHE": str(cache)}
    subprocess.run(command(job, folder), check=True, capture_output=True, env=variables)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    variants = json.loads((folder.with_name(f"{folder.name}.report") / "report.json").read_bytes())["variants"]
    scored = sum(variant["score"] is not None for variant in variants)
    return Cost(seconds, cpu_s, len(variants), scored, sum(variant["latency"] is not None for variant in variants))


def peak(job: Job, work: Path) -> Peak:
    """Memory of packaging with an empty cache."""
    start = time.perf_counter()
    variables = {**os.environ, "EDGEFLEET_CACHE": str(work / "cache")}
    output = (work / "said").open("wb")
    with output, subprocess.Popen(command(job, work / "package"), stdout=output, stderr=output, env=variables) as root:
        looks: list[Mapping[int, tuple[float, float]]] = []
        over = threading.Event()
        watcher = threading.Thread(target=_watch, args=(root.pid, over, looks))
        watcher.start()
        root.wait()
        over.set()
        watcher.join()
    if root.returncode:
        raise SystemExit((work / "said").read_text(encoding="utf-8"))
    seconds = time.perf_counter() - start
    tree_mb = max(sum(proportional for proportional, _ in look.values()) for look in looks)
    return Peak(tree_mb, max(highest for look in looks for _, highest in look.values()), seconds)


def _watch(root: int, over: threading.Event, looks: list[Mapping[int, tuple[float, float]]]) -> None:
    while not over.wait(_LOOK_S):
        looks.append({pid: _memory_mb(pid) for pid in _tree(root)})


def _tree(root: int) -> list[int]:
    """A process and all that it and its children have started."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # A name in parentheses may hold anything; the parent is the second field after it.
            parent = int(path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, ())
    return found


def _memory_mb(pid: int) -> tuple[float, float]:
    """Proportional set size now, and the highest resident size so far; 0 of a process that has ended."""
    found = [0.0, 0.0]
    with suppress(OSError):
        for place, (file, field) in enumerate((("smaps_rollup", "Pss:"), ("status", "VmHWM:"))):
            lines = Path(f"/proc/{pid}/{file}").read_text(encoding="utf-8", errors="replace").splitlines()
            found[place] = next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), 0.0)
    return found[0], found[1]


def digits_job(work: Path) -> Job:
    """The demo's model and data."""
    files = write_data(work)
    return Job(digits.model_path(), files.calibration, files.heldout, PROFILES)


def mobilenet_job(work: Path) -> Job:
    """MobileNetV2 with seeded weights: 64 images to calibrate with, 128 to score on."""
    onnx.save(mobilenet_v2(), work / "mobilenet_v2.onnx")
    generator = np.random.default_rng(0)
    for name, samples in (("calibration", 64), ("evaluation", 128)):
        np.savez(work / name, x=generator.normal(size=(samples, 3, 224, 224)).astype(np.float32))
    return Job(work / "mobilenet_v2.onnx", work / "calibration.npz", work / "evaluation.npz", THREE_RUNTIMES)


def _bold(value: float, limit: float, text: str) -> str:
    return text if value <= limit else f"**{text}**"


def _time_rows(found: Mapping[str, Sequence[Cost]]) -> bool:
    print("| cache | s | at most | CPU s | variants | scored | timed |\n|---|---|---|---|---|---|---|")
    within = True
    for (name, costs), limit in zip(found.items(), (COLD_S, WARM_S), strict=True):
        seconds = median(cost.seconds for cost in costs)
        cells = (
            *(name, _bold(seconds, limit, f"{seconds:.2f}"), f"{limit:g}"),
            *(f"{median(cost.cpu_s for cost in costs):.2f}", costs[0].variants, costs[0].scored, costs[0].timed),
        )
        print(f"| {' | '.join(map(str, cells))} |")
        within &= seconds <= limit
    return within


def main() -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="pairs of runs of which the median counts")
    parser.add_argument("--skip", choices=("time", "memory"), help="leave one of the two out")
    given = parser.parse_args()
    report: dict[str, Any] = {"processors": os.cpu_count(), "jobs": JOBS, "load": os.getloadavg()[0]}
    print(f"{report['processors']} processors, on which {report['load']:.1f} others wanted to run before\n")
    within = True
    with tempfile.TemporaryDirectory(prefix="edgefleet-benchmark-") as text:
        work = Path(text)
        if given.skip != "time":
            costs = timed(digits_job(work), work, given.runs)
            report |= {name: [asdict(cost) for cost in found] for name, found in costs.items()}
            within &= _time_rows(costs)
        if given.skip != "memory":
            memory = peak(mobilenet_job(work), work)
            report["peak"] = asdict(memory)
            shown = _bold(memory.tree_mb, PEAK_MB, f"{memory.tree_mb:.0f}")
            print(f"\nPeak of a 14 MB model, {JOBS} jobs: {shown} MB of {PEAK_MB:g} in the whole tree, ", end="")
            print(f"{memory.largest_mb:.0f} MB in its largest process, in {memory.seconds:.0f} s")
            within &= memory.tree_mb <= PEAK_MB
    _OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    _OUTPUT.write_text(json.dumps(report, indent=1), encoding="utf-8")
    if not within:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
