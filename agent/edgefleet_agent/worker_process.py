"""A worker's process: its pipes, the socket for its clients, the memory that it shares, and its end for certain.

It knows nothing of what is said over the pipes: what the process does is told to it by whoever holds it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack

from edgefleet_agent.tensors import Region

STOP_AFTER_S = 2.0


class WorkerProcess:
    """One process, which waits for a plan; `reads` and `writes` are the agent's ends of its pipes, -1 once stopped.

    Connections of clients are passed to it through `clients`.
    """

    def __init__(self, runtime: str | None = None) -> None:
        """Start it; `runtime` is loaded at once rather than with its plan. Raises OSError."""
        self.runtime = runtime
        self.last_client = 0
        """Once stopped: whose request it was at then, 0 for nobody's."""
        self._held = ExitStack()
        with ExitStack() as unless_started, ExitStack() as theirs:
            unless_started.callback(self._held.close)
            self.region = Region.make()
            unless_started.callback(self.region.close)
            self.reads, their_end = self._pipe(0, theirs)
            their_start, self.writes = self._pipe(1, theirs)
            self.clients, their_clients = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._held.callback(self.clients.close)
            theirs.callback(their_clients.close)
            self.clients.setblocking(False)
            inherited = (their_start, their_end, their_clients.fileno())
            words = [*map(str, inherited), *([] if runtime is None else [runtime])]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "edgefleet_agent.worker", *words],
                pass_fds=(*inherited, self.region.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # A signal to the agent's whole group (Ctrl-C, timeout(1)) is for the agent to act on.
                process_group=0,
            )
            unless_started.pop_all()

    def _pipe(self, ours: int, theirs: ExitStack) -> tuple[int, int]:
        """A pipe's two ends; that with the number `ours` is held, the other closed once it was passed on."""
        ends = os.pipe()
        self._held.callback(os.close, ends[ours])
        theirs.callback(os.close, ends[1 - ours])
        return ends

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code, or None while it runs."""
        return self._process.poll()

    def wait(self) -> int | None:
        """Its exit code, or None when it does not end within `STOP_AFTER_S`."""
        try:
            return self._process.wait(STOP_AFTER_S)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """End it at once, in the middle of what it does; `stop` gives back what it held."""
        self._process.kill()

    def stop(self) -> None:
        """End it: close its pipes, then kill."""
        if self.reads < 0:
            return
        self.reads = self.writes = -1
        self._held.close()
        if self.wait() is None:
            self._process.kill()
            self._process.wait()
        self.last_client, _ = self.region.lent
        self.region.close()
