"""The agent on emulated Raspberry Pis: what it says it is, a signed pull over mTLS, this machine's bits, reports."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefleet.package.layout import SETTINGS_FILE, Package
from edgefleet.package.manifest import FILEPATH_ANNOTATION, Layer, VariantSpec
from edgefleet_agent.runtimes import Options, open_model
from edgefleet_demo import digits, scene
from edgefleet_demo.broker import BrokerKind
from edgefleet_demo.processes import EDGEFLEET, ProcessGroup
from fleet_lab import Lab, open_lab
from full_arm import userland
from full_arm.userland import PI_4, PI_5, Board

BOARDS = {"raspberry-pi-5": PI_5, "raspberry-pi-4b": PI_4}
SAMPLES = 64
HERE = Path(__file__).parents[2] / "build" / "arm64"
# Starting Python with paho, tuf and a runtime takes ten seconds under emulation.
PATIENCE_S = 150.0

INFER = """
import json, pathlib, sys
import numpy as np
from edgefleet_agent.runtimes import Options, open_model
plan = json.loads(sys.argv[1])
for name, (runtime, file) in plan["models"].items():
    model = open_model(runtime, pathlib.Path(file), Options())
    with np.load(plan["inputs"]) as stored:
        inputs = stored[name]
    outputs = [model.infer({plan["tensors"][name]: each}) for each in inputs]
    np.savez(plan["outputs"] + name + ".npz", *[np.concatenate([o[k].ravel() for k in sorted(o)]) for o in outputs])
"""


@dataclass(frozen=True, slots=True)
class Made:
    """A fleet with a package for the boards."""

    lab: Lab
    root: Path
    data: scene.DataFiles
    package: Package


@pytest.fixture(scope="module", name="made")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("arm")
    root = userland.build(HERE)
    data = scene.write_data(folder / "data")
    command = [*EDGEFLEET, "package", str(digits.model_path()), *(p for name in BOARDS for p in ("--profile", name))]
    command += ["--calibration", str(data.calibration), "--evaluation", str(data.heldout)]
    command += ["--name", "digits", "--version", "1.0.0", "--release", "1", "-o", str(folder / "package")]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
    with ProcessGroup(folder / "logs") as group:
        lab = open_lab(folder, group, BrokerKind.MOSQUITTO)
        yield Made(lab, root, data, Package(folder / "package"))


def start(made: Made, name: str, board: Board) -> None:
    """The agent on its board, as its owner starts it: sources and state lie in its own folder."""
    made.lab.enrol(name)
    home = made.lab.home(name)
    source = home / "heldout.npz"
    source.write_bytes(made.data.heldout.read_bytes())
    settings = scene.write_settings(home, scene.DemoDevice(name, name), source, rate_per_s=10.0)
    arguments = ("-m", "edgefleet.cli", "agent", "run", "--config", str(settings))
    made.lab.group.start(name, userland.command(made.root, board, home, arguments))


def test_both_boards_say_what_they_are_pull_what_is_theirs_and_report(made: Made) -> None:
    lab = made.lab
    for name, board in BOARDS.items():
        start(made, name, board)
    lab.wait(lambda: all(lab.store.device(name) for name in BOARDS), "hello of the boards", PATIENCE_S)
    for name, board in BOARDS.items():
        row = lab.device(name)
        assert (row.profile, row.simulated) == (name, False), row.simulated_reason
        found = userland.run(made.root, board, lab.home(name), "-m", "edgefleet.cli", "profiles", "detect")
        assert board.model in found
        assert found.partition("the nearest first:")[2].split()[0] == name
    generations = lab.deploy(made.package)
    lab.wait(lambda: all(lab.store.outcome(*each) for each in generations.items()), "outcomes", 2 * PATIENCE_S)
    assert lab.wait_for_outcomes(generations) == dict.fromkeys(BOARDS, "committed")

    def reported() -> bool:
        return all(lab.store.telemetry(name, lab.device(name).digest or "").inferences >= 50 for name in BOARDS)

    lab.wait(reported, "telemetry of the boards", PATIENCE_S)
    for name in BOARDS:
        row = lab.device(name)
        seen = lab.store.telemetry(name, row.digest or "")
        assert (row.runtime, row.precision) == ("litert", "int8")
        assert seen.errors == 0
        assert seen.correct / seen.labelled > 0.95


def test_int8_outputs_are_those_of_this_machine_bit_for_bit(made: Made, tmp_path: Path) -> None:
    models: dict[str, tuple[str, str]] = {}
    tensors: dict[str, str] = {}
    inputs: dict[str, Any] = {}
    rng = np.random.default_rng(3)
    for entry in made.package.index.manifests:
        manifest = made.package.manifest(entry.digest)
        files = {(layer.annotations or {}).get(FILEPATH_ANNOTATION, ""): layer for layer in manifest.layers}
        spec = VariantSpec.model_validate_json(made.package.blobs.path(files[SETTINGS_FILE].digest).read_bytes())
        if spec.precision != "int8" or spec.runtime not in ("litert", "onnxruntime"):
            continue
        (layer,) = (layer for layer in manifest.layers if layer.media_type == Layer.MODEL)
        copy = tmp_path / f"{spec.name}{Path(spec.model_file).suffix}"
        copy.write_bytes(made.package.blobs.path(layer.digest).read_bytes())
        models[spec.name], tensors[spec.name] = (spec.runtime.value, str(copy)), spec.inputs[0].name
        shape = [spec.inputs[0].shape[axis] for axis in spec.inputs[0].permutation or range(4)]
        border = spec.inputs[0].quantization
        if border is None:
            inputs[spec.name] = rng.random((SAMPLES, *shape), dtype=np.float32)
        else:
            inputs[spec.name] = rng.integers(-128, 128, (SAMPLES, *shape)).astype(border.dtype)
    assert {runtime for runtime, _ in models.values()} == {"litert", "onnxruntime"}
    np.savez(tmp_path / "inputs.npz", **inputs)
    for board in BOARDS.values():
        plan = {"models": models, "tensors": tensors, "inputs": str(tmp_path / "inputs.npz")}
        plan["outputs"] = str(tmp_path / f"{board.qemu_cpu}-")
        userland.run(made.root, board, tmp_path, "-c", INFER, json.dumps(plan))
        for name, (runtime, file) in models.items():
            model = open_model(runtime, Path(file), Options())
            with np.load(tmp_path / f"{board.qemu_cpu}-{name}.npz") as found:
                for number, sample in enumerate(inputs[name]):
                    here = model.infer({tensors[name]: sample})
                    expected = np.concatenate([here[key].ravel() for key in sorted(here)])
                    np.testing.assert_array_equal(found[f"arr_{number}"], expected, err_msg=f"{name} {board.model}")
