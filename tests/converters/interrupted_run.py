"""A run that a test interrupts: two children that would sleep for ten minutes, each with a child of its own.

Run as a script with a folder: every process of the children writes its id there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from converters.child_jobs import Number
from edgefleet_converters import child
from edgefleet_converters.progress import Stage, local_executor, run_jobs

FOLDER = "EDGEFLEET_TEST_FOLDER"


def toolchain(text: str) -> Number:
    """The child's side: a toolchain that starts a compiler and waits for it."""
    folder = Path(os.environ[FOLDER])
    with subprocess.Popen(["sleep", "600"]) as compiler:
        for pid in (os.getpid(), compiler.pid):
            (folder / f"{pid}.partial").touch()
            (folder / f"{pid}.partial").rename(folder / str(pid))
        compiler.wait()
    return Number.model_validate_json(text)


def _wait(number: int) -> str:
    try:
        child.call("converters.interrupted_run:toolchain", Number(value=number), Number, timeout_s=600)
    except child.ChildFailedError as error:
        return str(error)
    return "it ended"


def main(folder: str) -> None:
    os.environ[FOLDER] = folder
    with local_executor(2) as executor:
        run_jobs(
            {number: partial(_wait, number) for number in range(4)},
            Stage.CONVERT,
            lambda _event: None,
            str,
            executor,
        )


if __name__ == "__main__":
    # A shell's background jobs ignore it, and so would this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main(sys.argv[1])
    except KeyboardInterrupt:
        sys.exit(130)
