"""Answers to requests: metadata in parts, blocks within their credit, and a word for everything else."""

from __future__ import annotations

import os
import random
import time
import zlib
from pathlib import Path
from typing import cast

import pytest

from edgefleet.mqtt import Connection, Outgoing
from edgefleet.package.digest import BLOCK_BYTES, digest_of
from edgefleet.package.layout import BlobStore
from edgefleet.prior import prior_name
from edgefleet.protocol import topics
from edgefleet.protocol.decisions import Objective
from edgefleet.protocol.messages import MAX_CREDIT_BYTES, REPLY_PART_BYTES, Reply, Request, RequestKind, Status
from edgefleet.protocol.topics import TopicName
from edgefleet.server.blob_files import OPEN_BLOBS
from edgefleet.server.budget import REQUEST_BURST, TokenBucket
from edgefleet.server.data_folder import prior_file, trust_files
from edgefleet.server.hub import Hub
from edgefleet.server.locate import Locator
from edgefleet.server.packet_limit import PacketLimit
from edgefleet.server.requests import MAX_DEFLATED_BYTES, MAX_METADATA_BYTES, RENEW_EVERY_S, Requests
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
    """A data folder behind a hub, and what was sent."""

    def __init__(self, folder: Path, locator: Locator | None = None) -> None:
        self.now = 1000.0
        self.blobs = BlobStore(folder)
        self.blobs.folder.mkdir(parents=True)
        trust_files(folder).mkdir(parents=True)
        self.hub = Hub(TokenBucket(None, self.now))
        self.limit = PacketLimit()
        self.connection = FakeConnection()
        self.renewals: list[tuple[str, str, bytes]] = []
        self.requests = Requests(
            folder, "home", self.hub, self.limit, self._publish,
            locator=locator, renew=lambda *asked: self.renewals.append(asked),
        )  # fmt: skip
        self.number = 0

    def _publish(self, message: Outgoing) -> bool:
        return self.connection.publish(message)

    def ask(self, digest: str, *blocks: tuple[int, int], credit: int | None = None, device: str = "pi") -> list[Reply]:
        """Blocks when there are any, else metadata; returns what was answered."""
        count = sum(count for _, count in blocks)
        return self.put(
            device,
            kind=RequestKind.BLOCKS if blocks else RequestKind.METADATA,
            digest=digest,
            blocks=blocks,
            credit_bytes=count * BLOCK_BYTES if credit is None else credit,
        )

    def put(self, device: str = "pi", **fields: object) -> list[Reply]:
        """A request of any kind; returns what was answered, and sends no block."""
        self.number += 1
        request = Request.model_validate({"req_id": f"1-{self.number}"} | fields)
        self.connection.published.clear()
        self.requests.receive(device, request.encode(), self.now)
        while (part := self.hub.next_part(self.now)) is not None:
            self.requests._send_part(part, self.now)
        replies = self.replies()
        assert all((to, reply.req_id) == (device, request.req_id) for to, reply in replies)
        return [reply for _, reply in replies]

    def send_more(self) -> None:
        self.requests.send_due(cast("Connection", self.connection))

    def send(self) -> list[Outgoing]:
        self.connection.published.clear()
        self.send_more()
        return list(self.connection.published)

    def replies(self) -> list[tuple[str, Reply]]:
        found = []
        for message in self.connection.published:
            address = topics.parse("home", message.topic)
            assert address is not None
            if address.name is TopicName.REPLY:
                assert (message.qos, message.retained) == (0, False)
                found.append((address.device, Reply.decode(message.payload)))
        return found


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


def test_metadata_comes_deflated_where_the_device_takes_it_and_it_is_smaller(served: Served) -> None:
    for blob, smaller in (
        (b"metadata " * 1000, True),
        (random.Random(1).randbytes(1000), False),
        (b"x" * MAX_DEFLATED_BYTES * 2, False),
    ):
        digest = served.blobs.add(blob)
        assert b"".join(reply.body for reply in served.ask(digest)) == blob
        asked = served.put(kind=RequestKind.METADATA, digest=digest, deflate=True)
        body = b"".join(reply.body for reply in asked)
        assert (zlib.decompress(body) if smaller else body) == blob
        assert (len(body) < len(blob) / 10) is smaller


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


def test_a_blob_withdrawn_in_mid_pull_is_told_at_once_to_all_that_wait_for_it(served: Served) -> None:
    """Also while the file is still open here: an open file outlives its name."""
    gone, there = served.blobs.add(content(3 * BLOCK_BYTES)), served.blobs.add(content(BLOCK_BYTES, 9))
    served.ask(gone, (0, 3))
    served.ask(gone, (0, 1), device="cam")
    served.connection.room = 1
    assert len(served.send()) == 1
    served.ask(there, (0, 1), device="nuc")
    served.blobs.path(gone).unlink()
    served.connection.room = 100
    sent = served.send()
    assert [(to, reply.req_id, reply.status) for to, reply in served.replies()] == [
        ("cam", "1-2", Status.GONE), ("pi", "1-1", Status.GONE),
    ]  # fmt: skip
    assert [message.payload for message in sent if "/b/" in message.topic] == [content(BLOCK_BYTES, 9)]
    assert served.hub.idle
    (reply,) = served.ask(gone, (2, 1))
    assert reply.status is Status.GONE


def test_a_blob_that_was_cut_short_is_gone_too(served: Served) -> None:
    digest = served.blobs.add(content(2 * BLOCK_BYTES))
    served.ask(digest, (0, 2))
    with served.blobs.path(digest).open("r+b") as stream:
        stream.truncate(10)
    served.send()
    assert [reply.status for _, reply in served.replies()] == [Status.GONE]


def test_a_blob_that_was_repaired_is_opened_anew(served: Served) -> None:
    blob = content(BLOCK_BYTES)
    digest = served.blobs.add(blob)
    path = served.blobs.path(digest)
    path.write_bytes(bytes(BLOCK_BYTES))
    served.ask(digest, (0, 1))
    assert served.send()[0].payload == bytes(BLOCK_BYTES)
    mended = path.with_name(".import-1")
    mended.write_bytes(blob)
    mended.replace(path)
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


# Other kinds of requests ------------------------------------------------------------------------------


def test_a_trust_file_comes_whole_and_a_missing_one_is_gone(served: Served, tmp_path: Path) -> None:
    root = content(2 * REPLY_PART_BYTES + 1)
    (trust_files(tmp_path) / "1.root.json").write_bytes(root)
    replies = served.put(kind="trust", name="1.root.json")
    assert b"".join(reply.body for reply in replies) == root
    assert [reply.status for reply in served.put(kind="trust", name="2.root.json")] == [Status.GONE]


@pytest.mark.parametrize("name", ["../online.pem", "/etc/passwd", "online.pem", "..json", "1.root.json/../x.json"])
def test_nothing_beside_the_metadata_can_be_reached(served: Served, tmp_path: Path, name: str) -> None:
    (tmp_path / "trust" / "online.pem").write_bytes(b"the key")
    payload = Request(req_id="1", kind=RequestKind.TRUST, name="1.root.json").encode()
    served.requests.receive("pi", payload.replace(b"1.root.json", name.encode()), served.now)
    served.send_more()
    assert served.connection.published == []


def test_a_renewal_goes_to_the_server_and_comes_back_as_a_reply(served: Served) -> None:
    assert served.put(kind="renew", body=b"-----BEGIN") == []
    assert served.renewals == [("pi", "1-1", b"-----BEGIN")]


def test_a_device_that_asks_for_one_certificate_after_the_other_is_told_to_wait(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    body = b"-----BEGIN"
    assert served.put(kind="renew", body=body, req_id="first") == []
    assert served.put(kind="renew", body=body, req_id="first") == [], "QoS 1 may deliver twice"
    assert [reply.status for reply in served.put(kind="renew", body=body)] == [Status.BUSY]
    assert served.put("nuc", kind="renew", body=body) == []
    clock[0] += RENEW_EVERY_S
    assert served.put(kind="renew", body=body, req_id="later") == []
    assert [(device, req_id) for device, req_id, _ in served.renewals] == [
        ("pi", "first"), ("nuc", "1-4"), ("pi", "later"),
    ]  # fmt: skip


def test_a_hub_without_a_server_sends_renewals_elsewhere(tmp_path: Path) -> None:
    served = Served(tmp_path)
    served.requests._renew = None
    (reply,) = served.put(kind="renew", body=b"-----BEGIN")
    assert reply.status is Status.BUSY
    assert reply.retry_after_s is not None
    assert reply.retry_after_s > 10


def test_a_blob_is_located_where_there_is_http(tmp_path: Path) -> None:
    served = Served(tmp_path, Locator("https://cdn/{digest}"))
    digest = served.blobs.add(b"blob")
    (reply,) = served.put(kind="locate", digest=digest)
    assert (reply.status, reply.body) == (Status.OK, f"https://cdn/{digest}".encode())
    assert [reply.status for reply in served.put(kind="locate", digest=digest_of(b"none"))] == [Status.GONE]


def test_a_prior_is_served_to_its_hardware_and_for_its_package(tmp_path: Path) -> None:
    served = Served(tmp_path)
    name = prior_name("h0123456789abcdef", Objective.LATENCY)
    path = prior_file(tmp_path, digest_of(b"index"), name)
    path.parent.mkdir()
    path.write_bytes(b"a prior")
    (reply,) = served.put(kind="prior", digest=digest_of(b"index"), name=name)
    assert (reply.status, reply.body) == (Status.OK, b"a prior")
    others = [
        {"digest": digest_of(b"index"), "name": prior_name("h" + "0" * 16, Objective.LATENCY)},
        {"digest": digest_of(b"index"), "name": prior_name("h0123456789abcdef", Objective.SIZE)},
        {"digest": digest_of(b"another"), "name": name},
        {"digest": digest_of(b"index")},
    ]
    for other in others:
        assert [reply.status for reply in served.put(kind="prior", **other)] == [Status.GONE]


def test_without_http_nothing_is_located(served: Served) -> None:
    assert [reply.status for reply in served.put(kind="locate", digest=served.blobs.add(b"x"))] == [Status.GONE]


def test_who_is_denied_gets_the_reason_and_nothing_else(served: Served) -> None:
    digest = served.blobs.add(b"blob")
    served.requests.denied = {"pi": "two boards under one name"}
    for blocks in ((), ((0, 1),)):
        (reply,) = served.ask(digest, *blocks)
        assert (reply.status, reply.body) == (Status.DENIED, b"two boards under one name")
    assert served.hub.idle
    assert [reply.status for reply in served.ask(digest, device="nuc")] == [Status.OK]


def test_a_device_that_floods_is_told_once_a_second_and_costs_nobody_else_anything(served: Served) -> None:
    digest = served.blobs.add(b"blob")
    statuses: list[Status] = []
    for number in range(1000):
        statuses += [reply.status for reply in served.put("flood", kind="metadata", digest=digest)]
        served.now += 0.001
        if number % 100 == 0:
            assert [reply.status for reply in served.put("pi", kind="metadata", digest=digest)] == [Status.OK]
    assert statuses.count(Status.OK) in range(int(REQUEST_BURST), int(REQUEST_BURST) + 21)
    assert statuses.count(Status.BUSY) == 1
    assert len(statuses) < 70


def test_a_device_that_is_served_may_ask_as_often_as_it_is_served(served: Served) -> None:
    """A fast device asks for the next blocks a hundred times a second."""
    digest = served.blobs.add(content(32 * BLOCK_BYTES))
    for _ in range(300):
        assert served.ask(digest, (0, 32)) == []
        assert len(served.send()) == 32


def test_busy_says_when_to_ask_again(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = served.blobs.add(content(2 * BLOCK_BYTES))
    monkeypatch.setattr(Hub, "busy_s", lambda _hub: 4.0)
    replies = [served.ask(digest, (0, 2), device=f"pi-{number}") for number in range(20)]
    waits = {reply.retry_after_s for (reply,) in replies if reply.status is Status.BUSY}
    assert len(waits) == 20, "with jitter"
    assert all(wait is not None and 2.0 <= wait <= 6.0 for wait in waits)
    assert served.put(kind="blocks", digest=digest, fresh=True) == [], "giving back is never refused"


def test_smaller_packets_carry_the_same(served: Served) -> None:
    served.limit.connected(20_000)
    served.hub.piece_bytes, served.hub.part_bytes = served.limit.piece_bytes, served.limit.part_bytes
    blob = content(2 * BLOCK_BYTES + 7)
    digest = served.blobs.add(blob)
    assert b"".join(reply.body for reply in served.ask(digest)) == blob
    assert all(len(message.payload) + len(message.topic) < 19_900 for message in served.connection.published)
    served.ask(digest, (0, 3))
    pieces = {}
    while sent := served.send():
        for message in sent:
            address = topics.parse("home", message.topic)
            assert address is not None
            assert address.piece is not None
            pieces[address.piece * topics.PIECE_UNIT_BYTES] = message.payload
            assert len(message.payload) <= topics.PIECE_UNIT_BYTES
    assert b"".join(pieces[offset] for offset in sorted(pieces)) == blob
