"""What the agent says of its device in its hello."""

from __future__ import annotations

from pathlib import Path

from edgefleet import __version__
from edgefleet.errors import InputError
from edgefleet.protocol.messages import Facts
from edgefleet_device_profiles import catalogue, detect
from edgefleet_device_profiles.profile import Profile


def boot_id(root: Path) -> str:
    """The kernel's random id of this boot (random(4)), or `unknown`."""
    try:
        return (root / "proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def load_profile(name: str) -> Profile:
    """A profile from the catalogue; raises InputError."""
    try:
        return catalogue.load(name)
    except (catalogue.UnknownProfileError, ValueError) as error:
        raise InputError(
            "reading the agent's settings", str(error).splitlines()[0], "set `profile` to one of these"
        ) from error


def gather(root: Path, profile: Profile, enrolment_id: str, connection: int) -> Facts:
    """Detect this machine and compare it with its profile."""
    machine = detect.detect(root)
    different = detect.mismatch(profile, machine)
    return Facts(
        enrolment_id=enrolment_id,
        boot_id=boot_id(root),
        connection=connection,
        agent_version=__version__,
        profile=profile.id,
        simulated=different is not None,
        simulated_reason=different,
        machine=machine,
    )
