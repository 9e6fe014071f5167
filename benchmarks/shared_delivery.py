"""Shared delivery beside unicast: fifty devices, one blob, and a hub that may send 12 MB/s to its broker.

    python benchmarks/shared_delivery.py [MIB [RUN …]]      32; runs: unicast shared stragglers

The cap is the hub's own `--rate-limit`. Devices are the agent's `Install` on connections of their own, 25 in a process
(`swarm`), over TLS; the time is from the word to the last one whose files are all verified. What leaves the hub is
counted by the kernel, TLS and metadata included. The third run has a device behind 1 MB/s and one that joins at half.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from edgefleet_demo.processes import ProcessGroup
from transport_device import Plan
from transport_fleet import MIB, DeviceProcess, Fleet, memory_mb, wait
from transport_recovery import reports, start_swarm

RESULTS = Path(__file__).parents[1] / "build" / "shared_delivery.json"
DEVICES = 50
PER_PROCESS = 25
CAP_MB_PER_S = 12
SLOW_BYTES_PER_S = 1e6
SLOW_BUFFER_BYTES = 256 * 1024
LIMIT_S = 420.0
TARGET = "≤ 2 × blob bytes from the hub; ≤ 0.2 × unicast's time; broker ≤ 64 MB"


@dataclass(frozen=True, slots=True)
class Run:
    """How the devices are served, and who is among them."""

    shared: bool
    stragglers: bool = False
    """One of the fifty is behind a slow line, another joins when half of the blob has left the hub."""


@dataclass(slots=True)
class Found:
    """What one run took."""

    fast_s: float
    """Until the last of those that began together on a fast line."""
    slow_s: float | None
    joined_s: float | None
    """From its beginning."""
    hub_bytes: int
    received_bytes: int
    """By the devices, all together."""
    requests: int
    broker_mb: float
    hub_mb: float


RUNS = {"unicast": Run(shared=False), "shared": Run(shared=True), "stragglers": Run(shared=True, stragglers=True)}


class SlowProxy:
    """A line of `SLOW_BYTES_PER_S` towards one device: what does not fit waits at the broker."""

    def __init__(self, host: str, port: int) -> None:
        """Listen for the one connection."""
        self._target = (host, port)
        self._listener = socket.create_server((host, 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        near, _ = self._listener.accept()
        far = socket.socket()
        for each in (near, far):
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                each.setsockopt(socket.SOL_SOCKET, option, SLOW_BUFFER_BYTES)
        far.connect(self._target)
        threading.Thread(target=self._carry, args=(near, far, None), daemon=True).start()
        self._carry(far, near, SLOW_BYTES_PER_S)

    @staticmethod
    def _carry(source: socket.socket, target: socket.socket, rate: float | None) -> None:
        free_at = time.monotonic()
        try:
            while content := source.recv(16 * 1024):
                target.sendall(content)
                if rate is not None:
                    free_at = max(free_at, time.monotonic() - 0.1) + len(content) / rate
                    time.sleep(max(0.0, free_at - time.monotonic()))
        except OSError:
            pass
        for each in (source, target):
            each.close()


def bytes_sent(pid: int, port: int) -> int:
    """Bytes that a process's connections to a port have sent, by the kernel's count."""
    found = subprocess.run(["ss", "-tinpOH", "dport", "=", f":{port}"], capture_output=True, text=True, check=True)
    lines = [line for line in found.stdout.splitlines() if f"pid={pid}," in line]
    return sum(int(count) for line in lines for count in re.findall(r"bytes_sent:(\d+)", line))


def measure(run: Run, size_bytes: int, root: Path) -> Found:
    """Open a fleet, let all devices install, close it."""
    options = ["--rate-limit", str(CAP_MB_PER_S), *(["--shared-delivery"] if run.shared else [])]
    with ProcessGroup(root / "logs") as group:
        fleet = Fleet(root, group, "127.0.0.1", tls=True, server_options=options)
        store = fleet.open()
        package = fleet.add_bytes(size_bytes)
        plans = [fleet.plan(store, f"dev-{number}", package) for number in range(DEVICES)]
        return _watch(fleet, plans, run, size_bytes)


def _watch(fleet: Fleet, plans: list[Plan], run: Run, size_bytes: int) -> Found:
    hub, broker = fleet.hub_pid(), fleet.broker_process
    if hub is None or broker is None:
        raise RuntimeError("the hub or the broker is gone")
    parts = [plans]
    if run.stragglers:
        proxy = SlowProxy(fleet.host, fleet.port)
        parts = [plans[:-2], [replace(plans[-2], port=proxy.port)], plans[-1:]]
    processes: list[DeviceProcess] = []
    try:
        groups = [start_swarm(fleet, part, PER_PROCESS) for part in parts]
        processes = [process for each in groups for process in each]
        for process in processes:
            process.wait_ready()
        before, began = bytes_sent(hub, fleet.port), time.monotonic()
        joined = began
        for process in processes if not run.stragglers else processes[:-1]:
            process.go()
        if run.stragglers:
            joined = wait(lambda: bytes_sent(hub, fleet.port) - before > size_bytes / 2, "half of the blob", LIMIT_S)
            processes[-1].go()
        for process in processes:
            process.wait_for("done")
        sent = bytes_sent(hub, fleet.port) - before
        found = {each["device"]: each for each in reports(processes)}
    finally:
        for process in processes:
            process.stop()
    if failed := [each for each in found.values() if each["reason"] or not each["state"]]:
        raise RuntimeError(f"a device failed: {failed[0]}")
    ends = [found[plan.device]["at"] for plan in plans]
    return Found(
        fast_s=max(ends[:-2] if run.stragglers else ends) - began,
        slow_s=ends[-2] - began if run.stragglers else None,
        joined_s=ends[-1] - joined if run.stragglers else None,
        hub_bytes=sent,
        received_bytes=sum(each["received_bytes"] for each in found.values()),
        requests=sum(sum(each["requests"].values()) for each in found.values()),
        broker_mb=memory_mb(broker.pid),
        hub_mb=memory_mb(hub),
    )


def row(found: dict[str, Found], size_bytes: int) -> str:
    """The line of the table."""
    unicast, shared, mixed = (found[name] for name in RUNS)
    reached = (
        f"{shared.hub_bytes / size_bytes:.2f} × (unicast {unicast.hub_bytes / size_bytes:.1f} ×); "
        f"{shared.fast_s / unicast.fast_s:.3f} × ({shared.fast_s:.1f} s of {unicast.fast_s:.1f} s); broker "
        f"{shared.broker_mb:.0f} MB (unicast {unicast.broker_mb:.0f} MB); with one at 1 MB/s and one from half on: "
        f"{mixed.hub_bytes / size_bytes:.2f} ×, {mixed.fast_s:.1f} s, the slow one {mixed.slow_s:.1f} s, the late one "
        f"{mixed.joined_s:.1f} s, broker {mixed.broker_mb:.0f} MB"
    )
    case = f"shared delivery, {DEVICES} devices × {size_bytes // MIB} MiB, hub capped at {CAP_MB_PER_S} MB/s, TLS"
    return f"| {case} | {TARGET} | {reached} |"


def main(size_mib: int, names: list[str]) -> None:
    """Measure, print the table, keep the numbers."""
    memory = Path("/dev/shm")  # noqa: S108 - measured in memory on purpose
    found: dict[str, Found] = {}
    if RESULTS.exists():
        found = {name: Found(**each) for name, each in json.loads(RESULTS.read_text()).items()}
    for name in names:
        root = Path(tempfile.mkdtemp(prefix="edgefleet-shared-", dir=memory if memory.is_dir() else None))
        try:
            found[name] = measure(RUNS[name], size_mib * MIB, root)
        finally:
            shutil.rmtree(root, ignore_errors=True)
        print(name, found[name], flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        content = {key: {field: getattr(each, field) for field in Found.__slots__} for key, each in found.items()}
        RESULTS.write_text(json.dumps(content, indent=1))
    if found.keys() == RUNS.keys():
        print("| case | reach | reached |\n|---|---|---|")
        print(row(found, size_mib * MIB))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 32, sys.argv[2:] or list(RUNS))
