"""Limits of the children that run models: one that eats memory, hangs or crashes is one row, and peaks are its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from converters.onnx_models import build, weights
from converters.score_jobs import Bytes
from edgefleet.package.manifest import TensorSpec
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.child import ChildFailedError, call
from edgefleet_converters.score.infer import InferJob, infer
from edgefleet_device_profiles.profile import Runtime
from patience import PATIENCE_S

MIB = 2**20


def run(name: str, value: int, memory_bytes: int | None = None) -> int:
    found = call(
        f"converters.score_jobs:{name}", Bytes(value=value), Bytes, timeout_s=PATIENCE_S, memory_bytes=memory_bytes
    )
    return found.value


def job(folder: Path, **changes: object) -> InferJob:
    model = build([helper.make_node("MatMul", ["x", "w"], ["y"])], (1, 64), {"w": weights(64, 8)})
    onnx.save(model, folder / "model.onnx")
    np.savez(folder / "samples.npz", x=weights(5, 1, 64))
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 64))
    artefact = Artefact(
        files=(folder / "model.onnx",),
        inputs=(spec,),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(1, 8)),),
    )
    made = InferJob(
        runtime=Runtime.ONNXRUNTIME,
        artefact=artefact,
        samples=folder / "samples.npz",
        repeats=2,
        outputs=folder / "outputs.npz",
    )
    return made.model_copy(update=changes)


def test_a_child_that_wants_more_memory_than_it_may_have_is_told_so() -> None:
    assert run("allocate", 64 * MIB, 512 * MIB) == 64 * MIB
    with pytest.raises(ChildFailedError, match=r"MemoryError: .*; it may allocate 512 MiB"):
        run("allocate", 600 * MIB, 512 * MIB)


def test_a_mapped_model_does_not_count() -> None:
    assert run("map_file", 600 * MIB, 512 * MIB) == 600 * MIB


def test_the_peak_is_the_childs_own_and_not_what_its_parent_had() -> None:
    kept = np.ones(300 * MIB, np.uint8)
    small, large = run("peak", 0), run("peak", 100 * MIB)
    assert small < 150 * MIB < kept.nbytes
    assert 95 * MIB < large - small < 105 * MIB


def test_a_run_gives_every_output_its_repetitions_and_its_peak(tmp_path: Path) -> None:
    found = infer(job(tmp_path))
    assert found.outputs["y"].shape == (5, 1, 8)
    assert found.repeated["y"].shape == (2, 2, 1, 8)
    assert np.array_equal(found.repeated["y"][1], found.outputs["y"][:2])
    assert 20 * MIB < found.peak_rss_bytes < 500 * MIB


def test_a_model_that_needs_more_than_the_limit_is_one_failed_row(tmp_path: Path) -> None:
    with pytest.raises(ChildFailedError) as caught:
        infer(job(tmp_path, memory_bytes=24 * MIB))
    assert "\n" not in str(caught.value)


def test_a_model_that_takes_too_long_is_one_failed_row(tmp_path: Path) -> None:
    with pytest.raises(ChildFailedError, match="it did not finish in 0 s"):
        infer(job(tmp_path, timeout_s=0.01))


def test_a_file_that_the_runtime_refuses_is_one_failed_row(tmp_path: Path) -> None:
    refused = job(tmp_path)
    refused.artefact.files[0].write_bytes(b"no model")
    with pytest.raises(ChildFailedError, match=r"InvalidProtobuf|INVALID_PROTOBUF"):
        infer(refused)
