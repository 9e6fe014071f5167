"""What the agent costs where it runs: memory of its processes, processor time when idle, start to first inference.

    python benchmarks/agent_footprint.py [WARM_S WATCH_S]      default: 300 600, a look every 10 s

A whole agent over mTLS on mosquitto, with spool and local API open, that has committed a LiteRT int8 variant of the
demo's model. Memory is the proportional set size, the middle and the most of the looks. Idle is without a source: not
one inference. The start is of the process, with the variant on disk, until the local API has answered an inference.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

from edgefleet.package.layout import Package
from edgefleet.server.store import Store
from edgefleet_agent.footprint import pss_bytes
from edgefleet_demo import digits, scene
from edgefleet_demo.processes import EDGEFLEET, Process, ProcessGroup, free_port
from transport_agent import RealAgent
from transport_fleet import Fleet, wait

EVERY_S = 10.0
PROFILE = "generic-x86-64"
STARTS = 5
MODEL = "model"


class LocalAgent(RealAgent):
    """An agent without a source, whose local API is open."""

    def prepare(self) -> None:
        """Enrol it and write its settings."""
        self.home = self.fleet.folder / "agents" / self.device
        self.home.mkdir(parents=True)
        self.identity = self.fleet.enroll(self.store, self.device)
        self.port = free_port()
        (self.home / "agent.toml").write_text(
            f'profile = "{PROFILE}"\nidentity = {json.dumps(str(self.identity))}\nstate_folder = "state"\n'
            f"[serve]\nenabled = true\nport = {self.port}\n[selection]\nthreads = [1]\ncandidates = 1\n"
            "[probation]\nwindows = 1\nmin_inferences = 1\ndeadline_s = 1\n"
        )

    def begin(self) -> Process:
        """Start the process, and wait for nothing."""
        command = [*EDGEFLEET, "agent", "run", "--config", str(self.home / "agent.toml")]
        self.process = self.fleet.group.start(self.device, command)
        return self.process

    def infer(self) -> bool:
        """Ask the local API once; whether it answered."""
        tensor = {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.0] * 64}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v2/models/{MODEL}/infer", json.dumps({"inputs": [tensor]}).encode()
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - our own address
                return bool(json.load(answer)["outputs"])
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


def children(pid: int) -> dict[str, int]:
    """Module → process id of the agent's child processes (proc(5), children)."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with suppress(OSError):
            words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
            found[next((word for word in words if word.startswith("edgefleet_agent.")), words[0])] = int(child)
    return found


def cpu_s(pid: int) -> float:
    """User and system time of a process so far (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def convert(folder: Path) -> Package:
    """The demo's model for this machine."""
    data = scene.write_data(folder / "data")
    command = [*EDGEFLEET, "package", str(digits.model_path()), "--profile", PROFILE, "-o", str(folder / "package")]
    command += ["--calibration", str(data.calibration), "--evaluation", str(data.heldout)]
    subprocess.run(
        [*command, "--name", "digits", "--version", "1.0.0", "--release", "1"], check=True, stdout=subprocess.DEVNULL
    )
    return Package(folder / "package")


def starts(agent: LocalAgent) -> list[float]:
    """Seconds from the start of the process to an answered inference."""
    found = []
    for _ in range(STARTS):
        began = time.monotonic()
        agent.begin()
        found.append(wait(agent.infer, "the first inference", 60.0) - began)
        agent.stop()
    return found


def watch(pids: dict[str, int], seconds: float) -> dict[str, list[float]]:
    """PSS of processes in MB, at each look."""
    seen: dict[str, list[float]] = {name: [] for name in pids}
    for _ in range(max(1, round(seconds / EVERY_S))):
        time.sleep(EVERY_S)
        for name, pid in pids.items():
            seen[name].append((pss_bytes(pid) or 0) / 1e6)
    return seen


def trust_peak(agent: LocalAgent, package: Package) -> tuple[float, float]:
    """(most PSS of the trust process in MB, seconds that it ran) while another deployment is verified."""
    process = agent.process
    if process is None:
        raise RuntimeError("no agent runs")
    most, first, last = 0.0, 0.0, 0.0
    agent.deploy(package)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        pid = next((pid for name, pid in children(process.pid).items() if "trust" in name), None)
        now = time.monotonic()
        if pid is not None:
            first, last = first or now, now
            most = max(most, (pss_bytes(pid) or 0) / 1e6)
        elif first:
            break
    return most, last - first


def main(warm_s: float, watch_s: float) -> None:
    """Measure and print the table."""
    root = Path(tempfile.mkdtemp(prefix="edgefleet-footprint-"))
    try:
        with ProcessGroup(root / "logs") as group:
            fleet = Fleet(root, group, "127.0.0.1", tls=True)
            store: Store = fleet.open()
            package = convert(root)
            agent = LocalAgent(fleet, store, "agent-1")
            agent.prepare()
            process = agent.begin()
            wait(lambda: store.device("agent-1") is not None, "hello", 60.0)
            agent.deploy(package)
            wait(agent.infer, "the model", 120.0)
            wait(lambda: (row := store.device("agent-1")) is not None and row.state == "committed", "commit", 120.0)
            trust_mb, trust_s = trust_peak(agent, package)
            time.sleep(warm_s)
            pids = {"main": process.pid} | children(process.pid)
            before, began = {name: cpu_s(pid) for name, pid in pids.items()}, time.monotonic()
            seen = watch(pids, watch_s)
            lasted_s = time.monotonic() - began
            print("| what | reach | reached |\n|---|---|---|")
            for name, values in seen.items():
                share = (cpu_s(pids[name]) - before[name]) / lasted_s
                print(
                    f"| {name} | {'≤ 40 MB' if name == 'main' else '≤ 50 MB'} PSS; ≤ 0.5 % idle, together | "
                    f"{statistics.median(values):.1f} MB, at most {max(values):.1f}; {share:.2%} of a core |"
                )
            print(f"| trust process | ≤ 50 MB, ≤ 2 s | {trust_mb:.1f} MB, {trust_s:.2f} s |")
            agent.stop()
            found = starts(agent)
            print(
                f"| start to first inference | ≤ 1.0 s | {statistics.median(found):.2f} s (at most {max(found):.2f}) |"
            )
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main(*(float(word) for word in sys.argv[1:3] or ("300", "600")))
