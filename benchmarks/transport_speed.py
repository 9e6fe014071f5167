"""Speed and memory of our block transport over mosquitto, beside nginx with the same file on the same line.

    python benchmarks/transport_speed.py [CASE …]      cases: tls plain fifty long thin

Ours is the agent's own `Install` in a small process (`transport_device`), from before it reserves the disk until its
files are verified block by block, synced and renamed into a slot; nginx's client hashes once, writes and syncs. Each
pair is measured one after the other in one run, ours first and second in turn; the ratio is the median of the pairs'.
Folders are in memory where the machine has /dev/shm, so that no disk is measured. Needs mosquitto and nginx; `long`
and `thin` need root and /dev/net/tun.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgefleet.package.layout import Package
from edgefleet.server.store import Store
from edgefleet_demo.processes import ProcessGroup
from nginx_files import Nginx, ServerFiles
from transport_agent import RealAgent
from transport_device import Plan
from transport_fleet import MIB, DeviceProcess, Fleet, device_command, memory_mb, wait
from userspace_link import NEAR, Link, Shape

RESULTS = Path(__file__).parents[1] / "build" / "transport_speed.json"
LOOPBACK = "127.0.0.1"
LONG = Shape(delay_s=0.05, rate_bytes_per_s=5e6)
THIN = Shape(delay_s=0.15, rate_bytes_per_s=125_000, loss=0.02)
THIN_BYTES = MIB
THIN_AGENT_BYTES = 4 * MIB


@dataclass
class Row:
    """One line of the table."""

    case: str
    target: str
    reached: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Bench:
    """One open fleet with nginx beside it."""

    fleet: Fleet
    store: Store
    nginx: Nginx
    files: Path
    inside: Callable[..., list[str]] = lambda *command: list(command)

    def prepare(self, size_bytes: int, count: int) -> tuple[Package, list[Plan]]:
        """A package of that size, the same bytes for nginx, and devices."""
        package = self.fleet.add_bytes(size_bytes)
        source = self.fleet.folder / f"package-{size_bytes}-0" / "model.onnx"
        shutil.copyfile(source, self.files / "model.onnx")
        plans = [self.fleet.plan(self.store, f"dev-{number}", package) for number in range(count)]
        return package, plans

    def ours(self, plans: list[Plan]) -> tuple[float, list[dict[str, Any]]]:
        """(seconds from the word to the last one's end, what each said)."""
        for plan in plans:
            shutil.rmtree(plan.folder, ignore_errors=True)
        return self._run([self.inside(*device_command(plan)) for plan in plans])

    def theirs(self, count: int) -> tuple[float, list[dict[str, Any]]]:
        """The same from nginx."""
        program = str(Path(__file__).with_name("nginx_files.py"))
        plan: dict[str, str] = {"host": self.fleet.host, "port": str(self.nginx.port), "name": "model.onnx"}
        if self.fleet.tls:
            plan["ca_file"] = str(self.fleet.data / "pki" / "root-ca.crt")
        plans = [plan | {"target": str(self.files.parent / f"got-{number}")} for number in range(count)]
        return self._run([self.inside(sys.executable, program, json.dumps(each)) for each in plans])

    @staticmethod
    def _run(commands: list[list[str]]) -> tuple[float, list[dict[str, Any]]]:
        devices = [DeviceProcess(command) for command in commands]
        for device in devices:
            device.wait_ready()
        began = time.monotonic()
        for device in devices:
            device.go()
        results = [device.result() for device in devices]
        failed = [each for each in results if each.get("reason")]
        if failed:
            raise RuntimeError(f"a device failed: {failed[0]}")
        return time.monotonic() - began, results


def pairs(bench: Bench, plans: list[Plan], rounds: int) -> list[dict[str, float]]:
    """Seconds of interleaved pairs; of one device by its own clock, of many by the last one's end."""
    found = []
    for number in range(rounds):
        measured: dict[str, float] = {}
        for side in ("ours", "theirs") if number % 2 == 0 else ("theirs", "ours"):
            total_s, results = bench.ours(plans) if side == "ours" else bench.theirs(len(plans))
            alone = len(plans) == 1
            measured[side] = results[0]["seconds"] if alone else total_s
            if side == "ours":
                measured["pull"] = statistics.median(each["pull_s"] for each in results)
                measured["cpu"] = sum(each["cpu_s"] for each in results)
                measured["received_bytes"] = sum(each["received_bytes"] for each in results)
        measured["ratio"] = measured["theirs"] / measured["ours"]
        found.append(measured)
    return found


def _middle(found: list[dict[str, float]], key: str) -> float:
    return statistics.median(each[key] for each in found)


def loopback(bench: Bench, target: str) -> Row:
    """32 MiB, one device."""
    _, plans = bench.prepare(32 * MIB, 1)
    bench.ours(plans)  # the first one warms the file cache on both sides
    found = pairs(bench, plans, 7)
    spread = f"{min(each['ratio'] for each in found):.2f}–{max(each['ratio'] for each in found):.2f}"
    rates = f"{32 * MIB / _middle(found, 'ours') / 1e6:.0f} MB/s of {32 * MIB / _middle(found, 'theirs') / 1e6:.0f}"
    reached = f"{_middle(found, 'ratio'):.2f} × ({spread}; {rates}; the pull alone {_pull_ratio(found):.2f} ×)"
    return Row(
        f"32 MiB, 1 device, loopback, {'TLS' if bench.fleet.tls else 'plain TCP'}", target, reached, {"pairs": found}
    )


def _pull_ratio(found: list[dict[str, float]]) -> float:
    return statistics.median(each["theirs"] / each["pull"] for each in found)


def fifty(bench: Bench, target: str) -> Row:
    """50 devices at once, each a process."""
    _, plans = bench.prepare(32 * MIB, 50)
    found = pairs(bench, plans, 3)
    hub = bench.fleet.hub_pid()
    if hub is None or bench.fleet.broker_process is None:
        raise RuntimeError("the hub or the broker is gone")
    broker_mb, hub_mb = memory_mb(bench.fleet.broker_process.pid), memory_mb(hub)
    total = 50 * 32 * MIB / 1e6
    reached = (
        f"{_middle(found, 'ratio'):.2f} × ({total / _middle(found, 'ours'):.0f} MB/s of "
        f"{total / _middle(found, 'theirs'):.0f}); broker {broker_mb:.1f} MB, hub {hub_mb:.0f} MB"
    )
    return Row("50 devices × 32 MiB, TLS", target, reached, {"pairs": found, "broker_mb": broker_mb, "hub_mb": hub_mb})


def long_line(bench: Bench, target: str) -> Row:
    """32 MiB over RTT 100 ms at 5 MB/s."""
    _, plans = bench.prepare(32 * MIB, 1)
    found = pairs(bench, plans, 3)
    rates = f"{32 * MIB / _middle(found, 'ours') / 1e6:.2f} MB/s of {32 * MIB / _middle(found, 'theirs') / 1e6:.2f}"
    return Row("RTT 100 ms, 5 MB/s, TLS", target, f"{_middle(found, 'ratio'):.2f} × ({rates})", {"pairs": found})


def thin_line(bench: Bench, target: str) -> Row:
    """1 MiB over RTT 300 ms, 2 % loss, 1 Mbit/s; then a whole agent, told something else in mid-pull."""
    _, plans = bench.prepare(THIN_BYTES, 1)
    found = pairs(bench, plans, 2)
    received = max(each["received_bytes"] for each in found) / THIN_BYTES
    agent = RealAgent(bench.fleet, bench.store, "agent-1", wrap=bench.inside)
    agent.start()
    first = agent.deploy(bench.fleet.add_bytes(THIN_AGENT_BYTES, seed=1))
    wait(lambda: agent.verified_bytes() > 300_000, "the first blocks over the thin line", 120.0)
    newer = bench.fleet.add_bytes(THIN_AGENT_BYTES, seed=2)
    began = time.monotonic()
    second = agent.deploy(newer)
    acted_s = wait(lambda: agent.accepted(second), "the newer desired state", 60.0) - began
    agent.stop()
    reached = (
        f"finishes in {_middle(found, 'ours'):.0f} s (HTTP {_middle(found, 'theirs'):.0f} s); "
        f"{received:.3f} × received; acted on in {acted_s:.1f} s"
    )
    details = {"pairs": found, "acted_s": acted_s, "generations": [first, second]}
    return Row("RTT 300 ms, 2 % loss, 1 Mbit/s, TLS", target, reached, details)


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement: what it wants to reach, over which line, with TLS or without."""

    measure: Callable[[Bench, str], Row]
    target: str
    tls: bool = True
    shape: Shape | None = None


CASES = {
    "tls": Case(loopback, "≥ 0.65 ×"),
    "plain": Case(loopback, "≥ 0.8 ×", tls=False),
    "fifty": Case(fifty, "≥ 0.75 ×; broker ≤ 20 MB; hub ≤ 150 MB"),
    "long": Case(long_line, "≥ 0.93 ×", shape=LONG),
    "thin": Case(thin_line, "finishes; ≤ 1.10 × received; acted on ≤ 5 s", shape=THIN),
}


def run(case: Case) -> Row:
    """Open a fleet, measure, close it."""
    memory = Path("/dev/shm")  # noqa: S108 - measured in memory on purpose
    root = Path(tempfile.mkdtemp(prefix="edgefleet-speed-", dir=memory if memory.is_dir() else None))
    try:
        if case.shape is None:
            return _measure(case, root, LOOPBACK, lambda *command: list(command))
        with Link(case.shape) as link:
            return _measure(case, root, NEAR, link.inside)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _measure(case: Case, root: Path, host: str, inside: Callable[..., list[str]]) -> Row:
    files = root / "files"
    files.mkdir()
    with ProcessGroup(root / "logs") as group:
        fleet = Fleet(root, group, host, case.tls)
        store = fleet.open()
        pki = fleet.data / "pki"
        secure = ServerFiles(pki / "broker.crt", pki / "broker.key") if case.tls else None
        with Nginx(root / "nginx", files, host, secure) as nginx:
            return case.measure(Bench(fleet, store, nginx, files, inside), case.target)


def main(names: list[str]) -> None:
    """Measure, print the table, keep the numbers."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    print("| case | reach | reached |\n|---|---|---|", flush=True)
    for name in names or list(CASES):
        row = run(CASES[name])
        print(f"| {row.case} | {row.target} | {row.reached} |", flush=True)
        known[name] = asdict(replace(row))
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(known, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
