"""Hubs on a real mosquitto: pieces that its limits take, requests divided, and processes that come back."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgefleet.errors import InputError
from edgefleet.mqtt import BrokerAddress
from edgefleet.package.digest import BLOCK_BYTES
from edgefleet.package.layout import BlobStore
from edgefleet.protocol import topics
from edgefleet.protocol.messages import Reply, Request, Status
from edgefleet.protocol.topics import HUB_USERS, SHARDS, TOPICS, Role, TopicName
from edgefleet.server.data_folder import SHARE_GROUP_FILE, ensure_share_group, share_group, trust_files
from edgefleet.server.hub_children import HubChildren
from edgefleet.server.hub_limits import LIMITS_FILE
from edgefleet.server.hub_link import MAX_UNSENT_BYTES, FromHub, Pipe, Renewed, ToHub
from edgefleet.server.hub_process import HubProcess, HubSettings, Sharing, request_filters
from patience import PATIENCE_S
from sdk.mqtt_made import MOSQUITTO, Party, mosquitto
from sdk.packages_made import content

FLEET = "home"


@pytest.fixture(name="data")
def _data(tmp_path: Path, need: Callable[[bool, str], None]) -> Path:
    need(MOSQUITTO is not None, "mosquitto")
    data = tmp_path / "data"
    BlobStore(data).folder.mkdir(parents=True)
    trust_files(data).mkdir(parents=True)
    (data / "fleet.json").write_text(json.dumps({"fleet": FLEET}))
    return data


class Device:
    """Asks a hub for things and notes what comes."""

    def __init__(self, address: BrokerAddress, name: str = "pi") -> None:
        self.name = name
        self.party = Party(address, name, tuple(topics.filters_read_by(Role.DEVICE, FLEET, name))).connect()
        self.number = 0

    def ask(self, **fields: object) -> str:
        self.number += 1
        request = Request.model_validate({"req_id": f"{self.name}-{self.number}"} | fields)
        topic = topics.topic_for(FLEET, TopicName.REQUEST, self.name)
        assert self.party.publish(topic, request.encode(), TOPICS[TopicName.REQUEST].qos)
        return request.req_id

    def replies(self, req_id: str) -> list[Reply]:
        found = []
        for topic, payload, _ in self.party.came:
            address = topics.parse(FLEET, topic)
            if address is not None and address.name is TopicName.REPLY:
                found.append(Reply.decode(payload))
        return [reply for reply in found if reply.req_id == req_id]

    def whole(self, req_id: str) -> bytes | None:
        parts = {reply.part: reply for reply in self.replies(req_id) if reply.status is Status.OK}
        if not parts or len(parts) < next(iter(parts.values())).parts:
            return None
        return b"".join(parts[number].body for number in sorted(parts))

    def pieces(self) -> dict[int, bytes]:
        """Offset → bytes."""
        found = {}
        for topic, payload, _ in self.party.came:
            address = topics.parse(FLEET, topic)
            if address is not None and address.piece is not None:
                found[address.piece * topics.PIECE_UNIT_BYTES] = payload
        return found


def serve(hub: HubProcess, device: Device, done: Callable[[], bool], again: Callable[[], object]) -> None:
    """Run both until it is done; the device asks again after every loss of the hub, and when nothing comes."""
    deadline, up, due = time.monotonic() + PATIENCE_S, False, 0.0
    while not done():
        now = time.monotonic()
        assert now < deadline, "waited in vain"
        hub.turn(0.002)
        device.party.connection.poll(0.002)
        if hub.connection.connected and (not up or now > due):
            # The subscription goes before the request, as a rule: they take different connections.
            hub.turn(0.02)
            again()
            due = now + 1.0
        up = hub.connection.connected


def watched(hub: HubProcess) -> list[bool]:
    """Every loss of the broker from now on."""
    losses: list[bool] = []
    real = hub.connection._on_lost

    def lost(published: bool) -> None:
        losses.append(published)
        real(published)

    hub.connection._on_lost = lost
    return losses


@pytest.mark.service
@pytest.mark.parametrize("version", ["5", "3.1.1"])
@pytest.mark.parametrize(("packet", "piece"), [(20_000, 15_360), (65_536, 61_440), (None, 61_440)])
def test_a_pull_ends_whatever_the_broker_takes(
    data: Path, tmp_path: Path, packet: int | None, piece: int, version: str
) -> None:
    blob, metadata = content(3 * BLOCK_BYTES + 7), content(40_000, 3)
    blobs = BlobStore(data)
    digest, small = blobs.add(blob), blobs.add(metadata)
    with mosquitto(tmp_path, "" if packet is None else f"max_packet_size {packet}") as address:
        device = Device(address)
        for expected in (0, 0) if version == "5" or piece == BLOCK_BYTES else (2, 0):
            hub = HubProcess(HubSettings(data, address, HUB_USERS[0], tls=False))
            if version == "3.1.1":
                hub.connection._attempts.refused_5(0.0, said_so=True)
            losses = watched(hub)
            asked: list[str] = []
            device.party.came.clear()
            serve(
                hub, device, lambda: any(device.whole(one) == metadata for one in asked),  # noqa: B023
                lambda: asked.append(device.ask(kind="metadata", digest=small)),  # noqa: B023
            )  # fmt: skip
            serve(
                hub, device, lambda: sum(map(len, device.pieces().values())) >= len(blob),
                lambda: device.ask(
                    kind="blocks", digest=digest, blocks=[(0, 4)], credit_bytes=len(blob), fresh=True
                ),
            )  # fmt: skip
            assert hub.connection.protocol == version
            assert (len(losses), hub.limit.halvings) == (expected, expected)
            assert b"".join(part for _, part in sorted(device.pieces().items())) == blob
            assert max(map(len, device.pieces().values())) == piece
            hub.connection.close()
        device.party.connection.close()
    limits = data / LIMITS_FILE
    kept = json.loads(limits.read_bytes()) if limits.exists() else {}
    assert kept == ({str(address): 15_360} if piece == 15_360 and version == "3.1.1" else {})


@pytest.mark.service
def test_two_hubs_divide_the_requests_and_one_alone_takes_all(data: Path, tmp_path: Path) -> None:
    """Through shared subscriptions: the broker says with MQTT 5 that it has them."""
    (trust_files(data) / "timestamp.json").write_bytes(b"{}")
    ensure_share_group(data)
    with mosquitto(tmp_path) as address:
        hubs = [HubProcess(HubSettings(data, address, name, 2, tls=False)) for name in HUB_USERS[:2]]
        served = [0, 0]
        for place, hub in enumerate(hubs):
            real = hub.connection._on_message

            def receive(*taken: Any, place: int = place, real: Callable[..., None] = real) -> None:
                served[place] += 1
                real(*taken)

            hub.connection._on_message = receive
        device = Device(address)
        asked: list[str] = []

        def ask(working: list[HubProcess]) -> bool:
            turn(working)
            asked.append(device.ask(kind="trust", name="timestamp.json"))
            return True

        # What is asked before a subscription has come to the broker is lost: so ask until both have had their share.
        device.party.until(lambda: ask(hubs) and min(served) >= 3)
        device.party.until(lambda: turn(hubs) and sum(map(len, map(device.replies, asked))) == sum(served))
        assert max(len(device.replies(one)) for one in asked) == 1
        hubs[0].connection.close()
        before = served[1]
        device.party.until(lambda: ask(hubs[1:]) and served[1] >= before + 3)
        device.party.connection.close()
        hubs[1].connection.close()


def turn(hubs: list[HubProcess]) -> bool:
    for hub in hubs:
        hub.turn(0.002)
    return True


@pytest.mark.parametrize("hubs", range(1, 9))
def test_shards_are_divided_without_rest_and_without_overlap(hubs: int) -> None:
    filters = [request_filters(FLEET, number, hubs, group=None) for number in range(hubs)]
    flat = [one for each in filters for one, _ in each]
    assert len(flat) == len(set(flat)) == (1 if hubs == 1 else SHARDS)
    for device in ("pi", "nuc", "cam-1", "cam-2"):
        topic = topics.topic_for(FLEET, TopicName.REQUEST, device).split("/")
        matching = [one for one in flat if all(a in ("+", b) for a, b in zip(one.split("/"), topic, strict=True))]
        assert len(matching) == 1


def test_one_hub_asks_no_broker_for_shared_subscriptions() -> None:
    """Amqtt takes such a filter, and delivers nothing."""
    assert request_filters(FLEET, 0, 1, group="hubs-x") == request_filters(FLEET, 0, 1, group=None)
    ((shared, _),) = request_filters(FLEET, 3, 4, group="hubs-x")
    assert shared == "$share/hubs-x/edgefleet/1/home/req/+/+"


@pytest.mark.parametrize(("name", "hubs"), [("edgefleet-server", 1), ("hub-1", 1), ("edgefleet-hub-3", 2)])
def test_a_hub_has_one_of_the_hubs_names(tmp_path: Path, name: str, hubs: int) -> None:
    with pytest.raises(InputError):
        _ = HubSettings(tmp_path, BrokerAddress("127.0.0.1", 1), name, hubs, sharing=Sharing.SHARDED).number


# The link ---------------------------------------------------------------------------------------------


@pytest.fixture(name="ends")
def _ends() -> Iterator[tuple[Pipe, Pipe]]:
    (a_read, b_write), (b_read, a_write) = os.pipe(), os.pipe()
    yield Pipe(a_read, a_write), Pipe(b_read, b_write)
    for descriptor in (a_read, a_write, b_read, b_write):
        try:
            os.close(descriptor)
        except OSError:
            continue


def test_lines_come_as_they_were_sent_and_torn_ones_are_ignored(ends: tuple[Pipe, Pipe]) -> None:
    near, far = ends
    told = ToHub(
        denied={"pi": "two boards"}, gone=("nuc",),
        renewed=(Renewed(device="pi", req_id="1", status=Status.OK, body=b"\xff\n"),),
    )  # fmt: skip
    near.send(told)
    near.send(ToHub())
    assert [ToHub.read(line) for line in far.lines()] == [told, ToHub()]
    os.write(near._write_fd, b'{"denied": {"pi"')
    assert far.lines() == []
    os.close(near._write_fd)
    assert (far.lines(), far.closed) == ([], True)
    assert ToHub.read(b'{"denied": {"pi"') is None


def test_a_side_that_reads_nothing_blocks_nobody_and_costs_no_memory(ends: tuple[Pipe, Pipe]) -> None:
    near, far = ends
    line = FromHub(sent={"pi": 1})
    for _ in range(200_000):
        near.send(line)
    assert len(near._unsent) <= MAX_UNSENT_BYTES + 100
    got = far.lines()
    assert got
    assert all(FromHub.read(one) == line for one in got)


# Processes --------------------------------------------------------------------------------------------


def tend(children: HubChildren, until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not until():
        assert time.monotonic() < deadline, "waited in vain"
        children.tend(time.monotonic())
        time.sleep(0.01)


@pytest.mark.service
def test_a_hub_that_is_killed_is_started_again_and_still_knows_whom_to_deny(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (trust_files(data) / "timestamp.json").write_bytes(b"{}")
    caplog.set_level(logging.INFO, "edgefleet.server")
    with mosquitto(tmp_path) as address:
        arguments = ["--data", str(data), "--broker", str(address), "--no-tls"]
        children = HubChildren(HUB_USERS[:1], arguments, on_line=lambda *_: None)
        children.deny({"odd": "two boards"})
        try:
            pi, odd = Device(address), Device(address, "odd")
            for _ in range(2):
                answered(children, pi, Status.OK)
                answered(children, odd, Status.DENIED)
                (process_id,) = children.process_ids.values()
                os.kill(process_id, signal.SIGKILL)
                tend(children, lambda was=process_id: children.process_ids.get(HUB_USERS[0], was) != was)  # type: ignore[misc]
        finally:
            children.stop()
            for device in (pi, odd):
                device.party.connection.close()
    assert children.process_ids == {}
    assert "ended with -9; starting it again in 0.2 s" in caplog.text


def answered(children: HubChildren, device: Device, status: Status) -> None:
    """Ask once a second, as long as no hub is there, until one answers."""
    asked: list[str] = []
    due = 0.0

    def done() -> bool:
        nonlocal due
        children.tend(time.monotonic())
        if time.monotonic() > due:
            due = time.monotonic() + 0.3
            asked.append(device.ask(kind="trust", name="timestamp.json"))
        return any(reply.status is status for one in asked for reply in device.replies(one))

    device.party.until(done)


@pytest.mark.service
def test_a_hub_ends_with_the_process_that_started_it(data: Path, tmp_path: Path) -> None:
    """Also when that is killed, and cannot say so."""
    with mosquitto(tmp_path) as address:
        code = (
            "import sys, time\n"
            "from edgefleet.server.hub_children import HubChildren\n"
            "hubs = HubChildren(['edgefleet-hub-1'], sys.argv[1:], on_line=lambda *_: None)\n"
            "hubs.tend(time.monotonic())\n"
            "print(hubs.process_ids['edgefleet-hub-1'], flush=True)\n"
            "time.sleep(100)\n"
        )
        arguments = ["--data", str(data), "--broker", str(address), "--no-tls"]
        parent = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE)
        assert parent.stdout is not None
        process_id = int(parent.stdout.readline())
        watch = os.pidfd_open(process_id)
        device = Device(address)
        (trust_files(data) / "timestamp.json").write_bytes(b"{}")
        asked: list[str] = []

        def up() -> bool:
            asked.append(device.ask(kind="trust", name="timestamp.json"))
            return any(device.replies(one) for one in asked)

        device.party.until(up)
        parent.kill()
        parent.wait()
        parent.stdout.close()
        ended = ends_within(watch, PATIENCE_S)
        os.close(watch)
        device.party.connection.close()
    assert ended


def ends_within(process: int, timeout_s: float) -> bool:
    """Whether the process of a pidfd has ended in that time."""
    waiting = select.poll()
    waiting.register(process, select.POLLIN)
    return bool(waiting.poll(1000 * timeout_s))


def test_the_name_of_the_hubs_group_is_a_secret_of_the_servers_folder(tmp_path: Path) -> None:
    """A broker that does not check subscriptions lets a device join a group whose name it knows."""
    with pytest.raises(InputError, match="copy it from the server"):
        share_group(tmp_path)
    first = ensure_share_group(tmp_path)
    assert first == ensure_share_group(tmp_path) == share_group(tmp_path)
    assert (tmp_path / SHARE_GROUP_FILE).stat().st_mode & 0o077 == 0
    assert len(first) > 32


def test_a_retained_request_is_nobodys(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker would pass it on at each start of a hub, long after its device was removed."""
    hub = HubProcess(HubSettings(data, BrokerAddress("127.0.0.1", 9), HUB_USERS[0], tls=False))
    taken: list[str] = []
    monkeypatch.setattr(hub.requests, "receive", lambda device, *_: taken.append(device))
    topic = topics.topic_for(FLEET, TopicName.REQUEST, "pi")
    hub._receive(topic, b"{}", True)
    hub._receive(topic, b"{}", False)
    assert taken == ["pi"]
