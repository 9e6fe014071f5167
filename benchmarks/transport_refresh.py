"""The TUF client on a real broker connection: time and requests of a refresh.

The client's own process is not started here; what it costs to start is the agent's, and stands in its tests.
"""

from __future__ import annotations

import time
from typing import Any

from edgefleet.errors import TransportError
from edgefleet.identity import load
from edgefleet.mqtt import BrokerAddress, Connection, Identity, Outgoing, Tls
from edgefleet.protocol import topics
from edgefleet.protocol.messages import Reply, Request, RequestKind, Status
from edgefleet.protocol.topics import TOPICS, Role, TopicName
from edgefleet.server.store import Store
from edgefleet.trust.client import Client
from transport_fleet import FLEET, Fleet

DEVICE = "refresher"
PATIENCE_S = 10.0


class Fetcher:
    """Fetches files of the repository over MQTT, one at a time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._req_id = ""
        self._parts: dict[int, bytes] = {}
        self._reply: Reply | None = None
        self.requests = 0

    def fetch(self, name: str, max_bytes: int) -> bytes | None:
        """The file, or None where there is none."""
        self.requests += 1
        self._req_id, self._parts, self._reply = f"{time.monotonic_ns()}", {}, None
        request = Request(req_id=self._req_id, kind=RequestKind.TRUST, name=name)
        topic = topics.topic_for(FLEET, TopicName.REQUEST, DEVICE)
        self._connection.publish(Outgoing(topic, request.encode(), TOPICS[TopicName.REQUEST].qos, retained=False))
        deadline = time.monotonic() + PATIENCE_S
        while self._reply is None or (self._reply.status is Status.OK and len(self._parts) < self._reply.parts):
            if time.monotonic() > deadline:
                raise TransportError(f"fetching {name}", "no answer", "look at the hub")
            self._connection.poll(0.05)
        if self._reply.status is Status.GONE:
            return None
        content = b"".join(self._parts[part] for part in sorted(self._parts))
        if self._reply.status is not Status.OK or len(content) > max_bytes:
            raise TransportError(f"fetching {name}", f"{self._reply.status}, {len(content)} bytes", "look at the hub")
        return content

    def receive(self, topic: str, payload: bytes, _retained: bool) -> None:
        """A message from the broker."""
        address = topics.parse(FLEET, topic)
        if address is None or address.name is not TopicName.REPLY:
            return
        reply = Reply.decode(payload)
        if reply.req_id == self._req_id:
            self._parts[reply.part], self._reply = reply.body, reply


def refreshes(fleet: Fleet, store: Store, count: int) -> list[dict[str, Any]]:
    """Milliseconds and requests of `count` refreshes in a row; the first one has everything to fetch."""
    folder = fleet.enroll(store, DEVICE)
    identity = load(folder)
    fetchers: list[Fetcher] = []
    connection = Connection(
        BrokerAddress(fleet.host, fleet.port),
        Identity(DEVICE, DEVICE),
        topics.filters_read_by(Role.DEVICE, FLEET, DEVICE),
        on_message=lambda topic, payload, retained: fetchers[0].receive(topic, payload, retained),  # noqa: PLW0108
        on_connected=lambda: None,
        tls=Tls(identity.ca_file, identity.certificate_file, identity.key_file) if fleet.tls else None,
    )
    fetchers.append(Fetcher(connection))
    connection.connect_now()
    found = []
    for _ in range(count):
        fetchers[0].requests = 0
        began = time.perf_counter()
        Client(fleet.folder / "refresher", identity.root_file.read_bytes(), fetchers[0].fetch).refresh()
        found.append({"ms": (time.perf_counter() - began) * 1000, "requests": fetchers[0].requests})
        # No faster than a device may ask.
        time.sleep(0.2)
    connection.close()
    return found
