"""What this device lacks to run the agent well, and for each thing the command that mends it.

It changes nothing, and asks nothing of a running agent. One row of `CHECKS` for each question.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import ssl
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from packaging.specifiers import SpecifierSet

from edgefleet import __version__
from edgefleet import identity as identities
from edgefleet.errors import EdgefleetError
from edgefleet.identity import DeviceIdentity
from edgefleet.mqtt import BrokerAddress, Tls
from edgefleet_agent import facts, status
from edgefleet_agent.clock import follows_a_time_server
from edgefleet_agent.host.environments import Environments
from edgefleet_agent.host.upgrade import last_outcome, pending
from edgefleet_agent.host.wheels import RUNTIME_EXTRAS
from edgefleet_agent.power import open_meter
from edgefleet_agent.settings import Settings
from edgefleet_agent.settings import load as load_settings
from edgefleet_agent.source_settings import CameraSource, MqttSource
from edgefleet_agent.thermal import Thermal
from edgefleet_agent.update_lock import update_locked
from edgefleet_device_profiles import detect
from edgefleet_device_profiles.detect import MachineFacts
from edgefleet_device_profiles.profile import Profile

CONNECT_TIMEOUT_S = 5.0
REFUSAL_TIMEOUT_S = 0.5
# Import name → what pip calls it; all of the extra `agent`.
NEEDED = {"paho.mqtt": "paho-mqtt", "tuf": "tuf", "cryptography": "cryptography", "numpy": "numpy"}
# Driver → what is imported, and how it gets there.
CAMERA_DRIVERS = {
    "opencv": ("cv2", "run: pip install 'edgefleet[camera]'"),
    "picamera2": ("picamera2", "run: sudo apt install python3-picamera2; and install the agent with --system-packages"),
}
# The least that a journal and a spool need to go on.
LOW_DISK_MIB = 64


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
    def profile(self) -> Profile:
        """The profile that the settings name."""
        return facts.load_profile(self.settings.profile)

    @cached_property
    def machine(self) -> MachineFacts:
        """What this machine is."""
        return detect.detect(self.settings.root)


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


def _python(_subject: Subject) -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    text = f"Python {version}, edgefleet {__version__}, in {sys.prefix}"
    managed = Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED"
    if sys.prefix == sys.base_prefix and managed.exists():
        return Finding(
            Level.WARNING, f"{text}, which belongs to the system (PEP 668)", "run: sudo edgefleet agent install"
        )
    return Finding(Level.OK, text)


def _packages(_subject: Subject) -> Finding:
    missing = [name for module, name in NEEDED.items() if not _is_there(module)]
    if missing:
        return Finding(Level.FAILED, f"{', '.join(missing)} not installed", "run: pip install 'edgefleet[agent]'")
    return Finding(Level.OK, "everything that the agent itself needs")


def _settings(subject: Subject) -> Finding:
    return Finding(Level.OK, f"{subject.settings_file}, state in {subject.settings.state_folder}")


def _identity(subject: Subject) -> Finding:
    identity = subject.identity
    who = f"{identity.device} of the fleet {identity.fleet}"
    if not identity.tls:
        return Finding(Level.NOTE, f"{who}, without TLS")
    days = (identity.not_after - subject.now) / 86400
    if days <= 0:
        mend = "enrol it again (edgefleet enroll), if the clock is right"
        return Finding(Level.FAILED, f"{who}; its certificate ended {-days:.0f} days ago", mend)
    text = f"{who}, certificate good for {days:.0f} days"
    if identities.needs_renewal(identity.not_after, subject.now):
        return Finding(Level.WARNING, text, "connect it to its broker: the agent renews by itself")
    return Finding(Level.OK, text)


def _profile(subject: Subject) -> Finding:
    different = detect.mismatch(subject.profile, subject.machine)
    if different is None:
        return Finding(Level.OK, f"{subject.profile.id}: {subject.profile.title}")
    mend = "run: edgefleet profiles detect; and set `profile` to what it says"
    return Finding(Level.WARNING, f"simulated, no {subject.profile.title}: {different}", mend)


def _runtime(subject: Subject) -> Finding:
    installed = subject.machine.runtimes
    fitting = [
        f"{allowed.name} {installed[allowed.name]}"
        for allowed in subject.profile.runtimes
        if allowed.name in installed
        and SpecifierSet(allowed.version).contains(installed[allowed.name], prereleases=True)
    ]
    if fitting:
        return Finding(Level.OK, ", ".join(fitting))
    wanted = subject.profile.runtimes[0]
    found = ", ".join(f"{name} {version}" for name, version in installed.items()) or "none"
    mend = f"run: pip install 'edgefleet[{RUNTIME_EXTRAS.get(wanted.name, wanted.name.value)}]'"
    return Finding(Level.FAILED, f"no runtime of the profile ({wanted.name} {wanted.version}, …) here: {found}", mend)


def _state(subject: Subject) -> Finding:
    folder = subject.settings.state_folder
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK):
        return Finding(Level.FAILED, f"{there} cannot be written by this user", f"run: sudo chown -R $USER {there}")
    free_mib, floor_mib = shutil.disk_usage(there).free / 2**20, subject.profile.storage.free_floor_mib
    text = f"{free_mib:.0f} MiB free in {there}"
    if free_mib < max(floor_mib, LOW_DISK_MIB):
        return Finding(Level.WARNING, f"{text}; installs leave {floor_mib:.0f} MiB free", "free some space there")
    return Finding(Level.OK, text)


def _broker(subject: Subject) -> Finding:
    identity, settings = subject.identity, subject.settings
    address = BrokerAddress(settings.broker.host or identity.host, settings.broker.port or identity.port)
    try:
        with socket.create_connection((address.host, address.port), CONNECT_TIMEOUT_S) as plain:
            if not identity.tls:
                return Finding(Level.OK, f"{address} answers, without TLS")
            context = Tls(identity.ca_file, identity.certificate_file, identity.key_file).context()
            with context.wrap_socket(plain, server_hostname=address.host) as tls:
                _wait_for_refusal(tls)
                return Finding(Level.OK, f"{address} answers, {tls.version()}")
    except ssl.SSLError as error:
        mend = "compare the clock, and the fleet's authority (ca.crt) with the broker's certificate"
        return Finding(Level.FAILED, f"{address}: {error.reason or error}", mend)
    except OSError as error:
        mend = "start the broker, or name its address as [broker] in the settings"
        return Finding(Level.FAILED, f"{address}: {error.strerror or error}", mend)


def _wait_for_refusal(tls: ssl.SSLSocket) -> None:
    """With TLS 1.3 a broker that does not take our certificate says so only after the handshake; raises SSLError."""
    tls.settimeout(REFUSAL_TIMEOUT_S)
    with suppress(TimeoutError):
        tls.recv(1)


def _power(subject: Subject) -> Finding:
    simulated = detect.mismatch(subject.profile, subject.machine) is not None
    meter = open_meter(subject.settings.root, subject.profile, simulated=simulated)
    reason = meter.energy().reason
    if reason is None:
        return Finding(Level.OK, f"measured by {meter.name}")
    mend = "run: sudo edgefleet agent install; it lets the agent's user read it" if "ermission" in reason else None
    return Finding(Level.NOTE if mend is None else Level.WARNING, f"estimated: {reason}", mend)


def _heat(subject: Subject) -> Finding:
    simulated = detect.mismatch(subject.profile, subject.machine) is not None
    reading = Thermal(subject.settings.root, subject.profile, simulated=simulated).read()
    if reading.undervoltage or reading.undervoltage_since_boot:
        when = "now" if reading.undervoltage else "since its start"
        return Finding(Level.WARNING, f"the supply's voltage is too low, {when}", "use the board's own power supply")
    if reading.throttled or reading.throttled_since_boot:
        when = "now" if reading.throttled else "since its start"
        return Finding(Level.WARNING, f"the processor was slowed down, {when}", "cool it, or give it less to do")
    if reading.temperature_c is None:
        return Finding(Level.NOTE, f"unknown: {reading.reason or 'no sensor says'}")
    return Finding(Level.OK, f"{reading.temperature_c:.0f} °C")


def _clock(_subject: Subject) -> Finding:
    if follows_a_time_server():
        return Finding(Level.OK, "follows a time server")
    return Finding(Level.NOTE, "follows no time server: its times are marked so", "run: sudo timedatectl set-ntp true")


def _source(subject: Subject) -> Finding:
    source, is_served = subject.settings.source, subject.settings.serve.enabled
    match source:
        case None if not is_served:
            return Finding(Level.WARNING, "none, and no local API", "add [source], or [serve] with enabled = true")
        case None:
            return Finding(Level.OK, "the local API alone")
        case MqttSource():
            return Finding(Level.OK, f"mqtt: {source.topic}")
        case CameraSource():
            return _camera(source)
    if os.access(source.path, os.R_OK):
        return Finding(Level.OK, f"{source.kind}: {source.path}")
    return Finding(Level.FAILED, f"{source.kind}: {source.path} cannot be read", "correct the path in [source]")


def _camera(source: CameraSource) -> Finding:
    module, mend = CAMERA_DRIVERS[source.driver]
    if _is_there(module):
        return Finding(Level.OK, f"camera {source.device}, {source.driver}")
    return Finding(Level.FAILED, f"the Python package {module} is not installed", mend)


def _service(subject: Subject) -> Finding:
    environments, running = subject.environments, status.running_agent(subject.settings.state_folder)
    current = environments.current()
    if running is not None:
        broker = "connected" if running.connected else "not connected"
        agent = f"an agent is running from {running.environment}, {broker}"
    else:
        agent = "no agent is running"
    if (on_trial := pending(environments)) is not None:
        return Finding(Level.NOTE, f"{agent}; {on_trial.version} is on trial in {on_trial.tried}")
    if current is None:
        return Finding(Level.NOTE, f"{agent}; it is not installed as a service", "run: sudo edgefleet agent install")
    if running is None:
        return Finding(Level.WARNING, agent, "run: sudo systemctl start edgefleet-agent; journalctl -u edgefleet-agent")
    outcome = last_outcome(environments)
    if outcome is not None and not outcome.kept:
        text = f"{agent}; the upgrade to {outcome.version} was taken back: {outcome.reason}"
        return Finding(Level.NOTE, text, "look at: journalctl -u edgefleet-agent; then upgrade again")
    return Finding(Level.OK, agent)


def _lock(subject: Subject) -> Finding:
    locked = update_locked(subject.settings)
    if locked is None:
        return Finding(Level.OK, "nothing keeps updates waiting")
    mend = f"rm {subject.settings.state_folder / subject.settings.update.lock_file}, when updates may go on"
    return Finding(Level.NOTE, f"updates wait: {locked}", mend)


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


CHECKS: dict[str, Callable[[Subject], Finding]] = {
    "python": _python,
    "packages": _packages,
    "settings": _settings,
    "identity": _identity,
    "profile": _profile,
    "runtime": _runtime,
    "state": _state,
    "broker": _broker,
    "power": _power,
    "heat": _heat,
    "clock": _clock,
    "source": _source,
    "service": _service,
    "updates": _lock,
}
