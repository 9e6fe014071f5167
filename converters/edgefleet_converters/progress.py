"""Progress of a packaging run: events for whoever watches, and independent jobs that report when they finish.

Does not draw anything; the command line and the demo do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

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


def run_jobs(
    jobs: Mapping[Key, Callable[[], Value]], stage: Stage, progress: Progress, label: Callable[[Key], str]
) -> dict[Key, Value]:
    """Run jobs that wait for child processes, one per processor at a time; results in the jobs' order.

    The first exception is raised once the jobs that already run have ended; the others are not started.
    """
    finished: dict[Key, Value] = {}
    progress(Event(stage, ", ".join(label(key) for key in jobs), 0, len(jobs)))
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        futures = {pool.submit(job): key for key, job in jobs.items()}
        try:
            for future in as_completed(futures):
                finished[futures[future]] = future.result()
                progress(Event(stage, label(futures[future]), len(finished), len(jobs)))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return {key: finished[key] for key in jobs}
