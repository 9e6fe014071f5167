"""Failures that other tools pass over in silence, through the whole of packaging: each is a line of the report."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert.interpreter import Interpreter
from onnx import TensorProto, helper, numpy_helper

from converters.onnx_models import Floats, build, weights
from converters.packaged import Packaged, one_runtime, unpack, variant
from edgefleet.errors import StorageError
from edgefleet_converters import jobs
from edgefleet_converters.packaging import PackageResult, Request, package
from edgefleet_converters.report.model import VariantFacts
from edgefleet_converters.score.infer import InferJob, infer
from edgefleet_converters.score.metrics import Measured
from edgefleet_device_profiles.profile import Precision, Runtime

LITERT = one_runtime(Runtime.LITERT, Precision.FP32, Precision.FP16, Precision.INT8_DYNAMIC)


def _by_name(result: PackageResult) -> dict[str, VariantFacts]:
    return {found.name: found for found in result.report.variants}


def _in_onnxruntime(path: str, name: str, samples: Floats) -> Floats:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {name: sample})[0] for sample in samples])


def test_a_metric_that_falls_to_0_or_cannot_be_computed_costs_one_variant(packaged: Packaged, tmp_path: Path) -> None:
    """An int8 detector that finds nothing does not ship, and a function that fails on it does not end the run."""
    with np.load(packaged.request.evaluation) as stored:
        images = stored["x"][:60, np.newaxis]
    logits = _in_onnxruntime(packaged.request.model, "image", images)
    np.savez(tmp_path / "eval.npz", x=images, y=logits)
    request = packaged.again(
        profiles=(LITERT,),
        evaluation=str(tmp_path / "eval.npz"),
        metric="map=converters.detection_metric:detections",
        folder=tmp_path / "out",
    )
    found = _by_name(package(request))
    assert [name for name, facts in found.items() if facts.shipped] == ["litert-fp32"]
    assert "map 0.0000 is 1.0000 below fp32" in found["litert-int8-dynamic"].reason
    assert "could not be scored" in found["litert-fp16"].reason
    assert "no box is left to match" in found["litert-fp16"].reason


def test_a_runtime_that_answers_differently_or_dies_costs_one_variant(
    packaged: Packaged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As OpenVINO's int8 of a dense autoencoder did: wrong, and different from run to run."""

    def unsteady(job: InferJob) -> Measured:
        measured = infer(job)
        if "fp16" in job.outputs.name:
            again = {name: np.add(array, 0.5, dtype=np.float32) for name, array in measured.repeated.items()}
            return replace(measured, repeated=again)
        if "int8" in job.outputs.name:
            return replace(measured, outputs={name: np.zeros_like(array) for name, array in measured.outputs.items()})
        return measured

    monkeypatch.setattr(jobs, "infer", unsteady)
    found = _by_name(package(packaged.again(profiles=(LITERT,), folder=tmp_path / "out")))
    assert [name for name, facts in found.items() if facts.shipped] == ["litert-fp32"]
    assert "the same input twice differs by 0.5" in found["litert-fp16"].reason
    assert "is the same number" in found["litert-int8-dynamic"].reason


def _detector(folder: Path) -> Path:
    """Boxes of 0 to 640 and scores of 0 to 1 in one output, as YOLO has them."""
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["seen"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["seen"], ["kept"]),
        helper.make_node("Conv", ["kept", "box"], ["box_logits"]),
        helper.make_node("Sigmoid", ["box_logits"], ["box_shares"]),
        helper.make_node("Mul", ["box_shares", "pixels"], ["boxes"]),
        helper.make_node("Conv", ["kept", "score"], ["score_logits"]),
        helper.make_node("Sigmoid", ["score_logits"], ["scores"]),
        helper.make_node("Concat", ["boxes", "scores"], ["joined"], axis=1),
        helper.make_node("Reshape", ["joined", "shape"], ["y"]),
    ]
    constants = {
        "stem": weights(8, 3, 3, 3) * np.float32(0.3),
        "box": weights(4, 8, 1, 1, seed=1),
        "score": weights(5, 8, 1, 1, seed=2),
        "pixels": np.array(640, np.float32),
        "shape": np.array([1, 9, 64]),
    }
    onnx.save(build(nodes, (1, 3, 16, 16), constants), folder / "detector.onnx")
    return folder / "detector.onnx"


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def test_scores_that_die_beside_boxes_are_seen_and_saved(tmp_path: Path) -> None:
    """A good figure over the whole output, and scores that are noise; and no file that was given is written to."""
    for name, seed in (("cal", 3), ("eval", 4)):
        np.savez(tmp_path / f"{name}.npz", x=weights(40, 3, 16, 16, seed=seed))
    request = Request(
        model=str(_detector(tmp_path)),
        profiles=(one_runtime(Runtime.ONNXRUNTIME, Precision.INT8),),
        calibration=str(tmp_path / "cal.npz"),
        evaluation=str(tmp_path / "eval.npz"),
        name="detector",
        version="1",
        release=1,
        folder=tmp_path / "out",
    )
    before = _digests(tmp_path)
    (int8,) = (facts for name, facts in _by_name(package(request)).items() if "int8" in name)
    plain, mixed = int8.attempts[0], int8.attempts[-1]
    assert plain.status == "failed"
    assert "SQNR of 'y', slice" in plain.reason
    whole_db = float(plain.reason.partition("(")[2].split()[0])
    assert whole_db > 35
    assert int8.shipped
    assert "differ 640 x in range" in int8.reason
    assert mixed.status == "passed"
    assert _digests(tmp_path) == before


def _old_model(folder: Path) -> Path:
    """Opset 9 in IR 3, as exporters of 2018 wrote it: initializers are no graph inputs, and there is an Upsample."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["seen"], pads=[1] * 4),
        helper.make_node("Upsample", ["seen", "scales"], ["large"], mode="nearest"),
        helper.make_node("GlobalAveragePool", ["large"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "old",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6])],
        [
            numpy_helper.from_array(weights(6, 3, 3, 3), "w"),
            numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=3), folder / "old.onnx")
    return folder / "old.onnx"


def test_a_source_that_is_never_right_proves_nothing(tmp_path: Path) -> None:
    """A gate that only looks at the loss lets everything through where there is nothing to lose."""
    model = _old_model(tmp_path)
    np.savez(tmp_path / "cal.npz", x=weights(20, 3, 8, 8, seed=1))
    images = weights(400, 3, 8, 8, seed=2)
    wrong = _scores_of_old(images).argmin(axis=1)
    np.savez(tmp_path / "eval.npz", x=images, y=wrong)
    request = Request(
        model=str(model),
        profiles=(one_runtime(Runtime.ONNXRUNTIME, Precision.FP32),),
        calibration=str(tmp_path / "cal.npz"),
        evaluation=str(tmp_path / "eval.npz"),
        name="old",
        version="1",
        release=1,
        folder=tmp_path / "out",
    )
    report = package(request).report
    assert any("top1 of the fp32 source is 0.0000, no better than guessing" in note for note in report.notes)
    assert any("only 20 calibration samples" in note for note in report.notes)
    (only,) = report.variants
    assert only.status == "unproven"
    assert "it has nothing to lose" in only.reason


def _scores_of_old(images: Floats) -> Floats:
    """A mean of a convolution with zero borders, computed plainly."""
    kernels = weights(6, 3, 3, 3)
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    scores: Floats = np.einsum("nchwij,fcij->nf", windows, kernels)
    return scores


def test_a_full_disk_ends_the_run_instead_of_costing_variants(
    packaged: Packaged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_job: InferJob) -> Measured:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jobs, "infer", full)
    profile = one_runtime(Runtime.ONNXRUNTIME, Precision.FP32)
    with pytest.raises(
        StorageError, match="No space left on device; free some space, or name another folder in TMPDIR"
    ):
        package(packaged.again(profiles=(profile,), folder=tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_takes_its_package_with_it(
    packaged: Packaged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_about: object) -> Path:
        raise StorageError("writing the report", "No space left on device", "make room there")

    monkeypatch.setattr("edgefleet_converters.packaging.write_report", refused)
    profile = one_runtime(Runtime.ONNXRUNTIME, Precision.FP32)
    with pytest.raises(StorageError):
        package(packaged.again(profiles=(profile,), folder=tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["litert-int8", "litert-fp16"])
def test_a_file_takes_float32_and_holds_no_operator_that_nothing_runs(
    packaged: Packaged, name: str, tmp_path: Path
) -> None:
    """Other converters write FLOAT16 inputs into fp16 files, and unknown operators as custom ones."""
    interpreter = Interpreter(model_path=str(unpack(packaged, name, tmp_path).files[0]), num_threads=1)
    borders = (*interpreter.get_input_details(), *interpreter.get_output_details())
    assert {border["dtype"] for border in borders} == {np.float32}
    names = {operator["op_name"] for operator in interpreter._get_ops_details()}
    assert not [found for found in names if "CUSTOM" in found or found.startswith("ONNX")]


@pytest.mark.parametrize("name", ["litert-int8", "onnxruntime-int8", "openvino-int8", "openvino-fp16"])
def test_every_variant_is_compared_with_float32(packaged: Packaged, name: str) -> None:
    """The comparison that others refuse to make as too hard: value, reference and worst slice, on the shipped file."""
    (facts,) = (found for found in packaged.result.report.variants if found.name == name)
    assert facts.score is not None
    assert facts.score.reference is not None
    assert facts.score.value is not None
    assert facts.score.sqnr_db is not None
    assert facts.score.agreement is not None
    spec = variant(packaged, name)[2]
    assert spec.score is not None
    assert (spec.score.value, spec.score.reference) == (facts.score.value, facts.score.reference)
    for file in ("report.md", "report.html"):
        assert name in (packaged.result.report_folder / file).read_text(encoding="utf-8")
