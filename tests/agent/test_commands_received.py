"""Commands from the wire to what they do: signed, in time, once."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from agent.agent_lab import DEVICE, FLEET, Device, Fleet
from edgefleet.protocol.signed import COMMAND_TYPE, CommandName, Envelope
from edgefleet.protocol.topics import TopicName, topic_for
from edgefleet.trust.envelope import sign
from edgefleet.trust.keys import KeyFolder
from edgefleet_agent import reserved_file


def hellos(device: Device) -> int:
    topic = topic_for(FLEET, TopicName.FACTS, DEVICE)
    return sum(message.topic == topic for message in device.wire.sent)


def command(device: Device, payload: bytes) -> None:
    device.receive(TopicName.COMMANDS, payload)
    device.settle()


def test_a_signed_command_is_run_and_answered_once_over_restarts(
    open_device: Callable[[], Device], home: Fleet
) -> None:
    device = open_device()
    payload = home.command("c1", CommandName.REPORT, device.enrolment_id)
    command(device, payload)
    command(device, payload)
    assert hellos(device) == 1
    device.close()
    again = open_device()
    command(again, payload)
    assert hellos(again) == 0
    assert again.events() == [("command", "report c1: done")]


def test_what_the_server_did_not_sign_or_signed_too_early_is_not_run(device: Device, home: Fleet) -> None:
    good = Envelope.decode(home.command("c1", CommandName.REPORT, device.enrolment_id))
    thief = KeyFolder(home.folder / "thief")
    thief.folder.mkdir()
    command(device, sign(good.payload, COMMAND_TYPE, thief.create("online")).encode())
    command(device, home.command("c2", CommandName.REPORT, device.enrolment_id, expires=time.time() - 1))
    command(device, home.command("c3", CommandName.REPORT, "e0"))
    command(device, home.command("c4", CommandName.REPORT, device.enrolment_id, device="nuc"))
    assert hellos(device) == 0
    refused = [text for kind, text in device.events() if kind == "command_refused"]
    assert [text.partition(":")[0] for text in refused] == ["report c1", "report c2"]


def test_an_operator_cannot_give_a_command_and_a_desired_state_is_none(device: Device, home: Fleet) -> None:
    good = Envelope.decode(home.command("c1", CommandName.REPORT, device.enrolment_id))
    command(device, sign(good.payload, COMMAND_TYPE, home.keys.signer("operator-default")).encode())
    decision = home.deployment(home.publish())
    command(device, home.desired(5, decision, device.enrolment_id))
    device.receive(TopicName.DESIRED, home.command("c2", CommandName.REPORT, device.enrolment_id))
    device.settle()
    assert (hellos(device), device.generation) == (0, 0)


def test_a_flood_of_commands_is_bounded(device: Device, home: Fleet) -> None:
    for number in range(20):
        device.receive(TopicName.COMMANDS, home.command(f"c{number}", CommandName.REPORT, device.enrolment_id))
    assert len(device.agent._trust._waiting) == 8
    device.agent._trust.close()


def test_what_cannot_be_remembered_is_not_run(device: Device, home: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(reserved_file, "replace", full)
        command(device, home.command("c1", CommandName.REPORT, device.enrolment_id))
    assert hellos(device) == 0
    assert [kind for kind, _ in device.events()] == ["command_refused"]
