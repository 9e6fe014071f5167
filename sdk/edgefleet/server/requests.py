"""Answers to devices' requests: metadata at once, blocks as the hub's turn and the socket allow.

Which block goes to whom next is `hub`'s rule; this file reads blobs and hands them on.
"""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import IO

from edgefleet.mqtt import Connection, Outgoing
from edgefleet.package.layout import BlobStore
from edgefleet.protocol import messages, topics
from edgefleet.protocol.topics import TopicName
from edgefleet.server.hub import Hub, Piece

OPEN_BLOBS = 16
PIECES_PER_TURN = 64
MAX_METADATA_BYTES = 4 * 1024 * 1024

log = logging.getLogger("edgefleet.server")

Send = Callable[[TopicName, str, messages.Message], None]


class _OpenBlobs:
    """The few blobs that are being sent, kept open."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._open: OrderedDict[str, IO[bytes]] = OrderedDict()

    def read(self, piece: Piece) -> bytes:
        stream = self._open.pop(piece.digest, None) or self._blobs.path(piece.digest).open("rb")
        self._open[piece.digest] = stream
        if len(self._open) > OPEN_BLOBS:
            self._open.popitem(last=False)[1].close()
        return os.pread(stream.fileno(), piece.size, piece.offset)

    def close(self) -> None:
        """What a deployment replaced is opened anew."""
        while self._open:
            self._open.popitem()[1].close()


class Requests:
    """Serves one blob store to a fleet."""

    def __init__(self, blobs: BlobStore, hub: Hub, fleet: str, send: Send) -> None:
        """`send` publishes a message on a device's topic."""
        self._blobs = blobs
        self._open = _OpenBlobs(blobs)
        self._hub = hub
        self._fleet = fleet
        self._send = send

    def answer(self, device: str, request: messages.Request) -> None:
        """Send metadata, queue blocks, or say why not."""
        path = self._blobs.path(request.digest)
        try:
            size = path.stat().st_size
            if request.kind is messages.RequestKind.METADATA and size > MAX_METADATA_BYTES:
                self._refuse(device, request, messages.Status.BAD, f"{size} bytes are too many for metadata")
            elif request.kind is messages.RequestKind.METADATA:
                self._send_metadata(device, request, path.read_bytes())
            elif problem := self._hub.ask(device, request, size):
                self._refuse(device, request, messages.Status.BAD, problem)
        except OSError:
            self._refuse(device, request, messages.Status.GONE, "this blob is not on the server")

    def _refuse(self, device: str, request: messages.Request, status: messages.Status, reason: str) -> None:
        log.warning("device %s: request for %s: %s: %s", device, request.digest, status, reason)
        reply = messages.Reply(req_id=request.req_id, status=status, body=reason.encode())
        self._send(TopicName.REPLY, device, reply)

    def _send_metadata(self, device: str, request: messages.Request, content: bytes) -> None:
        step = messages.REPLY_PART_BYTES
        parts = [content[start : start + step] for start in range(0, len(content), step)] or [b""]
        for number, body in enumerate(parts):
            reply = messages.Reply(
                req_id=request.req_id, status=messages.Status.OK, part=number, parts=len(parts), body=body
            )
            self._send(TopicName.REPLY, device, reply)

    def send_pieces(self, connection: Connection) -> None:
        """Publish what is due while the socket takes it; the rest waits for the next turn."""
        for _ in range(PIECES_PER_TURN):
            if not connection.writable or (piece := self._hub.next_piece(time.monotonic())) is None:
                return
            units = piece.offset // topics.PIECE_UNIT_BYTES
            sha12 = topics.short_digest(piece.digest)
            topic = topics.topic_for(self._fleet, TopicName.BLOCKS, piece.device, sha12=sha12, piece=units)
            try:
                content = self._open.read(piece)
            except OSError as error:
                # Withdrawn in between: the device's next request is told `gone`.
                log.warning("reading %s: %s", piece.digest, error)
                continue
            if len(content) < piece.size:
                log.warning("reading %s: it is shorter than it was", piece.digest)
                continue
            if connection.publish(Outgoing(topic, content, 0, retained=False)):
                self._hub.count_sent(piece)

    def reopen(self) -> None:
        """Open blobs anew: a deployment may have replaced a damaged one."""
        self._open.close()
