"""The server's own hubs: child processes, started again when they end, stopped by their own process ids.

What a hub does is in `hub_process`; what it is told and what it tells, in `hub_link`.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from edgefleet.retry import backoff_s
from edgefleet.server.hub_link import FromHub, Pipe, Renewed, ToHub

RESTART_FIRST_S = 0.2
RESTART_CAP_S = 30.0
HEALTHY_AFTER_S = 20.0
STOP_PATIENCE_S = 3.0

log = logging.getLogger("edgefleet.server")


class HubChild:
    """One hub: the process, its pipe, and when to start it again."""

    def __init__(self, name: str, arguments: Sequence[str]) -> None:
        self.name = name
        self.process: subprocess.Popen[bytes] | None = None
        self.pipe: Pipe | None = None
        self.starts_at = 0.0
        self._arguments = list(arguments)
        self._started_at = 0.0
        self._failures = 0

    def start(self, now: float, first: ToHub) -> None:
        """Start the process; `first` is the first thing that it is told."""
        command = [sys.executable, "-P", "-m", "edgefleet.cli", "hub", *self._arguments]
        command += ["--name", self.name, "--parent", str(os.getpid())]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if self.process.stdin is not None and self.process.stdout is not None:
            self.pipe = Pipe(self.process.stdout.fileno(), self.process.stdin.fileno())
            self.pipe.send(first)
        self._started_at = now
        log.info("%s runs as process %d", self.name, self.process.pid)

    def ended(self, now: float) -> bool:
        """Reap the process when it has ended, and say when the next one starts."""
        if self.process is None or self.process.poll() is None:
            return False
        code = self.process.returncode
        self._close()
        self._failures = 1 if now - self._started_at > HEALTHY_AFTER_S else self._failures + 1
        wait_s = backoff_s(self._failures, RESTART_FIRST_S, RESTART_CAP_S)
        self.starts_at = now + wait_s
        log.warning("%s ended with %d; starting it again in %.1f s", self.name, code, wait_s)
        return True

    def ask_to_stop(self) -> None:
        """Send SIGTERM to this process and no other."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def wait(self, timeout_s: float) -> None:
        """Wait for the end; kill it when it takes too long."""
        if self.process is None:
            return
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._close()

    def _close(self) -> None:
        if self.process is not None:
            for stream in (self.process.stdin, self.process.stdout):
                if stream is not None:
                    stream.close()
        self.process = self.pipe = None


class HubChildren:
    """All hubs of one server."""

    def __init__(
        self, names: Sequence[str], arguments: Sequence[str], *, on_line: Callable[[FromHub, str], None]
    ) -> None:
        """`arguments` are those of `edgefleet hub`; `on_line` gets what a hub says, and the hub's name."""
        self._children = {name: HubChild(name, arguments) for name in names}
        self._on_line = on_line
        self._denied: dict[str, str] = {}

    @property
    def process_ids(self) -> dict[str, int]:
        """Name → process id of the hubs that run."""
        return {name: child.process.pid for name, child in self._children.items() if child.process is not None}

    def tend(self, now: float) -> None:
        """Start what is due, reap what has ended."""
        for child in self._children.values():
            child.ended(now)
            if child.process is None and now >= child.starts_at:
                child.start(now, ToHub(denied=self._denied))
            elif child.pipe is not None:
                child.pipe.flush()

    def readers(self) -> Mapping[int, Callable[[], None]]:
        """File descriptor → callback of every hub that may speak."""
        return {
            child.pipe.read_fd: lambda child=child: self._listen(child)  # type: ignore[misc]
            for child in self._children.values()
            if child.pipe is not None and not child.pipe.closed
        }

    def _listen(self, child: HubChild) -> None:
        for text in child.pipe.lines() if child.pipe is not None else ():
            if (line := FromHub.read(text)) is not None:
                self._on_line(line, child.name)

    def deny(self, denied: dict[str, str]) -> None:
        """Tell every hub whom not to serve; those that start later are told too."""
        if denied != self._denied:
            self._denied = dict(denied)
            self._tell(ToHub(denied=self._denied))

    def forget(self, device: str) -> None:
        """Tell every hub that a device has gone."""
        self._tell(ToHub(gone=(device,)))

    def answer(self, hub: str, renewed: Renewed) -> None:
        """Give the hub that asked the answer for a device."""
        child = self._children.get(hub)
        if child is not None and child.pipe is not None:
            child.pipe.send(ToHub(renewed=(renewed,)))

    def _tell(self, line: ToHub) -> None:
        for child in self._children.values():
            if child.pipe is not None:
                child.pipe.send(line)

    def stop(self) -> None:
        """Stop all of them and wait until they have ended."""
        for child in self._children.values():
            child.ask_to_stop()
        deadline = time.monotonic() + STOP_PATIENCE_S
        for child in self._children.values():
            child.wait(max(0.1, deadline - time.monotonic()))
