"""Progress of a packaging run: events for whoever watches, and independent jobs that report when they finish.

Does not draw anything; the command line and the demo do. Does not own the executor that the jobs run on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from edgefleet_converters import child

Key = TypeVar("Key")
Value = TypeVar("Value")


class Stage(StrEnum):
    """Where the flow is."""

    ENVIRONMENT = "environment"
    """A tool that cannot share ours gets an environment of its own, on first use."""
    INTAKE = "intake"
    """Model and data are read and checked."""
    CONVERT = "convert"
    """Recipes run in child processes."""
    SCORE = "score"
    """Files run over the evaluation data."""
    TIME = "time"
    """Latencies are measured, with nothing else running."""
    WRITE = "write"
    """The package is written."""
    WARNING = "warning"
    """Not a stage: something that the person should know."""


@dataclass(frozen=True, slots=True)
class Event:
    """`done` of `total` jobs of a stage are finished; `text` says what just happened."""

    stage: Stage
    text: str
    done: int = 0
    total: int = 0


Progress = Callable[[Event], None]

_STOP_AGAIN_S = 0.2


def local_executor(workers: int | None = None) -> Executor:
    """Threads of this process, one per processor unless told: each job waits for a child process of its own."""
    return ThreadPoolExecutor(max_workers=workers or os.cpu_count() or 1)


def run_jobs(
    jobs: Mapping[Key, Callable[[], Value]],
    stage: Stage,
    progress: Progress,
    label: Callable[[Key], str],
    executor: Executor,
) -> dict[Key, Value]:
    """Run independent jobs on an executor, which stays open; results in the jobs' order.

    For an executor of other processes the jobs must be picklable, and see the same folders there. The first exception
    is raised once the jobs that already run have ended; the others are not started. An interrupt kills the children.
    """
    finished: dict[Key, Value] = {}
    progress(Event(stage, ", ".join(label(key) for key in jobs), 0, len(jobs)))
    futures: dict[Future[Value], Key] = {}
    try:
        futures.update((executor.submit(job), key) for key, job in jobs.items())
        for future in as_completed(futures):
            finished[futures[future]] = future.result()
            progress(Event(stage, label(futures[future]), len(finished), len(jobs)))
    except Exception:
        _cancel(futures)
        wait(futures)
        raise
    except BaseException:
        _cancel(futures)
        _interrupt(futures)
        raise
    return {key: finished[key] for key in jobs}


def _cancel(futures: Collection[Future[Value]]) -> None:
    for future in futures:
        future.cancel()


def _interrupt(futures: Collection[Future[Value]]) -> None:
    """Kill children until nobody waits for one: a job may have been about to start its own."""
    waiting = set(futures)
    while waiting:
        child.stop_all()
        waiting = wait(waiting, timeout=_STOP_AGAIN_S).not_done
