"""`edgefleet agent bench`: the variants on this device's disk, measured again as a deployment measures them.

It changes nothing: what runs runs on, with the threads that it has, and what was decided stays decided.
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from pathlib import Path

from edgefleet.errors import InputError
from edgefleet.package.digest import digest_of
from edgefleet.package.manifest import Manifest
from edgefleet.prior import hardware_class
from edgefleet.protocol.decisions import CandidateRecord, DecisionRecord
from edgefleet_agent import benchmark, benchmark_record, facts
from edgefleet_agent.benchmark import Benchmark, Entrant, Sensors
from edgefleet_agent.journal import FILE_NAME, Entry
from edgefleet_agent.power import open_meter
from edgefleet_agent.settings import Settings
from edgefleet_agent.slots import MANIFEST_FILE, SlotDamagedError, Slots, layers_to_pull
from edgefleet_agent.thermal import Thermal
from edgefleet_device_profiles import detect

POLL_S = 0.1
WIDTHS = (7, 11, 11, 24, 9, 8)


def bench(settings: Settings, *, live: bool) -> DecisionRecord:
    """Measure; `live`: an agent is inferring meanwhile. Raises InputError where there is nothing to measure."""
    machine = detect.detect(settings.root)
    profile = facts.load_profile(settings.profile)
    simulated = detect.mismatch(profile, machine) is not None
    threads = benchmark.thread_choices(settings.selection.threads, machine.cores)
    among = [entrant for one in _on_disk(settings.state_folder, threads) for entrant in one]
    if not among:
        raise InputError(
            f"measuring what is in {settings.state_folder}", "no whole variant is there", "deploy one to this device"
        )
    sensors = Sensors(
        open_meter(settings.root, profile, simulated=simulated), Thermal(settings.root, profile, simulated=simulated)
    )
    asked = benchmark.asked(settings.selection, profile, live=live)
    start = benchmark.starter(settings.runtime, settings.worker)
    running = Benchmark(among, asked, start, sensors, time.monotonic())
    try:
        while (decision := running.tick(time.monotonic())) is None:
            select.select(running.descriptors(), [], [], POLL_S)
    finally:
        running.close()
    about = benchmark_record.About(
        hardware_class(profile.id, machine), _index_digest(settings.state_folder), asked.objective, live
    )
    return benchmark_record.record_of(running.contest, decision, about)


def _on_disk(folder: Path, threads: tuple[int, ...]) -> Iterator[list[Entrant]]:
    """Every whole variant below a state folder; a damaged one is left out."""
    for path in sorted((folder / "slots").glob("*")):
        try:
            content = (path / MANIFEST_FILE).read_bytes()
            digest = digest_of(content)
            slots = Slots(folder)
            spec = slots.check(digest)
        except (OSError, SlotDamagedError):
            continue
        size_bytes = sum(layer.size for layer in layers_to_pull(Manifest.model_validate_json(content)))
        yield benchmark.entrants(digest, size_bytes, slots.path(digest), spec, threads)


def _index_digest(folder: Path) -> str:
    """Of the package version that runs; of nothing where none does."""
    try:
        active = Entry.model_validate_json((folder / FILE_NAME).read_bytes()).active
    except (OSError, ValueError):
        active = None
    return digest_of(b"") if active is None else active.index_digest


def lines(record: DecisionRecord) -> Iterator[str]:
    """The record as a table for a person."""
    yield _row("variant", "threads", "p50", "p90", "95 % interval", "energy", "memory", "result")
    for one in record.candidates:
        memory = _scaled(one.memory_bytes, 2**-20, "MB")
        numbers = _ms(one.p50_s), _ms(one.p90_s), _interval(one), _scaled(one.energy_j, 1e3, "mJ"), memory
        yield _row(one.name, str(one.threads), *numbers, one.standing)
    yield f"{record.conditions}; {record.reason}"


def _row(name: str, *cells: str) -> str:
    """The name, columns of numbers to the right, and the last one as it is."""
    padded = [f"{cell:>{width}}" for cell, width in zip(cells[:-1], WIDTHS, strict=True)]
    return "  ".join([f"{name:<24}", *padded, cells[-1]])


def _ms(seconds: float | None) -> str:
    return _scaled(seconds, 1e3, "ms")


def _interval(one: CandidateRecord) -> str:
    return "-" if one.low_s is None or one.high_s is None else f"{one.low_s * 1e3:.4g} to {one.high_s * 1e3:.4g} ms"


def _scaled(value: float | None, scale: float, unit: str) -> str:
    return "-" if value is None else f"{value * scale:.4g} {unit}"
