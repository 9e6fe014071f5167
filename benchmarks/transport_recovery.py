"""How long a fleet takes to come back: broker and hub killed, a cable cut, a thousand devices; a refresh of trust.

    python benchmarks/transport_recovery.py [CASE …]      cases: broker hub cable thousand refresh

Real broker, server and hub; the devices are the agent's `Install` on connections of their own (`transport_device`,
`swarm`), for the cable a whole agent. Times are of the monotonic clock that all processes share. Needs mosquitto;
`cable` needs root and /dev/net/tun.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgefleet_demo.processes import ProcessGroup
from transport_agent import RealAgent
from transport_device import Plan
from transport_fleet import MIB, DeviceProcess, Fleet, memory_mb, wait
from transport_refresh import refreshes
from userspace_link import NEAR, Link, Shape

RESULTS = Path(__file__).parents[1] / "build" / "transport_recovery.json"
LOOPBACK = "127.0.0.1"
PULLING = 50
BROKER_AWAY_S = 3.0
SWARM = 1000
PER_PROCESS = 125
SWARM_BYTES = 8 * 60 * 1024


@contextmanager
def opened(tls: bool = True, host: str = LOOPBACK, server_options: tuple[str, ...] = ()) -> Iterator[tuple[Fleet, Any]]:
    """(fleet, the server's store), gone afterwards."""
    memory = Path("/dev/shm")  # noqa: S108 - a thousand state folders, and no disk is measured
    root = Path(tempfile.mkdtemp(prefix="edgefleet-recovery-", dir=memory if memory.is_dir() else None))
    try:
        with ProcessGroup(root / "logs") as group:
            fleet = Fleet(root, group, host, tls, server_options)
            yield fleet, fleet.open()
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def swarm(fleet: Fleet, plans: list[Plan], each: int) -> Iterator[list[DeviceProcess]]:
    """The devices, connected, `each` in a process."""
    processes = start_swarm(fleet, plans, each)
    try:
        for process in processes:
            process.wait_ready()
        yield processes
    finally:
        for process in processes:
            process.stop()


def start_swarm(fleet: Fleet, plans: list[Plan], each: int) -> list[DeviceProcess]:
    """The devices, on their way to the broker, `each` in a process; the caller stops them."""
    processes = []
    for start in range(0, len(plans), each):
        part = plans[start : start + each]
        file = fleet.folder / f"swarm-{part[0].device}.json"
        file.write_text(json.dumps([asdict(plan) for plan in part]))
        program = str(Path(__file__).with_name("swarm.py"))
        processes.append(DeviceProcess([sys.executable, program, str(file)]))
    return processes


def reports(processes: list[DeviceProcess]) -> list[dict[str, Any]]:
    """End the swarm; what each device has seen."""
    for process in processes:
        if process.process.stdin is not None:
            process.process.stdin.close()
    for process in processes:
        process.result()
    return [each for process in processes for each in process.said]


def first_after(report: dict[str, Any], kind: str, since: float) -> float | None:
    """Seconds from `since` to the first event of a kind; None when there was none."""
    times = [said["at"] for said in report["said"] if said["kind"] == kind and said["at"] > since]
    return min(times) - since if times else None


def _times(found: list[dict[str, Any]], kind: str, since: float) -> str:
    """The middle and the last of them, or how many never came."""
    times = [first_after(report, kind, since) for report in found]
    there = [each for each in times if each is not None]
    missing = len(times) - len(there)
    if not there:
        return "none came"
    text = f"the middle one {statistics.median(there):.1f} s, the last {max(there):.1f} s"
    return f"{text}; {missing} never" if missing else text


def _pulling(fleet: Fleet, store: Any, count: int) -> list[Plan]:
    package = fleet.add_bytes(32 * MIB)
    return [fleet.plan(store, f"dev-{number}", package) for number in range(count)]


def broker_killed() -> tuple[str, str, str]:
    """SIGKILL; it listens again three seconds later, having forgotten everything."""
    with opened(server_options=("--rate-limit", "20")) as (fleet, store):
        plans = _pulling(fleet, store, PULLING)
        with swarm(fleet, plans, PULLING // 2) as processes:
            _begin(processes)
            _let_pass(4.0)
            if fleet.broker_process is not None:
                fleet.broker_process.kill()
            _let_pass(BROKER_AWAY_S)
            fleet.start_broker()
            listens = time.monotonic()
            _let_pass(20.0)
            found = reports(processes)
    return "broker SIGKILL, 50 pulling", "pieces ≤ 10 s after it listens", _times(found, "piece", listens)


def hub_killed() -> tuple[str, str, str]:
    """SIGKILL of the hub's process; the server starts it again."""
    with opened(server_options=("--rate-limit", "20")) as (fleet, store):
        plans = _pulling(fleet, store, PULLING)
        with swarm(fleet, plans, PULLING // 2) as processes:
            _begin(processes)
            _let_pass(4.0)
            hub = fleet.hub_pid()
            if hub is None:
                raise RuntimeError("there is no hub")
            os.kill(hub, signal.SIGKILL)
            killed = time.monotonic()
            _let_pass(15.0)
            found = reports(processes)
    return "hub SIGKILL, 50 pulling", "pieces ≤ 5 s", _times(found, "piece", killed)


def cable_cut() -> tuple[str, str, str]:
    """Every packet is lost from some moment on; nobody is told."""
    with Link(Shape(delay_s=0.01, rate_bytes_per_s=5e6)) as link, opened(host=NEAR) as (fleet, store):
        agent = RealAgent(fleet, store, "agent-1", wrap=link.inside)
        agent.start()
        wait(lambda: store.device("agent-1").online, "online")
        link.cut()
        cut = time.monotonic()
        offline_s = wait(lambda: not store.device("agent-1").online, "offline", 120.0) - cut
        link.restore()
        back = time.monotonic()
        back_s = wait(lambda: store.device("agent-1").online, "online again", 120.0) - back
        agent.stop()
    return (
        "cable cut silently",
        "shown offline ≤ 45 s",
        f"offline after {offline_s:.0f} s; back {back_s:.0f} s after it",
    )


def thousand() -> tuple[str, str, str]:
    """A thousand devices in mid-pull when the broker is killed."""
    with opened(tls=True, server_options=("--rate-limit", "15")) as (fleet, store):
        package = fleet.add_bytes(SWARM_BYTES)
        plans = [fleet.plan(store, f"dev-{number}", package) for number in range(SWARM)]
        with swarm(fleet, plans, PER_PROCESS) as processes:
            _begin(processes)
            _let_pass(6.0)
            if fleet.broker_process is not None:
                fleet.broker_process.kill()
            _let_pass(BROKER_AWAY_S)
            fleet.start_broker()
            listens = time.monotonic()
            _let_pass(75.0)
            broker_mb = memory_mb(fleet.broker_process.pid) if fleet.broker_process else 0.0
            hub = fleet.hub_pid()
            hub_mb = memory_mb(hub) if hub else 0.0
            found = reports(processes)
    open_ones = [each for each in found if not each["state"] or each["at"] > listens]
    asked = [_requests_until_piece(each, listens) for each in open_ones]
    finished = sum(bool(each["state"]) and not each["reason"] for each in found)
    unfinished = [each for each in found if not each["state"] or each["reason"]]
    _keep("thousand_unfinished", unfinished[:20])
    reached = (
        f"connected: {_times(found, 'connected', listens)}; pieces ({len(open_ones)} were pulling): "
        f"{_times(open_ones, 'piece', listens)}; requests until then at most {max(asked, default=0)}; {finished} "
        f"finished after 75 s; broker {broker_mb:.0f} MB, hub {hub_mb:.0f} MB"
    )
    return "1,000 devices, broker SIGKILL", "back ≤ 60 s, ≤ 3 requests each", reached


def _requests_until_piece(report: dict[str, Any], since: float) -> int:
    piece = first_after(report, "piece", since)
    end = since + piece if piece is not None else float("inf")
    return sum(said["kind"] == "request" and since < said["at"] <= end for said in report["said"])


def refresh() -> tuple[str, str, str]:
    """The TUF client over MQTT, nothing having changed."""
    with opened() as (fleet, store):
        found = refreshes(fleet, store, 30)
    times = [each["ms"] for each in found[1:]]
    requests = {each["requests"] for each in found[1:]}
    reached = f"{statistics.median(times):.1f} ms ({min(times):.1f}–{max(times):.1f}), {max(requests)} requests"
    return "TUF refresh without change, over MQTT", "≤ 10 ms, 2 requests", reached


def _keep(name: str, content: Any) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.with_name(f"transport_recovery_{name}.json").write_text(json.dumps(content, indent=1))


def _begin(processes: list[DeviceProcess]) -> None:
    for process in processes:
        process.go()


def _let_pass(seconds: float) -> None:
    time.sleep(seconds)


CASES: dict[str, Callable[[], tuple[str, str, str]]] = {
    "broker": broker_killed,
    "hub": hub_killed,
    "cable": cable_cut,
    "thousand": thousand,
    "refresh": refresh,
}


def main(names: list[str]) -> None:
    """Measure, print the table, keep it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536) if most > 0 else 65536, most))
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    print("| case | reach | reached |\n|---|---|---|", flush=True)
    for name in names or list(CASES):
        row = CASES[name]()
        print(f"| {' | '.join(row)} |", flush=True)
        known[name] = row
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(known, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
