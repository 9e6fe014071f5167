"""The agent's loop without a broker: what it does with messages at awkward moments."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgefleet import durable
from edgefleet.errors import BusyError
from edgefleet.protocol.messages import Ack, Desired, DeviceState, Event, Online, Reply, State, Status
from edgefleet.protocol.topics import TopicName, topic_for
from edgefleet_agent.agent import Agent
from edgefleet_agent.journal import Journal
from edgefleet_agent.settings import Settings, load
from sdk.wire_examples import ACTIVE, DESIRED

TEXT = """
fleet = "home"
device = "pi-kitchen"
profile = "generic-x86-64"
state_folder = "state"
[broker]
host = "127.0.0.1"
port = 9
[source]
kind = "replay"
path = "inputs.npz"
"""


@pytest.fixture(name="made")
def _made(tmp_path: Path) -> Settings:
    (tmp_path / "agent.toml").write_text(TEXT)
    (tmp_path / "state").mkdir()
    return load(tmp_path / "agent.toml")


@pytest.fixture(name="agent")
def _agent(made: Settings) -> Iterator[Agent]:
    agent = Agent(made)
    yield agent
    agent._shut_down()


def desired(agent: Agent, generation: int, **changes: object) -> Desired:
    values = {
        **DESIRED.model_dump(), "generation": generation, "enrolment_id": agent.journal.entry.enrolment_id,
        "valid_until": time.time() + 1000, **changes,
    }  # fmt: skip
    return Desired.model_validate(values)


def receive(agent: Agent, name: TopicName, payload: bytes, fleet: str = "home", device: str = "pi-kitchen") -> None:
    agent._receive(topic_for(fleet, name, device, sha12="0" * 12), payload, name is TopicName.DESIRED)


def events(agent: Agent) -> list[tuple[str, str]]:
    agent._spool.restart()
    return [(message.kind, message.text) for message in agent._spool.due(0.0) if isinstance(message, Event)]


def test_an_accepted_desired_state_is_in_the_journal_before_anything_is_done(agent: Agent, made: Settings) -> None:
    wanted = desired(agent, 5)
    receive(agent, TopicName.DESIRED, wanted.encode())
    entry = Journal(made.state_folder).entry
    assert (entry.state, entry.desired) == (State.RESOLVING, wanted)


def test_the_same_generation_again_starts_nothing(agent: Agent) -> None:
    receive(agent, TopicName.DESIRED, desired(agent, 5).encode())
    install = agent._install
    assert install is not None
    receive(agent, TopicName.DESIRED, desired(agent, 5, install_timeout_s=1.0).encode())
    receive(agent, TopicName.DESIRED, desired(agent, 4).encode())
    assert agent._install is install
    receive(agent, TopicName.DESIRED, desired(agent, 6).encode())
    assert agent._install is not install


@pytest.mark.parametrize("payload", [b"", b"{}", b"\xff", b"[]", b'{"v": 2}'])
@pytest.mark.parametrize("name", TopicName)
def test_rubbish_on_any_topic_changes_nothing(agent: Agent, name: TopicName, payload: bytes) -> None:
    before = agent.journal.entry
    receive(agent, name, payload)
    assert agent.journal.entry == before
    assert agent._install is None


def test_messages_of_others_are_not_looked_at(agent: Agent) -> None:
    receive(agent, TopicName.DESIRED, desired(agent, 5).encode(), device="nuc")
    receive(agent, TopicName.DESIRED, desired(agent, 5).encode(), fleet="office")
    assert agent._install is None


def test_an_acknowledgement_of_another_spool_deletes_nothing(agent: Agent) -> None:
    agent.note("note", "kept")
    receive(agent, TopicName.ACK, Ack(spool_id="another", seq=10**6).encode())
    assert events(agent) == [("note", "kept")]
    receive(agent, TopicName.ACK, Ack(spool_id=agent._spool.id, seq=10**6).encode())
    assert events(agent) == []


def test_a_refused_desired_state_is_no_event(agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    """A retained message for the device before this one comes with every connect: an event each fills the spool."""
    before = agent.journal.entry
    receive(agent, TopicName.DESIRED, desired(agent, 5, enrolment_id="e0").encode())
    receive(agent, TopicName.DESIRED, desired(agent, 5, valid_until=1.0).encode())
    assert agent.journal.entry == before
    assert events(agent) == []
    assert caplog.text.count("desired state refused") == 2


def test_a_device_name_that_is_another_agents_ends_this_one(agent: Agent) -> None:
    text = "the device name pi-kitchen belongs to another agent, heard of 3 s ago; stop that one"
    stray = Reply(req_id="hello-e0", status=Status.DENIED, body=text.encode())
    receive(agent, TopicName.REPLY, stray.encode())
    assert agent._refused is None
    mine = stray.model_copy(update={"req_id": f"hello-{agent.journal.entry.enrolment_id}"})
    receive(agent, TopicName.REPLY, mine.encode())
    with pytest.raises(BusyError, match=r"connecting as the device pi-kitchen: .* 3 s ago; stop that one$"):
        agent.run(lambda: False)


def test_a_desired_state_right_after_a_restart_in_the_middle_of_activating(made: Settings) -> None:
    """The journal says ACTIVATING, the power came back, and the broker's retained message is the first thing read."""
    journal = Journal(made.state_folder)
    wanted = DESIRED.model_copy(update={"enrolment_id": journal.entry.enrolment_id, "generation": 5})
    journal.record(state=State.ACTIVATING, desired=wanted)
    agent = Agent(made)
    agent._restore()
    receive(agent, TopicName.DESIRED, desired(agent, 6).encode())
    assert agent.journal.entry.desired is not None
    assert agent.journal.entry.desired.generation in (5, 6)
    agent._shut_down()


def test_a_full_disk_when_a_desired_state_comes_does_not_end_the_agent(
    agent: Agent, made: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = agent.journal.entry
    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_file", full)
        receive(agent, TopicName.DESIRED, desired(agent, 5).encode())
        agent.tick(time.monotonic())
        assert agent._install is None
        assert events(agent) == []
    assert Journal(made.state_folder).entry == agent.journal.entry == before
    # There is room again, and the server says it once more.
    receive(agent, TopicName.DESIRED, desired(agent, 5).encode())
    assert agent.journal.entry.desired is not None


def test_a_full_disk_keeps_the_installation_that_is_under_way(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    receive(agent, TopicName.DESIRED, desired(agent, 5).encode())
    install = agent._install
    monkeypatch.setattr(durable, "write_file", full)
    receive(agent, TopicName.DESIRED, desired(agent, 6).encode())
    assert agent._install is install is not None
    assert agent.journal.entry.desired == install.desired


def test_a_damaged_slot_is_no_model_and_says_why(agent: Agent, made: Settings) -> None:
    agent.journal.record(state=State.COMMITTED, active=ACTIVE, desired=desired(agent, 5))
    agent.tick(time.monotonic())
    entry = Journal(made.state_folder).entry
    assert (entry.state, entry.active) == (State.NO_MODEL, None)
    assert entry.reason is not None
    assert entry.reason.startswith("the committed variant is damaged: ")
    assert [kind for kind, _ in events(agent)] == ["slot_damaged"]


def test_a_damaged_slot_does_not_end_the_installation_of_another(agent: Agent) -> None:
    agent.journal.record(active=ACTIVE)
    receive(agent, TopicName.DESIRED, desired(agent, 5).encode())
    agent.tick(time.monotonic())
    assert (agent.journal.entry.state, agent.journal.entry.active) == (State.RESOLVING, None)
    assert agent._install is not None


def test_the_state_says_what_is_there_and_whose_it_is(agent: Agent) -> None:
    receive(agent, TopicName.DESIRED, desired(agent, 5).encode())
    state = agent._state()
    assert isinstance(state, DeviceState)
    assert (state.generation, state.state, state.active) == (5, State.RESOLVING, None)
    assert state.enrolment_id == agent.journal.entry.enrolment_id


def test_presence_and_the_will_are_of_one_connection_and_enrolment(agent: Agent) -> None:
    will = Online.decode(agent._will().payload)
    assert not will.online
    assert agent._presence(online=True) == will.model_copy(update={"online": True})
    assert will.enrolment_id == agent.journal.entry.enrolment_id
    assert agent._facts.connection == will.connection


def test_the_connection_counter_is_on_disk_before_the_broker_knows_it(agent: Agent, made: Settings) -> None:
    for number in (1, 2):
        will = agent._will()
        assert (will.retained, will.topic) == (True, "edgefleet/1/home/d/pi-kitchen/online")
        assert f'"connection":{number}' in will.payload.decode()
        assert Journal(made.state_folder).entry.connection == number


def test_request_ids_are_never_used_again_over_restarts(made: Settings) -> None:
    seen: list[str] = []
    for _ in range(3):
        agent = Agent(made)
        agent._will()
        seen += [agent.next_req_id() for _ in range(3)]
        agent._shut_down()
    assert len(set(seen)) == len(seen)


def test_one_agent_per_state_folder(agent: Agent, made: Settings) -> None:
    assert agent.settings == made
    with pytest.raises(BusyError, match="another agent is running"):
        Agent(made)


def test_a_journal_that_was_damaged_is_reported(made: Settings) -> None:
    (made.state_folder / "journal.json").write_bytes(b"\0")
    agent = Agent(made)
    agent._restore()
    assert [message.model_dump()["kind"] for message in agent._spool.due(0.0)] == ["damage"]
    agent._shut_down()
