"""The units as they are installed: judged by systemd's own tools, and by what the agent needs of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edgefleet.errors import InputError
from edgefleet_agent.host import service
from edgefleet_agent.host.service import AGENT_UNIT, TRIAL_UNIT, UNITS, Place

# systemd's own scale: 0 is nothing to be had, 10 everything, and a service that says nothing of it 9.6.
MOST_EXPOSURE = {AGENT_UNIT: 2.1, TRIAL_UNIT: 1.4}
# What reads sensors, how the clock is kept, and limits the worker's memory.
NEEDED_CALLS = ("adjtimex", "clock_adjtime", "setrlimit", "prlimit64", "memfd_create", "ioctl", "sched_setaffinity")


def place(folder: Path) -> Place:
    """A machine whose programs exist."""
    for name in ("current", "previous"):
        (folder / name / "bin").mkdir(parents=True)
        for program in ("edgefleet", "python"):
            (folder / name / "bin" / program).symlink_to("/bin/true")
    return Place(folder, folder / "agent.toml", folder / "state", folder / "identity", "daemon")


@pytest.fixture(name="units")
def _units(tmp_path: Path, need: Callable[[bool, str], None]) -> Path:
    need(shutil.which("systemd-analyze") is not None, "systemd-analyze")
    for unit, text in service.unit_files(place(tmp_path / "edgefleet"), ("video",)).items():
        (tmp_path / unit).write_text(text)
    return tmp_path


def analyze(*arguments: str) -> str:
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_systemd_finds_no_fault_in_them(units: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(units / unit) for unit in UNITS)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, [line for line in done.stderr.splitlines() if "edgefleet" in line]) == (0, [])


@pytest.mark.parametrize("unit", UNITS)
def test_they_expose_little(units: Path, unit: str) -> None:
    said = analyze("security", "--offline=true", "--no-pager", str(units / unit))
    (exposure,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert float(exposure) <= MOST_EXPOSURE[unit]


def test_nothing_that_the_agent_needs_is_refused(units: Path) -> None:
    rows = json.loads(analyze("security", "--offline=true", "--json=short", str(units / AGENT_UNIT)))
    assert {row["name"] for row in rows} >= {"PrivateDevices=", "ProtectClock="}
    text = (units / AGENT_UNIT).read_text()
    allowed: set[str] = set()
    for filters in re.findall(r"^SystemCallFilter=(.+)$", text, re.MULTILINE):
        calls = {call for name in filters.removeprefix("~").split() for call in calls_of(name)}
        allowed = allowed - calls if filters.startswith("~") else allowed | calls
    assert [call for call in NEEDED_CALLS if call not in allowed] == []


def calls_of(name: str) -> set[str]:
    """The system calls of a set, and of the sets in it."""
    if not name.startswith("@"):
        return {name}
    lines = [line.strip() for line in analyze("syscall-filter", name).splitlines()[1:]]
    return {call for line in lines if line and not line.startswith("#") for call in calls_of(line)}


def test_the_watchdog_and_the_restarts_are_the_managers(units: Path) -> None:
    lines = (units / AGENT_UNIT).read_text().splitlines()
    assert {"Type=notify", "WatchdogSec=60", "Restart=always", "StartLimitIntervalSec=0", "OOMPolicy=continue"} <= {
        *lines
    }
    trial = (units / TRIAL_UNIT).read_text()
    assert f"ConditionPathExists={units}/edgefleet/trial.json" in trial
    assert f"ExecStart={units}/edgefleet/previous/bin/python -m edgefleet_agent.host.upgrade" in trial


@pytest.mark.parametrize("name", ["with space", "per%cent", 'quo"te', "semi;colon", "new\nline"])
def test_a_path_that_a_unit_cannot_hold_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot stand in a unit file"):
        service.unit_files(Place(tmp_path, tmp_path / name, tmp_path, tmp_path), ())
