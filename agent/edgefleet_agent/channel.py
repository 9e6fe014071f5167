"""JSON lines between a worker and its agent, at the worker's end.

It knows but two messages, and those only by their bytes; tensors travel in shared memory beside it.
"""

from __future__ import annotations

import json
import math
import os
import select
from collections import deque
from typing import Any

from edgefleet_agent.spin import Spin

Message = dict[str, Any]
RECEIVE_BYTES = 65536
EXACT_BELOW_S = 0.05
"""Shorter waits are exact to the microsecond, which costs one in every wait; others are longer by up to 1 ms."""

# What is said again and again is written and read whole: an inference may take no longer than reading a line of JSON.
INFER, INFERRED = '{"kind":"infer"}', '{"kind":"inferred"}'
_KNOWN: dict[bytes, Message] = {line.encode(): json.loads(line) for line in (INFER, INFERRED)}
_LINES = {line: f"{line}\n".encode() for line in (INFER, INFERRED)}


def parsed(line: bytes) -> Message:
    """A line's message; those that are known are not to be changed."""
    known = _KNOWN.get(line)
    if known is not None:
        return known
    message: Message = json.loads(line)
    return message


class Channel:
    """The inherited pipes: pipes wake the other side in half the time that sockets need."""

    def __init__(self, reads: int, writes: int) -> None:
        """Take the descriptors over."""
        self._reads = reads
        self._writes = writes
        self._poll = select.poll()
        self._poll.register(reads, select.POLLIN)
        self._spin = Spin()
        self._others: list[int] = []
        self._rest = b""
        self._lines: deque[bytes] = deque()

    def wake_by(self, descriptor: int) -> None:
        """Have `receive` return when another descriptor becomes readable too."""
        self._others.append(descriptor)
        self._poll.register(descriptor, select.POLLIN)

    def forget(self, descriptor: int) -> None:
        """It wakes no longer."""
        self._others.remove(descriptor)
        self._poll.unregister(descriptor)

    def receive(self, wait_s: float | None) -> Message | None:
        """The next message, None when none comes within `wait_s` (None: for ever); raises EOFError without an agent."""
        while not self._lines:
            if (wait_s is not None or self._others) and not self._readable(wait_s):
                return None
            chunk = os.read(self._reads, RECEIVE_BYTES)
            if not chunk:
                raise EOFError("the agent closed the channel")
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            self._lines.extend(lines)
        return parsed(self._lines.popleft())

    def _readable(self, wait_s: float | None) -> bool:
        """Whether the agent said something; False as well when it was another descriptor."""
        if wait_s is not None and wait_s < EXACT_BELOW_S:
            return self._reads in select.select([self._reads, *self._others], [], [], wait_s)[0]
        # Whoever asks again and again does so as soon as it has its answer.
        found = self._spin.found(self._poll.poll)
        found = found or self._poll.poll(None if wait_s is None else math.ceil(wait_s * 1000))
        return self._reads in dict(found)

    def send(self, message: Message) -> None:
        """Send a message; raises ConnectionError without an agent."""
        self.send_line(json.dumps(message))

    def send_line(self, line: str) -> None:
        """Send a message that is JSON already; raises ConnectionError without an agent."""
        content = _LINES.get(line) or f"{line}\n".encode()
        while content:
            content = content[os.write(self._writes, content) :]
