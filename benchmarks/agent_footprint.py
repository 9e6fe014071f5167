"""What the agent costs where it runs: memory of its processes, processor time when idle, start to first inference.

    python benchmarks/agent_footprint.py [WARM_S WATCH_S]      default: 300 600, a look every 10 s

A whole agent over mTLS on mosquitto, with spool and local API open, that has committed a LiteRT int8 variant of 4 MB.
Memory is the proportional set size, the middle and the most of the looks, and beside it the resident set: the bound for
a machine on which no other process, as here the server, maps the same libraries. Idle is without a source: not one
inference; what short-lived children took is in the main process's share. The start is of the process, with the variant
and Python's byte code on disk, as pip leaves it, until the local API has answered an inference. Processor time stands
beside what the clock measured: other work on the machine makes the one much longer, the other hardly.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgefleet.package.layout import Package
from edgefleet.server.store import Store
from edgefleet_agent.footprint import pss_bytes
from edgefleet_demo import scene
from edgefleet_demo.processes import EDGEFLEET, Process, ProcessGroup, free_port
from transport_agent import RealAgent
from transport_fleet import Fleet, memory_mb, wait
from wide_model import write_model

EVERY_S = 10.0
# LiteRT is its first choice; on any other machine the agent says that it is simulated.
PROFILE = "raspberry-pi-5"
STARTS = 5
MODEL = "model"
LOOK_AT_TRUST_S = 0.005
TRUST_WITHIN_S = 60.0


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


@dataclass
class TrustRun:
    """What one trust process took: the most PSS and RSS, how long it was there, and its processor time."""

    pss_mb: float = 0.0
    rss_mb: float = 0.0
    lasted_s: float = 0.0
    processor_s: float = 0.0


def children(pid: int) -> dict[str, int]:
    """Module → process id of the agent's child processes (proc(5), children)."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with suppress(OSError):
            words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
            found[next((word for word in words if word.startswith("edgefleet_agent.")), words[0])] = int(child)
    return found


def cpu_s(pid: int) -> float:
    """User and system time so far of a process, and of its children that have ended (proc(5), stat)."""
    return sum(map(int, _stat(pid)[11:15])) / os.sysconf("SC_CLK_TCK")


def age_s(pid: int) -> float:
    """Seconds since a process was started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(_stat(pid)[19]) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def convert(folder: Path) -> Package:
    """The model, packaged."""
    data, model = scene.write_data(folder / "data"), folder / "wide.onnx"
    write_model(model)
    command = [*EDGEFLEET, "package", str(model), "--profile", PROFILE, "-o", str(folder / "package")]
    command += ["--calibration", str(data.calibration), "--evaluation", str(data.heldout)]
    subprocess.run(
        [*command, "--name", "digits", "--version", "1.0.0", "--release", "1"], check=True, stdout=subprocess.DEVNULL
    )
    return Package(folder / "package")


def starts(agent: LocalAgent) -> tuple[list[float], list[float]]:
    """Of some starts, the seconds from that of the process to an answered inference: by the clock, and processor time
    of all its processes.
    """
    clock, processor = [], []
    for _ in range(STARTS):
        began = time.monotonic()
        process = agent.begin()
        clock.append(wait(agent.infer, "the first inference", 60.0) - began)
        processor.append(sum(cpu_s(pid) for pid in (process.pid, *children(process.pid).values())))
        agent.stop()
    return clock, processor


def watch(pids: dict[str, int], seconds: float) -> dict[str, list[tuple[float, float]]]:
    """PSS and RSS of processes in MB, at each look."""
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in pids}
    for _ in range(max(1, round(seconds / EVERY_S))):
        time.sleep(EVERY_S)
        for name, pid in pids.items():
            seen[name].append(((pss_bytes(pid) or 0) / 1e6, memory_mb(pid, "VmRSS")))
    return seen


def trust_run(pid: int) -> TrustRun:
    """The next trust process of an agent, from its start to its end; raises RuntimeError when there is none."""
    run, deadline = TrustRun(), time.monotonic() + TRUST_WITHIN_S
    while time.monotonic() < deadline:
        found = children(pid).get("edgefleet_agent.trust_process")
        if found is not None:
            # It may end between any two lines.
            with suppress(OSError, RuntimeError):
                run.lasted_s, run.processor_s = age_s(found), cpu_s(found)
                run.pss_mb = max(run.pss_mb, (pss_bytes(found) or 0) / 1e6)
                run.rss_mb = memory_mb(found)
        elif run.lasted_s:
            return run
        time.sleep(LOOK_AT_TRUST_S)
    raise RuntimeError("no trust process came and went")


def trust_of_a_deployment(agent: LocalAgent, process: Process, package: Package) -> TrustRun:
    """The verification of another deployment, watched from before that is made."""
    with ThreadPoolExecutor(1) as pool:
        watched = pool.submit(trust_run, process.pid)
        agent.deploy(package)
        return watched.result()


def use_byte_code(folder: Path) -> None:
    """Have Python keep what it compiles, below `folder`: a checkout is not compiled as an installed package is."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder)


def committed(agent: LocalAgent, store: Store, package: Package) -> Process:
    """The agent's process, once it has committed what it chose of a package; raises RuntimeError for no LiteRT."""
    process = agent.begin()
    wait(lambda: store.device(agent.device) is not None, "hello", 60.0)
    agent.deploy(package)
    wait(agent.infer, "the model", 120.0)
    wait(lambda: (row := store.device(agent.device)) is not None and row.state == "committed", "commit", 120.0)
    row = store.device(agent.device)
    if row is None or row.runtime != "litert":
        raise RuntimeError(f"the agent chose {row and row.variant}, this is about LiteRT")
    return process


def print_idle(process: Process, watch_s: float) -> None:
    """Rows of the agent's processes, which do nothing meanwhile."""
    pids = {"main": process.pid} | children(process.pid)
    before, began = {name: cpu_s(pid) for name, pid in pids.items()}, time.monotonic()
    seen = watch(pids, watch_s)
    lasted_s = time.monotonic() - began
    shares = {name: (cpu_s(pid) - before[name]) / lasted_s for name, pid in pids.items()}
    for name, values in seen.items():
        reach = "≤ 40 MB" if name == "main" else "≤ 50 MB"
        (pss, rss), most = map(statistics.median, zip(*values, strict=True)), max(pss for pss, _ in values)
        print(f"| {name}, PSS | {reach} | {pss:.1f} MB (at most {most:.1f}; resident {rss:.1f}) |")
    parts = ", ".join(f"{name} {share:.2%}" for name, share in shares.items())
    print(f"| idle, of a core | ≤ 0.5 % | {sum(shares.values()):.2%} ({parts}) |")


def main(warm_s: float, watch_s: float) -> None:
    """Measure and print the table."""
    with tempfile.TemporaryDirectory(prefix="edgefleet-footprint-") as name, ProcessGroup(Path(name) / "logs") as group:
        root = Path(name)
        use_byte_code(root / "byte-code")
        fleet = Fleet(root, group, "127.0.0.1", tls=True)
        store = fleet.open()
        package = convert(root)
        agent = LocalAgent(fleet, store, "agent-1")
        agent.prepare()
        process = committed(agent, store, package)
        trust = trust_of_a_deployment(agent, process, package)
        time.sleep(warm_s)
        print("| what | reach | reached |\n|---|---|---|")
        print_idle(process, watch_s)
        print(f"| trust process, PSS | ≤ 50 MB | {trust.pss_mb:.1f} MB (resident {trust.rss_mb:.1f}) |")
        print(f"| trust process, a refresh | ≤ 2 s | {trust.lasted_s:.2f} s, processor {trust.processor_s:.2f} s |")
        agent.stop()
        clock, processor = starts(agent)
        found = f"{statistics.median(clock):.2f} s ({min(clock):.2f} to {max(clock):.2f})"
        print(f"| start to first inference | ≤ 1.0 s | {found}, processors {statistics.median(processor):.2f} s |")


if __name__ == "__main__":
    main(*(float(word) for word in sys.argv[1:3] or ("300", "600")))
