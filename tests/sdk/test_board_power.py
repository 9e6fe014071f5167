"""What is shown of a device's power: gross, net of idle where that is known, the bare board beside its rails."""

from __future__ import annotations

import pytest

from edgefleet.server import fleet_cli
from edgefleet.spans import EnergyTotal
from edgefleet_device_profiles import catalogue


def cell(profile: str | None, source: str, scope: str, duration_s: float = 10.0) -> list[str]:
    total = EnergyTotal(source, scope, 4.0 * duration_s, duration_s=duration_s, samples=100, inferences=100, windows=1)
    return fleet_cli._power_cell(total, fleet_cli._power_model(profile)).splitlines()


@pytest.mark.parametrize("profile", ["raspberry-pi-5", "raspberry-pi-5-ai-hat"])
def test_beside_measured_rails_stands_what_the_board_may_draw(profile: str) -> None:
    assert cell(profile, "measured", "rails") == [
        "4.00 W", "– mJ", "measured", "rails", f"{4.0 * 1.1451 + 0.5879:.2f} W", "estimated", "bare board",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("profile", "source", "scope"),
    [
        # The supply itself is measured, or there are no rails to go by.
        ("raspberry-pi-5", "measured", "board_input"),
        ("raspberry-pi-5", "estimated", "board_input"),
        # Nobody published a line for its rails.
        ("jetson-orin-nano", "measured", "rails"),
        ("a-profile-of-another-server", "measured", "rails"),
        (None, "measured", "rails"),
    ],
)
def test_without_measured_rails_and_a_fit_nothing_stands_beside(profile: str | None, source: str, scope: str) -> None:
    assert cell(profile, source, scope)[-2:] == [source, scope]


def test_net_of_idle_stands_beside_gross_where_it_is_of_the_same_scope() -> None:
    """4 W for 60 s and 100 inferences; the profile's idle board draws 2.7 W."""
    net = f"net {(4.0 - 2.7) * 60 / 100 * 1000:.3g} mJ"
    assert cell("raspberry-pi-5", "measured", "board_input", 60.0) == [
        "4.00 W",
        "2.4 J",
        net,
        "measured",
        "board_input",
    ]
    assert cell("raspberry-pi-5", "measured", "package", 60.0) == ["4.00 W", "2.4 J", "measured", "package"]
    # Too short for gross is too short for net.
    assert cell("raspberry-pi-5", "measured", "board_input", 10.0)[1:] == ["– mJ", "measured", "board_input"]


def test_the_fit_is_of_the_board_that_it_was_made_for() -> None:
    with_fit = {name for name in catalogue.names() if catalogue.load(name).power.board_fit is not None}
    assert with_fit == {"raspberry-pi-5", "raspberry-pi-5-ai-hat"}
