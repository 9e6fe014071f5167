"""One client's connection: reads requests, has them answered one after the other, and writes without ever blocking.

What a request means is none of its business, nor whom else there is.
"""

from __future__ import annotations

import math
import select
import socket
from contextlib import suppress
from functools import partial
from http import HTTPStatus

from edgefleet_agent.serve.answers import Answer, Form, RefusedError
from edgefleet_agent.serve.bodies import Body, ChunkedBody, SizedBody
from edgefleet_agent.serve.habit import Habit, standing
from edgefleet_agent.serve.head import CHUNKED, END, Head, end_of_head, parse_head
from edgefleet_agent.serve.owner import Owner
from edgefleet_agent.serve.phase import Phase

RECV_BYTES = 256 * 1024
# Of one connection in one turn of the loop, which has a broker and a worker to serve beside it.
READS_PER_TURN = 4
REQUESTS_PER_TURN = 16
IDLE_S = 75.0
HEAD_S = 10.0
TRANSFER_S = 10.0
SLOWEST_BYTES_PER_S = 64 * 1024
ANSWER_S = 120.0
LINGER_S = 2.0
JOINED_BYTES = 16 * 1024
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection:
    """One client. Its methods never raise what a client can cause."""

    def __init__(self, sock: socket.socket, owner: Owner) -> None:
        """`sock` does not block."""
        self.phase = Phase.IDLE
        self.since = owner.now()
        self.deadline = self.since + IDLE_S
        self.mask = select.EPOLLIN
        self._socket = sock
        self._owner = owner
        self._buffer = b""
        self._raw_head = b""
        self._head: Head | None = None
        self._body: Body = SizedBody(0)
        self._reserved_bytes = 0
        self._turn = 0
        self._waiting: list[memoryview] = []
        self._closes = False
        self._advancing = False
        self._habit = Habit()

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    # Events ------------------------------------------------------------------------------------------

    def on_events(self, events: int) -> None:
        """Go on with what the socket is ready for."""
        if events & (select.EPOLLERR | select.EPOLLHUP):
            self.close()
            return
        if events & select.EPOLLIN:
            self._read()
        if events & select.EPOLLOUT:
            if self.phase is Phase.WRITING:
                self._flush()
            self._advance()

    def on_deadline(self) -> None:
        """Whatever it waits for took too long."""
        if self.phase in (Phase.HEAD, Phase.BODY):
            self._refuse(RefusedError(HTTPStatus.REQUEST_TIMEOUT, "the request did not come in time"))
        elif self.phase is Phase.ANSWERING:
            self._turn += 1
            reason = f"the model gave no answer within {ANSWER_S:.0f} s"
            self._refuse(RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, reason))
        else:
            self.close()

    def turn_away(self, reason: str) -> None:
        """Refuse the client before it has asked."""
        self._refuse(RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, reason))

    def close(self) -> None:
        """Close the socket; an answer that comes later goes nowhere."""
        if self.phase is not Phase.CLOSED:
            self._enter(Phase.CLOSED, 0.0)
            self._turn += 1
            self._release()
            self._owner.forget(self.fileno())
            self._socket.close()

    def _enter(self, phase: Phase, time_s: float) -> None:
        self.phase, self.since = phase, self._owner.now()
        self.deadline = self.since + time_s

    def _watch(self, mask: int) -> None:
        if mask != self.mask and self.phase is not Phase.CLOSED:
            self.mask = mask
            self._owner.watch(self.fileno(), mask)

    # Reading -----------------------------------------------------------------------------------------

    def _read(self) -> None:
        for _ in range(READS_PER_TURN):
            if self.phase in (Phase.ANSWERING, Phase.WRITING):
                # One request at a time: the next ones wait in the kernel.
                self._watch(self.mask & ~select.EPOLLIN)
                return
            try:
                data = self._socket.recv(RECV_BYTES)
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            if not data:
                self._end()
                return
            if self.phase is not Phase.LINGERING:
                self._buffer += data
                self._advance()
            if len(data) < RECV_BYTES:
                return

    def _end(self) -> None:
        """The client says no more; it may still want to hear."""
        if self.phase in (Phase.IDLE, Phase.LINGERING):
            self.close()
            return
        self._watch(self.mask & ~select.EPOLLIN)
        if self.phase in (Phase.HEAD, Phase.BODY):
            self._refuse(RefusedError(HTTPStatus.BAD_REQUEST, "the request ends in its middle"))

    def _advance(self) -> None:
        """Take requests out of the buffer as long as each is answered at once."""
        if self._advancing:
            return
        self._advancing = True
        try:
            for _ in range(REQUESTS_PER_TURN):
                if not self._step():
                    break
            else:
                # There may be more in the buffer, of which the kernel knows nothing: come back at once.
                self._watch(self.mask | select.EPOLLOUT)
                return
        except RefusedError as error:
            self._refuse(error)
        finally:
            self._advancing = False
        if self.phase in (Phase.IDLE, Phase.HEAD, Phase.BODY):
            self._watch(select.EPOLLIN)
        elif self.phase is Phase.ANSWERING:
            self._watch(self.mask & ~select.EPOLLOUT)

    def _step(self) -> bool:
        """One request's answer from what is in the buffer; False when it is not all there, or still being answered."""
        if self.phase in (Phase.IDLE, Phase.HEAD) and not self._take_head():
            return False
        return self.phase is Phase.BODY and self._take_body()

    def _take_head(self) -> bool:
        # An empty line before a request is an old client's (RFC 9112, 2.2).
        self._buffer = self._buffer.removeprefix(b"\r\n")
        if not self._buffer:
            return False
        end = end_of_head(self._buffer)
        if end < 0:
            if self.phase is Phase.IDLE:
                self._enter(Phase.HEAD, HEAD_S)
            return False
        raw, self._buffer = self._buffer[:end], self._buffer[end + len(END) :]
        # A client on a kept connection says the same again and again.
        if raw != self._raw_head or self._head is None:
            self._raw_head, self._head = b"", None
            head = parse_head(raw)
            self._owner.admit(head)
            self._raw_head, self._head = raw, head
        head = self._head
        self._closes = not head.keeps_open
        self._begin_body(head)
        return True

    def _begin_body(self, head: Head) -> None:
        limit = self._owner.max_body_bytes
        if head.length > limit:
            reason = f"a body of {head.length} bytes, {limit} are taken"
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, reason)
        size = limit if head.length == CHUNKED else head.length
        if not self._owner.reserve(size):
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "too many large requests at a time")
        self._reserved_bytes = size
        self._body = ChunkedBody(limit) if head.length == CHUNKED else SizedBody(size)
        self._enter(Phase.BODY, TRANSFER_S + size / SLOWEST_BYTES_PER_S)
        if head.expects_continue and head.length and not self._buffer:
            with suppress(OSError):
                self._socket.send(CONTINUE)

    def _take_body(self) -> bool:
        head, body = self._head, self._body
        self._buffer = body.feed(self._buffer)
        if head is None or not body.complete:
            return False
        self._enter(Phase.ANSWERING, ANSWER_S)
        self._turn += 1
        self._owner.answer(head, body.content(), partial(self._reply, self._turn))
        return self.phase is Phase.IDLE

    def _release(self) -> None:
        self._owner.release(self._reserved_bytes)
        self._reserved_bytes = 0
        self._body = SizedBody(0)

    # Answering ---------------------------------------------------------------------------------------

    def _refuse(self, error: RefusedError) -> None:
        """Answer what cannot be read any further."""
        if self.phase in (Phase.IDLE, Phase.HEAD):
            self._raw_head, self._head = b"", None
        self._closes = True
        self._enter(Phase.ANSWERING, ANSWER_S)
        self._turn += 1
        self._reply(self._turn, error.answer())

    def _reply(self, turn: int, answer: Answer) -> None:
        """Send an answer, unless its request is gone by now."""
        if turn != self._turn or self.phase is not Phase.ANSWERING:
            return
        version = "1.1" if self._head is None else self._head.version
        parts: list[bytes | memoryview] = [answer.head(closes=self._closes, version=version)]
        if self._head is None or self._head.method != "HEAD":
            parts += answer.parts
        size = sum(map(len, parts))
        self._enter(Phase.WRITING, TRANSFER_S + size / SLOWEST_BYTES_PER_S)
        # One piece costs the kernel less than several, and a copy of it next to nothing.
        self._waiting = [memoryview(part) for part in (parts if size > JOINED_BYTES else [b"".join(parts)])]
        self._flush()
        if self._waiting:
            # What a result's tensors lie in is used again as soon as this returns.
            self._waiting = [memoryview(bytes(part)) for part in self._waiting]
        if answer.form is not None and self._habit.took(self._raw_head, answer.form):
            self._lend(answer, answer.form)
        self._advance()

    def _lend(self, answer: Answer, form: Form) -> None:
        """Leave the connection to the worker, which answers what is to be expected with half of the wake-ups."""
        if self.phase is not Phase.IDLE or self._buffer or self._head is None:
            return
        asked = standing(self._raw_head, self._head, form, answer.head(closes=False, version="1.1"))
        if asked is not None and self._owner.lend(self._socket, asked, self._returned):
            self._enter(Phase.LENT, math.inf)
            self._watch(0)

    def _returned(self, reason: str | None) -> None:
        """The worker is done with the connection, or gives no answer to a request that it has taken."""
        if self.phase is not Phase.LENT:
            return
        self._enter(Phase.IDLE, IDLE_S)
        if reason is not None:
            self._refuse(RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, reason))
        else:
            self._watch(select.EPOLLIN)

    def _flush(self) -> None:
        """Write as much as the kernel takes."""
        while self._waiting:
            try:
                sent = self._socket.sendmsg(self._waiting)
            except BlockingIOError:
                self._watch(select.EPOLLOUT)
                return
            except OSError:
                self.close()
                return
            while self._waiting and sent >= len(self._waiting[0]):
                sent -= len(self._waiting.pop(0))
            if sent:
                self._waiting[0] = self._waiting[0][sent:]
        self._answered()

    def _answered(self) -> None:
        self._release()
        if not self._closes:
            self._enter(Phase.IDLE, IDLE_S)
        else:
            # Closing on unread bytes would reset the connection, and the answer with it (RFC 9112, 9.6).
            self._enter(Phase.LINGERING, LINGER_S)
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
            self._watch(select.EPOLLIN)
