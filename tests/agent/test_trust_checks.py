"""Desired states from the wire to the journal, verified by the real trust process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.agent_lab import Device, Fleet
from edgefleet import durable
from edgefleet.protocol.messages import ActiveVariant, Reply, Request, RequestKind, State, Status
from edgefleet.protocol.signed import DEPLOYMENT_TYPE, Action, Envelope
from edgefleet.protocol.topics import TopicName
from edgefleet.trust import online
from edgefleet.trust.envelope import sign
from edgefleet.trust.keys import KeyFolder
from edgefleet.trust.online import metadata_folder
from edgefleet.trust.repository import Repository
from edgefleet_agent import reserved_file
from edgefleet_agent.journal import Journal

BLOB = "sha256:" + "2" * 64


def running(device: Device, home: Fleet, release: int = 1) -> ActiveVariant:
    """Give the device a committed variant, by its journal."""
    wanted = home.publish(release)
    active = ActiveVariant(digest=BLOB, index_digest=wanted.index_digest, name="v", runtime="litert", precision="int8")
    device.agent.journal.record(active=active, running=wanted, state=State.COMMITTED)
    device.forget_inference()
    return active


def test_a_signed_desired_state_is_in_the_journal_before_anything_is_done(device: Device, home: Fleet) -> None:
    wanted = home.publish()
    device.desire(home.desired(5, home.deployment(wanted), device.enrolment_id))
    entry = device.agent.journal.entry
    assert entry.desired is not None
    assert (entry.desired.generation, entry.desired.wanted, entry.state) == (5, wanted, State.RESOLVING)
    assert Journal(device.agent.settings.state_folder, entry).entry == entry
    assert ("accepted", "generation 5: digits-1") in device.events()


def test_a_second_verdict_without_a_change_costs_two_requests(device: Device, home: Fleet) -> None:
    decision = home.deployment(home.publish())
    device.desire(home.desired(5, decision, device.enrolment_id))
    device.hubs.asked.clear()
    metadata = device.agent.settings.state_folder / "trust" / "metadata"
    (metadata / "tmpabcdef").write_bytes(b"of a process that was ended while it wrote")
    device.desire(home.desired(6, decision, device.enrolment_id))
    assert not (metadata / "tmpabcdef").exists()
    names = [request.name for request in device.hubs.asked if request.kind is RequestKind.TRUST]
    assert names == ["2.root.json", "timestamp.json"]
    assert device.generation == 6


def test_the_same_generation_again_starts_nothing_and_is_reported_again(device: Device, home: Fleet) -> None:
    decision = home.deployment(home.publish())
    device.desire(home.desired(5, decision, device.enrolment_id))
    install, reported = device.agent._installer.current, len(device.states())
    device.receive(TopicName.DESIRED, home.desired(5, decision, device.enrolment_id, install_timeout_s=1.0))
    device.receive(TopicName.DESIRED, home.desired(4, decision, device.enrolment_id))
    assert not device.agent._desired_states.waiting
    device.until(lambda: len(device.states()) > reported, "the report")
    assert device.agent._installer.current is install
    assert device.states()[-1].generation == 5


@pytest.mark.parametrize("stolen", ["unsigned package", "foreign operator", "swapped target", "foreign fallback"])
def test_with_every_key_of_the_server_nothing_unsigned_is_installed(device: Device, home: Fleet, stolen: str) -> None:
    active = running(device, home)
    wanted = home.publish(2)
    thief = KeyFolder(home.folder / "thief")
    thief.folder.mkdir()
    forged = wanted.model_copy(update={"index_digest": BLOB})
    made = {
        "unsigned package": lambda: home.sign(home.deployment(forged)),
        "foreign operator": lambda: sign(home.deployment(wanted).encode(), DEPLOYMENT_TYPE, thief.create("operator-x")),
        "swapped target": lambda: home.sign(home.deployment(wanted)).model_copy(
            update={"payload": home.deployment(forged).encode()}
        ),
        "foreign fallback": lambda: home.sign(home.deployment(wanted, fallback=forged)),
    }[stolen]()
    action = Action.FALLBACK if stolen == "foreign fallback" else Action.INSTALL
    device.desire(home.desired(7, made, device.enrolment_id, action=action))
    assert (device.generation, device.agent._installer.current) == (0, None)
    assert device.agent.journal.entry.active == active
    last = device.states()[-1]
    assert (last.generation, last.state, last.active) == (7, State.FAILED, active)
    assert (last.reason or "").startswith("refused: checking a d") or "signatures" in (last.reason or "")
    assert [kind for kind, _ in device.events()] == ["refused"]


def test_what_the_server_did_not_sign_is_refused_once_and_said_once(device: Device, home: Fleet) -> None:
    wanted = home.publish()
    good = Envelope.decode(home.desired(9, home.deployment(wanted), device.enrolment_id))
    thief = KeyFolder(home.folder / "thief")
    thief.folder.mkdir()
    forged = sign(good.payload, good.payload_type, thief.create("online")).encode()
    for _ in range(3):
        device.desire(forged)
    assert [kind for kind, _ in device.events()] == ["refused"]
    assert [state.generation for state in device.states() if state.reason] == [9, 9, 9]
    # The same generation, signed by the server after all, is not spoilt by the forged one.
    device.desire(good.encode())
    assert device.generation == 9
    assert device.agent.journal.entry.refusal is None


def test_a_refusal_is_said_once_over_restarts(open_device: Callable[[], Device], home: Fleet) -> None:
    device = open_device()
    late = home.desired(9, home.deployment(home.publish()), device.enrolment_id, valid_until=1.0)
    device.desire(late)
    device.close()
    again = open_device()
    again.desire(late)
    assert [kind for kind, _ in again.events()] == ["refused"]
    assert again.states()[-1].generation == 9


@pytest.mark.parametrize("changes", [{"device": "nuc"}, {"fleet": "office"}, {"enrolment_id": "e0"}])
def test_what_is_for_another_is_not_answered(device: Device, home: Fleet, changes: dict[str, str]) -> None:
    """A retained message of the enrolment before this one comes with every connect."""
    decision = home.deployment(home.publish())
    values = {"enrolment_id": device.enrolment_id, **changes}
    for _ in range(3):
        device.desire(home.desired(9, decision, **values))
    device.turn()
    assert device.hubs.asked == []
    assert all(state.generation == 0 for state in device.states())
    assert [kind for kind, _ in device.events()] == ["refused"]


def test_an_older_decision_is_refused_whoever_signs_for_it_now(device: Device, home: Fleet) -> None:
    old, new = home.deployment(home.publish(1)), home.deployment(home.publish(2))
    device.desire(home.desired(5, new, device.enrolment_id))
    device.desire(home.desired(6, old, device.enrolment_id))
    assert device.generation == 5
    assert "serial 1 is below 2" in (device.states()[-1].reason or "")


def test_a_lower_release_needs_the_operators_word(device: Device, home: Fleet) -> None:
    running(device, home, release=2)
    older = home.publish(3).model_copy(update={"release": 1})
    assert older.release == 1
    lower = home.deployment(older)
    device.desire(home.desired(5, lower, device.enrolment_id))
    assert device.generation == 0
    assert "release 1 of digits is below 2" in (device.states()[-1].reason or "")


def test_a_newer_one_takes_the_place_of_the_one_that_waits(device: Device, home: Fleet) -> None:
    decision = home.deployment(home.publish())
    for generation in (5, 6, 7):
        device.receive(TopicName.DESIRED, home.desired(generation, decision, device.enrolment_id))
        if generation == 5:
            device.turn()  # 5 is being verified, 6 waits, 7 takes its place
    device.settle()
    accepted = [text for kind, text in device.events() if kind == "accepted"]
    assert accepted == ["generation 5: digits-1", "generation 7: digits-1"]


def test_what_was_verified_is_judged_again_by_what_is_known_then(device: Device, home: Fleet) -> None:
    decision = home.deployment(home.publish())
    device.receive(TopicName.DESIRED, home.desired(5, decision, device.enrolment_id))
    device.turn()
    newer = device.agent.journal.entry.desired
    assert newer is None
    device.receive(TopicName.DESIRED, home.desired(6, decision, device.enrolment_id))
    device.settle()
    device.receive(TopicName.DESIRED, home.desired(5, decision, device.enrolment_id))
    device.settle()
    assert device.generation == 6


def test_a_lost_line_ends_the_process_and_the_verdict_comes_after_it(device: Device, home: Fleet) -> None:
    device.hubs.without.add("timestamp.json")
    payload = home.desired(5, home.deployment(home.publish()), device.enrolment_id)
    device.receive(TopicName.DESIRED, payload)
    device.until(lambda: any(request.name == "timestamp.json" for request in device.hubs.asked), "the question")
    (session,) = device.agent._trust.sessions()
    device.wire.connected = False
    device.turn()
    assert device.agent._trust.sessions() == []
    assert not Path(f"/proc/{session.pid}").exists()
    device.hubs.without.discard("timestamp.json")
    device.wire.connected = True
    device.agent._hello()
    # The broker sends its retained message again: it is in work already.
    device.receive(TopicName.DESIRED, payload)
    device.settle()
    assert device.generation == 5
    assert [kind for kind, _ in device.events()].count("accepted") == 1


def test_hubs_that_say_no_or_busy_are_asked_again(device: Device, home: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgefleet_agent.trust_queue.RETRY_FIRST_S", 0.01)
    answers = iter([Status.DENIED, Status.BUSY, Status.BUSY])

    def first(request: Request) -> list[Reply]:
        status = next(answers, None)
        if status is None:
            return device.hubs.parts(request, (metadata_folder(home.data) / "timestamp.json").read_bytes())
        return [Reply(req_id=request.req_id, status=status, retry_after_s=0.01, body=b"not now")]

    device.hubs.instead["timestamp.json"] = first
    device.desire(home.desired(5, home.deployment(home.publish()), device.enrolment_id))
    assert device.generation == 5


def test_stale_foreign_and_endless_answers_are_nobodys(device: Device, home: Fleet) -> None:
    """Old answers of an aborted fetch, parts beyond the count, and a file without an end."""

    def hostile(request: Request) -> list[Reply]:
        good = device.hubs.parts(request, (metadata_folder(home.data) / "timestamp.json").read_bytes())
        stale = [reply.model_copy(update={"req_id": "0-0", "body": b"stale"}) for reply in good]
        beyond = good[0].model_copy(update={"part": good[0].parts, "body": b"beyond"})
        return [*stale, beyond, *reversed(good), *good]

    device.hubs.instead["timestamp.json"] = hostile
    device.desire(home.desired(5, home.deployment(home.publish()), device.enrolment_id))
    assert device.generation == 5
    device.hubs.instead["timestamp.json"] = lambda request: [
        Reply(req_id=request.req_id, status=Status.OK, part=part, parts=10**6, body=b"x" * 8192) for part in range(10)
    ]
    device.desire(home.desired(6, home.deployment(home.publish(2)), device.enrolment_id))
    assert device.generation == 5
    assert "more than the 16384 bytes" in (device.states()[-1].reason or "")


def test_a_process_that_dies_again_and_again_is_a_refusal(
    device: Device, home: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgefleet_agent.trust_queue.RETRY_FIRST_S", 0.01)
    monkeypatch.setattr("edgefleet_agent.trust_session.MODULE", "edgefleet_agent.no_such_module")
    device.desire(home.desired(5, home.deployment(home.publish()), device.enrolment_id))
    assert device.generation == 0
    assert (device.states()[-1].reason or "").endswith("ended with exit code 1 before its verdict, 3 times")


def test_the_process_ends_with_its_agent_and_not_without_it(device: Device, home: Fleet) -> None:
    device.hubs.without.add("timestamp.json")
    device.receive(TopicName.DESIRED, home.desired(5, home.deployment(home.publish()), device.enrolment_id))
    device.until(lambda: len(device.hubs.asked) > 1, "the question")
    (session,) = device.agent._trust.sessions()
    device.close()
    assert not Path(f"/proc/{session.pid}").exists()


def test_a_full_disk_does_not_end_the_agent_nor_what_runs(
    device: Device, home: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _content: bytes) -> None:
        raise OSError(28, os.strerror(28), str(path))

    decision = home.deployment(home.publish())
    device.desire(home.desired(5, decision, device.enrolment_id))
    install = device.agent._installer.current
    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_file", full)
        patch.setattr(reserved_file, "replace", full)
        device.desire(home.desired(6, decision, device.enrolment_id))
    assert (device.generation, device.agent._installer.current) == (5, install)
    device.desire(home.desired(6, decision, device.enrolment_id))
    assert device.generation == 6


def test_a_download_waits_while_a_newer_decision_is_verified(
    device: Device, home: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line is left to the metadata: on a slow one each request would wait behind two seconds of blocks."""
    decision = home.deployment(home.publish())
    device.desire(home.desired(5, decision, device.enrolment_id))
    install = device.agent._installer.current
    assert install is not None
    seen: list[bool] = []
    monkeypatch.setattr(install, "hold", lambda *, held: seen.append(held))
    device.receive(TopicName.DESIRED, home.desired(6, decision, device.enrolment_id))
    now = time.monotonic()
    device.agent.tick(now)
    device.agent.tick(now + 9)
    assert seen == [True, True]
    device.agent.tick(now + 11)
    assert seen == [True, True, False]


def test_metadata_that_is_withheld_or_expired_is_a_refusal_that_names_the_file(device: Device, home: Fleet) -> None:
    active = running(device, home)
    decision = home.deployment(home.publish(2))
    timestamp = metadata_folder(home.data) / "timestamp.json"
    timestamp.rename(timestamp.with_suffix(".away"))
    device.desire(home.desired(5, decision, device.enrolment_id))
    assert "the server has no timestamp.json" in (device.states()[-1].reason or "")
    Repository(metadata_folder(home.data)).publish(online.load_online(home.data), now=time.time() - 400 * 86400)
    device.desire(home.desired(6, decision, device.enrolment_id))
    assert "timestamp.json is expired" in (device.states()[-1].reason or "")
    assert (device.generation, device.agent.journal.entry.active) == (0, active)


def test_a_broker_that_clears_its_retained_message_says_nothing(device: Device) -> None:
    device.desire(b"")
    device.turn()
    assert device.events() == []


def test_a_fleet_founded_anew_is_trusted_from_the_new_enrolment_on_and_the_old_one_no_more(
    open_device: Callable[[], Device], home: Fleet, tmp_path: Path
) -> None:
    device = open_device()
    device.desire(home.desired(5, home.deployment(home.publish()), device.enrolment_id))
    assert device.generation == 5
    device.close()
    new = Fleet.found(tmp_path / "again")
    new.serial = home.serial
    new.enroll(tmp_path / "identity")
    again = open_device()
    again.hubs.fleet = new
    decision = new.deployment(new.publish(2))
    again.desire(home.desired(6, home.deployment(home.publish(2)), again.enrolment_id))
    assert again.generation == 0
    again.desire(new.desired(7, decision, again.enrolment_id))
    assert again.generation == 7


def test_the_same_refusal_is_not_verified_again_at_once(device: Device, home: Fleet) -> None:
    """A server that has no answer asks again every few seconds."""
    good = Envelope.decode(home.desired(9, home.deployment(home.publish()), device.enrolment_id))
    forged = good.model_copy(update={"payload": good.payload.replace(b'"generation":9', b'"generation":8')}).encode()
    device.desire(forged)
    asked = len(device.hubs.asked)
    device.desire(forged)
    assert len(device.hubs.asked) == asked
    assert [state.generation for state in device.states() if state.reason] == [8, 8]
