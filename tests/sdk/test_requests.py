"""Answers to requests: metadata in parts, blocks within their credit, and a word for everything else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import pytest

from edgefleet.mqtt import Connection, Outgoing
from edgefleet.package.digest import BLOCK_BYTES, digest_of
from edgefleet.package.layout import BlobStore
from edgefleet.protocol.messages import MAX_CREDIT_BYTES, REPLY_PART_BYTES, Message, Reply, Request, RequestKind, Status
from edgefleet.protocol.topics import TopicName
from edgefleet.server.hub import Hub, TokenBucket
from edgefleet.server.requests import MAX_METADATA_BYTES, OPEN_BLOBS, Requests
from sdk.packages_made import content


class FakeConnection:
    """Takes as many messages as it is told to; `writable` says whether one more would wait."""

    def __init__(self, room: int = 10**6) -> None:
        self.room = room
        self.connected = True
        self.published: list[Outgoing] = []

    @property
    def writable(self) -> bool:
        return self.connected and self.room > 0

    def publish(self, message: Outgoing) -> bool:
        if not self.connected:
            return False
        self.room -= 1
        self.published.append(message)
        return True


class Served:
    """A blob store behind a hub, and what was sent."""

    def __init__(self, folder: Path) -> None:
        self.blobs = BlobStore(folder)
        self.blobs.folder.mkdir(parents=True)
        self.hub = Hub(TokenBucket(None, 0.0))
        self.sent: list[tuple[TopicName, str, Message]] = []
        self.requests = Requests(self.blobs, self.hub, "home", lambda *sent: self.sent.append(sent))
        self.connection = FakeConnection()
        self.number = 0

    def ask(self, digest: str, *blocks: tuple[int, int], credit: int | None = None, device: str = "pi") -> list[Reply]:
        """Blocks when there are any, else metadata; returns what was answered."""
        self.number += 1
        count = sum(count for _, count in blocks)
        request = Request(
            req_id=f"1-{self.number}",
            kind=RequestKind.BLOCKS if blocks else RequestKind.METADATA,
            digest=digest,
            blocks=blocks,
            credit_bytes=count * BLOCK_BYTES if credit is None else credit,
        )
        self.sent.clear()
        self.requests.answer(device, request)
        replies = [cast("Reply", message) for _, _, message in self.sent]
        assert all((name, to) == (TopicName.REPLY, device) for name, to, _ in self.sent)
        assert all(reply.req_id == request.req_id for reply in replies)
        return replies

    def send(self) -> list[Outgoing]:
        self.connection.published.clear()
        self.requests.send_pieces(cast("Connection", self.connection))
        return list(self.connection.published)


@pytest.fixture(name="served")
def _served(tmp_path: Path) -> Served:
    return Served(tmp_path)


@pytest.mark.parametrize("size", [0, 1, REPLY_PART_BYTES, REPLY_PART_BYTES + 1, 3 * REPLY_PART_BYTES])
def test_metadata_comes_in_parts_that_make_the_whole(served: Served, size: int) -> None:
    blob = content(size)
    replies = served.ask(served.blobs.add(blob))
    assert b"".join(reply.body for reply in replies) == blob
    count = max(1, -(-size // REPLY_PART_BYTES))
    assert [(reply.status, reply.part, reply.parts) for reply in replies] == [
        (Status.OK, number, count) for number in range(count)
    ]


def test_metadata_that_is_too_large_is_refused_unread(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that asks for a model as metadata must not have the server read a gigabyte into memory."""
    digest = digest_of(b"large")
    with served.blobs.path(digest).open("wb") as stream:
        stream.truncate(MAX_METADATA_BYTES + 1)

    def read_bytes(_self: Path) -> bytes:
        pytest.fail("it was read")

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    (reply,) = served.ask(digest)
    assert (reply.status, reply.body) == (
        Status.BAD,
        f"{MAX_METADATA_BYTES + 1} bytes are too many for metadata".encode(),
    )


@pytest.mark.parametrize("blocks", [(), ((0, 1),)])
def test_a_blob_that_is_not_there_is_gone(served: Served, blocks: tuple[tuple[int, int], ...]) -> None:
    (reply,) = served.ask(digest_of(b"nothing"), *blocks)
    assert reply.status is Status.GONE
    assert served.hub.idle


def test_blocks_within_the_credit_are_not_answered_but_sent(served: Served) -> None:
    blob = content(2 * BLOCK_BYTES + 7)
    digest = served.blobs.add(blob)
    assert served.ask(digest, (2, 1), (0, 1)) == []
    last, first = served.send()
    assert (last.payload, first.payload) == (blob[2 * BLOCK_BYTES :], blob[:BLOCK_BYTES])
    assert (last.topic, first.topic) == (
        f"edgefleet/1/home/d/pi/b/{digest[7:19]}/8", f"edgefleet/1/home/d/pi/b/{digest[7:19]}/0",
    )  # fmt: skip
    assert {(message.qos, message.retained) for message in (last, first)} == {(0, False)}
    assert served.hub.take_sent() == {"pi": BLOCK_BYTES + 7}
    assert served.send() == []


@pytest.mark.parametrize(("blocks", "credit"), [(((0, 2),), BLOCK_BYTES), (((2, 1),), MAX_CREDIT_BYTES)])
def test_more_than_the_credit_or_the_blob_is_refused_with_the_reason(
    served: Served, blocks: tuple[tuple[int, int], ...], credit: int
) -> None:
    digest = served.blobs.add(content(2 * BLOCK_BYTES))
    (reply,) = served.ask(digest, *blocks, credit=credit)
    assert reply.status is Status.BAD
    assert reply.body
    assert served.send() == []


def test_a_socket_that_is_full_gets_nothing_more(served: Served) -> None:
    digest = served.blobs.add(content(5 * BLOCK_BYTES))
    served.ask(digest, (0, 5))
    served.connection.room = 2
    assert len(served.send()) == 2
    assert served.send() == []
    served.connection.room = 9
    assert len(served.send()) == 3
    assert served.hub.take_sent() == {"pi": 5 * BLOCK_BYTES}


def test_what_was_not_handed_on_is_not_counted(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.ask(served.blobs.add(content(BLOCK_BYTES)), (0, 1))
    monkeypatch.setattr(FakeConnection, "publish", lambda _self, _message: False)
    served.send()
    assert served.hub.take_sent() == {}


def test_a_blob_withdrawn_in_between_costs_only_itself(served: Served) -> None:
    gone, there = served.blobs.add(content(BLOCK_BYTES)), served.blobs.add(content(BLOCK_BYTES, 9))
    served.ask(gone, (0, 1))
    served.ask(there, (0, 1), device="nuc")
    served.blobs.path(gone).unlink()
    (message,) = served.send()
    assert "/d/nuc/b/" in message.topic
    assert served.hub.take_sent() == {"nuc": BLOCK_BYTES}


def test_a_blob_that_a_deployment_repaired_is_opened_anew(served: Served) -> None:
    blob = content(BLOCK_BYTES)
    digest = served.blobs.add(blob)
    path = served.blobs.path(digest)
    path.write_bytes(bytes(BLOCK_BYTES))
    served.ask(digest, (0, 1))
    assert served.send()[0].payload == bytes(BLOCK_BYTES)
    mended = path.with_name(".import-1")
    mended.write_bytes(blob)
    mended.replace(path)
    served.requests.reopen()
    served.ask(digest, (0, 1))
    assert served.send()[0].payload == blob


def test_few_files_stay_open(served: Served) -> None:
    def open_files() -> int:
        links = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
        return sum(link.startswith(str(served.blobs.folder.resolve())) for link in links)

    for number in range(3 * OPEN_BLOBS):
        served.ask(served.blobs.add(content(100, number)), (0, 1), device=f"pi-{number}")
    assert len(served.send()) == 3 * OPEN_BLOBS
    assert 0 < open_files() <= OPEN_BLOBS
    served.requests.reopen()
    assert open_files() == 0
