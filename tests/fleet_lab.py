"""A fleet of real processes for tests: broker, server, agents, and packages made without the converters.

Nothing here asserts; waiting is by looking at the server's store, with a limit.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from edgefleet import identity
from edgefleet.mqtt import BrokerAddress, Connection, Identity, Tls
from edgefleet.package.layout import Package, write_package
from edgefleet.package.manifest import Golden, TensorSpec, VariantFiles, VariantSpec
from edgefleet.protocol import topics
from edgefleet.protocol.signed import PackageVersion
from edgefleet.server import control, publishing
from edgefleet.server.data_folder import STORE_FILE
from edgefleet.server.hub_process import REPORT_EVERY_S
from edgefleet.server.store import DeviceRow, Store
from edgefleet.trust import enrolment, setup
from edgefleet.trust.keys import KeyFolder
from edgefleet_demo import broker as brokers
from edgefleet_demo import scene
from edgefleet_demo.processes import EDGEFLEET, Process, ProcessGroup
from edgefleet_device_profiles.profile import Precision, Runtime
from patience import PATIENCE_S

PROFILE = "generic-x86-64"
PROBATION_S = 1.0


def write_model(path: Path, hidden: int, seed: int) -> None:
    """A two-layer network over 1x1x8x8 with random weights: 296 bytes of weights per hidden unit."""
    rng = np.random.default_rng(seed)
    shapes = {"w1": (64, hidden), "w2": (hidden, 10)}
    weights = [
        numpy_helper.from_array((rng.standard_normal(shape) / 8).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w1"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "w2"], ["logits"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])
    graph = helper.make_graph(nodes, "lab", [image], [logits], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


def write_model_that_degrades(path: Path) -> None:
    """It answers as long as no pixel is bright, as in its golden inputs; live ones make the runtime refuse."""
    table = numpy_helper.from_array(np.ones((1, 10), np.float32), "table")
    ten = numpy_helper.from_array(np.float32(10), "ten")
    nodes = [
        helper.make_node("ReduceMax", ["image"], ["brightest"], keepdims=0),
        helper.make_node("Mul", ["brightest", "ten"], ["scaled"]),
        helper.make_node("Cast", ["scaled"], ["row"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "row"], ["picked"], axis=0),
        helper.make_node("Unsqueeze", ["picked", "front"], ["logits"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])
    front = numpy_helper.from_array(np.array([0], np.int64), "front")
    graph = helper.make_graph(nodes, "lab", [image], [logits], [table, ten, front])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


def write_lab_package(
    folder: Path, *, hidden: int = 64, version: str = "1.0.0", release: int = 1, seed: int = 0, wrong: bool = False,
    degrades: bool = False,
) -> Package:  # fmt: skip
    """A package with one ONNX Runtime variant; `wrong` golden outputs make its self-test fail.

    One that `degrades` passes that, and then fails on what the lab's devices infer.
    """
    folder.mkdir(parents=True)
    model = folder / "model.onnx"
    inputs = np.random.default_rng(1).random((4, 1, 1, 8, 8), dtype=np.float32)
    if degrades:
        write_model_that_degrades(model)
        inputs *= 0.01
    else:
        write_model(model, hidden, seed)
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    outputs = np.stack([session.run(None, {"image": sample})[0] for sample in inputs])
    golden = folder / "golden.npz"
    arrays: dict[str, Any] = {"input:image": inputs, "output:logits": outputs + (1000.0 if wrong else 0.0)}
    np.savez(golden, **arrays)
    spec = VariantSpec(
        name="onnxruntime-int8",
        runtime=Runtime.ONNXRUNTIME,
        precision=Precision.INT8,
        runtime_version=">=1.20",
        model_file=model.name,
        inputs=(TensorSpec(name="image", dtype="float32", shape=(1, 1, 8, 8)),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=(1, 10)),),
        golden=Golden(samples=4, tolerances={"logits": 0.01}),
        architectures=("amd64",),
    )
    target = folder / "package"
    write_package(target, name="lab", version=version, release=release, variants=[VariantFiles(spec, (model,), golden)])
    return Package(target)


@dataclass
class Lab:
    """One fleet below one folder."""

    folder: Path
    group: ProcessGroup
    broker: brokers.Broker
    broker_process: Process
    server: Process
    store: Store
    keys: KeyFolder
    rate_limit_mb_per_s: float | None = None

    @property
    def data(self) -> Path:
        """The server's folder."""
        return self.folder / "server"

    def start_server(self) -> Process:
        """Start (again) the server."""
        self.server = self.group.start("server", server_command(self.data, self.broker, self.rate_limit_mb_per_s))
        return self.server

    def start_agent(
        self, name: str, *, port: int | None = None, state_folder: Path | None = None, label: str | None = None,
        probation_s: float = PROBATION_S, selection: str = scene.UNMEASURED, settings: str = "",
    ) -> Process:  # fmt: skip
        """Start an agent; the same name again goes on with the same identity and state folder.

        `label` makes it another machine with a copy of that identity; `port` is that of a proxy before the broker;
        `settings` is TOML that comes last.
        """
        source = self.folder / "inputs.npz"
        if not source.exists():
            rng = np.random.default_rng(2)
            np.savez(source, x=rng.random((32, 1, 8, 8), dtype=np.float32), y=np.zeros(32, np.int64))
        self.enrol(name)
        home = self.home(label or name)
        if label is not None and not home.exists():
            shutil.copytree(self.home(name) / "identity", home / "identity")
        more = settings + ("" if port is None else f"[broker]\nport = {port}\n")
        device = scene.DemoDevice(name, PROFILE)
        path = scene.write_settings(
            home, device, source, window_s=0.5, probation_s=probation_s, selection=selection, more=more
        )
        if state_folder is not None:
            text = path.read_text().replace('state_folder = "state"', f'state_folder = "{state_folder}"')
            path.write_text(text)
        return self.group.start(label or name, [*EDGEFLEET, "agent", "run", "--config", str(path)])

    def enrol(self, name: str, *, again: bool = False) -> identity.DeviceIdentity:
        """Make a device part of the fleet, once, or anew."""
        folder = self.home(name) / "identity"
        if again or not (folder / identity.IDENTITY_FILE).exists():
            now, tls = time.time(), self.broker.tls
            enrolment.enroll(
                self.data, self.store, name, host="127.0.0.1", port=self.broker.port, now=now, tls=tls, again=again
            ).write(folder)
        return identity.load(folder)

    def home(self, name: str) -> Path:
        """Folder of one machine: settings, identity, state."""
        return self.folder / "agents" / name

    def state_folder(self, name: str) -> Path:
        """Where an agent keeps its state."""
        return self.home(name) / "state"

    def publish(self, package: Package) -> PackageVersion:
        """Sign a package with the release key, as the command does."""
        return publishing.publish(self.data, package, self.keys.signer("release"), time.time())

    def deploy(self, package: Package, selector: str = "all") -> dict[str, int]:
        """Publish, sign and record a deployment, as the commands do; returns device → generation."""
        operator = self.keys.signer("operator-default")
        return control.deploy(self.store, self.data, self.publish(package), selector, operator, time.time())[1]

    def device(self, name: str) -> DeviceRow:
        """A device's row; it must have said hello."""
        row = self.store.device(name)
        if row is None:
            raise AssertionError(f"{name} never said hello")
        return row

    def settled_sent_bytes(self, name: str) -> int:
        """Bytes of blocks that the hubs sent to a device, once two reports of theirs in a row brought nothing new."""
        seen: list[tuple[float, int]] = [(time.monotonic(), self.device(name).sent_bytes)]

        def settled() -> bool:
            sent = self.device(name).sent_bytes
            if sent != seen[-1][1]:
                seen.append((time.monotonic(), sent))
            return time.monotonic() - seen[-1][0] > 2 * REPORT_EVERY_S

        self.wait(settled, "the hubs' reports")
        return seen[-1][1]

    def connect(self, name: str, **callbacks: Any) -> Connection:
        """A connection under a device's own identity, without an agent."""
        mine = self.enrol(name)
        tls = Tls(mine.ca_file, mine.certificate_file, mine.key_file) if mine.tls else None
        handlers: dict[str, Any] = {"on_message": lambda *_: None, "on_connected": lambda: None, **callbacks}
        filters = topics.filters_read_by(topics.Role.DEVICE, mine.fleet, name)
        address = BrokerAddress("127.0.0.1", self.broker.port)
        connection = Connection(address, Identity(name, name), filters, tls=tls, **handlers)
        connection.connect_now()
        return connection

    def wait(self, ready: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until something holds; raises AssertionError with the ends of the logs when it does not."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            if time.monotonic() > deadline:
                logs = (self.folder / "logs").glob("*.log")
                ends = "\n".join(f"== {log.name}\n{log.read_text()[-1500:]}" for log in logs)
                raise AssertionError(f"{what}: not within {timeout_s} s\n{ends}")
            time.sleep(0.02)

    def wait_for_devices(self, *names: str) -> None:
        """Wait until devices have said hello."""
        self.wait(lambda: all(self.store.device(name) for name in names), f"hello of {names}")

    def wait_for_outcomes(self, generations: dict[str, int]) -> dict[str, str]:
        """Wait until every generation has ended; returns device → outcome."""
        self.wait(
            lambda: all(self.store.outcome(device, generation) for device, generation in generations.items()),
            f"outcomes of {generations}",
        )
        ended = {device: self.store.outcome(device, generation) for device, generation in generations.items()}
        return {device: str(outcome[0]) for device, outcome in ended.items() if outcome}


class LabOpener(Protocol):
    """Opens a lab that is closed with its test."""

    def __call__(
        self,
        kind: brokers.BrokerKind = brokers.BrokerKind.MOSQUITTO,
        rate_limit_mb_per_s: float | None = None,
        *,
        tls: bool = True,
    ) -> Lab:
        """Open one."""
        ...


def server_command(data: Path, broker: brokers.Broker, rate_limit_mb_per_s: float | None) -> list[str]:
    """Command line of a server."""
    command = [*EDGEFLEET, "server", "--data", str(data), "--broker", broker.address]
    command += [] if broker.tls else ["--no-tls"]
    return command + ([] if rate_limit_mb_per_s is None else ["--rate-limit", str(rate_limit_mb_per_s)])


def open_lab(
    folder: Path,
    group: ProcessGroup,
    kind: brokers.BrokerKind,
    rate_limit_mb_per_s: float | None = None,
    *,
    tls: bool = True,
) -> Lab:
    """Found a fleet, start a broker and a server, and wait until the server is connected."""
    data, keys = folder / "server", KeyFolder(folder / "keys")
    setup.init(scene.FLEET, keys, data, root_keys=1, root_threshold=1)
    broker = brokers.prepare(folder / "broker", data, scene.FLEET, kind, tls=tls)
    broker_process = broker.start(group)
    server = group.start("server", server_command(data, broker, rate_limit_mb_per_s))
    deadline = time.monotonic() + PATIENCE_S
    while not (data / STORE_FILE).exists():
        if time.monotonic() > deadline or server.exit_code is not None:
            raise AssertionError(f"the server did not start: {server.last_line()}")
        time.sleep(0.02)
    lab = Lab(folder, group, broker, broker_process, server, Store(data / STORE_FILE), keys, rate_limit_mb_per_s)
    lab.wait(lambda: bool((row := lab.store.server()) and row["connected"]), "the server's connection")
    return lab
