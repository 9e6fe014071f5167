"""Child processes: one function call in a process of its own, with a timeout; its crash is an answer.

Does not pool or reuse processes: a toolchain's memory and its global state go when its job is done.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from edgefleet import errors
from edgefleet.errors import EdgefleetError

Result = TypeVar("Result", bound=BaseModel)

# openvino and nncf report their use over the network through this package, and do without it if missing.
_TELEMETRY = "openvino_telemetry"


@dataclass(frozen=True, slots=True)
class Interpreter:
    """Which Python a child runs in: the start of its command, and PYTHONPATH (None leaves it out)."""

    command: tuple[str, ...]
    search_path: str | None


def _own() -> Interpreter:
    path = os.pathsep.join(path for path in sys.path if path)
    return Interpreter((sys.executable, "-m", "edgefleet_converters.child"), path)


class ChildFailedError(Exception):
    """The child crashed, hung, or raised something that is not ours; the text is one line."""


class _Failure(BaseModel):
    """An error on its way from child to parent; `kind` is a class of `edgefleet.errors`, or empty."""

    kind: str
    doing: str
    found: str
    remedy: str


class _Outcome(BaseModel):
    """What the child leaves behind: the result as JSON, or a failure."""

    result: str | None = None
    failure: _Failure | None = None


def call(
    function: str, job: BaseModel, result: type[Result], *, timeout_s: float, interpreter: Interpreter | None = None
) -> Result:
    """Run `module:function` on `job` in a new process; raises its EdgefleetError, or ChildFailedError.

    Another `interpreter` than this one takes the same arguments: the function, and the file for its outcome.
    """
    python = interpreter or _own()
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if python.search_path is not None:
        variables["PYTHONPATH"] = python.search_path
    with tempfile.TemporaryDirectory(prefix="edgefleet-job-") as folder:
        answer = Path(folder) / "outcome.json"
        command = [*python.command, function, str(answer)]
        try:
            done = subprocess.run(
                command,
                input=job.model_dump_json(),
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
                cwd=folder,
                env=variables,
            )
        except subprocess.TimeoutExpired as error:
            raise ChildFailedError(f"it did not finish in {timeout_s:.0f} s") from error
        if not answer.exists():
            raise ChildFailedError(_cause_of_death(done.returncode, done.stderr))
        outcome = _Outcome.model_validate_json(answer.read_bytes())
    if outcome.result is None:
        raise _revived(outcome.failure)
    return result.model_validate_json(outcome.result)


def _cause_of_death(code: int, stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    ended = f"it was killed by {signal.Signals(-code).name}" if code < 0 else f"it exited with {code}"
    return f"{ended} ({lines[-1]})" if lines else ended


def _revived(failure: _Failure | None) -> Exception:
    if failure is None or not failure.kind:
        return ChildFailedError(failure.found if failure else "it left no result")
    kind: type[EdgefleetError] = getattr(errors, failure.kind)
    # Not through the class's own constructor: some leaves take other arguments than they show.
    error = kind.__new__(kind)
    EdgefleetError.__init__(error, failure.doing, failure.found, failure.remedy)
    return error


def main(function: str, answer: Path) -> None:
    """The child's side: read the job from standard input, call the function, write the outcome."""
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment] # import machinery reads None as "not installed"
    module, name = function.split(":")
    try:
        result: BaseModel = getattr(importlib.import_module(module), name)(sys.stdin.read())
        outcome = _Outcome(result=result.model_dump_json())
    except EdgefleetError as error:
        kind = type(error).__name__
        failure = _Failure(kind=kind, doing=error.doing, found=error.found, remedy=error.remedy)
        outcome = _Outcome(failure=failure)
    except Exception as error:  # noqa: BLE001 - toolchains raise anything; the parent says it in one line
        first = (str(error).strip().splitlines() or [""])[0]
        found = f"{type(error).__name__}: {first}"
        outcome = _Outcome(failure=_Failure(kind="", doing="", found=found, remedy=""))
    answer.write_text(outcome.model_dump_json(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
