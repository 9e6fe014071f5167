"""The agent's two environments: folders A and B, of which the link `current` names one, switched by one atomic rename.

Which of them shall be current is decided in `upgrade`. A folder counts only once its record is in it, written last.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from edgefleet import durable
from edgefleet.errors import BusyError, InputError, StorageError, short_line

DEFAULT_FOLDER = Path("/opt/edgefleet")
NAMES = ("A", "B")
CURRENT_LINK = "current"
PREVIOUS_LINK = "previous"
RECORD_FILE = "edgefleet-environment.json"
LOCK_FILE = ".lock"
# A wheel of a runtime may have to be fetched over a thin line.
INSTALL_TIMEOUT_S = 3600.0
PROBE_TIMEOUT_S = 120.0
# As pip has it since its version 20.3; there is no other sign.
NO_EXTRA = "does not provide the extra"


class Made(BaseModel):
    """What stands in an environment's record, and so how the next one is made."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: str
    """Of edgefleet."""
    runtimes: dict[str, str] = {}
    """Runtime → version."""
    extras: tuple[str, ...] = ()
    system_site_packages: bool = False


class Probed(BaseModel):
    """What an environment says of itself (`edgefleet_agent.host.probe`)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: str
    runtimes: dict[str, str]


class Commands(Protocol):
    """Starts programs and waits for them."""

    def __call__(self, arguments: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Run to the end; raises OSError or subprocess.TimeoutExpired."""
        ...


def run_program(arguments: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a program as `Commands` says; nothing of this environment's Python reaches it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run(
        arguments, timeout=timeout_s, capture_output=True, text=True, check=False, env=environment, cwd="/"
    )


class Environments:
    """The two environments below one folder."""

    def __init__(self, folder: Path, commands: Commands = run_program) -> None:
        """Nothing is made here."""
        self.folder = folder
        self._commands = commands

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else fills or switches meanwhile; raises BusyError when somebody does, and StorageError."""
        doing = f"changing the environments in {self.folder}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / LOCK_FILE).open("ab")
        except OSError as error:
            raise StorageError(doing, error.strerror or str(error), "free that disk, or run this as root") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BusyError(doing, "another installation or upgrade is at it", "wait for its end") from error
            yield

    def path(self, name: str) -> Path:
        """Folder of A or B."""
        return self.folder / name

    def current(self) -> str | None:
        """The environment that the service starts from; None before the first."""
        return self._named(CURRENT_LINK)

    def previous(self) -> str | None:
        """The one that was current before the last upgrade."""
        return self._named(PREVIOUS_LINK)

    def other(self) -> str:
        """The one that may be filled."""
        return NAMES[1] if self.current() == NAMES[0] else NAMES[0]

    def made(self, name: str) -> Made | None:
        """What is in an environment; None where it is not whole."""
        try:
            return Made.model_validate_json((self.path(name) / RECORD_FILE).read_bytes())
        except (OSError, ValidationError):
            return None

    def fill(self, name: str, requirement: list[str], record: Made, settings_file: Path) -> Made:
        """Make an environment anew; `requirement` is what pip is told to install. Returns its record.

        Raises InputError when it cannot be made or is not fit, and StorageError.
        """
        target = self.path(name)
        doing = f"making the environment {target}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # First: a folder that is half removed must not count.
            (target / RECORD_FILE).unlink(missing_ok=True)
            if target.exists():
                shutil.rmtree(target)
            shared = ["--system-site-packages"] if record.system_site_packages else []
            self._must(doing, [sys.executable, "-m", "venv", *shared, str(target)], _VENV_REMEDY)
            python = str(target / "bin" / "python")
            pip = [python, "-m", "pip", "--no-input", "--disable-pip-version-check"]
            # A device compiles nothing: of each package the newest that has a wheel for it.
            install = [*pip, "install", "--quiet", "--only-binary=:all:", *requirement]
            _check_extras(doing, self._must(doing, install, "check the version and where it comes from").stderr)
            if not record.system_site_packages:
                self._must(doing, [*pip, "check"], "name versions that fit each other")
            probed = self._probe(doing, python, settings_file)
            whole = record.model_copy(update={"version": probed.version, "runtimes": probed.runtimes})
            os.sync()
            durable.write_file(target / RECORD_FILE, whole.model_dump_json().encode())
        except subprocess.TimeoutExpired as error:
            raise InputError(doing, f"{error.cmd[0]} took longer than {error.timeout:.0f} s", "try it again") from error
        except OSError as error:
            raise StorageError(doing, error.strerror or str(error), "free that disk, or run this as root") from error
        return whole

    def switch(self, link: str, name: str) -> None:
        """Point `current` or `previous` at an environment: one atomic rename, on disk when this returns.

        Raises StorageError.
        """
        new = self.folder / f".{link}.new"
        try:
            new.unlink(missing_ok=True)
            new.symlink_to(name)
            new.replace(self.folder / link)
            durable.sync_folder(self.folder)
        except OSError as error:
            with suppress(OSError):
                new.unlink(missing_ok=True)
            doing = f"pointing {self.folder / link} at {name}"
            raise StorageError(doing, error.strerror or str(error), "free that disk, or run this as root") from error

    def _named(self, link: str) -> str | None:
        try:
            name = (self.folder / link).readlink().name
        except OSError:
            return None
        return name if name in NAMES else None

    def _probe(self, doing: str, python: str, settings_file: Path) -> Probed:
        """Ask the new environment what it is, and whether it takes this device's settings."""
        arguments = [python, "-m", "edgefleet_agent.host.probe", str(settings_file)]
        done = self._must(doing, arguments, "correct the settings, or choose another version", PROBE_TIMEOUT_S)
        try:
            return Probed.model_validate_json(done.stdout)
        except ValidationError as error:
            raise InputError(doing, "it does not say what it is", "choose a version that can be upgraded to") from error

    def _must(
        self, doing: str, arguments: list[str], remedy: str, timeout_s: float = INSTALL_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        done = self._commands(arguments, timeout_s)
        if done.returncode != 0:
            # What pip and Python say last is the reason.
            lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            raise InputError(doing, short_line(lines[-1]) if lines else f"exit status {done.returncode}", remedy)
        return done


def _check_extras(doing: str, said: str) -> None:
    """Raises InputError for an extra that the version does not have: pip warns of it, and leaves it out."""
    # Of what edgefleet itself needs the extras are its own business.
    lines = [line for line in said.splitlines() if NO_EXTRA in line and " edgefleet " in line]
    if lines:
        raise InputError(doing, short_line(lines[0]), "name another with --extra")


_VENV_REMEDY = "run: sudo apt install python3-venv"
