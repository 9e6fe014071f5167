"""Child processes: one function call in a process of its own, with a timeout; its crash is an answer.

Does not pool or reuse processes: a toolchain's memory and its global state go when its job is done.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

from pydantic import BaseModel

from edgefleet import errors
from edgefleet.errors import EdgefleetError, StorageError

Result = TypeVar("Result", bound=BaseModel)

# openvino and nncf report their use over the network through this package, and do without it if missing.
_TELEMETRY = "openvino_telemetry"
# ONNX Runtime 1.31 reports its use from its wheels for Linux too, unless this variable forbids it; asked in Python,
# after the import, it has begun already.
_PRIVACY = {"ORT_DISABLE_TELEMETRY": "1"}
# Children run side by side, and their sums must not depend on how many processors a host has; and threads that numpy
# hardly uses cost each of them 0.1 s of processor time to start. Who has set a number keeps it.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
# What Python, C++ and the runtimes say when an allocation fails.
_OUT_OF_MEMORY = ("MemoryError", "bad_alloc", "allocate", "out of memory")
_DISK_FULL = "No space left on device"

# For `stop_all`: the signal comes to the main thread, and the children are other threads'.
_waited_for: weakref.WeakSet[subprocess.Popen[str]] = weakref.WeakSet()
_registering = threading.Lock()


@dataclass(frozen=True, slots=True)
class Interpreter:
    """Which Python a child runs in: the start of its command, and PYTHONPATH (None leaves it out)."""

    command: tuple[str, ...]
    search_path: str | None

    def variables(self, folder: Path) -> dict[str, str]:
        """The environment variables of a process whose temporary files go to a folder."""
        found = {**_ONE_THREAD, **os.environ, **_PRIVACY, "TMPDIR": str(folder)}
        kept = {name: value for name, value in found.items() if name != "PYTHONPATH"}
        return kept if self.search_path is None else {**kept, "PYTHONPATH": self.search_path}


def own_interpreter(module: str) -> Interpreter:
    """This Python, seeing what this process sees, running a module."""
    return Interpreter((sys.executable, "-m", module), os.pathsep.join(path for path in sys.path if path))


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
    function: str,
    job: BaseModel,
    result: type[Result],
    *,
    timeout_s: float,
    memory_bytes: int | None = None,
    interpreter: Interpreter | None = None,
) -> Result:
    """Run `module:function` on `job` in a new process; raises its EdgefleetError, or ChildFailedError.

    `memory_bytes` limits what it may allocate, mapped files not counted; None: no limit. Another `interpreter` than
    this one takes the same arguments: the function, and the file for its outcome.
    """
    python = interpreter or own_interpreter("edgefleet_converters.child")
    pipe = subprocess.PIPE
    with tempfile.TemporaryDirectory(prefix="edgefleet-job-") as folder:
        answer = Path(folder) / "outcome.json"
        command = [*python.command, function, str(answer)]
        # A killed toolchain cleans up nothing: what it leaves goes with the folder.
        variables = python.variables(Path(folder))
        # In a process group of its own: a Ctrl-C reaches us alone, and a kill all that a toolchain has started.
        with subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=folder, env=variables, process_group=0
        ) as process:
            try:
                with _registering:
                    _waited_for.add(process)
                limit(process.pid, memory_bytes)
                _, said = process.communicate(job.model_dump_json(), timeout=timeout_s)
            except subprocess.TimeoutExpired as error:
                _kill(process)
                raise ChildFailedError(f"it did not finish in {timeout_s:.0f} s") from error
            except BaseException:
                _kill(process)
                raise
        if not answer.exists():
            raise _explained(ChildFailedError(cause_of_death(process.returncode, said)), memory_bytes)
        outcome = _Outcome.model_validate_json(answer.read_bytes())
    if outcome.result is None:
        raise _explained(_revived(outcome.failure), memory_bytes)
    return result.model_validate_json(outcome.result)


def stop_all() -> None:
    """Kill every child of this process's `call`s, and what it started; each call raises ChildFailedError."""
    with _registering:
        running = list(_waited_for)
    for process in running:
        if process.poll() is None:
            _kill(process)


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def block_telemetry() -> None:
    """Make this process, a child, unable to import what would report its use."""
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment] # import machinery reads None as "not installed"


def limit(pid: int, memory_bytes: int | None) -> None:
    """Limit what a child may allocate; it waits for its job, so the limit is there before any model is."""
    if memory_bytes is not None:
        # One that is dead already says so itself.
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_DATA, (memory_bytes, memory_bytes))


def _explained(error: Exception, memory_bytes: int | None) -> Exception:
    """The same error, with the limit where it was about memory; a full disk is nobody's but the disk's."""
    if isinstance(error, ChildFailedError) and _DISK_FULL in str(error):
        # Whatever was being made: the next run may well make it.
        remedy = "free some space, or name another folder in TMPDIR"
        return StorageError(f"working in {tempfile.gettempdir()}", _DISK_FULL, remedy)
    if memory_bytes is None or not isinstance(error, ChildFailedError):
        return error
    if not any(word in str(error) for word in _OUT_OF_MEMORY):
        return error
    return ChildFailedError(f"{error}; it may allocate {memory_bytes // 2**20} MiB")


def cause_of_death(code: int, stderr: str) -> str:
    """How a process ended, and its last words, in one line."""
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
    block_telemetry()
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
    # Whole or not at all: whoever is killed while it writes has left no answer.
    part = answer.with_suffix(".part")
    part.write_text(outcome.model_dump_json(), encoding="utf-8")
    part.rename(answer)


def _leave() -> NoReturn:
    """End this process as Python would, but leave its memory to the kernel: taking nncf apart takes 0.2 s."""
    atexit._run_exitfuncs()  # noqa: SLF001 - nothing public runs them, and temporary folders hang on them
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    _leave()
