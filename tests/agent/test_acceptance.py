"""Which desired states are acted on."""

from __future__ import annotations

from typing import Any

import pytest

from edgefleet.protocol.messages import Action, Desired
from edgefleet_agent.acceptance import Verdict, judge
from sdk.wire_examples import DESIRED

NOW = DESIRED.valid_until - 10


def verdict(changes: dict[str, Any], accepted: int | None = None, now: float = NOW) -> tuple[Verdict, str]:
    before = None if accepted is None else DESIRED.model_copy(update={"generation": accepted})
    desired = Desired.model_validate({**DESIRED.model_dump(), "generation": 100, **changes})
    return judge(desired, "home", "pi-kitchen", "e1", before, now)


def test_a_new_generation_is_accepted() -> None:
    assert verdict({})[0] is Verdict.ACCEPT
    assert verdict({}, accepted=99)[0] is Verdict.ACCEPT


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fleet": "office"}, "it is for the fleet office, this is home"),
        ({"device": "pi-hall"}, "it is for the device pi-hall, this is pi-kitchen"),
        ({"enrolment_id": "e0"}, "it is for the enrolment_id e0, this is e1"),
    ],
)
@pytest.mark.parametrize("accepted", [None, 99, 100, 101])
def test_another_devices_is_refused_whatever_its_generation(
    changes: dict[str, Any], reason: str, accepted: int | None
) -> None:
    assert verdict(changes, accepted) == (Verdict.REFUSE, reason)


def test_the_same_generation_is_only_reported_again_even_when_it_changed_or_is_out_of_date() -> None:
    assert verdict({}, accepted=100)[0] is Verdict.REPORT_AGAIN
    assert verdict({"action": "none"}, accepted=100)[0] is Verdict.REPORT_AGAIN
    assert verdict({}, accepted=100, now=DESIRED.valid_until + 1e9)[0] is Verdict.REPORT_AGAIN


def test_an_older_generation_is_refused() -> None:
    found, reason = verdict({}, accepted=101)
    assert found is Verdict.REFUSE
    assert "100 is below 101" in reason


@pytest.mark.parametrize(("late_s", "wanted"), [(-1, Verdict.ACCEPT), (0, Verdict.ACCEPT), (1, Verdict.REFUSE)])
def test_the_date_bounds_acceptance(late_s: float, wanted: Verdict) -> None:
    assert verdict({}, now=DESIRED.valid_until + late_s)[0] is wanted


def test_generation_zero_is_never_new() -> None:
    assert verdict({"generation": 0})[0] is not Verdict.ACCEPT


def test_to_keep_what_runs_is_nothing_to_do() -> None:
    assert verdict({"action": Action.NONE}, accepted=99)[0] is Verdict.IGNORE
    assert verdict({"action": Action.NONE, "enrolment_id": "e0"})[0] is Verdict.REFUSE
