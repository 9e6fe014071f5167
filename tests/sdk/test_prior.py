"""Priors: which devices are the same hardware, what their decisions come to, and how the server passes it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgefleet.prior import (
    FRESH_S,
    Decided,
    contradicted_key,
    contradiction,
    hardware_class,
    prior_name,
    prior_of,
)
from edgefleet.protocol.decisions import (
    CONTRADICTION_EVENT,
    DECISION_EVENT,
    CandidateRecord,
    Conditions,
    DecisionRecord,
    Objective,
    Prior,
    Standing,
)
from edgefleet.protocol.messages import Event, Request, RequestKind
from edgefleet.protocol.record import MessageError
from edgefleet.server.data_folder import prior_file
from edgefleet.server.priors import Priors
from edgefleet.server.store import Store
from edgefleet_device_profiles.profile import Runtime
from sdk.wire_examples import FACTS, INDEX, event

MACHINE = FACTS.machine
CLASS = hardware_class("raspberry-pi-5", MACHINE)
NOW = 1_790_000_000.0
FAST, SMALL = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def candidate(digest: str = FAST, threads: int = 2, **changes: object) -> CandidateRecord:
    found = CandidateRecord(
        digest=digest, name="litert-int8", threads=threads, size_bytes=1000, standing=Standing.CHOSEN, reason="best",
        runs=900, p50_s=0.01, p90_s=0.012, low_s=0.0119, high_s=0.0121, inference_p90_s=0.011, energy_j=None,
        memory_bytes=50_000_000,
    )  # fmt: skip
    return found.model_copy(update=changes)


def record(digest: str = FAST, **changes: object) -> DecisionRecord:
    found = DecisionRecord(
        hardware_class=CLASS, index_digest=INDEX, objective=Objective.LATENCY, conditions=Conditions.IDLE,
        throttled_share=0.0, complete=True, chosen=digest, threads=2, reason="best of 6",
        command="edgefleet agent bench", agent_version="0.1.0", candidates=(candidate(digest),),
    )  # fmt: skip
    return found.model_copy(update=changes)


def test_the_class_is_of_what_decides_the_speed() -> None:
    same: list[dict[str, Any]] = [{"memory_mib": 4096}, {"serial": "1"}, {"os": "another"}, {"python": "3.13.1"}]
    other: list[dict[str, Any]] = [
        {"cpu_model": "another"}, {"cores": 4}, {"board": "another"}, {"isa": ("neon",)}, {"max_clock_mhz": 1800},
        {"accelerators": ("hailo",)}, {"runtimes": {Runtime.ONNXRUNTIME: "1.23.0"}}, {"architecture": "arm64"},
    ]  # fmt: skip
    assert {hardware_class("raspberry-pi-5", MACHINE.model_copy(update=change)) for change in same} == {CLASS}
    assert len({hardware_class("raspberry-pi-5", MACHINE.model_copy(update=change)) for change in other} | {CLASS}) == 9
    assert hardware_class("raspberry-pi-4b", MACHINE) != CLASS


def test_its_name_can_be_asked_for() -> None:
    for objective in Objective:
        name = prior_name(CLASS, objective)
        asked = Request(req_id="1-1", kind=RequestKind.PRIOR, digest=INDEX, name=name)
        assert Request.decode(asked.encode()).name == name


def test_most_devices_decide_and_each_has_one_vote() -> None:
    decided = [Decided("a", record(), NOW - 9), Decided("b", record(SMALL), NOW - 8), Decided("c", record(SMALL), NOW)]
    found = prior_of(decided, NOW)
    assert found is not None
    assert (found.digest, found.threads, found.devices, found.inference_p90_s) == (SMALL, 2, 2, 0.011)
    changed_its_mind = [*decided, Decided("b", record(), NOW - 1), Decided("b", record(), NOW)]
    found = prior_of(changed_its_mind, NOW)
    assert found is not None
    assert (found.digest, found.devices) == (FAST, 2)


@pytest.mark.parametrize(
    "useless",
    [
        Decided("a", record(), NOW - FRESH_S),
        Decided("a", record(complete=False), NOW),
        Decided("a", record(conditions=Conditions.THROTTLED_STEADY), NOW),
        Decided("a", record(throttled_share=0.1), NOW),
        Decided("a", record(chosen=None, threads=None, candidates=()), NOW),
        Decided("a", record(candidates=(candidate(inference_p90_s=None),)), NOW),
    ],
)
def test_what_is_old_unfinished_or_hot_is_no_prior(useless: Decided) -> None:
    assert prior_of([useless], NOW) is None
    found = prior_of([useless, Decided("b", record(SMALL), NOW - 1)], NOW)
    assert found is not None
    assert found.digest == SMALL


def test_it_goes_when_it_did_not_hold_on_as_many_devices() -> None:
    decided = [Decided("a", record(), NOW), Decided("b", record(), NOW)]
    assert prior_of(decided, NOW, against=1) is not None
    assert prior_of(decided, NOW, against=2) is None
    assert prior_of([], NOW) is None


# The server ------------------------------------------------------------------------------------------


def said(kind: str, text: str) -> Event:
    return event(1).model_copy(update={"kind": kind, "text": text})


def read(data: Path) -> Prior | None:
    path = prior_file(data, INDEX, prior_name(CLASS, Objective.LATENCY))
    return Prior.decode(path.read_bytes()) if path.exists() else None


def test_the_server_serves_what_devices_decided_until_it_does_not_hold(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite")
    priors = Priors(tmp_path, store)
    priors.take("a", said(DECISION_EVENT, record().encode().decode()), NOW)
    assert read(tmp_path) is None
    priors.publish(NOW)
    found = read(tmp_path)
    assert found is not None
    assert (found.digest, found.devices, found.at) == (FAST, 1, NOW)
    priors.take("b", said("self_test", "passed"), NOW)
    priors.take("b", said(CONTRADICTION_EVENT, contradiction(found, "41 % above 13 ms")), NOW + 1)
    priors.publish(NOW + 1)
    assert read(tmp_path) is None
    priors.take("b", said(DECISION_EVENT, record(SMALL).encode().decode()), NOW + 2)
    priors.publish(NOW + 2)
    found = read(tmp_path)
    assert found is not None
    assert found.digest == SMALL


def test_rubbish_is_refused(tmp_path: Path) -> None:
    priors = Priors(tmp_path, Store(tmp_path / "store.sqlite"))
    cut_off = record().encode().decode()[:-20]
    for text in (cut_off, "{}", ""):
        with pytest.raises(MessageError):
            priors.take("a", said(DECISION_EVENT, text), NOW)
    for text in ("", "a b c d", f"{INDEX} h0 latency x", f"{INDEX} {CLASS} speed x", f"../../etc {CLASS} latency"):
        with pytest.raises(ValueError, match=r"."):
            priors.take("a", said(CONTRADICTION_EVENT, text), NOW)
        with pytest.raises(ValueError, match=r"."):
            contradicted_key(text)


def test_old_decisions_leave_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite")
    key = store.add_decision("a", record(), NOW)
    store.add_decision("b", record(index_digest=SMALL), NOW + FRESH_S + 1)
    assert store.decisions(key) == ([], 0)


def test_a_disk_that_refuses_is_tried_again(tmp_path: Path) -> None:
    priors = Priors(tmp_path, Store(tmp_path / "store.sqlite"))
    in_the_way = tmp_path / "priors"
    in_the_way.write_text("")
    priors.take("a", said(DECISION_EVENT, record().encode().decode()), NOW)
    priors.publish(NOW)
    in_the_way.unlink()
    priors.publish(NOW)
    assert read(tmp_path) is not None
