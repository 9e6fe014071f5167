"""Looking at a server from a command: its store, whether it is connected, and devices until each has ended.

It reads; what is followed was recorded by others.
"""

from __future__ import annotations

import time
from pathlib import Path

from edgefleet.errors import InputError, TransportError, one_line
from edgefleet.server.data_folder import STORE_FILE, is_running
from edgefleet.server.store import Store

BROKER_PATIENCE_S = 5.0
FOLLOW_EVERY_S = 0.2


def open_store(data: Path, doing: str) -> Store:
    """The store of a server's folder; raises InputError when there is none."""
    if not (data / STORE_FILE).exists():
        raise InputError(doing, f"{data} is not a server's folder", "start `edgefleet server`, or name its --data")
    return Store(data / STORE_FILE)


def reachable_fleet(store: Store, data: Path, doing: str) -> str:
    """Name of the fleet once its server is connected; raises TransportError after 5 s."""
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
    from rich.console import Console  # noqa: PLC0415 - a server needs no rich
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn  # noqa: PLC0415

    columns = (
        TextColumn("{task.fields[device]:20}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.description}", markup=False),
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
                    progress.update(bars[name], description=one_line(f"{row.state or 'waiting'} {row.variant or ''}"))
                    if row.total_bytes is not None:
                        progress.update(bars[name], completed=row.verified_bytes, total=row.total_bytes)
                if (ended := _ended(store, name, generation)) is not None:
                    del open_ones[name]
                    failed |= ended
            time.sleep(FOLLOW_EVERY_S)
    return failed | dict.fromkeys(open_ones, f"not finished within {timeout_s:g} s")


def _ended(store: Store, name: str, generation: int) -> dict[str, str] | None:
    """None while a device is at it; else why it failed, or nothing when it did not."""
    if (newer := store.desired_generations().get(name, generation)) != generation:
        return {name: f"replaced by generation {newer}"}
    outcome = store.outcome(name, generation)
    if outcome is None:
        return None
    return {} if outcome[0] == "committed" else {name: one_line(f"{outcome[0]} ({outcome[1]})")}
