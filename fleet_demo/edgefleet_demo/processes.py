"""Child processes of the demo: started with a log file each, stopped by their process id, last one first."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

STOP_AFTER_S = 10.0
EDGEFLEET = (sys.executable, "-m", "edgefleet.cli")


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Process:
    """One child process; its output goes to a log file."""

    def __init__(self, command: Sequence[str], log_file: Path) -> None:
        """Start it; raises OSError."""
        self.log_file = log_file
        with log_file.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code, or None while it runs."""
        return self._process.poll()

    def last_line(self) -> str:
        """The last line that it wrote, to say why it ended."""
        lines = self.log_file.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it wrote nothing"

    def wait(self, timeout_s: float) -> int:
        """Wait for it to end; returns its exit code, raises subprocess.TimeoutExpired."""
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL, as a power cut would end it."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after 10 s."""
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(STOP_AFTER_S)
            except subprocess.TimeoutExpired:
                self.kill()


class ProcessGroup:
    """Everything that was started is stopped when the block ends, however it ends."""

    def __init__(self, log_folder: Path) -> None:
        """Logs go to `log_folder`, which is created."""
        log_folder.mkdir(parents=True, exist_ok=True)
        self._log_folder = log_folder
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start(self, name: str, command: Sequence[str]) -> Process:
        """Start a command whose log is NAME.log."""
        process = Process(command, self._log_folder / f"{name}.log")
        self._stack.callback(process.stop)
        return process
