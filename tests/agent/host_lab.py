"""A machine for installs and upgrades: environments that pip never filled, a service manager and a clock of our own.

Nothing here asserts.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edgefleet_agent.host.environments import CURRENT_LINK, PREVIOUS_LINK, Environments, Made
from edgefleet_agent.host.trial import Health, Trial
from edgefleet_agent.host.upgrade import Clock, Host

WELL = Health(healthy=True, reason="")


def ill(reason: str = "no connection to the broker (refused)") -> Health:
    return Health(healthy=False, reason=reason)


class CutError(Exception):
    """The power is cut here."""


@dataclass
class FakeClock:
    """Time that passes when it is slept; the power is cut at `cut_at`."""

    at: float = 1000.0
    cut_at: float = float("inf")
    after: Callable[[float], None] = lambda _now: None

    def now(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += seconds
        if self.at >= self.cut_at:
            raise CutError
        self.after(self.at)


@dataclass
class FakeServices:
    """A service manager that notes what it is asked."""

    asked: list[tuple[str, str]] = field(default_factory=list)
    active: bool = True

    def reload(self) -> None:
        self.asked.append(("reload", ""))

    def enable(self, unit: str) -> None:
        self.asked.append(("enable", unit))

    def restart(self, unit: str) -> None:
        self.asked.append(("restart", unit))

    def is_active(self, unit: str) -> bool:
        self.asked.append(("is-active", unit))
        return self.active


@dataclass
class FakePrograms:
    """venv, pip and the probe, as far as the environments see them; `fails` holds a word of the command to fail."""

    version: str = "2.0"
    runtimes: dict[str, str] = field(default_factory=lambda: {"litert": "2.3.0"})
    fails: str = ""
    said: str = "ERROR: something went wrong\n"
    ran: list[list[str]] = field(default_factory=list)

    def __call__(self, arguments: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        assert timeout_s > 0
        self.ran.append(arguments)
        if self.fails and self.fails in arguments:
            return subprocess.CompletedProcess(arguments, 1, "", self.said)
        if "venv" in arguments:
            (Path(arguments[-1]) / "bin").mkdir(parents=True)
        said = (
            json.dumps({"version": self.version, "runtimes": self.runtimes})
            if "edgefleet_agent.host.probe" in arguments
            else ""
        )
        return subprocess.CompletedProcess(arguments, 0, said, "")


@dataclass
class Machine:
    """One machine with A filled and current."""

    folder: Path
    programs: FakePrograms = field(default_factory=FakePrograms)
    services: FakeServices = field(default_factory=FakeServices)
    clock: FakeClock = field(default_factory=FakeClock)
    healthy: Callable[[Trial], Health] = lambda _trial: WELL

    def __post_init__(self) -> None:
        self.environments = Environments(self.folder, self.programs)
        self.programs.version = "1.0"
        self.environments.fill("A", ["edgefleet"], Made(version="", extras=("litert",)), self.folder / "agent.toml")
        self.environments.switch(PREVIOUS_LINK, "A")
        self.environments.switch(CURRENT_LINK, "A")
        self.programs.version = "2.0"
        self.programs.ran.clear()

    def host(self, boot_id: str = "boot-1") -> Host:
        return Host(
            self.environments, self.services, Clock(self.clock.now, self.clock.sleep), boot_id,
            self.healthy,
        )  # fmt: skip

    @property
    def current(self) -> str | None:
        return self.environments.current()
