"""The agent's loop without a broker: what it does with messages at awkward moments."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from itertools import product

import pytest

from agent.agent_lab import DEVICE, FLEET, Device, Fleet
from edgefleet.errors import BusyError
from edgefleet.protocol.messages import Ack, ActiveVariant, DeviceState, Facts, Online, State
from edgefleet.protocol.topics import TopicName, topic_for
from edgefleet_agent.agent import Agent
from edgefleet_agent.journal import Journal

DIGEST = "sha256:" + "1" * 64
ACTIVE = ActiveVariant(digest=DIGEST, index_digest=DIGEST, name="v", runtime="litert", precision="int8")


def begun(device: Device, home: Fleet, generation: int = 5) -> None:
    """Have an installation under way."""
    device.desire(home.desired(generation, home.deployment(home.publish(generation)), device.enrolment_id))
    assert device.agent._installer.current is not None


RUBBISH = (b"", b"{}", b"\xff", b"[]", b'{"v": 2}', b'{"payload":"e30=","payloadType":"x"}', b"null", b'{"payload":1}')


def test_rubbish_on_any_topic_changes_nothing(device: Device) -> None:
    before = device.agent.journal.entry
    for name, payload in product(TopicName, RUBBISH):
        device.receive(name, payload)
    assert device.agent.journal.entry == before
    assert not device.agent._trust._waiting


def test_messages_of_others_are_not_looked_at(device: Device, home: Fleet) -> None:
    payload = home.desired(5, home.deployment(home.publish()), device.enrolment_id)
    device.receive(TopicName.DESIRED, payload, device="nuc")
    device.receive(TopicName.DESIRED, payload, fleet="office")
    assert not device.agent._trust._waiting


def test_an_acknowledgement_of_another_spool_deletes_nothing(device: Device) -> None:
    device.agent.note("note", "kept")
    device.receive(TopicName.ACK, Ack(spool_id="another", seq=10**6).encode())
    assert device.events() == [("note", "kept")]
    device.receive(TopicName.ACK, Ack(spool_id=device.agent._spool.id, seq=1).encode())
    assert device.events() == []


def test_two_agents_that_evict_each_other_say_so_once(device: Device) -> None:
    device.wire.last_failure = "the broker closed the connection; another client may be using the same name"
    for taken_over in (False, True, True, False, True):
        device.wire.taken_over = taken_over
        device.turn()
    assert device.events() == [("taken_over", device.wire.last_failure)] * 2


def test_a_desired_state_right_after_a_restart_in_the_middle_of_activating(
    open_device: Callable[[], Device], home: Fleet
) -> None:
    """The journal says ACTIVATING, the power came back, and the broker's retained message is the first thing read."""
    device = open_device()
    begun(device, home)
    device.agent.journal.record(state=State.ACTIVATING)
    device.close()
    again = open_device()
    assert again.agent._installer.current is not None
    assert again.agent.journal.entry.state is State.RESOLVING
    begun(again, home, 6)
    assert again.generation == 6


def test_a_damaged_slot_is_no_model_and_says_why(device: Device, home: Fleet) -> None:
    begun(device, home)
    device.agent._installer.close()
    device.agent.journal.record(state=State.COMMITTED, active=ACTIVE)
    device.until(lambda: device.agent.journal.entry.active is None, "the verdict on the slot")
    entry = Journal(device.agent.settings.state_folder, device.agent.journal.entry).entry
    assert (entry.state, entry.active) == (State.NO_MODEL, None)
    assert (entry.reason or "").startswith("the committed variant is damaged: ")
    assert [kind for kind, _ in device.events()] == ["accepted", "slot_damaged"]


def test_a_damaged_slot_does_not_end_the_installation_of_another(device: Device, home: Fleet) -> None:
    begun(device, home)
    device.agent.journal.record(active=ACTIVE)
    device.until(lambda: device.agent.journal.entry.active is None, "the verdict on the slot")
    assert (device.agent.journal.entry.state, device.agent.journal.entry.active) == (State.RESOLVING, None)
    assert device.agent._installer.current is not None


def test_what_a_cancelled_job_leaves_is_removed_once_it_has_ended(device: Device, home: Fleet) -> None:
    begun(device, home)
    slots = device.agent._folder.slots
    with slots.turn:
        device.agent._installer.fail("said by a test")
        left = slots.staging(ACTIVE.digest)
        device.turn()
        assert left.exists()
    device.turn()
    assert not left.exists()


def test_a_disk_that_gives_nothing_back_does_not_end_the_agent(
    device: Device, home: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    begun(device, home)
    monkeypatch.setattr(device.agent._folder.slots, "collect", refuse)
    device.agent._installer.fail("said by a test")
    assert (device.agent.journal.entry.state, device.agent.journal.entry.reason) == (State.NO_MODEL, "said by a test")


def test_the_state_says_what_is_there_and_whose_it_is(device: Device, home: Fleet) -> None:
    begun(device, home)
    state = device.agent._installer.state()
    assert isinstance(state, DeviceState)
    assert (state.generation, state.state, state.active) == (5, State.RESOLVING, None)
    assert state.enrolment_id == device.enrolment_id


def test_presence_will_and_hello_are_of_one_connection_and_enrolment(device: Device) -> None:
    will = Online.decode(device.agent._will().payload)
    assert (will.online, will.enrolment_id) == (False, device.enrolment_id)
    device.agent._hello()
    said = {message.topic: message.payload for message in device.wire.sent}
    online = Online.decode(said[topic_for(FLEET, TopicName.ONLINE, DEVICE)])
    assert online == will.model_copy(update={"online": True})
    assert Facts.decode(said[topic_for(FLEET, TopicName.FACTS, DEVICE)]).connection == will.connection


def test_the_connection_counter_is_on_disk_before_the_broker_knows_it(device: Device) -> None:
    for number in (1, 2):
        will = device.agent._will()
        assert (will.retained, will.topic) == (True, "edgefleet/1/home/d/pi-kitchen/online")
        assert f'"connection":{number}' in will.payload.decode()
        entry = device.agent.journal.entry
        assert Journal(device.agent.settings.state_folder, entry).entry.connection == number


def test_request_ids_are_never_used_again_over_restarts(open_device: Callable[[], Device]) -> None:
    seen: list[str] = []
    for _ in range(3):
        device = open_device()
        device.agent._will()
        seen += [device.agent.next_req_id() for _ in range(3)]
        device.close()
    assert len(set(seen)) == len(seen)


def test_one_agent_per_state_folder(device: Device) -> None:
    with pytest.raises(BusyError, match="another agent is running"):
        Agent(device.agent.settings)


def test_a_clock_that_runs_backwards_is_held_by_what_was_verified(
    device: Device, home: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(device, home)
    verified = time.time()
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    assert device.agent.wall_clock() == pytest.approx(verified, abs=60)


def test_what_a_power_cut_left_beside_the_committed_variant_is_removed(open_device: Callable[[], Device]) -> None:
    device = open_device()
    slots, left = device.agent._folder.slots, "sha256:" + "3" * 64
    for digest in (ACTIVE.digest, left):
        slots.path(digest).mkdir()
    device.agent.journal.record(active=ACTIVE, state=State.COMMITTED)
    device.close()
    again = open_device()
    again.forget_inference()
    again.agent._installer.restore()
    again.agent._installer.advance(0.0, hold_downloads=False)
    assert slots.path(ACTIVE.digest).exists()
    assert not slots.path(left).exists()
