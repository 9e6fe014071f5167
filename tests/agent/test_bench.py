"""`edgefleet agent bench`: what is on the disk is measured in real workers, and nothing is changed by it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from edgefleet.errors import InputError
from edgefleet.package.layout import GOLDEN_FILE, Package
from edgefleet.package.manifest import Golden, TensorSpec, VariantFiles, VariantSpec
from edgefleet.protocol.decisions import Conditions, Standing
from edgefleet_agent import bench
from edgefleet_agent.settings import Settings
from edgefleet_agent.slots import Slots, layers_to_pull
from edgefleet_device_profiles.profile import Precision, Runtime
from sdk.packages_made import write


def variant(folder: Path, name: str, factor: str, values: int) -> VariantFiles:
    """For the runtime in `fake_runtime`: its model file is a number."""
    folder.mkdir(parents=True)
    (folder / "m").write_text(factor)
    x = np.ones((1, values), np.float32)
    np.savez(folder / GOLDEN_FILE, **{"input:x": x, "output:y": float(factor) * x})  # type: ignore[arg-type]
    tensor = TensorSpec(name="x", dtype="float32", shape=(values,))
    spec = VariantSpec(
        name=name, runtime=Runtime.LITERT, precision=Precision.INT8, runtime_version=">=2", model_file="m",
        inputs=(tensor,), outputs=(tensor.model_copy(update={"name": "y"}),),
        golden=Golden(samples=1, tolerances={"y": 0.0}), architectures=("amd64", "arm64", "arm"),
    )  # fmt: skip
    return VariantFiles(spec, (folder / "m",), folder / GOLDEN_FILE)


@pytest.fixture(name="settings")
def _settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "fake_runtime"))
    content = {
        "profile": "generic-x86-64", "state_folder": str(tmp_path / "state"),
        "source": {"kind": "replay", "path": "inputs.npz"}, "selection": {"threads": [1], "final_s": 1.0},
    }  # fmt: skip
    return Settings.model_validate(content)


def installed(folder: Path, state: Path, factors: Mapping[str, str], values: int = 2) -> dict[str, str]:
    """Variants of one package in slots, by their names; name → digest of the manifest."""
    write(folder / "package", [variant(folder / name, name, factor, values) for name, factor in factors.items()])
    package, slots = Package(folder / "package"), Slots(state)
    found = {}
    for digest in dict.fromkeys(entry.digest for entry in package.index.manifests):
        for layer in layers_to_pull(package.manifest(digest)):
            shutil.copyfile(package.blobs.path(layer.digest), slots.part(slots.staging(digest), layer))
        spec = slots.finish(digest, package.blobs.read(digest, doing="testing"), bytes(64))
        found[spec.name] = digest
    return found


def test_whole_variants_are_measured_and_told_as_a_table(tmp_path: Path, settings: Settings) -> None:
    digests = installed(tmp_path, settings.state_folder, {"a": "2.0", "b": "3.0"})
    (Slots(settings.state_folder).path(digests["b"]) / "m").write_text("damaged")
    before = sorted(path for path in settings.state_folder.rglob("*"))
    record = bench.bench(settings, live=True)
    assert [(one.name, one.standing) for one in record.candidates] == [("a", Standing.CHOSEN)]
    assert record.candidates[0].runs >= 64
    assert record.conditions is Conditions.LIVE
    assert sorted(path for path in settings.state_folder.rglob("*")) == before
    heading, row, reason = bench.lines(record)
    assert row.split()[:2] == ["a", "1"]
    assert row.endswith("chosen")
    assert row.index("chosen") == heading.index("result")
    assert reason.startswith("live; a with 1 thread: p90 ")


def test_with_nothing_on_the_disk_it_says_so(settings: Settings) -> None:
    with pytest.raises(InputError, match="no whole variant is there"):
        bench.bench(settings, live=False)
