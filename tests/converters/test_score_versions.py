"""Which other runtime versions a file is scored on, and what is said where one cannot be had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgefleet.errors import StorageError
from edgefleet.package.manifest import TensorSpec
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.environments import CACHE_VARIABLE, ENVIRONMENTS
from edgefleet_converters.score.infer import InferJob
from edgefleet_converters.score.runtime_environments import OTHER_VERSIONS, infer_on, versions_carried
from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.profile import Runtime


def carried(device: str, file: str, runtime: Runtime = Runtime.LITERT) -> list[str]:
    return [other.version for other in versions_carried(runtime, (">=2.1", device), file)]


def test_a_version_counts_where_a_device_may_have_it_and_the_file_may_run_on_it() -> None:
    assert carried(">=0.2.14", ">=0.1.14") == ["0.2.14.0"]
    assert carried(">=0.2.14,<1", ">=0.2.14") == ["0.2.14.0"]
    assert carried(">=0.2.14", ">=0.2.17") == []
    assert carried(">=2.3", ">=0.1.14") == []
    assert carried(">=0.2.14", ">=0.1.14", Runtime.ONNXRUNTIME) == []


def test_the_boards_of_the_catalogue_that_have_the_last_tflite_runtime_are_known() -> None:
    ranges = {
        name: [allowed.version for allowed in catalogue.load(name).runtimes if allowed.name is Runtime.LITERT]
        for name in catalogue.names()
    }
    having = {name for name, found in ranges.items() if versions_carried(Runtime.LITERT, found, ">=0.1.14")}
    assert "raspberry-pi-os-32" in having
    assert "raspberry-pi-5" not in having


def test_every_version_names_an_environment_and_a_script_that_are_there() -> None:
    for others in OTHER_VERSIONS.values():
        for other in others:
            assert ENVIRONMENTS[other.environment].pins.exists()
            script = ENVIRONMENTS[other.environment].pins.parents[1] / "foreign" / f"{other.script.split(':')[0]}.py"
            assert f"def {other.script.split(':')[1]}(" in script.read_text()


def test_a_version_that_cannot_be_installed_is_an_error_of_ours_and_no_finding_about_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where the cache should be")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    (tmp_path / "model.tflite").write_bytes(b"model")
    np.savez(tmp_path / "samples.npz", x=np.zeros((2, 1, 4), np.float32))
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 4))
    job = InferJob(
        runtime=Runtime.LITERT,
        artefact=Artefact(files=(tmp_path / "model.tflite",), inputs=(spec,), outputs=(spec,)),
        samples=tmp_path / "samples.npz",
        repeats=1,
        outputs=tmp_path / "outputs.npz",
    )
    (other,) = OTHER_VERSIONS[Runtime.LITERT]
    with pytest.raises(StorageError, match=r"making the environment tflite-runtime-2\.14"):
        infer_on(other, job, lambda _event: None)
