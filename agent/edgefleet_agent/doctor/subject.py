"""What the doctor looks at, and what it finds: the device behind a settings file, read once, and one answer.

No question is asked here; they are in the modules beside it.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import sys
import time
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from edgefleet import identity as identities
from edgefleet.identity import DeviceIdentity
from edgefleet_agent import facts, status
from edgefleet_agent.host import service
from edgefleet_agent.host.environments import Environments
from edgefleet_agent.settings import Settings
from edgefleet_agent.settings import load as load_settings
from edgefleet_agent.status import Status
from edgefleet_agent.update_lock import update_locked
from edgefleet_device_profiles import detect
from edgefleet_device_profiles.detect import MachineFacts
from edgefleet_device_profiles.profile import Profile


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    """As it should be."""
    NOTE = "note"
    """Worth knowing."""
    WARNING = "warning"
    """The agent runs, but not as well as it could."""
    FAILED = "failed"
    """The agent does not run, or does nothing."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one question."""

    level: Level
    text: str
    mend: str | None = None
    """What to run or do."""


class Subject:
    """The device that is looked at: read once, when it is first needed; each property raises EdgefleetError."""

    def __init__(self, settings_file: Path, environments: Environments, now: float | None = None) -> None:
        """`now` is the Unix time, by default the clock's."""
        self.settings_file = settings_file
        self.environments = environments
        self.now = time.time() if now is None else now

    @cached_property
    def settings(self) -> Settings:
        """The settings file."""
        return load_settings(self.settings_file)

    @cached_property
    def identity(self) -> DeviceIdentity:
        """The identity folder that the settings name."""
        return identities.load(self.settings.identity)

    @cached_property
    def status(self) -> Status:
        """What the state folder says."""
        return status.read(self.settings.state_folder, update_locked(self.settings))

    @cached_property
    def profile(self) -> Profile:
        """The profile that the settings name."""
        return facts.load_profile(self.settings.profile)

    @cached_property
    def machine(self) -> MachineFacts:
        """What this machine is."""
        return detect.detect(self.settings.root)

    @property
    def is_simulated(self) -> bool:
        """Whether the machine is another one than the profile's."""
        return detect.mismatch(self.profile, self.machine) is not None

    def may(self, path: Path, mode: int) -> bool:
        """As os.access; where root asks about a service, for that service's user, by owner, group and mode alone."""
        if os.geteuid() != 0 or self.environments.current() is None:
            return os.access(path, mode)
        try:
            user = pwd.getpwnam(service.USER)
            groups = {*os.getgrouplist(user.pw_name, user.pw_gid)}
            whole = path.resolve()
            ways = [(parent, os.X_OK) for parent in whole.parents]
            return all(_has(place.stat(), wanted, user.pw_uid, groups) for place, wanted in (*ways, (whole, mode)))
        except (KeyError, OSError):
            return False

    def install_command(self) -> str:
        """What makes this agent a service: sudo knows neither this environment nor its settings."""
        program = Path(sys.prefix) / "bin" / "edgefleet"
        return f"sudo {program} agent install --config {self.settings_file.absolute()}"


def _has(found: os.stat_result, wanted: int, user: int, groups: set[int]) -> bool:
    """Whether a file's mode gives a user what is wanted (path_resolution(7)): R_OK, W_OK, X_OK, or 0."""
    shift = 6 if found.st_uid == user else 3 if found.st_gid in groups else 0
    return found.st_mode >> shift & wanted == wanted


def is_there(module: str) -> bool:
    """Whether a module could be imported here."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
