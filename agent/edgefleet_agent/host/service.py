"""The agent as a system service: its unit files, and what the service manager is asked.

It makes no environment and decides nothing; the units' text is in `systemd/`.
"""

from __future__ import annotations

import grp
import importlib.resources
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgefleet.errors import InputError, UnsupportedError, short_line

AGENT_UNIT = "edgefleet-agent.service"
TRIAL_UNIT = "edgefleet-agent-trial.service"
UNITS = (AGENT_UNIT, TRIAL_UNIT)
USER = "edgefleet"
# Groups that open the power management chip, cameras and accelerators, where the system has them.
DEVICE_GROUPS = ("video", "render")
ANSWER_TIMEOUT_S = 120.0
# What systemd itself would take apart in a path, and what a path needs no quotes for.
_FORBIDDEN = re.compile(r"[\"'\\$%;\x00-\x1f]")


class ServiceManager(Protocol):
    """What installs and upgrades ask of the system's service manager; each raises UnsupportedError."""

    def reload(self) -> None:
        """Read the unit files anew."""
        ...

    def enable(self, unit: str) -> None:
        """Start it at each boot."""
        ...

    def restart(self, unit: str) -> None:
        """Stop and start it; returns before it is ready."""
        ...

    def is_active(self, unit: str) -> bool:
        """Whether it has said that it is ready, and runs."""
        ...


class Systemd:
    """systemctl(1)."""

    def reload(self) -> None:
        """`daemon-reload`."""
        self._must("daemon-reload")

    def enable(self, unit: str) -> None:
        """`enable`."""
        self._must("enable", unit)

    def restart(self, unit: str) -> None:
        """`restart`, without waiting: the agent may take as long as its start takes."""
        self._must("restart", "--no-block", unit)

    def is_active(self, unit: str) -> bool:
        """`is-active`."""
        return self._run("is-active", unit).stdout.strip() == "active"

    def _must(self, *arguments: str) -> None:
        done = self._run(*arguments)
        if done.returncode != 0:
            found = short_line((done.stderr.strip() or f"exit status {done.returncode}").splitlines()[0])
            raise UnsupportedError(
                f"running systemctl {' '.join(arguments)}", found, "look at: journalctl -u edgefleet*"
            )

    @staticmethod
    def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                ["systemctl", *arguments], capture_output=True, text=True, check=False, timeout=ANSWER_TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UnsupportedError(
                f"running systemctl {' '.join(arguments)}",
                str(error),
                "this needs systemd; or start `edgefleet agent run` by other means",
            ) from error


@dataclass(frozen=True, slots=True)
class Place:
    """Where the service finds things; paths are absolute."""

    environments: Path
    settings_file: Path
    state_folder: Path
    identity: Path
    user: str = USER
    written: tuple[Path, ...] = ()
    """Folders beside state and identity that its settings have it write to."""


def unit_files(place: Place, groups: tuple[str, ...]) -> Mapping[str, str]:
    """Unit → its text; raises InputError for a path that a unit file cannot hold."""
    for path in (place.environments, place.settings_file, place.state_folder, place.identity, *place.written):
        if not path.is_absolute() or _FORBIDDEN.search(str(path)) or " " in str(path):
            raise InputError(
                f"writing {AGENT_UNIT}", f"the path {str(path)!r} cannot stand in a unit file", "use a plainer path"
            )
    # With a hyphen: one that is not there yet does not keep the service from its start.
    writable = dict.fromkeys([str(place.state_folder), str(place.identity), *(f"-{path}" for path in place.written)])
    values = {
        "ENVIRONMENTS": str(place.environments),
        "CONFIG": str(place.settings_file),
        "STATE": str(place.state_folder),
        "WRITABLE": " ".join(writable),
        "USER": place.user,
        "GROUPS": " ".join(groups),
    }
    return {unit: _filled(unit, values) for unit in UNITS}


def present_groups() -> tuple[str, ...]:
    """Those of DEVICE_GROUPS that this system has: a unit that names another does not start."""
    known = {entry.gr_name for entry in grp.getgrall()}
    return tuple(name for name in DEVICE_GROUPS if name in known)


def _filled(unit: str, values: Mapping[str, str]) -> str:
    text = (importlib.resources.files("edgefleet_agent") / "systemd" / unit).read_text(encoding="utf-8")
    return re.sub(r"@([A-Z]+)@", lambda found: values[found[1]], text)
