"""Worker processes that judge jobs, and are replaced when one of them dies or hangs.

Does not know what a job is: both conformance suites bring their own.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess

from conformance.verdicts import Outcome, Verdict

_FORK = multiprocessing.get_context("fork")
Job = Callable[[], Outcome]


@dataclass(slots=True)
class _Worker:
    """A forked process that has the jobs already, and the one that it is working on."""

    process: ForkProcess
    pipe: Connection
    position: int = -1
    deadline: float = 0.0


def judge_all(jobs: Sequence[Job], workers: int, timeout_s: float) -> list[Outcome]:
    """Outcome of each job, in order."""
    outcomes: dict[int, Outcome] = {}
    waiting = list(range(len(jobs)))[::-1]
    pool = [_start(jobs) for _ in range(min(workers, len(jobs)))]
    while len(outcomes) < len(jobs):
        for worker in pool:
            if worker.position < 0 and waiting:
                worker.position = waiting.pop()
                worker.deadline = time.monotonic() + timeout_s
                worker.pipe.send(worker.position)
        busy = [worker for worker in pool if worker.position >= 0]
        wait([worker.pipe for worker in busy], max(min(w.deadline for w in busy) - time.monotonic(), 0.0))
        for worker in busy:
            outcome = _outcome(worker, timeout_s)
            if outcome is None:
                continue
            outcomes[worker.position] = outcome
            worker.position = -1
            if not worker.process.is_alive():
                pool[pool.index(worker)] = _start(jobs)
    for worker in pool:
        # A later fork holds a copy of this end of the pipe, so closing it would not be noticed.
        worker.process.kill()
        worker.process.join()
    return [outcomes[position] for position in range(len(jobs))]


def _outcome(worker: _Worker, timeout_s: float) -> Outcome | None:
    """What a busy worker has to say, or what became of it; None when it is still at work."""
    if worker.pipe.poll():
        try:
            verdict, reason, measured = worker.pipe.recv()
            return Outcome(Verdict(verdict), reason, measured)
        except EOFError:
            worker.process.join()
            return Outcome(Verdict.CRASHED, f"the process died (exit code {worker.process.exitcode})")
    if time.monotonic() < worker.deadline:
        return None
    worker.process.kill()
    worker.process.join()
    return Outcome(Verdict.CRASHED, f"no result after {timeout_s:g} s")


def _start(jobs: Sequence[Job]) -> _Worker:
    ours, theirs = _FORK.Pipe()
    process = _FORK.Process(target=_work, args=(jobs, theirs), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _work(jobs: Sequence[Job], pipe: Connection) -> None:
    # The runtime reports every delegate it creates; what it says of a failure is in the exception too.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    while True:
        outcome = jobs[pipe.recv()]()
        pipe.send((outcome.verdict.value, outcome.reason, dict(outcome.measured)))
