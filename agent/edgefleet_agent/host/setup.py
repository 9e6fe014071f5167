"""Installing the agent on its machine: an environment of its own, a user, the service, and what that may read.

Doing it again repairs what is there and keeps the environment. Replacing that is `upgrade`'s business.
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgefleet import durable
from edgefleet import identity as identities
from edgefleet.errors import InputError, StorageError
from edgefleet_agent.host import service
from edgefleet_agent.host.environments import CURRENT_LINK, PREVIOUS_LINK, Commands, Environments, Made, run_program
from edgefleet_agent.host.service import AGENT_UNIT, UNITS, Place, ServiceManager
from edgefleet_agent.settings import Settings
from edgefleet_agent.source_settings import CameraSource, FolderSource, JsonlSink, MqttSink, MqttSource, ReplaySource

FIRST = "A"
SYSUSERS = 'u {user} - "edgefleet agent" {state}\n'
# The kernel gives energy counters to root alone, because they tell of other programs: one group more may read them.
POWER_RULE = """\
SUBSYSTEM=="powercap", ACTION=="add", KERNEL=="intel-rapl:*", \
RUN+="/bin/chgrp {user} /sys%p/energy_uj", RUN+="/bin/chmod g+r /sys%p/energy_uj"
"""


@dataclass(frozen=True, slots=True)
class SystemFolders:
    """Where a system's own files are, for tests to replace."""

    units: Path = Path("/etc/systemd/system")
    users: Path = Path("/etc/sysusers.d")
    rules: Path = Path("/etc/udev/rules.d")
    programs: Path = Path("/usr/local/bin")
    hidden: tuple[Path, ...] = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # noqa: S108 - named
    """What a service does not see (ProtectHome, PrivateTmp)."""
    fleeting: tuple[Path, ...] = (Path("/run"),)
    """What it sees, and what the next boot clears."""

    def hides(self, path: Path) -> bool:
        """Whether a service sees nothing of a path."""
        return any(path.is_relative_to(folder) for folder in self.hidden)

    def loses(self, path: Path) -> bool:
        """Whether a service does not see a path, or not after the next boot."""
        return self.hides(path) or any(path.is_relative_to(folder) for folder in self.fleeting)


@dataclass(frozen=True, slots=True)
class Setup:
    """One installation, as it was asked for."""

    settings_file: Path
    """Absolute."""
    settings: Settings
    requirement: list[str]
    record: Made
    user: str = service.USER
    python: Path = Path(sys.base_prefix)
    """Where the Python lies that the environments are made with, and lean on from then on."""


def install(
    setup: Setup,
    environments: Environments,
    services: ServiceManager,
    system: SystemFolders | None = None,
    commands: Commands = run_program,
) -> Iterator[str]:
    """Do it, step by step; yields what is being done, before it is. Raises EdgefleetError."""
    system = system or SystemFolders()
    place = _place(setup, environments)
    _check_reachable(place, read_by(setup.settings), system)
    units = service.unit_files(place, service.present_groups())
    if environments.current() is None:
        _check_python(setup.python, system)
        yield f"filling {environments.path(FIRST)} (this may take minutes)"
        environments.fill(FIRST, setup.requirement, setup.record, setup.settings_file)
        environments.switch(PREVIOUS_LINK, FIRST)
        environments.switch(CURRENT_LINK, FIRST)
    yield f"the user {setup.user}, and what it owns: {place.state_folder}, {place.identity}"
    users_file = system.users / "edgefleet.conf"
    _write(users_file, SYSUSERS.format(user=setup.user, state=place.state_folder))
    _run(commands, ["systemd-sysusers", str(users_file)])
    _hand_over(setup, place)
    yield f"the service {AGENT_UNIT} in {system.units}"
    for unit, text in units.items():
        _write(system.units / unit, text)
    _write(system.rules / "60-edgefleet-power.rules", POWER_RULE.format(user=setup.user))
    _run(commands, ["udevadm", "control", "--reload"])
    _run(commands, ["udevadm", "trigger", "--subsystem-match=powercap", "--action=add"])
    _link(system.programs / "edgefleet", environments.folder / CURRENT_LINK / "bin" / "edgefleet")
    services.reload()
    for unit in UNITS:
        services.enable(unit)
    yield "starting it"
    services.restart(AGENT_UNIT)


def check_root() -> None:
    """Raises InputError for anybody but root."""
    if os.geteuid() != 0:
        raise InputError("changing this machine's agent", "you are not root", "run it with sudo")


def written_by(settings: Settings) -> tuple[Path, ...]:
    """Folders that sources and sinks write to."""
    written = [sink.path.parent for sink in settings.sinks if isinstance(sink, JsonlSink)]
    if isinstance(settings.source, FolderSource) and settings.source.after == "delete":
        written.append(settings.source.path)
    return tuple(written)


def read_by(settings: Settings) -> tuple[Path, ...]:
    """Files and folders that sources, sinks and the update lock read."""
    source, read = settings.source, [settings.state_folder / settings.update.lock_file]
    if isinstance(source, ReplaySource | FolderSource):
        read.append(source.path)
    if isinstance(source, CameraSource):
        # A number or a stream's address leads to no folder that is hidden.
        read.append(Path(source.device))
    talking = [one for one in (source, *settings.sinks) if isinstance(one, MqttSource | MqttSink)]
    return (*read, *(one.broker.password_file for one in talking if one.broker.password_file is not None))


def _place(setup: Setup, environments: Environments) -> Place:
    """Where everything is; raises InputError without an identity."""
    identities.load(setup.settings.identity)
    settings = setup.settings
    return Place(
        environments.folder, setup.settings_file, settings.state_folder, settings.identity, setup.user,
        written_by(settings),
    )  # fmt: skip


def _check_reachable(place: Place, read: tuple[Path, ...], system: SystemFolders) -> None:
    """Raises InputError where the service could not reach what is its own, or what it is told to read."""
    kept = (place.environments, place.settings_file, place.state_folder, place.identity, *place.written)
    for path in (*kept, *read):
        if system.hides(path) or (path in kept and system.loses(path)):
            raise InputError(
                f"installing the agent with {path}", "a service must not depend on that folder",
                "move it to /etc/edgefleet or /var/lib/edgefleet, and name that in the settings",
            )  # fmt: skip


def _check_python(python: Path, system: SystemFolders) -> None:
    """Raises InputError where the service could not start the Python that its environment would lean on."""
    # Links and all: an environment's own Python is a link to the one that it was made with.
    if system.loses(python.resolve()):
        raise InputError(
            f"installing the agent with the Python in {python}", "a service must not depend on that folder",
            "install from an environment of the system's Python: /usr/bin/python3 -m venv",
        )  # fmt: skip


def _hand_over(setup: Setup, place: Place) -> None:
    """State and identity are the user's alone; the settings may be read by it. What it writes to, it finds there."""
    doing = f"giving {place.state_folder} to the user {setup.user}"
    try:
        entry = pwd.getpwnam(setup.user)
        place.state_folder.mkdir(parents=True, exist_ok=True)
        for folder in (place.state_folder, place.identity):
            folder.chmod(0o700)
            for path in (folder, *folder.rglob("*")):
                os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)
        for folder in place.written:
            # One that is there belongs to whoever made it.
            if not folder.exists():
                folder.mkdir(parents=True)
                os.chown(folder, entry.pw_uid, entry.pw_gid)
        os.chown(setup.settings_file, -1, entry.pw_gid)
        setup.settings_file.chmod(setup.settings_file.stat().st_mode | 0o040)
    except KeyError as error:
        raise InputError(doing, "there is no such user", f"run: useradd --system {setup.user}") from error
    except OSError as error:
        raise StorageError(doing, error.strerror or str(error), "run it with sudo") from error


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_file(path, text.encode())
    except OSError as error:
        raise StorageError(f"writing {path}", error.strerror or str(error), "run it with sudo") from error


def _link(path: Path, target: Path) -> None:
    """A program of that name that is somebody else's stays."""
    if path.exists() and not path.is_symlink():
        return
    try:
        path.unlink(missing_ok=True)
        path.symlink_to(target)
    except OSError as error:
        raise StorageError(f"linking {path}", error.strerror or str(error), "run it with sudo") from error


def _run(commands: Commands, arguments: list[str]) -> None:
    try:
        done = commands(arguments, service.ANSWER_TIMEOUT_S)
    except OSError as error:
        raise InputError(f"running {arguments[0]}", error.strerror or str(error), "this needs systemd") from error
    if done.returncode != 0:
        found = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[0]
        raise InputError(f"running {' '.join(arguments)}", found, "look at what it says")
