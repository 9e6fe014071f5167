"""Child processes of the agent: started with a plan, read without blocking, stopped for certain.

It does not interpret what they say.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgefleet.package.layout import GOLDEN_FILE
from edgefleet.package.manifest import VariantSpec
from edgefleet_agent.settings import ReplaySource

STOP_AFTER_S = 2.0


class Worker:
    """One worker process."""

    def __init__(self, plan: dict[str, Any]) -> None:
        """Start it; raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "edgefleet_agent.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        finally:
            theirs.close()
        self._socket = ours
        self._buffer = b""
        ours.sendall(json.dumps(plan).encode() + b"\n")
        ours.setblocking(False)

    def fileno(self) -> int:
        """Becomes readable when the worker said something or ended."""
        return self._socket.fileno()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def messages(self) -> tuple[list[dict[str, Any]], bool]:
        """(what it said since the last call, whether it has ended); never blocks."""
        ended = False
        with suppress(BlockingIOError):
            while True:
                try:
                    chunk = self._socket.recv(65536)
                except ConnectionError:
                    chunk = b""
                if not chunk:
                    ended = True
                    break
                self._buffer += chunk
        *lines, self._buffer = self._buffer.split(b"\n")
        return [json.loads(line) for line in lines], ended

    def exit_reason(self) -> str:
        """How it ended, in words; call it after `messages` said so."""
        try:
            code = self._process.wait(STOP_AFTER_S)
        except subprocess.TimeoutExpired:
            return "it closed its channel and hangs"
        return f"it was ended by signal {-code}" if code < 0 else f"it ended with exit code {code}"

    def stop(self) -> None:
        """End it: close the channel, then kill."""
        self._socket.close()
        try:
            self._process.wait(STOP_AFTER_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def self_test(slot: Path, spec: VariantSpec) -> Worker:
    """Start a self-test of a variant."""
    return Worker(
        {
            "mode": "self_test",
            "slot": str(slot),
            "spec": spec.model_dump(mode="json"),
            "golden_file": GOLDEN_FILE,
        }
    )


def inference(slot: Path, spec: VariantSpec, source: ReplaySource, window_s: float) -> Worker:
    """Start inference over a source."""
    return Worker(
        {
            "mode": "run",
            "slot": str(slot),
            "spec": spec.model_dump(mode="json"),
            "source": {"path": str(source.path.resolve()), "rate_per_s": source.rate_per_s},
            "window_s": window_s,
        }
    )
