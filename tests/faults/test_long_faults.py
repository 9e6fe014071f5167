"""What lasts: a broker that is gone for a day, sensors that vanish, a damaged spool, a second agent on the folder.

In this process, on a clock set by hand.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from agent.agent_lab import FLEET, Device, Fleet, Hubs, write_settings
from agent.sensor_trees import Board
from edgefleet.errors import BusyError
from edgefleet.protocol.messages import Ack, Event, State, Telemetry, Window
from edgefleet.protocol.topics import TopicName, parse
from edgefleet.server.store import Store
from edgefleet_agent.agent import Agent
from edgefleet_agent.clock import StampClock
from edgefleet_agent.spool import Spool
from edgefleet_agent.spool_file import LEAST_BYTES
from edgefleet_agent.tally import Tally
from edgefleet_agent.thermal import Thermal
from edgefleet_agent.windows import Windows
from edgefleet_device_profiles import catalogue
from faults.matrix import sampled
from sdk.wire_examples import ACTIVE, FACTS, WINDOW

DAY_S = 86400
WINDOW_S = 30
EVENT_EVERY_S = 900
SPOOL_MB = 2
TURN_S = 0.1


class Clock:
    """The monotonic clock of this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture(name="device")
def _device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    home = Fleet.found(tmp_path / "fleet")
    home.enroll(tmp_path / "identity")
    settings = write_settings(tmp_path)
    telemetry = settings.telemetry.model_copy(update={"spool_mb": SPOOL_MB, "window_s": WINDOW_S})
    return Device(settings.model_copy(update={"telemetry": telemetry}), Hubs(home), monkeypatch)


def test_the_broker_is_gone_for_a_day(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, clock, store = device.agent, Clock(monkeypatch), Store(tmp_path / "store.sqlite")
    agent._spool._file._db.execute("PRAGMA synchronous = OFF")
    device.forget_inference()
    agent.journal.record(state=State.COMMITTED, active=ACTIVE)
    agent.tick(clock.now)
    device.wire.connected = False
    for second in range(0, DAY_S, WINDOW_S):
        clock.now += WINDOW_S
        agent.tick(clock.now)
        agent.add_window(WINDOW.model_copy(update={"digest": ACTIVE.digest, "duration_s": float(second + 1)}))
        if second % EVENT_EVERY_S == 0:
            agent.note("note", str(second))
        if second % (DAY_S // 24) == 0:
            held = sum(path.stat().st_size for path in tmp_path.glob("state/spool.sqlite*"))
            assert held <= SPOOL_MB * 1_000_000
    assert (agent.journal.entry.state, agent.journal.entry.active) == (State.COMMITTED, ACTIVE)
    lost, newest = agent._spool._file.lost(), agent._spool._file.newest_seq
    assert 0 < lost.dropped < newest
    device.wire.connected = True
    agent._hello()
    store.add_facts(agent.own.device, FACTS, 0.0)
    _drain(device, clock, store)
    said = store.events(agent.own.device)
    assert [text for kind, text in said if kind == "note"] == [str(at) for at in range(0, DAY_S, EVENT_EVERY_S)]
    gaps = [text for kind, text in said if kind == "telemetry_lost"]
    assert gaps == [f"{lost.dropped} messages between the numbers {lost.first_seq} and {lost.last_seq} were given up"]
    events = len(said) - len(gaps)
    assert store.telemetry(agent.own.device, ACTIVE.digest).windows == newest - events - lost.dropped
    store.close()
    device.close()


def _drain(device: Device, clock: Clock, store: Store) -> None:
    """Turn the loop until the server has it all."""
    agent, seen = device.agent, 0
    turns = 0
    while agent._spool._file.newest_seq > agent._spool._settled_seq:
        turns += 1
        assert turns < DAY_S
        clock.now += TURN_S
        agent.tick(clock.now)
        new, seen = device.wire.sent[seen:], len(device.wire.sent)
        contiguous = 0
        with store.transaction():
            for sent in new:
                address = parse(FLEET, sent.topic)
                name = None if address is None else address.name
                message: Event | Telemetry | None = None
                if name is TopicName.TELEMETRY:
                    message = Telemetry.decode(sent.payload)
                    store.add_telemetry(agent.own.device, message, clock.now)
                elif name is TopicName.EVENTS:
                    message = Event.decode(sent.payload)
                    store.add_event(agent.own.device, message, clock.now)
                if message is not None:
                    contiguous = store.advance(agent.own.device, message.spool_id, message.oldest_seq)
        if contiguous:
            ack = Ack(spool_id=agent._spool.id, seq=contiguous)
            device.receive(TopicName.ACK, ack.encode())


@pytest.mark.parametrize("name", sampled("sensors", ["pi-4-ina219", "orin-nano", "nuc"]))
def test_sensors_vanish_while_windows_are_taken(name: str, tmp_path: Path) -> None:
    """A bus that hangs, a driver that is unloaded: windows go on, and what nobody measured is not called measured."""
    board = Board(tmp_path / "root", name)
    meter = board.meter()
    thermal = Thermal(board.root, catalogue.load(board.profile), simulated=False)
    windows = Windows(meter, thermal, StampClock("b1", lambda: 0.0, lambda: True))
    windows.begin()

    def window() -> Window:
        board.run(meter, 30.0, turn_s=1.0)
        windows.tick(board.now)
        tally = Tally()
        tally.add(0.002, 0.003, 0.0001)
        report = tally.report() | {"kind": "window", "duration_s": 30.0, "cpu_s": 1.0}
        return windows.close(report, ACTIVE.digest, 1)

    before = [window() for _ in range(2)][-1]
    assert before.energy.source == "measured"
    assert before.thermal.temperature_c is not None
    (board.root / "sys").rename(tmp_path / "away")
    while_gone = [window() for _ in range(3)][-1]
    assert (while_gone.count, while_gone.energy.source) == (1, "estimated")
    assert while_gone.thermal.temperature_c is None
    shutil.copytree(tmp_path / "away", board.root / "sys", symlinks=True)
    after = [window() for _ in range(4)][-1]
    assert (after.energy.source, after.thermal.temperature_c) == ("measured", before.thermal.temperature_c)


SPOOL_PARTS = {"file": ("spool.sqlite",), "log": ("spool.sqlite-wal",), "both": ("spool.sqlite", "spool.sqlite-wal")}
SPOOLS = [f"{where} {how}" for where in SPOOL_PARTS for how in ("cut", "flipped", "empty", "zeros")]
WINDOWS = 60


def _open(path: Path) -> Spool:
    return Spool(path, "e1", "b1", limit_bytes=LEAST_BYTES, replay_per_s=1000.0)


def _deliver(spool: Spool, store: Store, most: int, now: float) -> int:
    """Send what is due, `most` messages of it; returns the number up to which the server has all."""
    contiguous = 0
    with store.transaction():
        for message, _ in zip(spool.due(now), range(most), strict=False):
            if isinstance(message, Telemetry):
                store.add_telemetry("pi", message, now)
            elif isinstance(message, Event):
                store.add_event("pi", message, now)
            contiguous = store.advance("pi", message.spool_id, message.oldest_seq)
    return contiguous


def _damage(content: bytes, how: str) -> bytes:
    middle = len(content) // 2
    made = {"cut": content[:middle], "empty": b"", "zeros": bytes(len(content))}
    flipped = bytes(byte ^ 0xFF for byte in content[middle : middle + 64])
    return made.get(how, content[:middle] + flipped + content[middle + 64 :])


@pytest.mark.parametrize("case", sampled("spool", SPOOLS))
def test_a_damaged_spool(case: str, tmp_path: Path) -> None:
    """The server has most of what it held: that does not come twice, nothing new comes under its numbers, and what the
    damage cost is said."""
    where, how = case.split()
    store = Store(tmp_path / "store.sqlite")
    store.add_facts("pi", FACTS, 0.0)
    crashed, home = _open(tmp_path / "spool.sqlite"), tmp_path / "copy"
    for number in range(WINDOWS):
        crashed.add_window(WINDOW.model_copy(update={"duration_s": float(number + 1)}))
    assert _deliver(crashed, store, WINDOWS - 10, 0.0) == WINDOWS - 10
    home.mkdir()
    for name in SPOOL_PARTS["both"]:
        shutil.copyfile(tmp_path / name, home / name)
    crashed.close()
    for name in SPOOL_PARTS[where]:
        (home / name).write_bytes(_damage((home / name).read_bytes(), how))
    spool = _open(home / "spool.sqlite")
    now = 100.0
    for text in ("after", "later"):
        spool.add_event("note", text)
        for _ in range(20):
            spool.acknowledged(spool.id, _deliver(spool, store, WINDOWS, now), now)
            now += 1.0
    assert spool._settled_seq == spool._file.newest_seq
    said = store.events("pi")
    notes, is_said = [text for kind, text in said if kind == "note"], "damage" in [kind for kind, _ in said]
    # What was added before the damage showed went with it.
    assert notes == ["after", "later"] or (is_said and notes == ["later"])
    windows = store.telemetry("pi", WINDOW.digest).windows
    assert WINDOWS - 10 <= windows <= WINDOWS
    spool.close()
    store.close()


def test_a_second_agent_on_the_folder_is_refused_and_the_first_goes_on(device: Device) -> None:
    with pytest.raises(BusyError, match="another agent is running on the state folder"):
        Agent(device.agent.settings)
    device.forget_inference()
    device.agent.tick(time.monotonic())
    device.agent.note("note", "still here")
    assert ("note", "still here") in device.events()
    device.close()
