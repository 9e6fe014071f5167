"""Questions about the machine: its Python, its board, and what it measures with.

Each takes the device and gives a finding; it raises EdgefleetError where something else has to be mended first.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from packaging.specifiers import SpecifierSet

from edgefleet import __version__
from edgefleet_agent.clock import follows_a_time_server
from edgefleet_agent.doctor.subject import Finding, Level, Subject, is_there
from edgefleet_agent.host.wheels import RUNTIME_EXTRAS
from edgefleet_agent.power import Energy, open_meter
from edgefleet_agent.thermal import Thermal
from edgefleet_device_profiles import detect
from edgefleet_device_profiles.profile import BoardFit

# Import name → what pip calls it; all of the extra `agent`.
NEEDED = {"paho.mqtt": "paho-mqtt", "tuf": "tuf", "cryptography": "cryptography", "numpy": "numpy"}
# What counters tell of: between two readings at once they have not moved, or by one step of theirs.
COUNTED = {"package", "psys"}


def python(subject: Subject) -> Finding:
    """Which Python runs it, and whether that is its own."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    text = f"Python {version}, edgefleet {__version__}, in {sys.prefix}"
    managed = Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED"
    if sys.prefix == sys.base_prefix and managed.exists():
        mend = f"run: {subject.install_command()}"
        return Finding(Level.WARNING, f"{text}, which belongs to the system (PEP 668)", mend)
    return Finding(Level.OK, text)


def packages(_subject: Subject) -> Finding:
    """Whether what every agent imports is there."""
    missing = [name for module, name in NEEDED.items() if not is_there(module)]
    if missing:
        return Finding(Level.FAILED, f"{', '.join(missing)} not installed", "run: pip install 'edgefleet[agent]'")
    return Finding(Level.OK, "everything that the agent itself needs")


def profile(subject: Subject) -> Finding:
    """Whether the machine is the profile's."""
    different = detect.mismatch(subject.profile, subject.machine)
    if different is None:
        return Finding(Level.OK, f"{subject.profile.id}: {subject.profile.title}")
    mend = "run: edgefleet profiles detect; and set `profile` to what it says"
    return Finding(Level.WARNING, f"simulated, no {subject.profile.title}: {different}", mend)


def runtime(subject: Subject) -> Finding:
    """Whether a runtime that the profile takes is there."""
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
    if wanted.python is not None and subject.machine.python not in SpecifierSet(wanted.python):
        mend = f"make the agent's environment with Python {wanted.python}: it has no wheel for {subject.machine.python}"
    return Finding(Level.FAILED, f"no runtime of the profile ({wanted.name} {wanted.version}, …) here: {found}", mend)


def power(subject: Subject) -> Finding:
    """Whether something measures the power."""
    meter = open_meter(subject.settings.root, subject.profile, simulated=subject.is_simulated)
    energy = meter.energy()
    if energy.reason is None:
        return Finding(Level.OK, f"measured by {meter.name}{_watts(energy, subject.profile.power.board_fit)}")
    mend = (
        f"run: {subject.install_command()}; it lets the agent's user read it" if "ermission" in energy.reason else None
    )
    return Finding(Level.NOTE if mend is None else Level.WARNING, f"estimated: {energy.reason}", mend)


def _watts(energy: Energy, fit: BoardFit | None) -> str:
    """What a sensor says, of what; of rails alone what the bare board may draw with them, an estimate beside it."""
    if energy.scope in COUNTED or energy.joules <= 0 or energy.duration_s <= 0:
        return ""
    watts = energy.joules / energy.duration_s
    board = ""
    if fit is not None and energy.scope == "rails":
        board = f"; the bare board about {fit.board_w(watts):.1f} W, estimated from that"
    return f": {energy.scope} {watts:.1f} W{board}"


def heat(subject: Subject) -> Finding:
    """Whether the machine is too hot, or its supply too weak."""
    reading = Thermal(subject.settings.root, subject.profile, simulated=subject.is_simulated).read()
    if reading.undervoltage or reading.undervoltage_since_boot:
        when = "now" if reading.undervoltage else "since its start"
        return Finding(Level.WARNING, f"the supply's voltage is too low, {when}", "use the board's own power supply")
    if reading.throttled or reading.throttled_since_boot:
        when = "now" if reading.throttled else "since its start"
        return Finding(Level.WARNING, f"the processor was slowed down, {when}", "cool it, or give it less to do")
    if reading.temperature_c is None:
        return Finding(Level.NOTE, f"unknown: {reading.reason or 'no sensor says'}")
    return Finding(Level.OK, f"{reading.temperature_c:.0f} °C")


def clock(_subject: Subject) -> Finding:
    """Whether the time can be believed."""
    if follows_a_time_server():
        return Finding(Level.OK, "follows a time server")
    return Finding(Level.NOTE, "follows no time server: its times are marked so", "run: sudo timedatectl set-ntp true")
