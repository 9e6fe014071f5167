"""The last stage of scoring: how long one inference takes, one child at a time, the variants interleaved.

Must run when nothing else does. What it finds holds for this host alone, and no gate looks at it.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import TypeVar

from edgefleet.package.manifest import Host, Latency
from edgefleet_converters.child import ChildFailedError, own_interpreter
from edgefleet_converters.score.latency_child import LatencyJob
from edgefleet_converters.score.pace import summarize, take_turns

Key = TypeVar("Key")

OPENING_TIMEOUT_S = 120.0
TURN_TIMEOUT_S = 120.0
SAMPLES = 16
"""Inputs that are run in turn: a single one would sit in the cache."""


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
                env=python.variables,
            )

    def __enter__(self) -> _Open:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def warm_s(self) -> float:
        """Seconds of one run once it is warm; raises ChildFailedError when it does not get there."""
        return float(self._answer(OPENING_TIMEOUT_S)["warm_s"])

    def times_s(self, runs: int) -> Sequence[float]:
        """Seconds of so many runs; raises ChildFailedError."""
        try:
            if self._process.stdin is not None:
                self._process.stdin.write(f"{runs}\n".encode())
                self._process.stdin.flush()
        except BrokenPipeError as error:
            raise ChildFailedError(self._last_words()) from error
        found: list[float] = self._answer(TURN_TIMEOUT_S)["times_s"]
        return found

    def _answer(self, timeout_s: float) -> dict[str, list[float] | float]:
        """The next line; it is short, and comes whole."""
        stream = self._process.stdout
        with DefaultSelector() as selector:
            if stream is None:
                raise ChildFailedError("it has no output")
            selector.register(stream, EVENT_READ)
            if not selector.select(timeout_s):
                raise ChildFailedError(f"it did not answer in {timeout_s:.0f} s")
            line = stream.readline()
        if not line:
            raise ChildFailedError(self._last_words())
        answer: dict[str, list[float] | float] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        lines = self._errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"it ended with {code}" + (f" ({lines[-1].strip()})" if lines else "")
