"""The last stage of scoring: how long one inference takes, one child at a time, the variants interleaved.

Must run when nothing else does. What it finds holds for this host alone, and no gate looks at it.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from edgefleet_converters.child import ChildFailedError, cause_of_death, own_interpreter
from edgefleet_converters.score.host import Host
from edgefleet_converters.score.infer import MEMORY_BYTES
from edgefleet_converters.score.latency_child import LatencyJob
from edgefleet_converters.score.pace import summarize, take_turns

Key = TypeVar("Key")

OPENING_TIMEOUT_S = 120.0
TURN_TIMEOUT_S = 120.0
# A Python process with the largest of the runtimes, and a file with the copies of its weights that runtimes make.
_RUNTIME_BYTES = 150 * 2**20
_COPIES = 3


class Latency(BaseModel):
    """Time of one inference of the file as shipped, input and output copies included, on the packaging host.

    It says nothing about another kind of machine: devices measure for themselves.
    """

    model_config = ConfigDict(frozen=True)

    p50_ms: float = Field(gt=0)
    p90_ms: float | None = Field(default=None, gt=0)
    p90_reason: str = ""
    """Why there is no p90."""
    runs: int = Field(ge=1)
    threads: int = Field(ge=1)
    measured_on: Host


class _Open:
    """One open child: it sleeps on its standard input unless it is its turn."""

    def __init__(self, job: LatencyJob, folder: Path) -> None:
        self._errors = folder / "errors"
        python = own_interpreter("edgefleet_converters.score.latency_child")
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [*python.command, job.model_dump_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=folder,
                env=python.variables(folder),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def warm_s(self) -> float:
        """Seconds of one run once it is warm; raises ChildFailedError when it does not get there."""
        return self._answer(OPENING_TIMEOUT_S)[0]

    def times_s(self, runs: int) -> list[float]:
        """Seconds of so many runs; raises ChildFailedError."""
        if self._process.stdin is None:
            raise ChildFailedError("it takes no orders")
        try:
            self._process.stdin.write(f"{runs}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise ChildFailedError(self._last_words()) from error
        return self._answer(TURN_TIMEOUT_S)

    def _answer(self, timeout_s: float) -> list[float]:
        """The next line of seconds; it is short, and comes whole."""
        stream = self._process.stdout
        with DefaultSelector() as selector:
            if stream is None:
                raise ChildFailedError("it gives no answers")
            selector.register(stream, EVENT_READ)
            if not selector.select(timeout_s):
                raise ChildFailedError(f"it did not answer in {timeout_s:.0f} s")
            line = stream.readline()
        if not line:
            raise ChildFailedError(self._last_words())
        found: list[float] = json.loads(line)
        return found

    def _last_words(self) -> str:
        return cause_of_death(self._process.wait(), self._errors.read_text(encoding="utf-8", errors="replace"))


def measure_latencies(
    jobs: Mapping[Key, LatencyJob], host: Host, memory_bytes: int = MEMORY_BYTES
) -> dict[Key, Latency | str]:
    """Latency of each file, or one line on why there is none; at most about `memory_bytes` are open at once."""
    found: dict[Key, Latency | str] = {}
    for group in _groups(jobs, memory_bytes):
        found.update(_measure_group({key: jobs[key] for key in group}, host))
    return {key: found[key] for key in jobs}


def _groups(jobs: Mapping[Key, LatencyJob], memory_bytes: int) -> list[list[Key]]:
    """Files that are open, and therefore interleaved, together."""
    groups: list[list[Key]] = []
    room = 0
    for key, job in jobs.items():
        need = _RUNTIME_BYTES + _COPIES * job.artefact.size_bytes
        if not groups or need > room:
            groups.append([])
            room = memory_bytes
        groups[-1].append(key)
        room -= need
    return groups


def _measure_group(jobs: Mapping[Key, LatencyJob], host: Host) -> dict[Key, Latency | str]:
    found: dict[Key, Latency | str] = {}
    children: dict[Key, _Open] = {}
    warm_s: dict[Key, float] = {}
    with tempfile.TemporaryDirectory(prefix="edgefleet-latency-") as work, ExitStack() as stack:
        for place, (key, job) in enumerate(jobs.items()):
            folder = Path(work) / str(place)
            folder.mkdir()
            children[key] = stack.enter_context(_Open(job, folder))
            try:
                warm_s[key] = children[key].warm_s()
            except ChildFailedError as error:
                found[key] = str(error)

        def measure(key: Key, runs: int) -> list[float]:
            try:
                return children[key].times_s(runs)
            except ChildFailedError as error:
                found[key] = str(error)
                return []

        times = take_turns(warm_s, measure)
    for key, taken in times.items():
        if key not in found:
            found[key] = _latency(taken, jobs[key].threads, host)
    return found


def _latency(times_s: list[float], threads: int, host: Host) -> Latency:
    summary = summarize(times_s)
    return Latency(
        p50_ms=summary.p50_ms,
        p90_ms=summary.p90_ms,
        p90_reason=summary.p90_reason,
        runs=summary.runs,
        threads=threads,
        measured_on=host,
    )
