"""Environments of their own for tools that cannot share ours: made on first use in the user's cache, then kept.

Does not update or remove one: other pins, or another Python, give another folder beside it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from pydantic import BaseModel

from edgefleet.errors import StorageError, TransportError, UnsupportedError
from edgefleet_converters import child
from edgefleet_converters.progress import Event, Progress, Stage

CACHE_VARIABLE = "EDGEFLEET_CACHE"
PINS_FOLDER = Path(__file__).parent / "environment_pins"
FOREIGN_FOLDER = Path(__file__).parent / "foreign"

# What pip says of each package that it gets from an index, and from a folder.
_FETCHED = ("Collecting ", "Processing ")

Result = TypeVar("Result", bound=BaseModel)
PythonVersion = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Environment:
    """A tool's packages: `pins` is a complete list of NAME==VERSION lines, so that pip need not resolve anything."""

    name: str
    pins: Path
    newest_python: PythonVersion


ENVIRONMENTS: Mapping[str, Environment] = MappingProxyType(
    {
        environment.name: environment
        for environment in (
            Environment("keras", PINS_FOLDER / "keras.txt", (3, 13)),
            # Its last wheels are from 2023: cp311, and numpy 1.
            Environment("tflite-runtime-2.14", PINS_FOLDER / "tflite-runtime-2.14.txt", (3, 11)),
        )
    }
)


def cache_folder() -> Path:
    """Where things are kept that can be made again: $EDGEFLEET_CACHE, else as the XDG base directory spec says."""
    own = os.environ.get(CACHE_VARIABLE)
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgefleet"


def call(
    environment: Environment,
    function: str,
    job: BaseModel,
    result: type[Result],
    *,
    timeout_s: float,
    progress: Progress,
    memory_bytes: int | None = None,
) -> Result:
    """Run `script:function` of the folder `foreign` in an environment, which is made first where it is missing.

    Raises ChildFailedError, and what `prepare` raises.
    """
    python = prepare(environment, progress)
    # Run by its path, the script sees its own folder and the environment, and nothing of ours. -s: nor the user's.
    command = (str(python), "-s", str(FOREIGN_FOLDER / "answer.py"))
    interpreter = child.Interpreter(command, None)
    return child.call(function, job, result, timeout_s=timeout_s, memory_bytes=memory_bytes, interpreter=interpreter)


def prepare(environment: Environment, progress: Progress) -> Path:
    """The environment's Python; made if need be, by one process while others wait for it.

    Raises UnsupportedError (no Python that is old enough), TransportError (pip failed) or StorageError.
    """
    doing = f"making the environment {environment.name}"
    try:
        pins = environment.pins.read_text(encoding="utf-8")
        version, builder = _python(environment, doing)
        digest = hashlib.sha256(f"{version}\n{pins}".encode()).hexdigest()[:16]
        folder = cache_folder() / "environments" / f"{environment.name}-{digest}"
        python = folder / "bin" / "python"
        if not python.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _locked(folder.with_name(f".{folder.name}.lock"), environment, progress):
                if not python.exists():
                    _build(environment, builder, folder, progress)
    except OSError as error:
        remedy = f"make room there, or name another folder in {CACHE_VARIABLE}"
        raise StorageError(f"{doing} in {cache_folder()}", error.strerror or str(error), remedy) from error
    return python


def _python(environment: Environment, doing: str) -> tuple[PythonVersion, str]:
    """Version and path of the newest Python here that the environment can have."""
    newest, own = environment.newest_python, sys.version_info[:2]
    if own <= newest:
        return own, sys.executable
    name = f"python{newest[0]}.{newest[1]}"
    found = shutil.which(name)
    if found is None:
        what = f"it needs Python {newest[0]}.{newest[1]} or older, and this is {own[0]}.{own[1]}"
        raise UnsupportedError(doing, what, f"install {name}")
    return newest, found


@contextmanager
def _locked(path: Path, environment: Environment, progress: Progress) -> Iterator[None]:
    """Hold a lock that the kernel lets go of when its owner dies."""
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(Event(Stage.ENVIRONMENT, f"{environment.name}: another process is making it"))
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _build(environment: Environment, builder: str, folder: Path, progress: Progress) -> None:
    """Make it beside its place and rename it: what has the name is complete."""
    doing = f"making the environment {environment.name}"
    partial = folder.with_name(f".{folder.name}.partial")
    # What a killed process left, or a Python that is no longer there.
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    total = sum(1 for line in environment.pins.read_text(encoding="utf-8").splitlines() if line.strip())
    progress(Event(Stage.ENVIRONMENT, f"{environment.name}: {total} packages into {folder}", 0, total))
    try:
        _make_empty(builder, partial, doing)
        _install(environment, partial / "bin" / "python", total, progress)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    progress(Event(Stage.ENVIRONMENT, f"{environment.name}: ready", total, total))


def _make_empty(builder: str, folder: Path, doing: str) -> None:
    made = subprocess.run([builder, "-m", "venv", str(folder)], capture_output=True, text=True, check=False)
    if made.returncode:
        raise UnsupportedError(doing, _last_line(made.stderr or made.stdout), "install Python's venv module")


def _install(environment: Environment, python: Path, total: int, progress: Progress) -> None:
    """Let pip install the pins as they are; one event for each package that it fetches."""
    options = ("--no-deps", "--no-input", "--disable-pip-version-check", "--progress-bar", "off")
    command = [str(python), "-m", "pip", "install", *options, "--requirement", str(environment.pins)]
    lines: list[str] = []
    done = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        for line in pip.stdout or ():
            lines.append(line)
            if line.startswith(_FETCHED):
                package = line.split()[1].rpartition("/")[2]
                # The last step, unpacking, has no lines of its own.
                progress(Event(Stage.ENVIRONMENT, f"{environment.name}: {package}", min(done, total - 1), total))
                done += 1
    if pip.returncode:
        errors = [line for line in lines if line.startswith("ERROR:")] or lines
        found = _last_line(errors[0] if errors else "")
        remedy = "check the network and the package index that pip uses, then run the command again"
        raise TransportError(f"making the environment {environment.name}", f"pip failed ({found})", remedy)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
