"""Clients that make the same request over and over, answered by the worker itself: two wake-ups of four are saved.

It knows no HTTP: a request and its answer are bytes around the values. Whatever else comes stays unread in the kernel,
and the connection goes back to the agent.
"""

from __future__ import annotations

import math
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Protocol

import numpy as np

from edgefleet_agent import standing_message
from edgefleet_agent.channel import Message
from edgefleet_agent.inference_types import Standing
from edgefleet_agent.tensors import ALIGNMENT_BYTES, Region
from edgefleet_agent.variant import Array, Arrays

MESSAGE_BYTES = 256 * 1024
PARTIAL_S = 1.0
"""The rest of a request comes within this, or the agent waits for it."""
UNSENT_S = 10.0
IDLE_S = 30.0
REQUESTS_PER_TURN = 16
_ENDS = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Inferred(NamedTuple):
    """Outputs, how long the inference took, and what counts it."""

    outputs: Arrays
    inference_s: float
    counts: Callable[[], None]


Infer = Callable[[Arrays], Inferred | None]
"""None where the runtime refused: the agent asks again, and says why."""


class _Client:
    """One connection, and the buffer that its requests lie in."""

    def __init__(self, number: int, standing: Standing, sock: socket.socket) -> None:
        self.number = number
        self.standing = standing
        self.socket = sock
        self.unsent = b""
        self.is_partial = False
        self.since_s = time.monotonic()
        question_bytes = len(standing.question)
        self._size = question_bytes + sum(size for *_, size in standing.inputs)
        # One byte more shows whether there is another request behind.
        memory = np.zeros(self._size + 1 + ALIGNMENT_BYTES, np.uint8)
        start = -(memory.ctypes.data + question_bytes) % ALIGNMENT_BYTES
        self._buffer = memory[start : start + self._size + 1]
        self._view = self._buffer.data
        self.inputs: dict[str, Array] = {}
        offset = start + question_bytes
        for name, dtype, shape, size in standing.inputs:
            self.inputs[name] = np.ndarray(shape, dtype, buffer=memory, offset=offset)
            offset += size

    def asked(self) -> int | None:
        """Bytes behind the request that lies in `inputs` now: 0, or 1 for some; -1: it is not all there; None: another.

        Raises BlockingIOError where there is nothing, OSError.
        """
        got = self.socket.recv_into(self._view, self._size + 1, socket.MSG_PEEK)
        question = self.standing.question
        if bytes(self._view[: min(got, len(question))]) != question[:got] or got == 0:
            return None
        self.is_partial = got < self._size
        return max(-1, got - self._size)

    def take(self) -> None:
        """The request is answered from now on: it is no longer to be read."""
        self.socket.recv_into(self._view, self._size, socket.MSG_TRUNC)

    def fits(self, outputs: Arrays) -> bool:
        """Whether the outputs are as the answer has them."""
        return all(
            outputs[name].shape == shape and outputs[name].dtype == dtype
            for name, dtype, shape, _ in self.standing.outputs
        )

    def answer(self, outputs: Arrays, inference_s: float) -> bytes | None:
        """The answer; None where it is longer than usual."""
        standing = self.standing
        text = standing.text % inference_s
        if len(text) != standing.text_bytes:
            return None
        return b"".join([standing.head, text, *[outputs[name].tobytes() for name, *_ in standing.outputs]])

    def send(self, content: bytes) -> None:
        """Send, or keep the rest for later; raises OSError."""
        try:
            self.unsent = content[self.socket.send(content) :]
        except BlockingIOError:
            self.unsent = content


class Agent(Protocol):
    """`channel.Channel`, as far as it is used here."""

    def send(self, message: Message) -> None: ...  # noqa: D102
    def wake_by(self, descriptor: int) -> None: ...  # noqa: D102
    def forget(self, descriptor: int) -> None: ...  # noqa: D102


class StandingClients:
    """All that are lent; the agent's channel wakes when one of them wants something, or another one comes."""

    def __init__(self, passed: socket.socket, region: Region, agent: Agent) -> None:
        """`passed` brings them."""
        self.any = False
        """Whether there is one."""
        self._passed = passed
        self._region = region
        self._agent = agent
        self._clients: dict[int, _Client] = {}
        self._look_at_s = math.inf
        self._requests = 0
        self._epoll = select.epoll()
        passed.setblocking(False)
        self._epoll.register(passed.fileno(), select.EPOLLIN)
        # As long as there are none, each wait is shorter without an epoll to ask.
        agent.wake_by(passed.fileno())

    def wait_s(self) -> float:
        """Within which `turn` is to be called, whatever becomes readable."""
        return max(0.0, self._look_at_s - time.monotonic())

    def turn(self, infer: Infer) -> None:
        """Answer what has come; raises nothing that a client can cause."""
        for descriptor, events in self._epoll.poll(0):
            if descriptor == self._passed.fileno():
                self._take(infer)
            elif (client := self._clients.get(descriptor)) is not None:
                self._serve(client, infer)
                if events & _ENDS and not client.unsent:
                    # It says no more, which may have come with its last request.
                    self._return(client)
        if time.monotonic() >= self._look_at_s:
            self._look()

    def give_back(self) -> None:
        """Every connection is the agent's again."""
        for client in list(self._clients.values()):
            self._return(client)

    def _take(self, infer: Infer) -> None:
        with suppress(BlockingIOError):
            content, descriptors, _, _ = socket.recv_fds(self._passed, MESSAGE_BYTES, 1)
            if not descriptors:
                # The agent is gone, which the channel says too.
                self._epoll.unregister(self._passed.fileno())
                self._agent.forget(self._passed.fileno())
                return
            client = _Client(*standing_message.unpacked(content), socket.socket(fileno=descriptors[0]))
            self._clients[client.socket.fileno()] = client
            # A part of a request is waited for by its edge: as a level it would wake us until the rest is there.
            events = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
            self._epoll.register(client.socket.fileno(), events)
            if not self.any:
                self.any = True
                self._agent.wake_by(self._epoll.fileno())
            self._look_again()
            self._serve(client, infer)

    def _serve(self, client: _Client, infer: Infer) -> None:
        try:
            for _ in range(REQUESTS_PER_TURN):
                if client.unsent:
                    client.send(client.unsent)
                if client.unsent or not self._answer(client, infer):
                    break
            else:
                # Others want something too, and no new edge says that there is more.
                self._return(client)
        except BlockingIOError:
            pass
        except OSError:
            self._return(client)
        if client.is_partial or client.unsent:
            self._look_again()

    def _answer(self, client: _Client, infer: Infer) -> bool:
        """Answer a request; whether there is more behind it."""
        behind = client.asked()
        if behind is None:
            self._return(client)
            return False
        if behind < 0:
            return False
        client.since_s = time.monotonic()
        self._requests += 1
        self._region.lent = client.number, self._requests
        inferred = infer(client.inputs)
        fits = inferred is not None and client.fits(inferred.outputs)
        answer = client.answer(inferred.outputs, inferred.inference_s) if inferred is not None and fits else None
        if inferred is None or answer is None:
            self._region.lent = 0, self._requests
            self._return(client)
            return False
        try:
            client.take()
            client.send(answer)
        finally:
            # A client that left meanwhile is no inference that hangs; and it was inferred, whoever wants to know.
            self._region.lent = 0, self._requests
            inferred.counts()
        return behind > 0

    def _return(self, client: _Client) -> None:
        if self._clients.pop(client.socket.fileno(), None) is None:
            return
        self._epoll.unregister(client.socket.fileno())
        if client.unsent:
            # Half of an answer is its last.
            with suppress(OSError):
                client.socket.shutdown(socket.SHUT_RDWR)
        client.socket.close()
        self._agent.send({"kind": "returned", "client": client.number})
        if not self._clients:
            self.any = False
            self._agent.forget(self._epoll.fileno())

    def _look(self) -> None:
        """Return whoever takes its time."""
        now_s = time.monotonic()
        for client in list(self._clients.values()):
            limit_s = UNSENT_S if client.unsent else PARTIAL_S if client.is_partial else IDLE_S
            if now_s - client.since_s >= limit_s:
                self._return(client)
        self._look_again()

    def _look_again(self) -> None:
        is_urgent = any(client.is_partial or client.unsent for client in self._clients.values())
        self._look_at_s = time.monotonic() + (PARTIAL_S if is_urgent else IDLE_S) if self._clients else math.inf
