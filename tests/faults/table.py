"""The table at the end of a run: each fault, its cases, and how many of them passed.

It names faults and counts; what must hold after each is the tests' business.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest

PROPERTY = "fault"


def _cut(values: Mapping[str, Any]) -> str:
    call = values["cut"].call
    return "device SIGKILL at each block" if call == "pwrite64" else f"device SIGKILL at each {call}"


# Test function → the fault of one of its cases.
NAMES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "test_wire": lambda values: f"on the wire: {values['case'].fault}",
    "test_a_power_cut_at": _cut,
    "test_a_power_cut_on_the_way_back": lambda values: f"on the way back: {_cut(values)}",
    "test_the_steps_are_those_of_a_traced_installation": lambda _: "every fsync and rename is in the table of cuts",
    "test_an_agent_that_is_killed_three_times_on_probation_goes_back": lambda _: "device that reboots for ever",
    "test_a_disk_refuses": lambda values: f"disk: {values['refusal'].error} at {values['refusal'].call}",
    "test_a_disk_is_mended": lambda values: f"disk: {values['refusal'].error} until it is mended",
    "test_killed_in_mid_pull": lambda values: f"{' and '.join(values['case'].who)} SIGKILL in mid-pull",
    "test_a_slow_device_holds_up_nobody": lambda _: "a device that takes nothing among fast ones",
    "test_a_thousand_requests_a_second_from_one_device": lambda _: "1,000 requests a second from one device",
    "test_a_blob_withdrawn_in_mid_pull": lambda _: "blob withdrawn in mid-pull",
    "test_a_hub_that_lies_loads_nothing": lambda _: "a hub that sends wrong bytes",
    "test_a_damaged_journal": lambda values: f"corrupt journal, {values['case'].what}",
    "test_a_damaged_slot": lambda values: f"corrupt slot, {values['case'].what.partition(' ')[0]}",
    "test_a_full_disk": lambda _: "disk full, in each state",
    "test_the_clock_jumps_in": lambda values: f"clock a year {values['case'].what}, in each state",
    "test_a_worker_breaks": lambda values: f"worker: {values['case'].what}",
    "test_the_broker_is_gone_for_a_day": lambda _: "broker gone for a day",
    "test_sensors_vanish_while_windows_are_taken": lambda _: "sensors vanish",
    "test_a_damaged_spool": lambda _: "corrupt spool",
    "test_a_second_agent_on_the_folder_is_refused_and_the_first_goes_on": lambda _: "two agents on one state folder",
    "test_the_clock_jumps_on_probation": lambda _: "clock a year off, on probation",
    "test_a_committed_slot_that_is_damaged_between_two_starts": lambda _: "corrupt slot, at the start",
    "test_the_clock_jumps_back_a_year": lambda values: f"clock back a year, {values['when']}",
}


def lines(reports: Iterable[pytest.TestReport]) -> list[str]:
    """The table in Markdown: empty when no fault was tried."""
    ended: dict[str, list[pytest.TestReport]] = defaultdict(list)
    for report in reports:
        fault = dict(getattr(report, "user_properties", ())).get(PROPERTY)
        if fault is not None and (report.when == "call" or report.failed):
            ended[str(fault)].append(report)
    if not ended:
        return []
    rows = [(fault, ended[fault]) for fault in sorted(ended)]
    rows.append(("all", [report for cases in ended.values() for report in cases]))
    said = ["| fault | cases | passed | seconds |", "|---|---|---|---|"]
    for fault, cases in rows:
        passed, seconds = sum(case.passed for case in cases), sum(case.duration for case in cases)
        said.append(f"| {fault} | {len(cases)} | {passed} | {seconds:.0f} |")
    return said
