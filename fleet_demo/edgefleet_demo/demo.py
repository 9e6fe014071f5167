"""The demo: package, keys, broker, server, three agents, deployment, summary; all through the commands that users have.

Everything that it starts is a process of its own, and is stopped when it ends.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgefleet import durable, spans
from edgefleet.errors import EdgefleetError, InputError
from edgefleet.server.data_folder import STORE_FILE
from edgefleet.server.store import DeviceRow, Store
from edgefleet.spans import EnergyTotal, Figure, Span
from edgefleet_demo import broker as brokers
from edgefleet_demo import digits, scene
from edgefleet_demo.processes import EDGEFLEET, Process, ProcessGroup
from edgefleet_device_profiles import catalogue

PACKAGE_NAME = "digits"
VERSION = "1.0.0"
READY_AFTER_S = 20.0
REPORTED_AFTER_S = 40.0
HELDOUT_SAMPLES = 540
MARKER = ".edgefleet-demo"


def run(folder: Path, *, keep: bool) -> Path:
    """Run the whole line once in `folder`; returns the summary's path. With `keep`, stays up until interrupted."""
    _clear(folder)
    files = scene.write_data(folder / "data")
    package(folder / "package", files)
    # Private keys lie neither with the server's data nor in a working tree.
    with tempfile.TemporaryDirectory(prefix="edgefleet-demo-") as private, ProcessGroup(folder / "logs") as group:
        data, keys = folder / "server", Path(private) / "keys"
        _command("keys", "init", "--fleet", scene.FLEET, "--keys", str(keys), "--data", str(data))
        broker = start_broker(folder, data, group)
        store, processes = start_fleet(folder, broker, files, group)
        signing = ("--data", str(data), "--keys", str(keys))
        _command("publish", str(folder / "package"), *signing)
        _command("deploy", f"{PACKAGE_NAME}@{VERSION}", *signing, "--to", "all")
        _wait(
            lambda: all(_reported(store, row) for row in store.devices()),
            REPORTED_AFTER_S,
            "telemetry",
            processes,
        )
        _command("fleet", "list", "--data", str(data))
        summary = write_summary(folder / "summary.json", store)
        click.echo(f"summary: {summary}")
        if keep:
            click.echo(f"staying up: broker {broker.address}, server data {data}, keys {keys}; Ctrl-C ends it")
            while True:
                time.sleep(1)
    return summary


def package(target: Path, files: scene.DataFiles) -> None:
    """Convert the digits model for the three profiles."""
    profiles = [part for device in scene.DEVICES for part in ("--profile", device.profile)]
    _command(
        "package", str(digits.model_path()), *profiles, "--calibration", str(files.calibration),
        "--evaluation", str(files.heldout), "--name", PACKAGE_NAME, "--version", VERSION, "--release", "1",
        "-o", str(target),
    )  # fmt: skip


def start_broker(folder: Path, data: Path, group: ProcessGroup) -> brokers.Broker:
    """mosquitto, or amqtt with a warning."""
    broker = brokers.prepare(folder / "broker", data, scene.FLEET)
    if broker.kind is brokers.BrokerKind.AMQTT:
        click.echo(
            "warning: mosquitto is not installed; using amqtt, which is slower, without certificates, and checks no "
            "access", err=True
        )  # fmt: skip
    broker.start(group)
    return broker


def start_fleet(
    folder: Path, broker: brokers.Broker, files: scene.DataFiles, group: ProcessGroup
) -> tuple[Store, list[Process]]:
    """Enrol the devices, start the server and the agents, and wait until every device has said hello."""
    data, agents = folder / "server", folder / "agents"
    at = ("--data", str(data), "--broker", broker.address, *([] if broker.tls else ["--no-tls"]))
    for device in scene.DEVICES:
        _command("enroll", device.name, *at, "-o", str(agents / device.name / "identity"))
    processes = [_start(group, "server", "server", *at)]
    for device in scene.DEVICES:
        settings = scene.write_settings(agents / device.name, device, files.heldout)
        processes.append(_start(group, device.name, "agent", "run", "--config", str(settings)))
    _wait((data / STORE_FILE).exists, READY_AFTER_S, "the server", processes)
    store = Store(data / STORE_FILE)
    _wait(lambda: len(store.devices()) == len(scene.DEVICES), READY_AFTER_S, "the agents", processes)
    return store, processes


def write_summary(path: Path, store: Store) -> Path:
    """Write what each device runs and reports as JSON; whole or not at all."""
    devices = {row.device: _summary(row, store) for row in store.devices()}
    durable.write_file(path, json.dumps({"devices": devices}, indent=2).encode() + b"\n")
    return path


def _summary(row: DeviceRow, store: Store) -> dict[str, Any]:
    seen = store.telemetry(row.device, row.digest or "")
    return {
        "profile": row.profile,
        "simulated": row.simulated,
        "simulated_reason": row.simulated_reason,
        "state": row.state,
        "variant": row.variant,
        "runtime": row.runtime,
        "precision": row.precision,
        "package_digest": row.index_digest,
        "variant_digest": row.digest,
        "bytes_pulled": row.pulled_bytes,
        "accuracy": seen.correct / seen.labelled if seen.labelled else None,
        "inferences": seen.inferences,
        "errors": seen.errors,
        "achieved_per_s": seen.span.achieved_per_s,
        "latency": _latency(seen.span),
        "power": _power(seen.span.energy, row.profile),
    }


def _latency(span: Span) -> dict[str, Any]:
    """Of the runtime's call alone, and of everything from the input to the outputs."""
    inference = span.inference
    p50, p90, p99 = (spans.percentile(inference, q) for q in (0.5, 0.9, 0.99))
    whole = spans.percentile(span.end_to_end, 0.9)
    return {
        "p50_ms": _milli(p50),
        "p90_ms": _milli(p90),
        "p99_ms": _milli(p99),
        "end_to_end_p90_ms": _milli(whole),
        "reason": p50.reason or p90.reason or p99.reason,
    }


def _milli(figure: Figure) -> float | None:
    return None if figure.value is None else figure.value * 1000


def _power(energy: EnergyTotal | None, profile: str | None) -> dict[str, Any] | None:
    if energy is None or energy.watts is None:
        return None
    figures: dict[str, Any] = {"watts": energy.watts, "source": energy.source, "scope": energy.scope}
    if energy.source == "estimated":
        figures |= {"low_w": energy.low_j / energy.duration_s, "high_w": energy.high_j / energy.duration_s}
    gross = spans.energy_per_inference(energy)
    model = None if profile is None else catalogue.load(profile).power
    # The profile's idle power is of one scope.
    comparable = model is not None and model.scope == energy.scope
    net = spans.net_of_idle(energy, model.idle_w) if model is not None and comparable else Figure(None)
    return figures | {
        "reason": energy.reason,
        "mj_per_inference": _milli(gross),
        "mj_net_of_idle": _milli(net),
        "mj_reason": gross.reason,
    }


def _reported(store: Store, row: DeviceRow) -> bool:
    """Whether a device has run every held-out digit at least once, and has percentiles."""
    if row.digest is None:
        return False
    seen = store.telemetry(row.device, row.digest)
    has_percentiles = spans.percentile(seen.span.inference, 0.9).value is not None
    return seen.labelled >= HELDOUT_SAMPLES and has_percentiles


def _clear(folder: Path) -> None:
    """Begin with an empty folder of our own; anybody else's is left alone."""
    marker = folder / MARKER
    if folder.exists() and not marker.exists() and any(folder.iterdir()):
        raise InputError(f"preparing the folder {folder}", "it holds something else than a demo", "name another one")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()


def _show(arguments: tuple[str, ...]) -> None:
    click.secho(f"$ edgefleet {shlex.join(arguments)}", bold=True, err=True)


def _start(group: ProcessGroup, name: str, *arguments: str) -> Process:
    _show(arguments)
    return group.start(name, [*EDGEFLEET, *arguments])


def _command(*arguments: str) -> None:
    _show(arguments)
    code = subprocess.run([*EDGEFLEET, *arguments], check=False, stdin=subprocess.DEVNULL).returncode
    if code:
        raise EdgefleetError(
            "running the demo", f"edgefleet {arguments[0]} ended with exit code {code}", "read its line above"
        )


def _wait(ready: Callable[[], bool], timeout_s: float, what: str, processes: list[Process]) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        ended = next((process for process in processes if process.exit_code is not None), None)
        if ended is not None:
            raise EdgefleetError("running the demo", f"{ended.log_file.stem}: {ended.last_line()}", "mend that")
        if time.monotonic() > deadline:
            logs = processes[0].log_file.parent
            raise EdgefleetError("running the demo", f"{what}: nothing within {timeout_s:g} s", f"read {logs}")
        time.sleep(0.1)
