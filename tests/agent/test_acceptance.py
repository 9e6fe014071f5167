"""Which desired states and commands are acted on."""

from __future__ import annotations

from typing import Any

import pytest

from edgefleet.protocol.signed import Action, Command, CommandName, Deployment, Desired, PackageVersion
from edgefleet_agent.acceptance import Memory, Own, Verdict, judge, judge_command

OWN = Own("home", "pi-kitchen", "e1")
NOW = 1_750_000_000.0


def package(release: int, name: str = "digits") -> PackageVersion:
    return PackageVersion(package=name, version=f"1.{release}.0", release=release, index_digest="sha256:" + "1" * 64)


def deployment(**changes: Any) -> Deployment:
    values = {
        "deployment_id": "d50", "fleet": "home", "serial": 50, "target": package(7), "fallback": package(5),
        "selector": "pi-kitchen,nuc", "expires": NOW + 20, **changes,
    }  # fmt: skip
    return Deployment.model_validate(values)


def verdict(
    changes: dict[str, Any], accepted: int = 0, now: float = NOW, last: Deployment | None = None,
    running: PackageVersion | None = None, **decided: Any,
) -> tuple[Verdict, str]:  # fmt: skip
    values = {
        "fleet": "home", "device": "pi-kitchen", "enrolment_id": "e1", "generation": 100, "action": Action.INSTALL,
        "valid_until": NOW + 10, "install_timeout_s": 60.0, "deployment": deployment(**decided), **changes,
    }  # fmt: skip
    return judge(Desired.model_validate(values), OWN, Memory(accepted, last, running), now)


def test_a_new_generation_is_accepted() -> None:
    assert verdict({})[0] is Verdict.ACCEPT
    assert verdict({}, accepted=99, last=deployment(serial=49), running=package(6))[0] is Verdict.ACCEPT


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fleet": "office"}, "it is for the fleet office, this is home"),
        ({"device": "pi-hall"}, "it is for the device pi-hall, this is pi-kitchen"),
        ({"enrolment_id": "e0"}, "it is for the enrolment_id e0, this is e1"),
    ],
)
@pytest.mark.parametrize("accepted", [0, 99, 100, 101])
def test_anothers_is_foreign_whatever_its_generation(changes: dict[str, Any], reason: str, accepted: int) -> None:
    assert verdict(changes, accepted) == (Verdict.FOREIGN, reason)


def test_the_same_generation_is_only_reported_again_even_when_it_changed_or_is_out_of_date() -> None:
    assert verdict({}, accepted=100)[0] is Verdict.REPORT_AGAIN
    assert verdict({"action": "none"}, accepted=100)[0] is Verdict.REPORT_AGAIN
    assert verdict({}, accepted=100, now=NOW + 1e9)[0] is Verdict.REPORT_AGAIN


def test_an_older_generation_is_never_acted_on_and_the_server_is_told_which_was() -> None:
    found, reason = verdict({}, accepted=101)
    assert found is Verdict.REPORT_AGAIN
    assert "100 is below 101" in reason


@pytest.mark.parametrize(
    ("late_s", "wanted"), [(9, Verdict.ACCEPT), (10, Verdict.ACCEPT), (11, Verdict.REFUSE), (1e9, Verdict.REFUSE)]
)
def test_the_desired_states_date_bounds_acceptance(late_s: float, wanted: Verdict) -> None:
    assert verdict({}, now=NOW + late_s)[0] is wanted


@pytest.mark.parametrize(("late_s", "wanted"), [(20, Verdict.ACCEPT), (21, Verdict.REFUSE)])
def test_the_deployments_date_does_too(late_s: float, wanted: Verdict) -> None:
    assert verdict({"valid_until": NOW + 1e6}, now=NOW + late_s)[0] is wanted


def test_generation_zero_is_never_new() -> None:
    assert verdict({"generation": 0})[0] is Verdict.REPORT_AGAIN


def test_to_keep_what_runs_is_nothing_to_do() -> None:
    assert verdict({"action": Action.NONE}, accepted=99)[0] is Verdict.IGNORE
    assert verdict({"action": Action.NONE, "enrolment_id": "e0"})[0] is Verdict.FOREIGN


@pytest.mark.parametrize(
    ("decided", "reason"),
    [
        ({"fleet": "office"}, "its deployment is for the fleet office, this is home"),
        ({"selector": "nuc,pi-hall"}, "its deployment is for nuc,pi-hall, this is pi-kitchen"),
        ({"selector": "pi-kitchen-2"}, "its deployment is for pi-kitchen-2, this is pi-kitchen"),
        ({"selector": ""}, "its deployment is for , this is pi-kitchen"),
    ],
)
def test_a_deployment_for_others_is_refused(decided: dict[str, Any], reason: str) -> None:
    assert verdict({}, **decided) == (Verdict.REFUSE, reason)


def test_a_fallback_must_be_named_by_its_deployment() -> None:
    assert verdict({"action": Action.FALLBACK})[0] is Verdict.ACCEPT
    assert verdict({"action": Action.FALLBACK}, fallback=None)[0] is Verdict.REFUSE


@pytest.mark.parametrize(
    ("last", "wanted"),
    [
        (deployment(serial=49, deployment_id="d49"), Verdict.ACCEPT),
        (deployment(), Verdict.ACCEPT),
        (deployment(deployment_id="another"), Verdict.REFUSE),
        (deployment(serial=51, deployment_id="d51"), Verdict.REFUSE),
        (deployment(serial=51, deployment_id="d51", fleet="office"), Verdict.ACCEPT),
    ],
)
def test_decisions_are_taken_in_their_order(last: Deployment, wanted: Verdict) -> None:
    assert verdict({}, last=last)[0] is wanted


@pytest.mark.parametrize(
    ("running", "changes", "decided", "wanted"),
    [
        (package(7), {}, {}, Verdict.ACCEPT),
        (package(8), {}, {}, Verdict.REFUSE),
        (package(8), {}, {"downgrade": True}, Verdict.ACCEPT),
        (package(8), {"action": Action.FALLBACK}, {}, Verdict.ACCEPT),
        (package(8, "faces"), {}, {}, Verdict.ACCEPT),
    ],
)
def test_a_lower_release_of_what_runs_needs_the_operators_word(
    running: PackageVersion, changes: dict[str, Any], decided: dict[str, Any], wanted: Verdict
) -> None:
    assert verdict(changes, running=running, **decided)[0] is wanted


def command(**changes: Any) -> Command:
    values = {
        "fleet": "home", "device": "pi-kitchen", "enrolment_id": "e1", "command_id": "c1", "name": CommandName.REPORT,
        "expires": NOW + 60, **changes,
    }  # fmt: skip
    return Command.model_validate(values)


@pytest.mark.parametrize(
    ("changes", "ran", "wanted"),
    [
        ({}, (), Verdict.ACCEPT),
        ({}, ("c0", "c2"), Verdict.ACCEPT),
        ({}, ("c0", "c1"), Verdict.IGNORE),
        ({"expires": NOW}, (), Verdict.ACCEPT),
        ({"expires": NOW - 1}, (), Verdict.REFUSE),
        ({"expires": NOW - 1}, ("c1",), Verdict.IGNORE),
        ({"device": "nuc"}, (), Verdict.FOREIGN),
        ({"fleet": "office"}, (), Verdict.FOREIGN),
        ({"enrolment_id": "e0"}, ("c1",), Verdict.FOREIGN),
    ],
)
def test_a_command_is_run_once_by_its_device_in_its_time(
    changes: dict[str, Any], ran: tuple[str, ...], wanted: Verdict
) -> None:
    assert judge_command(command(**changes), OWN, frozenset(ran), NOW)[0] is wanted
