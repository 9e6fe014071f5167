"""The agent on emulated Raspberry Pis: what it says it is, a signed pull over mTLS, this machine's bits, reports.

64-bit on Python 3.11 and 3.13, 32-bit on 3.11 with tflite-runtime and Debian's numpy.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from edgefleet.package.layout import SETTINGS_FILE, Package
from edgefleet.package.manifest import FILEPATH_ANNOTATION, Layer, VariantSpec
from edgefleet_agent.runtimes import Options, open_model
from edgefleet_demo import digits, scene
from edgefleet_demo.broker import BrokerKind
from edgefleet_demo.processes import EDGEFLEET, ProcessGroup
from fleet_lab import Lab, open_lab
from full_arm import userland
from full_arm.userland import BOOKWORM_ARM64, BOOKWORM_ARMHF, TRIXIE_ARM64, USERLANDS, Board, Userland

SAMPLES = 64
HERE = Path(__file__).parents[2] / "build" / "arm"
# Starting Python with paho, tuf and a runtime takes ten seconds under emulation.
PATIENCE_S = 200.0
PROFILES = tuple(dict.fromkeys(profile for userland in USERLANDS for profile in userland.boards))
LAST = pytest.param(TRIXIE_ARM64, marks=pytest.mark.full, id=TRIXIE_ARM64.name)
HAS_64_BITS = (pytest.param(BOOKWORM_ARM64, id=BOOKWORM_ARM64.name), LAST)
ALL = (*HAS_64_BITS, pytest.param(BOOKWORM_ARMHF, id=BOOKWORM_ARMHF.name))

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


UNMET = """
import sys
from importlib.metadata import requires, version
from packaging.requirements import Requirement
seen, due, unmet = set(), [Requirement(sys.argv[1])], []
while due:
    wanted = due.pop()
    if str(wanted) in seen:
        continue
    seen.add(str(wanted))
    if not wanted.specifier.contains(version(wanted.name), prereleases=True):
        unmet.append(f"{wanted}, and {version(wanted.name)} is there")
    for each in map(Requirement, requires(wanted.name) or ()):
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)):
            due.append(each)
print("\\n".join(unmet))
"""


@pytest.fixture(scope="module", name="data")
def _data(tmp_path_factory: pytest.TempPathFactory) -> scene.DataFiles:
    return scene.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module", name="package")
def _package(tmp_path_factory: pytest.TempPathFactory, data: scene.DataFiles) -> Package:
    """For all of the boards."""
    folder = tmp_path_factory.mktemp("package") / "package"
    command = [*EDGEFLEET, "package", str(digits.model_path()), *(p for name in PROFILES for p in ("--profile", name))]
    command += ["--calibration", str(data.calibration), "--evaluation", str(data.heldout)]
    command += ["--name", "digits", "--version", "1.0.0", "--release", "1", "-o", str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=3 * PATIENCE_S)
    return Package(folder)


@pytest.fixture(name="lab")
def _lab(tmp_path: Path) -> Iterator[Lab]:
    with ProcessGroup(tmp_path / "logs") as group:
        yield open_lab(tmp_path, group, BrokerKind.MOSQUITTO)


def build(wanted: Userland) -> Path:
    return userland.build(wanted, HERE / wanted.name)


def start(lab: Lab, root: Path, name: str, board: Board, heldout: Path) -> None:
    """The agent on its board, as its owner starts it: sources and state lie in its own folder."""
    lab.enrol(name)
    home = lab.home(name)
    source = home / "heldout.npz"
    source.write_bytes(heldout.read_bytes())
    settings = scene.write_settings(home, scene.DemoDevice(name, name), source, rate_per_s=10.0)
    arguments = ("-m", "edgefleet.cli", "agent", "run", "--config", str(settings))
    lab.group.start(name, userland.command(root, board, home, arguments))


@pytest.mark.parametrize("on", ALL)
def test_boards_say_what_they_are_pull_what_is_theirs_and_report(
    lab: Lab, package: Package, data: scene.DataFiles, on: Userland
) -> None:
    root, boards = build(on), on.boards
    for name, board in boards.items():
        start(lab, root, name, board, data.heldout)
    lab.wait(lambda: all(lab.store.device(name) for name in boards), "hello of the boards", PATIENCE_S)
    for name, board in boards.items():
        row = lab.device(name)
        assert (row.profile, row.simulated) == (name, False), row.simulated_reason
        found = userland.run(root, board, lab.home(name), "-m", "edgefleet.cli", "profiles", "detect")
        assert board.model in found
        assert found.partition("the nearest first:")[2].split()[0] == name
    generations = lab.deploy(package)
    lab.wait(lambda: all(lab.store.outcome(*each) for each in generations.items()), "outcomes", 2 * PATIENCE_S)
    assert lab.wait_for_outcomes(generations) == dict.fromkeys(boards, "committed")

    def reported() -> bool:
        return all(lab.store.telemetry(name, lab.device(name).digest or "").inferences >= 50 for name in boards)

    lab.wait(reported, "telemetry of the boards", PATIENCE_S)
    for name in boards:
        row = lab.device(name)
        seen = lab.store.telemetry(name, row.digest or "")
        assert (row.runtime, row.precision) == ("litert", "int8")
        assert seen.errors == 0
        assert seen.correct / seen.labelled > 0.95


def test_what_debian_has_for_32_bits_is_all_that_the_wheels_lack(tmp_path: Path) -> None:
    root, (board,) = build(BOOKWORM_ARMHF), BOOKWORM_ARMHF.boards.values()
    wanted = f"edgefleet[{BOOKWORM_ARMHF.extras}]"
    assert userland.run(root, board, tmp_path, "-c", UNMET, wanted).strip() == ""
    where = "import numpy, _cffi_backend as cffi; print(numpy.__file__, cffi.__file__)"
    assert userland.run(root, board, tmp_path, "-c", where).count("/usr/lib/python3/dist-packages/") == 2


def on_this_machine(runtime: str, file: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Inference here; in integers too where ONNX Runtime's default on x86, but not on ARM, is to compute in floats."""
    if runtime != "onnxruntime":
        return open_model(runtime, Path(file), Options()).infer
    options = ort.SessionOptions()
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


@pytest.mark.parametrize("on", HAS_64_BITS)
def test_int8_outputs_are_those_of_this_machine_bit_for_bit(package: Package, tmp_path: Path, on: Userland) -> None:
    root = build(on)
    models: dict[str, tuple[str, str]] = {}
    tensors: dict[str, str] = {}
    inputs: dict[str, Any] = {}
    rng = np.random.default_rng(3)
    for entry in package.index.manifests:
        manifest = package.manifest(entry.digest)
        files = {(layer.annotations or {}).get(FILEPATH_ANNOTATION, ""): layer for layer in manifest.layers}
        spec = VariantSpec.model_validate_json(package.blobs.path(files[SETTINGS_FILE].digest).read_bytes())
        if spec.precision != "int8" or spec.runtime not in ("litert", "onnxruntime"):
            continue
        (layer,) = (layer for layer in manifest.layers if layer.media_type == Layer.MODEL)
        copy = tmp_path / f"{spec.name}{Path(spec.model_file).suffix}"
        copy.write_bytes(package.blobs.path(layer.digest).read_bytes())
        models[spec.name], tensors[spec.name] = (spec.runtime.value, str(copy)), spec.inputs[0].name
        shape = [spec.inputs[0].shape[axis] for axis in spec.inputs[0].permutation or range(4)]
        border = spec.inputs[0].quantization
        if border is None:
            inputs[spec.name] = rng.random((SAMPLES, *shape), dtype=np.float32)
        else:
            inputs[spec.name] = rng.integers(-128, 128, (SAMPLES, *shape)).astype(border.dtype)
    assert {runtime for runtime, _ in models.values()} == {"litert", "onnxruntime"}
    np.savez(tmp_path / "inputs.npz", **inputs)
    for board in on.boards.values():
        plan = {"models": models, "tensors": tensors, "inputs": str(tmp_path / "inputs.npz")}
        plan["outputs"] = str(tmp_path / f"{board.qemu_cpu}-")
        userland.run(root, board, tmp_path, "-c", INFER, json.dumps(plan))
        for name, (runtime, file) in models.items():
            infer = on_this_machine(runtime, file)
            with np.load(tmp_path / f"{board.qemu_cpu}-{name}.npz") as found:
                for number, sample in enumerate(inputs[name]):
                    here = infer({tensors[name]: sample})
                    expected = np.concatenate([here[key].ravel() for key in sorted(here)])
                    np.testing.assert_array_equal(found[f"arr_{number}"], expected, err_msg=f"{name} {board.model}")
