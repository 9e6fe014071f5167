"""Answers to devices' requests: what is small is queued in parts, blocks as the hub's turns and the socket allow.

Which part or piece goes to whom next is `hub`'s rule; this file reads files and hands them on.
"""

from __future__ import annotations

import logging
import random
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from edgefleet.errors import IntegrityError
from edgefleet.mqtt import Connection, Outgoing
from edgefleet.package.layout import BlobStore
from edgefleet.protocol import messages, topics
from edgefleet.protocol.messages import Request, RequestKind, Status
from edgefleet.protocol.record import MessageError
from edgefleet.protocol.topics import TopicName
from edgefleet.server.blob_files import OpenBlobs
from edgefleet.server.budget import BUSY_EVERY_S, REMEMBERED_DEVICES, DeviceLog, RequestBudget
from edgefleet.server.data_folder import prior_file, trust_files
from edgefleet.server.hub import Hub
from edgefleet.server.hub_work import Part
from edgefleet.server.locate import Locator
from edgefleet.server.packet_limit import PacketLimit

SENDS_PER_TURN = 64
MAX_METADATA_BYTES = 4 * 1024 * 1024
MAX_DEFLATED_BYTES = 256 * 1024
"""More is block digests, which become no smaller, and would hold the others up."""
RENEW_ELSEWHERE_S = 60.0
RENEW_EVERY_S = 10.0

log = logging.getLogger("edgefleet.hub")

Publish = Callable[[Outgoing], bool]
Renew = Callable[[str, str, bytes], None]


class Requests:
    """Serves one data folder to a fleet."""

    def __init__(
        self,
        data: Path,
        fleet: str,
        hub: Hub,
        limit: PacketLimit,
        publish: Publish,
        *,
        locator: Locator | None = None,
        renew: Renew | None = None,
    ) -> None:
        """`renew` takes a device's signing request (device, req_id, PEM) and answers through `reply` later."""
        self.denied: dict[str, str] = {}
        self._data = data
        self._blobs = BlobStore(data)
        self._trust = trust_files(data)
        self._open = OpenBlobs(self._blobs)
        self._fleet = fleet
        self._hub = hub
        self._limit = limit
        self._publish = publish
        self._locator = locator
        self._renew = renew
        self._budget = RequestBudget()
        self._log = DeviceLog(log)
        self._refused: dict[str, int] = {}
        self._renewals: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._answers: dict[RequestKind, Callable[[str, Request], None]] = {
            RequestKind.METADATA: self._metadata,
            RequestKind.BLOCKS: self._blocks,
            RequestKind.TRUST: self._trust_file,
            RequestKind.RENEW: self._renewal,
            RequestKind.LOCATE: self._location,
            RequestKind.PRIOR: self._prior,
        }

    # Coming in ---------------------------------------------------------------------------------------

    def receive(self, device: str, payload: bytes, now: float) -> None:
        """Take up a request, or say why not. What is beyond a device's budget is not even read."""
        if not self._budget.admit(device, now):
            self._refused[device] = self._refused.get(device, 0) + 1
            if self._budget.tell_busy(device, now):
                log.warning("device %s: %d requests too many", device, self._refused.pop(device))
                self._with_request(device, payload, lambda _, request: self._busy(device, request, BUSY_EVERY_S))
            return
        self._with_request(device, payload, self._answer)

    def _with_request(self, device: str, payload: bytes, act: Callable[[str, Request], None]) -> None:
        try:
            request = Request.decode(payload)
        except MessageError as error:
            self._log.say(logging.WARNING, device, f"request ignored: {error}")
            return
        act(device, request)

    def _answer(self, device: str, request: Request) -> None:
        if (reason := self.denied.get(device)) is not None:
            self.refuse(device, request.req_id, Status.DENIED, reason)
            return
        try:
            self._answers[request.kind](device, request)
        except (OSError, IntegrityError):
            self.refuse(device, request.req_id, Status.GONE, f"{request.digest or request.name} is not on the server")

    def _metadata(self, device: str, request: Request) -> None:
        path = self._blobs.path(request.digest or "")
        size = path.stat().st_size
        if size > MAX_METADATA_BYTES:
            self.refuse(device, request.req_id, Status.BAD, f"{size} bytes are too many for metadata")
            return
        self._small(device, request, path, deflate=request.deflate and size <= MAX_DEFLATED_BYTES)

    def _trust_file(self, device: str, request: Request) -> None:
        # The message's pattern has checked the name: no separator, no leading dot.
        self._small(device, request, self._trust / (request.name or ""))

    def _prior(self, device: str, request: Request) -> None:
        # Both are checked by the message's patterns, as above.
        self._small(device, request, prior_file(self._data, request.digest or "", request.name or ""))

    def _small(self, device: str, request: Request, path: Path, *, deflate: bool = False) -> None:
        wait_s = self._hub.busy_s()
        content = path.read_bytes() if wait_s is None else b""
        if deflate:
            content = min(content, zlib.compress(content), key=len)
        if wait_s is not None or not self._hub.reply(device, request.req_id, content):
            self._busy(device, request, wait_s or BUSY_EVERY_S)

    def _blocks(self, device: str, request: Request) -> None:
        size = self._blobs.path(request.digest or "").stat().st_size
        # A request without blocks gives something back.
        if request.blocks and (wait_s := self._hub.busy_s()) is not None:
            self._busy(device, request, wait_s)
        elif problem := self._hub.ask(device, request, size):
            self.refuse(device, request.req_id, Status.BAD, problem)

    def _location(self, device: str, request: Request) -> None:
        self._blobs.path(request.digest or "").stat()
        if self._locator is None:
            self.refuse(device, request.req_id, Status.GONE, "there is no HTTP here")
        else:
            self._hub.reply(device, request.req_id, self._locator.url(request.digest or "", time.time()).encode())

    def _renewal(self, device: str, request: Request) -> None:
        if self._renew is None:
            # Only a hub beside the server reaches the issuing key; with shared requests one is found in the end.
            self._busy(device, request, RENEW_ELSEWHERE_S)
            return
        # Each costs the server a signature and a look through all that it ever issued.
        now = time.monotonic()
        at, req_id = self._renewals.pop(device, (float("-inf"), ""))
        due = now - at >= RENEW_EVERY_S
        self._renewals[device] = (now, request.req_id) if due else (at, req_id)
        if len(self._renewals) > REMEMBERED_DEVICES:
            self._renewals.popitem(last=False)
        if due:
            self._renew(device, request.req_id, request.body)
        elif req_id != request.req_id:
            self._busy(device, request, RENEW_EVERY_S)

    # Saying no ---------------------------------------------------------------------------------------

    def _busy(self, device: str, request: Request, wait_s: float) -> None:
        jitter = random.uniform(0.5, 1.5)  # noqa: S311 - jitter, not a secret
        self._say(device, messages.Reply(req_id=request.req_id, status=Status.BUSY, retry_after_s=wait_s * jitter))

    def refuse(self, device: str, req_id: str, status: Status, reason: str) -> None:
        """Answer a request with why it is not fulfilled."""
        # A device asks for the next root at every refresh, and most of the time there is none.
        level = logging.DEBUG if status is Status.GONE else logging.WARNING
        self._log.say(level, device, f"{status}: {reason}")
        self._say(device, messages.Reply(req_id=req_id, status=status, body=reason.encode()))

    def _say(self, device: str, reply: messages.Reply) -> None:
        topic = topics.topic_for(self._fleet, TopicName.REPLY, device)
        self._publish(Outgoing(topic, reply.encode(), 0, retained=False))

    # Going out ---------------------------------------------------------------------------------------

    def send_due(self, connection: Connection) -> None:
        """Publish what is due while the socket takes it; the rest waits for the next turn."""
        for device, req_id, listen in self._hub.shared.take_news():
            self._say(device, messages.Reply(req_id=req_id, status=Status.OK, shared=listen))
        for _ in range(SENDS_PER_TURN):
            if not connection.writable:
                return
            now = time.monotonic()
            if (part := self._hub.next_part(now)) is not None:
                self._send_part(part, now)
            elif not self._send_piece(now):
                return

    def _send_part(self, part: Part, now: float) -> None:
        reply = messages.Reply(req_id=part.req_id, status=Status.OK, part=part.part, parts=part.parts, body=part.body)
        payload = reply.encode()
        topic = topics.topic_for(self._fleet, TopicName.REPLY, part.device)
        if self._publish(Outgoing(topic, payload, 0, retained=False)):
            self._limit.published(len(payload), now)

    def _send_piece(self, now: float) -> bool:
        """Send the next piece of a blob; False when none is due."""
        piece = self._hub.next_piece(now)
        if piece is None:
            return False
        try:
            content = self._open.read(piece)
        except OSError as error:
            log.warning("reading %s: %s", piece.digest, error.strerror or error)
            # What was taken from the queue a moment ago may have been its device's last block.
            waiting = {piece.device: piece.req_id} | dict(self._hub.withdraw(piece.digest))
            for device, req_id in waiting.items():
                self.refuse(device, req_id, Status.GONE, f"{piece.digest} was withdrawn from the server")
            return True
        units = piece.offset // topics.PIECE_UNIT_BYTES
        sha12 = topics.short_digest(piece.digest)
        name = TopicName.SHARED if piece.shared else TopicName.BLOCKS
        topic = topics.topic_for(self._fleet, name, piece.device, sha12=sha12, piece=units)
        if self._publish(Outgoing(topic, content, 0, retained=False)):
            self._hub.count_sent(piece)
            self._budget.served(piece.device, piece.size)
            self._limit.published(piece.size, now)
        return True
