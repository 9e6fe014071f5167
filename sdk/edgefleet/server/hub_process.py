"""The hub's one loop: requests in, replies and blocks out. A process of its own, beside the server or elsewhere.

It holds no key but its own certificate's, opens no store, and decides nothing about deployments.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from edgefleet.errors import InputError
from edgefleet.mqtt import BrokerAddress, Connection, Identity, Outgoing
from edgefleet.protocol import topics
from edgefleet.protocol.messages import Status
from edgefleet.protocol.topics import HUB_USERS, SHARDS, TOPICS, TopicName
from edgefleet.server.budget import TokenBucket
from edgefleet.server.data_folder import fleet_of, share_group, tls_of
from edgefleet.server.hub import Hub
from edgefleet.server.hub_limits import remember_piece_bytes, remembered_piece_bytes
from edgefleet.server.hub_link import FromHub, Pipe, Renewal, ToHub
from edgefleet.server.locate import Locator
from edgefleet.server.packet_limit import HEADROOM_BYTES, PacketLimit
from edgefleet.server.requests import Requests
from edgefleet.server.shared_delivery import SharedDelivery

POLL_S = 0.2
REPORT_EVERY_S = 0.5
PR_SET_PDEATHSIG = 1

log = logging.getLogger("edgefleet.hub")


class Sharing(StrEnum):
    """How several hubs divide the requests."""

    AUTO = "auto"
    """Shared subscriptions where an MQTT 5 broker says that it has them, else by shards."""
    SHARED = "shared"
    """Shared subscriptions, for a broker of MQTT 3.1.1 that has them and cannot say so."""
    SHARDED = "sharded"
    """Each hub serves its own shards; those of a hub that is away wait for it."""


@dataclass(frozen=True, slots=True)
class HubSettings:
    """What a hub is told at its start."""

    data: Path
    address: BrokerAddress
    name: str
    hubs: int = 1
    """How many there are in all."""
    tls: bool = True
    sharing: Sharing = Sharing.AUTO
    rate_bytes_per_s: float | None = None
    device_rate_bytes_per_s: float | None = None
    locator: Locator | None = None
    shared_delivery: bool = False
    """Blocks that several devices wait for are sent once."""

    @property
    def number(self) -> int:
        """Its place among the hubs, from 0; raises InputError."""
        if self.name not in HUB_USERS:
            raise InputError(
                f"reading the hub name {self.name!r}", "it is none of a hub", f"{HUB_USERS[0]} to {HUB_USERS[-1]}"
            )
        if (number := HUB_USERS.index(self.name)) >= self.hubs:
            raise InputError(
                f"starting {self.name}", f"there are {self.hubs} hub(s) in all", "give the number of all as --hubs"
            )
        return number


def request_filters(fleet: str, number: int, hubs: int, *, group: str | None) -> list[tuple[str, int]]:
    """(filter, QoS) of the requests that hub `number` of `hubs` answers; `group` shares them, None divides by shard."""
    row, every = TOPICS[TopicName.REQUEST], topics.filter_for(fleet, TopicName.REQUEST)
    if hubs == 1:
        return [(every, row.qos)]
    if group is not None:
        return [(f"$share/{group}/{every}", row.qos)]
    own = [row.pattern.format(shard=shard, device="+") for shard in range(SHARDS) if shard % hubs == number]
    return [(f"{topics.PREFIX}/{fleet}/{body}", row.qos) for body in own]


class HubProcess:
    """One hub, its broker, and its server where it has one."""

    def __init__(self, settings: HubSettings, link: Pipe | None = None) -> None:
        self._settings = settings
        self._number = settings.number
        self._fleet = fleet_of(settings.data)
        self._link = link
        alone = settings.hubs == 1 or settings.sharing is Sharing.SHARDED
        self._group = None if alone else share_group(settings.data)
        now = time.monotonic()
        shared = SharedDelivery(offers=settings.shared_delivery)
        self.hub = Hub(TokenBucket(settings.rate_bytes_per_s, now), settings.device_rate_bytes_per_s, shared)
        self.limit = PacketLimit(remembered_piece_bytes(settings.data, str(settings.address)))
        self.requests = Requests(
            settings.data, self._fleet, self.hub, self.limit, self._publish,
            locator=settings.locator, renew=None if link is None else self._ask_renewal,
        )  # fmt: skip
        self._reported_at = now
        self._told_too_small = False
        self.connection = Connection(
            settings.address,
            Identity(settings.name, settings.name),
            [],
            on_message=self._receive,
            on_connected=self._connected,
            on_lost=self._lost,
            tls=tls_of(settings.data, settings.name) if settings.tls else None,
        )

    def run(self, stop: Callable[[], bool]) -> None:
        """Serve until `stop` says so, or the server that started this hub has gone."""
        log.info("%s: serving fleet %s", self._settings.name, self._fleet)
        while not stop() and not (self._link is not None and self._link.closed):
            self.turn(POLL_S)
        self.connection.close()

    def turn(self, timeout_s: float) -> None:
        """One turn of the loop: wait at most `timeout_s` for something to come or to be due."""
        wait_s = self.hub.wait_s(time.monotonic()) if self.connection.writable else None
        readers = {} if self._link is None else {self._link.read_fd: self._listen}
        # A socket that is full wakes the loop by itself.
        self.connection.poll(timeout_s if wait_s is None else min(timeout_s, wait_s), readers)
        now = time.monotonic()
        if self.connection.connected:
            self.limit.lived(now)
        self.requests.send_due(self.connection)
        self._report(now)

    # The broker --------------------------------------------------------------------------------------

    def _connected(self) -> None:
        sharing = self._settings.sharing
        shared = sharing is Sharing.SHARED or (sharing is Sharing.AUTO and self.connection.shared_subscriptions is True)
        self.limit.connected(self.connection.max_packet_bytes)
        self._say_too_small()
        self._apply_limit()
        group = self._group if shared else None
        self.connection.subscribe(request_filters(self._fleet, self._number, self._settings.hubs, group=group))

    def _lost(self, published: bool) -> None:
        # Every device asks anew when it sees nothing come.
        self.hub.clear()
        if self.limit.lost(published=published):
            self._apply_limit()
            log.warning(
                "the broker ended the connection right after a large message (%d so far): "
                "it may limit packets; blocks go in pieces of %d bytes from now on",
                self.limit.halvings, self.limit.piece_bytes,
            )  # fmt: skip
            remember_piece_bytes(self._settings.data, str(self._settings.address), self.limit.piece_bytes)
        self._say_too_small()

    def _say_too_small(self) -> None:
        """Once: no pull can ever end on such a broker."""
        if (self.limit.too_small is None and not self.limit.smallest_refused) or self._told_too_small:
            return
        self._told_too_small = True
        told = "" if self.limit.too_small is None else f" (it says {self.limit.too_small})"
        least = topics.PIECE_UNIT_BYTES + HEADROOM_BYTES
        log.error("the broker takes no packets of %d bytes%s, as blocks need them: raise its limit", least, told)

    def _apply_limit(self) -> None:
        self.hub.piece_bytes = self.limit.piece_bytes
        self.hub.part_bytes = self.limit.part_bytes

    def _receive(self, topic: str, payload: bytes, retained: bool) -> None:
        if retained:
            return  # No agent retains a request: whoever did wants it answered at every start of a hub.
        address = topics.parse(self._fleet, topic)
        if address is not None and address.name is TopicName.REQUEST:
            self.requests.receive(address.device, payload, time.monotonic())

    def _publish(self, message: Outgoing) -> bool:
        return self.connection.publish(message)

    # The server --------------------------------------------------------------------------------------

    def _ask_renewal(self, device: str, req_id: str, csr_pem: bytes) -> None:
        if self._link is not None:
            self._link.send(FromHub(renewals=(Renewal(device=device, req_id=req_id, body=csr_pem),)))

    def _listen(self) -> None:
        if self._link is None:
            return
        for text in self._link.lines():
            if (line := ToHub.read(text)) is not None:
                self._heed(line)

    def _heed(self, line: ToHub) -> None:
        if line.denied is not None:
            self.requests.denied = line.denied
        for device in {*line.gone, *(line.denied or {})}:
            self.hub.forget(device)
        for answer in line.renewed:
            if answer.status is Status.OK:
                self.hub.reply(answer.device, answer.req_id, answer.body)
            else:
                self.requests.refuse(answer.device, answer.req_id, answer.status, answer.body.decode())

    def _report(self, now: float) -> None:
        if self._link is None:
            return
        if now - self._reported_at > REPORT_EVERY_S and (sent := self.hub.take_sent()):
            self._reported_at = now
            self._link.send(FromHub(sent=sent))
        self._link.flush()


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process with the one that started it (prctl(2)); exits when that is gone already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(0)
