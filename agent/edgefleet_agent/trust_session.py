"""One trust process at work on one job: started, answered, listened to without blocking, ended for certain.

It decides nothing about trust, and holds no cryptography: bytes go in, one verdict comes out.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from edgefleet.protocol.messages import Reply, Request, RequestKind
from edgefleet_agent.asking import Answer, Question
from edgefleet_agent.trust_frames import LAST_KINDS, FrameError, Kind, pack, take

SILENCE_S = 60.0
# However slowly something comes in: a file is bounded in bytes, and the whole in time.
LONGEST_S = 1800.0
MODULE = "edgefleet_agent.trust_process"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job came to: DONE with a value, REFUSED or UNAVAILABLE with a text."""

    kind: Kind
    value: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    crashed: bool = False
    """The process ended, hung or spoke nonsense: its own doing, not the network's."""


class Hubs(Protocol):
    """The way to the hubs."""

    def request(self, request: Request) -> bool:
        """Send a request to the hubs; False when not connected."""
        ...

    def next_req_id(self) -> str:
        """A request id never used before by this agent."""
        ...


class TrustSession:
    """One child process; `tick` until it gives the outcome, then `close`."""

    def __init__(self, job: Mapping[str, Any], hubs: Hubs, now: float) -> None:
        """Start it; raises OSError."""
        self._hubs = hubs
        self._deadline, self._last_end = now + SILENCE_S, now + LONGEST_S
        self._question: Question | None = None
        self._incoming = bytearray()
        self._outgoing = bytearray(pack(Kind.JOB, json.dumps(job).encode()))
        self._socket, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                # -P: nothing is imported from the folder that the agent was started in.
                [sys.executable, "-P", "-m", MODULE, str(os.getpid())],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                # A signal to the agent's whole group (Ctrl-C, timeout(1)) is for the agent to act on.
                process_group=0,
            )
        except OSError:
            self._socket.close()
            raise
        finally:
            theirs.close()
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """Becomes readable when the process said something or ended."""
        return self._socket.fileno()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def tick(self, now: float) -> Outcome | None:
        """Serve it; its outcome, once there is one. Never blocks."""
        try:
            ended = self._read()
            while (frame := take(self._incoming)) is not None:
                kind, body = frame
                if kind in LAST_KINDS:
                    return _outcome(kind, body)
                self._wanted(kind, body)
            self._ask(now)
        except (FrameError, ValueError, KeyError, TypeError) as error:
            return Outcome(Kind.UNAVAILABLE, text=f"the trust process cannot be understood: {error}", crashed=True)
        if ended:
            return Outcome(Kind.UNAVAILABLE, text=self._exit_reason(), crashed=True)
        if now > self._deadline:
            text = f"no verdict, and nothing new for it within {SILENCE_S:.0f} s"
            return Outcome(Kind.UNAVAILABLE, text=text, crashed=self._question is None)
        self._write()
        return None

    def on_reply(self, reply: Reply, now: float) -> bool:
        """Take a reply from a hub; False when it answers something else."""
        if self._question is None or not self._question.take(reply, now):
            return False
        self._deadline = min(now + SILENCE_S, self._last_end)
        return True

    def on_connected(self) -> None:
        """What was asked before is lost."""
        if self._question is not None:
            self._question.reconnected()

    def close(self) -> None:
        """End it, whatever it does: all that it writes to disk it writes before its verdict."""
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def _read(self) -> bool:
        """Take what there is; True at its end."""
        with suppress(BlockingIOError):
            while True:
                try:
                    chunk = self._socket.recv(65536)
                except ConnectionError:
                    return True
                if not chunk:
                    return True
                self._incoming += chunk
        return False

    def _wanted(self, kind: Kind, body: bytes) -> None:
        if kind is not Kind.FETCH or self._question is not None:
            raise FrameError(f"{kind.name} out of turn")
        wanted = json.loads(body)
        self._question = Question(RequestKind.TRUST, int(wanted["max_bytes"]), name=str(wanted["name"]))

    def _ask(self, now: float) -> None:
        question = self._question
        if question is None:
            return
        if question.due(now):
            req_id = self._hubs.next_req_id()
            if self._hubs.request(question.request(req_id)):
                question.asked(req_id, now)
        if question.answer is not None:
            self._outgoing += _frame_of(question.answer)
            self._question = None

    def _write(self) -> None:
        # A process that is gone says so when it is read.
        with suppress(BlockingIOError, ConnectionError):
            while self._outgoing:
                sent = self._socket.send(self._outgoing)
                del self._outgoing[:sent]

    def _exit_reason(self) -> str:
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "the trust process closed its channel and hangs"
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"the trust process ended with {how} before its verdict"


def _outcome(kind: Kind, body: bytes) -> Outcome:
    if kind is Kind.DONE:
        return Outcome(kind, value={str(name): str(text) for name, text in dict(json.loads(body)).items()})
    return Outcome(kind, text=" ".join(body.decode(errors="replace").split())[:500])


def _frame_of(answer: Answer) -> bytes:
    if answer.failure is not None:
        return pack(Kind.FAILED, answer.failure.encode())
    return pack(Kind.NONE) if answer.body is None else pack(Kind.BODY, answer.body)
