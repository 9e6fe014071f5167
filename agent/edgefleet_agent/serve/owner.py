"""What a connection asks of the server that it belongs to: a port, nothing more."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol

from edgefleet_agent.inference_types import Returned, Standing
from edgefleet_agent.serve.answers import Answer
from edgefleet_agent.serve.head import Head


class Owner(Protocol):
    """The server that a connection belongs to."""

    @property
    def max_body_bytes(self) -> int:
        """Of one request."""
        ...

    def now(self) -> float:
        """Seconds on a steady clock."""
        ...

    def admit(self, head: Head) -> None:
        """Raise RefusedError where a request is not to be served, whatever it asks for."""
        ...

    def reserve(self, size_bytes: int) -> bool:
        """Set memory aside for a body; False when bodies take too much of it already."""
        ...

    def release(self, size_bytes: int) -> None:
        """Give back what was set aside."""
        ...

    def answer(self, head: Head, body: memoryview, reply: Callable[[Answer], None]) -> None:
        """Call `reply` once, now or later; raises nothing."""
        ...

    def lend(self, client: socket.socket, standing: Standing, returned: Returned) -> bool:
        """As `Backend.lend`."""
        ...

    def watch(self, descriptor: int, mask: int) -> None:
        """Wait for other events of a connection's socket than before."""
        ...

    def forget(self, descriptor: int) -> None:
        """A connection's socket is being closed."""
        ...
