"""The real flow on the digits model: every variant converted, run as shipped, gated and written."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from converters.packaged import Packaged, one_runtime, unpack, variant
from edgefleet.package.layout import Package
from edgefleet.package.manifest import Layer
from edgefleet_converters.packaging import package
from edgefleet_converters.progress import Stage
from edgefleet_converters.score.infer import InferJob, infer
from edgefleet_converters.tflite.runtime_versions import min_runtime_version
from edgefleet_demo import digits
from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.profile import Precision, Runtime

VARIANTS = ("litert-int8", "onnxruntime-int8", "onnxruntime-int8-s8", "openvino-int8")


def test_the_package_opens_and_verifies(packaged: Packaged) -> None:
    found = Package(packaged.result.folder)
    found.verify()
    assert (found.name, found.version, found.release) == ("digits", "1.0.0", 1)
    assert found.digest == packaged.result.digest


@pytest.mark.parametrize("name", VARIANTS)
def test_accuracy_is_within_half_a_point_of_fp32(packaged: Packaged, name: str) -> None:
    score = variant(packaged, name)[2].score
    assert score is not None
    assert score.samples == 540
    assert score.reference >= 0.98
    assert score.value >= score.reference - 0.005
    assert score.agreement is not None
    assert score.agreement >= 0.99


@pytest.mark.parametrize("name", VARIANTS)
def test_inputs_and_outputs_stay_float32_under_the_source_names(packaged: Packaged, name: str) -> None:
    _, manifest, spec = variant(packaged, name)
    assert [(tensor.name, tensor.shape) for tensor in spec.inputs] == [("image", (1, 1, 8, 8))]
    assert [(tensor.name, tensor.shape) for tensor in spec.outputs] == [("logits", (1, 10))]
    assert spec.inputs[0].permutation == ((0, 2, 3, 1) if name.startswith("litert") else None)
    # ONNX Runtime wants other int8 activations on ARM than on x86.
    own = {"onnxruntime-int8": ("amd64",), "onnxruntime-int8-s8": ("arm64",)}
    assert spec.architectures == own.get(name, ("amd64", "arm64"))
    # int8 weights: the fp32 model is four times as large.
    model = sum(layer.size for layer in manifest.layers if layer.media_type == Layer.MODEL)
    assert model < 0.4 * digits.model_path().stat().st_size


@pytest.mark.parametrize("name", ["onnxruntime-int8", "openvino-int8"])
def test_the_range_of_runtimes_starts_at_the_release_that_was_scored(packaged: Packaged, name: str) -> None:
    spec = variant(packaged, name)[2]
    assert spec.score is not None
    assert spec.runtime_version == f">={'.'.join(spec.score.runtime_version.split('.')[:2])}"


def test_a_litert_variants_range_is_that_of_its_files_operator_versions(packaged: Packaged, tmp_path: Path) -> None:
    """A static int8 file runs on the last tflite-runtime, a dynamic one would be computed wrongly there."""
    board = catalogue.load("raspberry-pi-5")
    (runtime,) = (runtime for runtime in board.runtimes if runtime.name is Runtime.LITERT)
    dynamic = runtime.model_copy(update={"precisions": (Precision.INT8_DYNAMIC,)})
    profiles = (board.model_copy(update={"runtimes": (dynamic,)}),)
    result = package(packaged.again(profiles=profiles, folder=tmp_path / "dynamic"))
    runs = replace(packaged, result=result)
    for run, name, range_ in ((packaged, "litert-int8", ">=0.1.14"), (runs, "litert-int8-dynamic", ">=0.2.17")):
        file = unpack(run, name, tmp_path).files[0].read_bytes()
        assert variant(run, name)[2].runtime_version == range_
        assert min_runtime_version(file) == f"{range_.removeprefix('>=0.')}.0"
    assert Version("0.2.14.0") not in SpecifierSet(">=0.2.17")


@pytest.mark.parametrize("name", VARIANTS)
def test_the_shipped_files_give_the_golden_outputs(packaged: Packaged, name: str, tmp_path: Path) -> None:
    found, manifest, spec = variant(packaged, name)
    layer = next(layer for layer in manifest.layers if layer.media_type == Layer.GOLDEN)
    with np.load(io.BytesIO(found.blobs.read(layer.digest, doing="test"))) as golden:
        inputs, outputs = golden["input:image"], golden["output:logits"]
    assert inputs.shape == (8, 1, 1, 8, 8)
    assert outputs.shape == (8, 1, 10)
    assert inputs.dtype == outputs.dtype == np.float32
    assert spec.golden.samples == 8
    np.savez(tmp_path / "samples.npz", image=inputs)
    job = InferJob(
        runtime=spec.runtime,
        artefact=unpack(packaged, name, tmp_path),
        samples=tmp_path / "samples.npz",
        repeats=0,
        outputs=tmp_path / "outputs.npz",
    )
    again = infer(job).outputs["logits"]
    tolerance = spec.golden.tolerances["logits"]
    assert np.abs(again.astype(np.float64) - outputs).max() <= tolerance
    # A tolerance that lets another answer through would prove nothing.
    assert tolerance < 0.25 * np.ptp(outputs)


def test_the_command_gives_the_same_package_in_another_process(packaged: Packaged, tmp_path: Path) -> None:
    """With other jobs at a time, another temporary folder, hash seed, locale and time zone, and a cache of its own."""
    request = packaged.request
    options = {"calibration": request.calibration, "evaluation": request.evaluation, "version": request.version}
    given = [f"--{name}={value}" for name, value in options.items()]
    given += ["--name=digits", "--release=1", "--jobs=1", *(f"--profile={profile.id}" for profile in request.profiles)]
    (tmp_path / "elsewhere").mkdir()
    surroundings = {
        "TMPDIR": str(tmp_path / "elsewhere"),
        "EDGEFLEET_CACHE": str(tmp_path / "cache"),
        "PYTHONHASHSEED": "7",
        "LC_ALL": "tr_TR.UTF-8",
        "TZ": "Asia/Kathmandu",
        "COLUMNS": "120",
    }
    result = subprocess.run(
        [sys.executable, "-m", "edgefleet.cli", "package", request.model, *given, "-o", str(tmp_path / "again")],
        env={**os.environ, **surroundings},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert Package(tmp_path / "again").digest == packaged.result.digest
    for text in ("litert-int8", "onnxruntime-int8", "openvino-int8", "ships", "digest   sha256:"):
        assert text in result.stdout
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_progress_tells_every_stage_and_job(packaged: Packaged) -> None:
    stages = list(dict.fromkeys(event.stage for event in packaged.events))
    assert stages == [Stage.INTAKE, Stage.CONVERT, Stage.SCORE, Stage.TIME, Stage.WRITE]
    converted = [event for event in packaged.events if event.stage is Stage.CONVERT]
    assert [(event.done, event.total) for event in converted] == [(done, 8) for done in range(9)]


def test_ranges_from_the_wrong_data_are_stopped_by_the_gate(
    packaged: Packaged, digits_data: digits.Digits, tmp_path: Path
) -> None:
    """Calibration images a hundred times too dark: int8 clips everything, and only the float variant ships."""
    np.savez(tmp_path / "dark.npz", x=digits_data.train_x[:40] / np.float32(100))
    request = packaged.again(
        calibration=str(tmp_path / "dark.npz"),
        folder=tmp_path / "out",
        profiles=(one_runtime(Runtime.OPENVINO, Precision.INT8),),
    )
    int8, fp16 = package(request).report.variants
    assert (int8.shipped, fp16.shipped) == (False, True)
    assert "below fp32" in int8.reason
    # Every rung was tried, and other ranges do not help against data of another kind.
    assert len(int8.attempts) > 2
