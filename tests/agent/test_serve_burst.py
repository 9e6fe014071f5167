"""Requests in a row: what is served at once, and what ends it."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from edgefleet_agent import spin
from edgefleet_agent.serve import burst
from edgefleet_agent.serve.burst import Burst
from edgefleet_agent.spin import Events, Spin


@dataclass
class Broker:
    """A broker's connection that nothing has come on."""

    socket: socket.socket
    wants_write: bool = False
    has_input: bool = False

    def fileno(self) -> int:
        return self.socket.fileno()


@dataclass
class House:
    """One descriptor that is served, and one that is not."""

    served: tuple[int, int]
    other: tuple[int, int]
    after: Callable[[], None] = lambda: None
    got: list[bytes] = field(default_factory=list)
    has_clients: bool = True

    def read(self) -> None:
        self.got.append(os.read(self.served[0], 100))
        self.after()

    def burst(self, broker: Broker | None = None) -> Burst:
        return Burst(
            lambda: {self.served[0]: self.read}, lambda: [self.other[0]], lambda: self.has_clients, lambda: True, broker
        )


@pytest.fixture(name="house")
def _house() -> Iterator[House]:
    made = House(os.pipe(), os.pipe())
    os.write(made.served[1], b"1")
    yield made
    for descriptor in (*made.served, *made.other):
        os.close(descriptor)


def test_what_follows_is_served_until_there_is_something_else(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burst, "BURST_S", 600.0)

    def say_more() -> None:
        os.write(house.served[1] if len(house.got) < 5 else house.other[1], b"2")

    house.after = say_more
    house.burst().serve()
    assert house.got == [b"1", b"2", b"2", b"2", b"2"]


def test_what_is_ready_is_served_beside_something_else(house: House) -> None:
    os.write(house.other[1], b"x")

    def say_more() -> None:
        os.write(house.served[1], b"2")

    house.after = say_more
    house.burst().serve()
    assert house.got == [b"1"]


def test_the_rest_of_the_loop_has_its_turn_after_a_while(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burst, "BURST_S", 0.0)
    house.burst().serve()
    house.burst().serve()
    assert house.got == [b"1"]


def test_a_broker_whose_messages_were_read_already_is_not_kept_waiting(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(burst, "BURST_S", 600.0)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for broker in (Broker(ours, has_input=True), Broker(ours, wants_write=True)):
            house.burst(broker).serve()
        theirs.send(b"message")
        house.burst(Broker(ours)).serve()
    assert house.got == [b"1"]


def test_without_clients_the_loop_has_its_turn_at_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burst, "BURST_S", 600.0)
    house.has_clients = False
    house.burst().serve()
    assert house.got == [b"1"]


def test_what_has_ended_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burst, "BURST_S", 600.0)
    reads, writes = os.pipe()
    os.close(writes)
    told: list[bytes] = []
    Burst(lambda: {reads: lambda: told.append(os.read(reads, 1))}, tuple, lambda: True, lambda: False, None).serve()
    os.close(reads)
    assert told == [b""]


def test_looking_goes_on_until_something_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spin, "SPIN_S", 600.0)
    looked: list[float] = []

    def look(wait_ms: float) -> Events:
        looked.append(wait_ms)
        return [(7, select.POLLIN)] if len(looked) % 3 == 0 else []

    one = Spin()
    assert [one.found(look), one.found(look)] == [[(7, select.POLLIN)]] * 2
    assert looked == [0] * 6


def test_after_looking_in_vain_it_is_left_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spin, "SPIN_S", -1.0)
    one = Spin()
    assert one.found(lambda _: [(7, select.POLLIN)]) == []
    monkeypatch.setattr(spin, "SPIN_S", 600.0)
    found = [one.found(lambda _: [(7, select.POLLIN)]) for _ in range(spin.PAUSE + 1)]
    assert [bool(events) for events in found] == [False] * spin.PAUSE + [True]
