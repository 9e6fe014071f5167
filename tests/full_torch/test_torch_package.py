"""The whole flow on a PyTorch model: a phone's profile gets its LiteRT and ExecuTorch variants, scored and written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgefleet.package.layout import Package
from edgefleet.package.manifest import VariantSpec
from edgefleet_converters.packaging import Request, package
from edgefleet_demo import digits
from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.profile import Precision, Profile, Runtime
from full_torch.conftest import MODELS

# An export for ExecuTorch or CoreML takes 10 s on an idle processor, and several times that on a busy one.
pytestmark = pytest.mark.timeout(900)


def phone() -> Profile:
    """An Android phone with one precision for each of two runtimes, to keep the test short."""
    profile = catalogue.load("android-phone-mid")
    kept = {Runtime.LITERT: (Precision.INT8,), Runtime.EXECUTORCH: (Precision.INT8, Precision.FP32)}
    runtimes = tuple(
        allowed.model_copy(update={"precisions": kept[allowed.name]})
        for allowed in profile.runtimes
        if allowed.name in kept
    )
    return profile.model_copy(update={"runtimes": runtimes})


def test_a_torch_model_ships_for_litert_and_executorch(tmp_path: Path) -> None:
    data = digits.load()
    np.savez(tmp_path / "calibration.npz", x=data.train_x[:128])
    np.savez(tmp_path / "evaluation.npz", x=data.heldout_x[:200], y=data.heldout_y[:200])
    request = Request(
        model=f"{MODELS}:digits_net",
        profiles=(phone(),),
        calibration=str(tmp_path / "calibration.npz"),
        evaluation=str(tmp_path / "evaluation.npz"),
        name="digits",
        version="1.0.0",
        release=1,
        folder=tmp_path / "package",
    )
    package(request)
    found = Package(tmp_path / "package")
    found.verify()
    specs: dict[str, VariantSpec] = {}
    for entry in found.index.manifests:
        spec = found.spec(found.manifest(entry.digest))
        specs[spec.name] = spec
    assert {"litert-int8", "executorch-int8", "executorch-fp32"} <= set(specs)
    for spec in specs.values():
        assert spec.score is not None
        assert spec.score.reference > 0.95
        assert spec.score.value >= spec.score.reference - 0.01
        assert [item.name for item in spec.inputs] == ["image"]
    assert specs["executorch-int8"].model_file == "model.pte"
    assert specs["executorch-int8"].runtime_version == ">=1.5"
