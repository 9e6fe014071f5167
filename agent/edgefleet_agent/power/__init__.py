"""Power meters, chosen by what the board has: a sensor where there is one, else the profile's model."""

from __future__ import annotations

from pathlib import Path

from edgefleet_agent.power import model, rapl
from edgefleet_agent.power.meter import Meter
from edgefleet_device_profiles.profile import Profile


def open_meter(root: Path, profile: Profile, *, simulated: bool) -> Meter:
    """The best meter for this machine; `root` is where /sys and /proc lie.

    A simulated board has no sensor of its own, and the host's is not its: it is always estimated.
    """
    if simulated:
        return model.ModelMeter(root, profile.power, "the board is simulated")
    try:
        return rapl.RaplMeter(root, profile.power)
    except rapl.UnavailableError as error:
        return model.ModelMeter(root, profile.power, str(error))
