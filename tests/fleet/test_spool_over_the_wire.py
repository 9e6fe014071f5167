"""The spool against a real broker and a real server that die at the worst moments: nothing is lost, nothing is twice.

The device's side is the agent's own spool and outbox on the agent's own connection, turned by the test: so much
telemetry comes in a second here as in hours on a device.
"""

from __future__ import annotations

import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest

from edgefleet.protocol import topics
from edgefleet.protocol.messages import Ack, Facts
from edgefleet.protocol.topics import TopicName
from edgefleet.server.data_folder import STORE_FILE
from edgefleet_agent import spool as spools
from edgefleet_agent.acceptance import Own
from edgefleet_agent.journal import Journal
from edgefleet_agent.outbox import Outbox
from edgefleet_agent.spool import IN_FLIGHT, Spool
from edgefleet_agent.spool_file import LEAST_BYTES
from edgefleet_demo import scene
from faults.patient import meddled
from fleet_lab import Lab, server_command
from sdk.wire_examples import WINDOW

NAME = "pi-1"
WINDOWS = 2000
EVENT_EVERY = 100


class Device:
    """A spool, and the outbox that sends what it holds."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.path = folder / "spool.sqlite"
        own = Own(scene.FLEET, NAME, lab.enrol(NAME).enrolment_id)
        self._own = own
        self.windows = 0
        self.open()
        self.connection = lab.connect(NAME, on_message=self._receive, on_connected=self._restart)
        self.reopen_outbox()

    def open(self, limit_bytes: int = 16_000_000) -> None:
        self.spool = Spool(self.path, self._own.enrolment_id, "b1", limit_bytes=limit_bytes, replay_per_s=1000.0)
        # What is on the disk when the machine dies is another test's business.
        self.spool._file._db.execute("PRAGMA synchronous = OFF")

    def reopen_outbox(self) -> None:
        # Of what an outbox has, sending what is spooled needs neither journal nor facts.
        none = cast("Journal", None), cast("Facts", None)
        self._outbox = Outbox(self.connection, self._own, none[0], self.spool, none[1])

    def _restart(self) -> None:
        self.spool.restart()

    def _receive(self, topic: str, payload: bytes, _retained: bool) -> None:
        address = topics.parse(scene.FLEET, topic)
        if address is not None and address.name is TopicName.ACK:
            ack = Ack.decode(payload)
            self.spool.acknowledged(ack.spool_id, ack.seq, time.monotonic())

    def measure(self, windows: int) -> None:
        """Add windows, and an event after every so many."""
        for _ in range(windows):
            self.windows += 1
            self.spool.add_window(WINDOW.model_copy(update={"duration_s": float(self.windows)}))
            if self.windows % EVENT_EVERY == 0:
                self.spool.add_event("note", str(self.windows))

    def turn(self) -> None:
        """One turn of the agent's loop, as far as telemetry goes."""
        self.connection.poll(0.005)
        self._outbox.send_spooled(time.monotonic())

    def until(self, ready: Callable[[], bool], what: str) -> None:
        """Turn until something holds."""

        def turned() -> bool:
            self.turn()
            return ready()

        self.lab.wait(turned, what)

    @property
    def waiting(self) -> int:
        """How many messages the server has not acknowledged."""
        return self.spool._file.count(self.spool._settled_seq, 10**9)

    def drain(self) -> None:
        """Turn until the server has acknowledged everything."""
        self.until(lambda: not self.waiting, "the last acknowledgement")


@pytest.fixture(name="device")
def _device(lab: Lab, tmp_path: Path) -> Iterator[Device]:
    device = Device(lab, tmp_path)
    yield device
    device.connection.close()
    device.spool.close()


def stored(lab: Lab) -> int:
    """Messages of the device in the server's store."""
    return len(numbers(lab))


def numbers(lab: Lab) -> list[tuple[str, int]]:
    """(spool, number) of each message in the store, in order."""
    sql = "SELECT spool_id, seq FROM {} WHERE device = ?"
    both = f"{sql.format('telemetry')} UNION ALL {sql.format('events')} ORDER BY 1, 2"
    with closing(sqlite3.connect(f"file:{lab.data / STORE_FILE}?mode=ro", uri=True)) as store:
        return [(str(spool), int(seq)) for spool, seq in store.execute(both, (NAME, NAME))]


def durations(lab: Lab) -> list[int]:
    """What the windows in the store say, in order: each says something else."""
    with closing(sqlite3.connect(f"file:{lab.data / STORE_FILE}?mode=ro", uri=True)) as store:
        return [int(row[0]) for row in store.execute("SELECT duration_s FROM telemetry ORDER BY duration_s")]


def assert_none_lost_none_twice(lab: Lab, device: Device) -> None:
    newest = device.windows + device.windows // EVENT_EVERY
    assert numbers(lab) == [(device.spool.id, seq) for seq in range(1, newest + 1)]
    assert durations(lab) == list(range(1, device.windows + 1))


def test_ingest_down_for_two_thousand_windows(lab: Lab, device: Device) -> None:
    """The broker takes a hundred of them and says so; that is not storage."""
    lab.server.kill()
    device.measure(WINDOWS)
    device.until(lambda: device.spool._sent_seq >= IN_FLIGHT, "all that may be in flight to be sent")
    assert device.waiting == WINDOWS + WINDOWS // EVENT_EVERY
    lab.start_server()
    device.drain()
    assert_none_lost_none_twice(lab, device)


def test_the_broker_dies_in_the_middle(lab: Lab, device: Device) -> None:
    device.measure(WINDOWS)
    device.until(lambda: stored(lab) >= WINDOWS // 4, "a part of it to be stored")
    assert device.waiting
    lab.broker_process.kill()
    device.until(lambda: not device.connection.connected, "the device to notice")
    device.measure(50)
    lab.broker_process = lab.broker.start(lab.group)
    device.drain()
    assert_none_lost_none_twice(lab, device)


@pytest.mark.parametrize("call", ["pwrite64", "fdatasync"])
def test_the_server_dies_with_messages_that_it_has_taken_and_not_stored(
    lab: Lab, device: Device, call: str, need: Callable[[bool, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed where it would write to the store's log, or where that is written and no device has been told: in
    both cases the broker has been told that the messages came."""
    need(shutil.which("strace") is not None, "strace (a system package)")
    monkeypatch.setattr(spools, "RESEND_AFTER_S", 1.0)
    log = lab.data / f"{STORE_FILE}-wal"
    lab.server.stop()
    for number in (12, 17, 22):
        tracer = meddled(log, call, f"signal=KILL:when={number}")
        server = lab.group.start("server", [*tracer, *server_command(lab.data, lab.broker, None)])
        while server.exit_code is None:
            device.measure(max(0, IN_FLIGHT - device.waiting))
            device.turn()
        assert server.exit_code == -signal.SIGKILL
        assert device.waiting
    lab.start_server()
    device.drain()
    assert_none_lost_none_twice(lab, device)


def test_a_spool_that_overflowed_says_what_is_missing(lab: Lab, device: Device) -> None:
    lab.server.kill()
    device.spool.close()
    device.open(LEAST_BYTES)
    device.reopen_outbox()
    while not device.spool._file.lost():
        device.measure(EVENT_EVERY)
    lost = device.spool._file.lost()
    newest = device.spool._file.newest_seq
    lab.start_server()
    device.drain()
    missing = set(range(1, newest + 1)) - {seq for _, seq in numbers(lab)}
    assert (len(missing), min(missing), max(missing)) == (lost.dropped, lost.first_seq, lost.last_seq)
    said = lab.store.events(NAME)
    notes = [text for kind, text in said if kind == "note"]
    assert notes == [str(count) for count in range(EVENT_EVERY, device.windows + 1, EVENT_EVERY)]
    assert [text for kind, text in said if kind == "telemetry_lost"] == [
        f"{lost.dropped} messages between the numbers 1 and {lost.last_seq} were given up"
    ]


def test_a_damaged_spool_costs_what_it_held_and_is_said(lab: Lab, device: Device) -> None:
    device.measure(10)
    device.drain()
    first = device.spool.id
    device.spool.close()
    device.path.write_bytes(b"\xa5" * 20_000)
    device.open()
    device.reopen_outbox()
    device.measure(10)
    device.drain()
    assert numbers(lab) == sorted(
        [(first, seq) for seq in range(1, 11)] + [(device.spool.id, seq) for seq in range(1, 12)]
    )
    assert [kind for kind, _ in lab.store.events(NAME)] == ["damage"]
