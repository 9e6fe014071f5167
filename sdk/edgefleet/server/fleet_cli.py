"""`edgefleet fleet list|show|command|remove`: what the fleet looks like, and words to one device.

It reads the server's store; nothing is rolled out from here.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgefleet import spans
from edgefleet.cli import options
from edgefleet.errors import one_line
from edgefleet.protocol.signed import CommandName
from edgefleet.server.following import open_store
from edgefleet_device_profiles import catalogue

if TYPE_CHECKING:
    from rich.table import Table

    from edgefleet.server.store import DeviceTelemetry, Store
    from edgefleet.spans import EnergyTotal
    from edgefleet_device_profiles.profile import PowerModel

PIPE_COLUMNS = 160
SHOWN_SILENT = 10
HEADINGS = ("device\n  profile", "state\nvariant", "pulled\nruns", "accuracy", "ms p50\n   p90", "power\n  a run")


@click.group("fleet")
def fleet() -> None:
    """Look at the fleet, and speak to its devices."""


@fleet.command("list")
@options.data
def list_devices(data: Path) -> None:
    """Show every device: variant, accuracy, latency, power, and energy per inference over the last five minutes."""
    from rich.console import Console  # noqa: PLC0415

    store = open_store(data, "listing the fleet")
    console = Console()
    # Into a file or a pipe nothing is cut.
    (console if console.is_terminal else Console(width=PIPE_COLUMNS)).print(fleet_table(store))


@fleet.command("show")
@click.argument("device")
@options.data
def show(device: str, data: Path) -> None:
    """Show one DEVICE: durations, energy, what goes into its model and comes out, its newest events."""
    from rich.console import Console  # noqa: PLC0415

    from edgefleet.server.device_view import device_view  # noqa: PLC0415

    console = Console()
    for part in device_view(open_store(data, f"showing {device}"), device):
        (console if console.is_terminal else Console(width=PIPE_COLUMNS)).print(part)


@fleet.command("command")
@click.argument("device")
@click.argument("name", metavar="report|renew", type=click.Choice([name.value for name in CommandName]))
@options.data
def command(device: str, name: str, data: Path) -> None:
    """Have a DEVICE report everything again, or renew its certificate now; it answers with an event."""
    from edgefleet.server import control  # noqa: PLC0415
    from edgefleet.server.following import reachable_fleet  # noqa: PLC0415

    doing = f"telling {device} to {name}"
    store = open_store(data, doing)
    reachable_fleet(store, data, doing)
    made = control.command(store, data, device, CommandName(name), time.time())
    click.echo(f"command {made.command_id} is on its way to {device}", err=True)


@fleet.command("remove")
@click.argument("device")
@options.data
@click.option("--broker", metavar="HOST:PORT", help="MQTT broker. [default: the one that the server uses]")
@options.tls
def remove_device(device: str, data: Path, broker: str | None, *, tls: bool) -> None:
    """Revoke a DEVICE's certificate, close its session and clear what the broker retains of it."""
    from edgefleet.errors import InputError, TransportError  # noqa: PLC0415
    from edgefleet.mqtt import BrokerAddress  # noqa: PLC0415
    from edgefleet.server.removal import remove  # noqa: PLC0415

    doing = f"removing {device}"
    store = open_store(data, doing)
    row = store.server()
    if broker is None and row is None:
        raise InputError(doing, "no server ever ran here, so its broker is unknown", "name it with --broker")
    address = BrokerAddress.parse(broker or str(row["broker"] if row else ""))
    # First, so that the server publishes nothing again of what is about to be cleared.
    store.forget_desired(device)
    undone = remove(data, store, device, address, tls=tls, now=time.time())
    if undone is not None:
        # Its certificate may open a new session there: a script must not take that for done.
        raise TransportError(doing, f"it is removed here, but {undone}", "do that, and give the command again")
    click.echo(f"{device} is removed", err=True)


def _telemetry_cells(seen: DeviceTelemetry, model: PowerModel | None) -> list[str]:
    accuracy = f"{seen.correct / seen.labelled:.2%}" if seen.labelled else "–"
    inference = seen.span.inference
    figures = [spans.percentile(inference, q).value for q in (0.5, 0.9)]
    p50, p90 = ("–" if value is None else f"{value * 1000:.3f}" for value in figures)
    return [accuracy, f"{p50}\n{p90}", _power_cell(seen.span.energy, model)]


def _power_cell(energy: EnergyTotal | None, model: PowerModel | None) -> str:
    """Gross, and net of what the idle board draws where the profile says that of the same scope."""
    if energy is None or energy.watts is None:
        return "–"
    lines = [f"{energy.watts:.2f} W", _joules(spans.energy_per_inference(energy).value)]
    if model is not None and model.scope == energy.scope:
        net_j = spans.net_of_idle(energy, model.idle_w).value
        lines += [] if net_j is None else [f"net {_joules(net_j)}"]
    lines += [energy.source, one_line(energy.scope)]
    # Beside what is measured, never in its place: the board draws more than its rails.
    if model is not None and model.board_fit is not None and (energy.source, energy.scope) == ("measured", "rails"):
        lines += [f"{model.board_fit.board_w(energy.watts):.2f} W", "estimated", "bare board"]
    return "\n".join(lines)


def _power_model(profile: str | None) -> PowerModel | None:
    """Of a device's profile, where this server knows that."""
    try:
        return None if profile is None else catalogue.load(profile).power
    except (catalogue.UnknownProfileError, ValueError):
        return None


def _joules(joules: float | None) -> str:
    if joules is None:
        return "– mJ"
    return f"{joules:.3g} J" if joules >= 1 else f"{joules * 1000:.3g} mJ"


def _silent(store: Store, heard: set[str]) -> list[str]:
    """A line that names who was enrolled and never spoke, where there are such."""
    silent = [row.device for row in store.enrolments() if row.revoked_at is None and row.device not in heard]
    if not silent:
        return []
    more = f" and {len(silent) - SHOWN_SILENT} more" if len(silent) > SHOWN_SILENT else ""
    return [f"enrolled, never said hello: {', '.join(silent[:SHOWN_SILENT])}{more}"]


def fleet_table(store: Store) -> Table:
    """The fleet as a rich table: one row per device, in 80 columns; what is wrong stands below it."""
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    rows, denied = store.devices(), store.denied()
    notes = [f"{row.device}: {one_line(row.reason)}" for row in rows if row.reason]
    notes += [f"{device}: no deployments: {one_line(reason)}" for device, reason in denied.items()]
    notes += _silent(store, {row.device for row in rows})
    notes += ["* simulated: the host is not that board"] if any(row.simulated for row in rows) else []
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.caption, table.caption_justify = Text("\n".join(notes)), "left"
    for heading in HEADINGS:
        table.add_column(heading, no_wrap=True)
    models = {profile: _power_model(profile) for profile in {row.profile for row in rows}}
    for row in rows:
        seen = None if row.digest is None else store.telemetry(row.device, row.digest)
        state = "denied" if row.device in denied else row.state or "waiting"
        cells = [
            f"{row.device}\n  {one_line(row.profile or '–')}{'*' if row.simulated else ''}",
            f"{state}\n{one_line(row.variant or '–')}{'' if row.online else f'{chr(10)}offline'}",
            f"{row.pulled_bytes / 1000:.1f} kB\n{seen.inferences if seen else 0}",
            *([] if seen is None else _telemetry_cells(seen, models[row.profile])),
        ]
        # Text: what a device says of itself is no markup.
        table.add_row(*(Text(cell) for cell in cells))
    return table
