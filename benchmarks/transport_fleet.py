"""A fleet for measuring: mosquitto, the server with its hub, enrolled devices and packages of a given size.

All real processes; what is measured is the caller's business.
"""

from __future__ import annotations

import getpass
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgefleet.package.layout import Package, write_package
from edgefleet.package.manifest import Golden, TensorSpec, VariantFiles, VariantSpec
from edgefleet.protocol.access import SERVICE_ENVIRONMENT
from edgefleet.server.data_folder import STORE_FILE
from edgefleet.server.publishing import import_package
from edgefleet.server.store import Store
from edgefleet.trust import broker as broker_folder
from edgefleet.trust import setup
from edgefleet.trust.enrolment import enroll
from edgefleet.trust.keys import KeyFolder
from edgefleet_demo.broker import find_mosquitto
from edgefleet_demo.processes import EDGEFLEET, Process, ProcessGroup, free_port
from edgefleet_device_profiles.profile import Precision, Runtime
from transport_device import Plan

FLEET = "bench"
MIB = 1024 * 1024
PATIENCE_S = 30.0


@dataclass
class Fleet:
    """One fleet below one folder, reached at `host`."""

    folder: Path
    group: ProcessGroup
    host: str
    tls: bool
    server_options: Sequence[str] = ()
    port: int = field(default_factory=free_port)
    broker_process: Process | None = None
    server_process: Process | None = None

    @property
    def data(self) -> Path:
        """The server's folder."""
        return self.folder / "server"

    @property
    def keys(self) -> Path:
        """The operator's folder."""
        return self.folder / "keys"

    def open(self) -> Store:
        """Found the fleet, start broker and server, wait until the hub answers; returns the server's store."""
        setup.init(FLEET, KeyFolder(self.keys), self.data, now=time.time())
        self._write_configuration()
        self.start_broker()
        self.start_server()
        wait(lambda: self.hub_pid() is not None, "the hub's process")
        store = Store(self.data / STORE_FILE)
        log = self.folder / "logs" / "server.log"
        # The server's own line and that of its hub, which writes to the same file.
        wait(lambda: log.read_text().count("connected to the broker") >= 2, "the server's and the hub's connections")
        return store

    def _write_configuration(self) -> None:
        folder, user = self.folder / "broker", getpass.getuser()
        if self.tls:
            hosts = ("localhost", self.host)
            self._configuration = broker_folder.write(
                self.data, folder, FLEET, hosts=hosts, port=self.port, user=user, now=time.time(), listen=self.host
            )
        else:
            self._configuration = broker_folder.write_open(folder, FLEET, port=self.port, user=user)

    def start_broker(self) -> Process:
        """Start mosquitto (again) on its port and wait until it listens."""
        program = find_mosquitto()
        if program is None:
            raise RuntimeError("mosquitto (a system package) is not installed")
        # As its service starts it.
        environment = [f"{name}={value}" for name, value in SERVICE_ENVIRONMENT.items()]
        process = self.group.start("broker", ["env", *environment, program, "-c", str(self._configuration)])
        wait(lambda: _listens(self.host, self.port), "the broker")
        self.broker_process = process
        return process

    def start_server(self) -> Process:
        """Start the server (again); it starts its hub."""
        command = [*EDGEFLEET, "server", "--data", str(self.data), "--broker", f"{self.host}:{self.port}"]
        command += [*([] if self.tls else ["--no-tls"]), *self.server_options]
        self.server_process = self.group.start("server", command)
        return self.server_process

    def hub_pid(self) -> int | None:
        """Process id of the server's hub."""
        if self.server_process is None:
            return None
        found = subprocess.run(
            ["pgrep", "-P", str(self.server_process.pid), "-f", "edgefleet.cli hub"], capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        return int(found.stdout.split()[0]) if found.stdout.strip() else None

    def enroll(self, store: Store, device: str, host: str | None = None) -> Path:
        """Enrol a device; returns its identity folder."""
        folder = self.folder / "identities" / device
        enrolled = enroll(
            self.data, store, device, host=host or self.host, port=self.port, now=time.time(), tls=self.tls
        )
        enrolled.write(folder)
        return folder

    def add_bytes(self, size_bytes: int, seed: int = 0) -> Package:
        """A package whose model is random bytes, in the blob store without a signature: for `transport_device`."""
        package = write_bytes_package(self.folder / f"package-{size_bytes}-{seed}", size_bytes, seed)
        import_package(package, self.data)
        return package

    def plan(self, store: Store, device: str, package: Package) -> Plan:
        """What a device process is told."""
        identity = self.enroll(store, device)
        state = self.folder / "devices" / device
        secure = str(identity) if self.tls else None
        return Plan(FLEET, device, self.host, self.port, package.digest, str(state), secure)


class DeviceProcess:
    """A `transport_device` (or `nginx_files`) process: ready, told to go, heard."""

    def __init__(self, command: Sequence[str]) -> None:
        """Start it."""
        # A self-test that is stopped before it has begun complains; it is read only where the device failed.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self.said: list[dict[str, Any]] = []

    def wait_ready(self) -> None:
        """Connected."""
        self.wait_for("ready")

    def wait_for(self, word: str) -> None:
        """Wait until it says a word."""
        for line in self._lines():
            if line.strip() == word:
                return
        raise RuntimeError(f"a device ended with {self.process.wait()} before it was {word}: {self._complaint()}")

    def go(self) -> None:
        """Begin."""
        if self.process.stdin is not None:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """Its last line; what it said before is in `said`."""
        for line in self._lines():
            if line.startswith("{"):
                self.said.append(json.loads(line))
        if self.process.wait() or not self.said:
            raise RuntimeError(f"a device ended with {self.process.returncode}: {self._complaint()}")
        return self.said[-1]

    def stop(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.wait()

    def _complaint(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-2000:]

    def _lines(self) -> Any:
        return iter(self.process.stdout.readline, "") if self.process.stdout is not None else iter(())


def device_command(plan: Plan) -> list[str]:
    """Command line of a device process."""
    return [sys.executable, str(Path(__file__).with_name("transport_device.py")), json.dumps(asdict(plan))]


def write_bytes_package(folder: Path, size_bytes: int, seed: int) -> Package:
    """A package of one variant whose model is random bytes: it travels, and would fail its self-test."""
    folder.mkdir(parents=True)
    model, golden = folder / "model.onnx", folder / "golden.npz"
    model.write_bytes(random.Random(seed).randbytes(size_bytes))  # noqa: S311 - content, not a secret
    np.savez(golden, x=np.zeros(4))
    tensor = TensorSpec(name="x", dtype="float32", shape=(1, 4))
    spec = VariantSpec(
        name="onnxruntime-fp32",
        runtime=Runtime.ONNXRUNTIME,
        precision=Precision.FP32,
        runtime_version=">=1.20",
        model_file=model.name,
        inputs=(tensor,),
        outputs=(tensor,),
        golden=Golden(samples=1, tolerances={"x": 0.01}),
        architectures=("amd64",),
    )
    files = [VariantFiles(spec, (model,), golden)]
    write_package(folder / "package", name=f"bytes-{seed}", version="1.0.0", release=1, variants=files)
    return Package(folder / "package")


def memory_mb(pid: int, field_name: str = "VmHWM") -> float:
    """Resident memory of a process in MB: the most it ever had, or `VmRSS` for now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field_name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"no {field_name} of the process {pid}")


def wait(ready: Any, what: str, timeout_s: float = PATIENCE_S) -> float:
    """Wait until something holds; returns the monotonic time, raises RuntimeError."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.01)
    return time.monotonic()


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0
