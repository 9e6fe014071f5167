"""The trust process: one job, verified with tuf and cryptography, then it exits.

It speaks frames over stdin and stdout and has no network of its own: its agent fetches for it. What the jobs are
stands in `trust_jobs`.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys

from edgefleet.errors import EdgefleetError, TransportError, TrustError
from edgefleet_agent.trust_frames import FrameError, Kind, pack, take

PR_SET_PDEATHSIG = 1
CPU_LIMIT_S = 30
# Address space, of which some 50 MB are ever used: what runs away is ended before the board swaps.
MEMORY_LIMIT_BYTES = 768 * 1024 * 1024


class Agent:
    """The other end of the two pipes."""

    def __init__(self, reader: int, writer: int) -> None:
        """File descriptors."""
        self._reader = reader
        self._writer = writer
        self._buffer = bytearray()

    def send(self, kind: Kind, body: bytes = b"") -> None:
        """Write a frame."""
        frame = memoryview(pack(kind, body))
        while frame:
            frame = frame[os.write(self._writer, frame) :]

    def receive(self) -> tuple[Kind, bytes]:
        """Wait for a frame; raises FrameError when the agent has closed its end."""
        while (frame := take(self._buffer)) is None:
            chunk = os.read(self._reader, 65536)
            if not chunk:
                raise FrameError("the agent is gone")
            self._buffer += chunk
        return frame

    def fetch(self, name: str, max_bytes: int) -> bytes | None:
        """A metadata file, at most one byte longer than `max_bytes`; None: there is none. Raises TransportError."""
        self.send(Kind.FETCH, json.dumps({"name": name, "max_bytes": max_bytes}).encode())
        kind, body = self.receive()
        if kind is Kind.FAILED:
            raise TransportError(f"fetching {name}", body.decode(errors="replace"), "it is tried again later")
        return body if kind is Kind.BODY else None


def work(agent: Agent) -> None:
    """Receive the job, do it, and say what came of it."""
    # Heavy, and only wanted once this process is tied to its agent and its limits.
    from edgefleet_agent.trust_jobs import JOBS  # noqa: PLC0415

    _, body = agent.receive()
    job = json.loads(body)
    try:
        result = JOBS[job["kind"]](job, agent.fetch)
    except TrustError as error:
        agent.send(Kind.REFUSED, str(error).encode())
    except (EdgefleetError, OSError) as error:
        agent.send(Kind.UNAVAILABLE, str(error).encode())
    except FrameError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever hostile input makes a verifier raise is a refusal
        agent.send(Kind.REFUSED, f"the verifier failed: {type(error).__name__}: {error}".encode())
    else:
        agent.send(Kind.DONE, json.dumps(result).encode())


def _end_with(parent: int) -> None:
    """Have the kernel kill this process when its agent dies (prctl(2)); it may have died before this line."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    """Entry point: `python -m edgefleet_agent.trust_process PARENT`; the frames go over stdin and stdout."""
    _end_with(int(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT_S, CPU_LIMIT_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    # What a library prints must not stand between the frames.
    writer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        work(Agent(sys.stdin.fileno(), writer))
    except (FrameError, BrokenPipeError):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
