"""`edgefleet server`, `edgefleet deploy` and `edgefleet fleet list`.

Commands work on the server's data folder, on the machine that the server runs on.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgefleet.errors import EdgefleetError, InputError, TransportError

if TYPE_CHECKING:
    from rich.table import Table

    from edgefleet.server.store import DeviceTelemetry, Store

BROKER_PATIENCE_S = 5.0
FOLLOW_EVERY_S = 0.2
PIPE_COLUMNS = 160

_data = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("edgefleet-data"),
    show_default=True,
    help="The server's folder: store and packages.",
)


@click.command("server")
@_data
@click.option("--fleet", required=True, help="Name of the fleet.")
@click.option("--broker", required=True, metavar="HOST:PORT", help="MQTT broker.")
@click.option(
    "--rate-limit",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MB/S",
    help="At most this many megabytes of blocks a second, all devices together.",
)
def server(data: Path, fleet: str, broker: str, rate_limit: float | None) -> None:
    """Serve a fleet: packages, telemetry and desired states over the MQTT broker."""
    from edgefleet.cli import stop_on_signals
    from edgefleet.mqtt import BrokerAddress
    from edgefleet.server.service import Server, lock_data

    address = BrokerAddress.parse(broker)
    with lock_data(data):
        limit = None if rate_limit is None else rate_limit * 1e6
        Server(data, fleet, address, rate_limit_bytes_per_s=limit).run(stop_on_signals())


@click.command("deploy")
@click.argument("package", type=click.Path(path_type=Path))
@_data
@click.option("--to", "selector", default="all", show_default=True, metavar="all|DEVICE,…", help="Which devices.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to follow the devices.",
)
def deploy(package: Path, data: Path, selector: str, timeout_s: float) -> None:
    """Deploy a package and follow the devices until each has ended."""
    from edgefleet.package.layout import Package
    from edgefleet.server import control

    opened = Package(package)
    opened.verify()
    store = _open_store(data, f"deploying {package}")
    fleet = _reachable_fleet(store, data, f"deploying {package}")
    control.select_devices(selector, store.devices())
    control.import_package(opened, data)
    deployment, generations = control.deploy(store, fleet, opened, selector, time.time())
    click.echo(f"deployment {deployment.deployment_id}: {len(generations)} device(s)", err=True)
    failed = follow(store, generations, timeout_s)
    if failed:
        raise EdgefleetError(
            f"deploying {package}", "; ".join(f"{name}: {why}" for name, why in failed.items()),
            "mend the devices named and deploy again",
        )  # fmt: skip


@click.group("fleet")
def fleet() -> None:
    """Look at the fleet."""


@fleet.command("list")
@_data
def list_devices(data: Path) -> None:
    """Show every device: variant, accuracy, latency and power."""
    from rich.console import Console

    store = _open_store(data, "listing the fleet")
    console = Console()
    # Into a file or a pipe nothing is cut.
    (console if console.is_terminal else Console(width=PIPE_COLUMNS)).print(fleet_table(store))


def _open_store(data: Path, doing: str) -> Store:
    from edgefleet.server.service import STORE_FILE
    from edgefleet.server.store import Store

    if not (data / STORE_FILE).exists():
        raise InputError(doing, f"{data} is not a server's folder", "start `edgefleet server`, or name its --data")
    return Store(data / STORE_FILE)


def _reachable_fleet(store: Store, data: Path, doing: str) -> str:
    """Name of the fleet once its server is connected; raises TransportError after 5 s."""
    from edgefleet.server.service import is_running

    deadline = time.monotonic() + BROKER_PATIENCE_S
    while True:
        row = store.server()
        running = is_running(data)
        if row is not None and row["connected"] and running:
            return str(row["fleet"])
        if time.monotonic() > deadline or not running:
            break
        time.sleep(0.1)
    if not running:
        raise TransportError(doing, f"no server is running on {data}", "start `edgefleet server` and try again")
    broker = row["broker"] if row else "unknown"
    failure = (row["failure"] if row else None) or "no connection"
    raise TransportError(
        doing, f"the server cannot reach its MQTT broker {broker} ({failure})", "check that the broker runs"
    )


def follow(store: Store, generations: dict[str, int], timeout_s: float) -> dict[str, str]:
    """Show progress bars until every generation has an outcome; returns device → why for those that failed."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.fields[device]:20}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.description}"),
    )
    failed: dict[str, str] = {}
    open_ones = dict(generations)
    deadline = time.monotonic() + timeout_s
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bars = {name: progress.add_task("waiting", device=name, total=None) for name in generations}
        while open_ones and time.monotonic() < deadline:
            for name, generation in list(open_ones.items()):
                row = store.device(name)
                if row is not None and row.generation == generation:
                    progress.update(bars[name], description=f"{row.state or 'waiting'} {row.variant or ''}")
                    if row.total_bytes is not None:
                        progress.update(bars[name], completed=row.verified_bytes, total=row.total_bytes)
                if (newer := store.desired_generations().get(name, generation)) != generation:
                    del open_ones[name]
                    failed[name] = f"replaced by generation {newer}"
                elif outcome := store.outcome(name, generation):
                    del open_ones[name]
                    if outcome[0] != "committed":
                        failed[name] = f"{outcome[0]} ({outcome[1]})"
            time.sleep(FOLLOW_EVERY_S)
    return failed | dict.fromkeys(open_ones, f"not finished within {timeout_s:g} s")


def _telemetry_cells(seen: DeviceTelemetry) -> list[str]:
    accuracy = f"{seen.correct / seen.labelled:.2%}" if seen.labelled else "–"
    p50, p90 = ("–" if value is None else f"{value:.3f}" for value in (seen.p50_ms, seen.p90_ms))
    power = "–" if seen.watts is None else f"{seen.watts:.2f} W\n{seen.power_source}\n{seen.power_scope}"
    return [accuracy, f"{p50}\n{p90}", power]


def fleet_table(store: Store) -> Table:
    """The fleet as a rich table: one row per device, in 80 columns; what is wrong stands below it."""
    from rich import box
    from rich.table import Table

    rows = store.devices()
    notes = [f"{row.device}: {row.reason}" for row in rows if row.reason]
    notes += ["* simulated: the host is not that board"] if any(row.simulated for row in rows) else []
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.caption, table.caption_justify = "\n".join(notes), "left"
    for heading in ("device\n  profile", "state\nvariant", "pulled\nruns", "accuracy", "ms p50\n   p90", "power"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        seen = None if row.digest is None else store.telemetry(row.device, row.digest)
        table.add_row(
            f"{row.device}\n  {row.profile}{'*' if row.simulated else ''}",
            f"{row.state or 'waiting'}\n{row.variant or '–'}{'' if row.online else f'{chr(10)}offline'}",
            f"{row.pulled_bytes / 1000:.1f} kB\n{seen.inferences if seen else 0}",
            *([] if seen is None else _telemetry_cells(seen)),
        )
    return table
