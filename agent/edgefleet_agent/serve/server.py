"""The local API's server: one listening socket and its clients, driven by the agent's own loop.

It starts no thread and never waits. All of its descriptors hide behind one, that of an epoll of its own.
"""

from __future__ import annotations

import errno
import logging
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from edgefleet_agent.inference_types import Backend, Returned, Standing
from edgefleet_agent.serve import hosts, routes
from edgefleet_agent.serve.answers import Answer
from edgefleet_agent.serve.connection import Connection
from edgefleet_agent.serve.head import Head
from edgefleet_agent.serve.phase import Phase
from edgefleet_agent.serve.routes import Served
from edgefleet_agent.settings import ServeSettings

MAX_CONNECTIONS = 64
ACCEPTS_PER_TURN = 16
BACKLOG = 64
# All bodies together, in the largest that one may be.
BODIES_AT_ONCE = 4
LISTEN_AGAIN_S = 10.0
ACCEPT_AGAIN_S = 1.0
DEADLINES_EVERY_S = 0.5
# Who has to go when there are too many: first who asks nothing, then who has not said what it asks.
EVICTED = (Phase.LINGERING, Phase.IDLE, Phase.HEAD)

log = logging.getLogger("edgefleet.serve")


class Server:
    """Serves a backend to this machine."""

    def __init__(
        self,
        settings: ServeSettings,
        backend: Backend,
        note: Callable[[str, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing listens before `tick`; `note` records an event."""
        self.max_body_bytes = settings.max_body_mb * 1_000_000
        self._settings = settings
        self._served = Served(backend, settings.model)
        self._note = note
        self.now = clock
        self._names = {"localhost", socket.gethostname().lower(), *(name.lower() for name in settings.names)}
        self._names |= {f"{socket.gethostname().lower()}.local"}
        self._epoll = select.epoll()
        self._listener: socket.socket | None = None
        self._connections: dict[int, Connection] = {}
        self._bodies_bytes = 0
        self._is_accepting = False
        self._next_at = 0.0
        self._deadlines_at = 0.0
        self._said: str | None = None

    @property
    def address(self) -> tuple[str, int] | None:
        """Where it listens; None while it does not."""
        if self._listener is None:
            return None
        host, port = self._listener.getsockname()[:2]
        return host, port

    @property
    def has_clients(self) -> bool:
        """Whether anybody is connected."""
        return bool(self._connections)

    def descriptors(self) -> dict[int, Callable[[], None]]:
        """What to wait for, and what to call when it becomes readable."""
        return {self._epoll.fileno(): self.on_readable} if self._settings.enabled else {}

    def tick(self, now: float) -> None:
        """Listen, if that failed before, and close what took too long."""
        if not self._settings.enabled:
            return
        if now >= self._next_at and not self._is_accepting:
            self._listen(now)
        if now >= self._deadlines_at:
            self._deadlines_at = now + DEADLINES_EVERY_S
            for connection in list(self._connections.values()):
                if now >= connection.deadline:
                    connection.on_deadline()

    def on_readable(self) -> None:
        """Serve what is ready; never waits."""
        listener, has_clients = self._listener, False
        for descriptor, events in self._epoll.poll(0, MAX_CONNECTIONS + 1):
            # One of them may have closed another meanwhile.
            connection = self._connections.get(descriptor)
            if connection is not None:
                connection.on_events(events)
            elif listener is not None and descriptor == listener.fileno():
                has_clients = True
        # Last: a new client may get the descriptor of one that went just now, but not its events.
        if has_clients and listener is not None:
            self._accept(listener)

    def close(self) -> None:
        """Close every socket; answers to come go nowhere."""
        for connection in list(self._connections.values()):
            connection.close()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._epoll.close()

    # Clients -----------------------------------------------------------------------------------------

    def _listen(self, now: float) -> None:
        if self._listener is None:
            try:
                self._listener = self._bound()
            except OSError as error:
                self._next_at = now + LISTEN_AGAIN_S
                self._say(f"{self._settings.host}:{self._settings.port}: {error.strerror or error}")
                return
            log.info("the local API listens on %s:%d", *self.address or ("", 0))
        self._said = None
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._is_accepting = True

    def _bound(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._settings.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self._settings.host, self._settings.port))
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
        return listener

    def _say(self, reason: str) -> None:
        """An event for what is new: a port that is taken for a week is said once."""
        if reason != self._said:
            self._note("local_api", f"it cannot listen on {reason}")
            self._said = reason

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    # The listener stays readable: without a pause the loop would do nothing else.
                    self._pause()
                    return
                continue
            self._take(sock)

    def _pause(self) -> None:
        if self._listener is not None:
            self._epoll.unregister(self._listener.fileno())
        self._is_accepting = False
        self._next_at = self.now() + ACCEPT_AGAIN_S

    def _take(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        has_room = len(self._connections) < MAX_CONNECTIONS or self._evict()
        connection = Connection(sock, self)
        self._connections[sock.fileno()] = connection
        self._epoll.register(sock.fileno(), connection.mask)
        if not has_room:
            connection.turn_away(f"{MAX_CONNECTIONS} connections are busy")

    def _evict(self) -> bool:
        """Close the connection that has done nothing for the longest time; False when all of them are busy."""
        for phase in EVICTED:
            in_phase = [one for one in self._connections.values() if one.phase is phase]
            if in_phase:
                min(in_phase, key=lambda one: one.since).close()
                return True
        return False

    # What its connections ask of it ------------------------------------------------------------------

    def admit(self, head: Head) -> None:
        """Raise RefusedError where a request is not meant for this machine, or comes from a web page."""
        hosts.check(head, self._names)

    def reserve(self, size_bytes: int) -> bool:
        """Set memory aside for a body; False when bodies take too much of it already."""
        if self._bodies_bytes + size_bytes > BODIES_AT_ONCE * self.max_body_bytes:
            return False
        self._bodies_bytes += size_bytes
        return True

    def release(self, size_bytes: int) -> None:
        """Give back what was set aside."""
        self._bodies_bytes -= size_bytes

    def answer(self, head: Head, body: memoryview, reply: Callable[[Answer], None]) -> None:
        """Call `reply` once, now or later; raises nothing."""
        routes.answer(self._served, head, body, reply)

    def lend(self, client: socket.socket, standing: Standing, returned: Returned) -> bool:
        """Have the worker answer a client by itself, as long as it makes the same request; False: it cannot."""
        return self._served.backend.lend(client, standing, returned)

    def watch(self, descriptor: int, mask: int) -> None:
        """Wait for other events of a connection's socket than before."""
        self._epoll.modify(descriptor, mask)

    def forget(self, descriptor: int) -> None:
        """A connection's socket is being closed."""
        if self._connections.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)
