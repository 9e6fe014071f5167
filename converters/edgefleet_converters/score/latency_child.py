"""The child's side of the latency stage: opens a file, warms it up, then runs it whenever it is told to.

Decides nothing: its orders come on standard input, one number of runs a line; answers are lines of JSON: seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.child import block_telemetry
from edgefleet_converters.score.infer import open_runner, stored_input
from edgefleet_device_profiles.profile import Runtime

_WARM_UP_S = 0.2
_WARM_UP_RUNS = 3


class LatencyJob(BaseModel):
    """A file, and samples (.npz, by input name, [N, *input shape] in the source's layout) that are run in turn."""

    runtime: Runtime
    artefact: Artefact
    samples: Path
    count: int = 16
    """How many of the first samples are run in turn: a single one would sit in the processor's cache."""
    threads: int = 1


def main(job: LatencyJob) -> None:
    """Answer with the seconds of a warm run once, then to every line with those of all its runs."""
    # What the runtimes print must not end up between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    block_telemetry()
    _pin(job.threads)
    runner = open_runner(job.runtime, job.artefact, job.threads)
    with np.load(job.samples, allow_pickle=False) as stored:
        samples = {name: stored[name][: job.count] for name in stored.files}
    count = len(next(iter(samples.values())))
    feeds = [
        {spec.name: stored_input(samples[spec.name][place], spec) for spec in job.artefact.inputs}
        for place in range(count)
    ]

    def run(place: int) -> float:
        start = time.perf_counter()
        runner.infer(feeds[place % len(feeds)])
        return time.perf_counter() - start

    warm: list[float] = []
    while len(warm) < _WARM_UP_RUNS or sum(warm) < _WARM_UP_S:
        warm.append(run(len(warm)))
    print(json.dumps([float(np.median(warm))]), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps([run(place) for place in range(int(line))]), file=answers, flush=True)


def _pin(threads: int) -> None:
    """Keep to as many processors as there are threads, the last ones: interrupts mostly go to the first."""
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, allowed[-threads:])


if __name__ == "__main__":
    main(LatencyJob.model_validate_json(sys.argv[1]))
