"""What this device lacks to run the agent well, and for each thing the command that mends it.

It changes nothing, and asks nothing of a running agent. One row of `CHECKS` for each question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgefleet.errors import EdgefleetError
from edgefleet_agent.doctor import machine, place
from edgefleet_agent.doctor.subject import Finding, Level, Subject

__all__ = ["CHECKS", "Finding", "Level", "Subject", "examine", "lines"]

CHECKS: Mapping[str, Callable[[Subject], Finding]] = {
    "python": machine.python,
    "packages": machine.packages,
    "settings": place.settings,
    "identity": place.identity,
    "profile": machine.profile,
    "runtime": machine.runtime,
    "state": place.state,
    "broker": place.broker,
    "power": machine.power,
    "heat": machine.heat,
    "clock": machine.clock,
    "source": place.source,
    "sinks": place.sinks,
    "service": place.service,
    "updates": place.updates,
}


def examine(subject: Subject) -> dict[str, Finding]:
    """Check → what was found, in the order of the table; a failure that another one explains is not said twice."""
    found: dict[str, Finding] = {}
    causes: dict[str, str] = {}
    for name, check in CHECKS.items():
        try:
            found[name] = check(subject)
        except EdgefleetError as error:
            if (cause := causes.setdefault(str(error), name)) != name:
                found[name] = Finding(Level.NOTE, f"not looked at, because of {cause}")
            else:
                found[name] = Finding(Level.FAILED, f"{error.doing}: {error.found}", error.remedy)
    return found


def lines(found: Mapping[str, Finding]) -> list[str]:
    """The findings in words; what mends one stands below it."""
    said = []
    for name, finding in found.items():
        said.append(f"{finding.level:<8} {name:<12} {finding.text}")
        if finding.mend is not None:
            said.append(f"{'':<8} {'':<12} → {finding.mend}")
    return said
