"""What a person can get wrong on the command line: one clear line, a non-zero exit, and nothing written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from onnx import TensorProto, helper

from converters.onnx_models import build
from converters.packaged import Packaged, one_runtime
from edgefleet.errors import EdgefleetError, GateError, InputError, StorageError
from edgefleet_converters.cli import app
from edgefleet_converters.packaging import package
from edgefleet_demo import digits
from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.profile import Precision, Runtime

X = np.zeros((40, 1, 8, 8), np.float32)
Y = np.zeros(40, np.int64)


def invoke(folder: Path, *extra: str, **paths: Path) -> Result:
    arguments = [str(paths.get("model", digits.model_path()))]
    for option in ("calibration", "evaluation"):
        default = folder / f"good-{option}.npz"
        if option not in paths:
            np.savez(default, x=X, y=Y)
        arguments += [f"--{option}", str(paths.get(option, default))]
    arguments += ["--profile", "raspberry-pi-5", "--name", "digits", "--version", "1.0.0", "--release", "1"]
    return CliRunner().invoke(app, [*arguments, "-o", str(folder / "out"), *extra])


def refusal(result: Result, kind: type[EdgefleetError], folder: Path) -> str:
    assert isinstance(result.exception, kind), result.exception
    assert not (folder / "out").exists()
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert kind.exit_code != 0
    text = str(result.exception)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("content", [b"", b"this is not a model", b"\x08\x07\x12\x00PK\x03\x04", b"\x00" * 64])
def test_not_an_onnx_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    text = refusal(invoke(tmp_path, model=path), InputError, tmp_path)
    assert f"reading the model {path}: not an ONNX model" in text


def test_no_such_model(tmp_path: Path) -> None:
    text = refusal(invoke(tmp_path, model=tmp_path / "gone.onnx"), InputError, tmp_path)
    assert "No such file or directory" in text


def _model(folder: Path, model: onnx.ModelProto) -> Path:
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def test_an_operator_that_the_only_runtime_does_not_know_is_named(packaged: Packaged, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT32),
        helper.make_node("Pow", ["whole", "half"], ["root"], name="power"),
        helper.make_node("Cast", ["root"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["y"]),
    ]
    path = _model(tmp_path, build(nodes, (1, 1, 8, 8), {"half": np.array(0.5, np.float32)}))
    request = packaged.again(model=str(path), profiles=(catalogue.load("raspberry-pi-os-32"),), folder=tmp_path / "out")
    with pytest.raises(GateError) as caught:
        package(request)
    assert "litert-int8: refused, could not be scored" in str(caught.value)
    assert "no TFLite form is known for Pow" in str(caught.value)
    assert "'power'" in str(caught.value)
    assert [item.name for item in tmp_path.iterdir()] == ["model.onnx"]


def test_a_model_that_answers_differently_each_time_is_refused(packaged: Packaged, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["e"], name="noise"),
        helper.make_node("Flatten", ["e"], ["y"]),
    ]
    request = packaged.again(
        model=str(_model(tmp_path, build(nodes, (1, 1, 8, 8)))),
        profiles=(one_runtime(Runtime.ONNXRUNTIME, Precision.FP32),),
        folder=tmp_path / "out",
    )
    with pytest.raises(InputError, match=r"the same input twice differs by .* take the random operators out"):
        package(request)


MODELS: dict[str, tuple[onnx.ModelProto, str]] = {
    "dynamic axis": (
        build([helper.make_node("Flatten", ["x"], ["y"])], ("N", 1, 8, "W")),
        "free sizes: W of input 'x' axis 3; give each with --dim",
    ),
    "newer opset": (build([helper.make_node("Flatten", ["x"], ["y"])], (1, 4), opset=99), "its opset is 99"),
    "text": (
        build([helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING)], (1, 4)),
        "output 'y' is object; export it with numbers",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_cannot_be_read(tmp_path: Path, case: str) -> None:
    model, reason = MODELS[case]
    assert reason in refusal(invoke(tmp_path, model=_model(tmp_path, model)), EdgefleetError, tmp_path)


NAN = X.copy()
NAN[3, 0, 0, 0] = np.nan
CALIBRATION: dict[str, tuple[Mapping[str, NDArray[np.generic]], str]] = {
    "shape": ({"x": X[..., :7]}, "'image' is float32 [40, 1, 8, 7], expected float32 [N, 1, 8, 8]"),
    "flat": ({"x": X[:, 0]}, "'image' is float32 [40, 8, 8], expected float32 [N, 1, 8, 8]"),
    "dtype": ({"x": X.astype(np.float64)}, "'image' is float64 [40, 1, 8, 8], expected float32 [N, 1, 8, 8]"),
    "no x": ({"images": X}, "no array for 'image' (there are: images)"),
    "empty": ({"x": X[:0]}, "'image' has no samples"),
    "nan": ({"x": NAN}, "NaN or infinite values in 1 of 40 samples"),
}
EVALUATION: dict[str, tuple[Mapping[str, NDArray[np.generic]], str]] = {
    "short y": ({"x": X, "y": Y[:7]}, "y is int64 [7], expected integers [40]"),
    "labels of another kind": ({"x": X, "y": Y[:, np.newaxis]}, "y is int64 [40, 1], expected integers [40]"),
    "labels": ({"x": X, "y": Y + 10}, "y has labels from 10 to 10, expected 0 to 9"),
    "nan": ({"x": NAN, "y": Y}, "NaN or infinite values in 1 of 40 samples"),
    "one label": ({"x": X, "y": Y[0]}, "y is int64 [], expected integers [40]"),
    "one-hot": (
        {"x": X, "y": np.eye(10, dtype=np.float32)[Y]},
        "y is float32 [40, 10], expected integers [40]: it is one-hot; store class numbers: y.argmax(axis=1)",
    ),
    "floats": ({"x": X, "y": Y.astype(np.float32)}, "y is float32 [40], expected integers [40]"),
    "names": ({"x": X, "y": np.array(["cat"] * 40)}, "'cat' is neither a number nor one of the labels (none)"),
    "dates": ({"x": X, "y": Y.astype("datetime64[D]")}, "y is datetime64[D] [40], expected integers [40]"),
}


@pytest.mark.parametrize("case", CALIBRATION)
def test_bad_calibration_data(tmp_path: Path, case: str) -> None:
    arrays, reason = CALIBRATION[case]
    np.savez(tmp_path / "cal.npz", **arrays)  # type: ignore[arg-type] # mypy takes them for allow_pickle
    text = refusal(invoke(tmp_path, calibration=tmp_path / "cal.npz"), InputError, tmp_path)
    assert f"reading the calibration data {tmp_path / 'cal.npz'}: {reason}" in text


@pytest.mark.parametrize("case", EVALUATION)
def test_bad_evaluation_data(tmp_path: Path, case: str) -> None:
    arrays, reason = EVALUATION[case]
    np.savez(tmp_path / "eval.npz", **arrays)  # type: ignore[arg-type] # mypy takes them for allow_pickle
    text = refusal(invoke(tmp_path, evaluation=tmp_path / "eval.npz"), InputError, tmp_path)
    assert f"reading the evaluation data {tmp_path / 'eval.npz'}: {reason}" in text


@pytest.mark.parametrize("content", [b"", b"x,y\n1,2\n", b"PK\x03\x04broken"])
def test_data_that_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cal.npz").write_bytes(content)
    text = refusal(invoke(tmp_path, calibration=tmp_path / "cal.npz"), InputError, tmp_path)
    assert "not a readable .npz or .npy file" in text


def test_an_unknown_profile(tmp_path: Path) -> None:
    text = refusal(invoke(tmp_path, "--profile", "toaster"), InputError, tmp_path)
    assert "there is no 'toaster'; choose from:" in text


def test_a_version_that_no_tag_can_hold(tmp_path: Path) -> None:
    assert "cannot be a version" in refusal(invoke(tmp_path, "--version", "1/2"), InputError, tmp_path)


def test_a_folder_that_is_taken_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    result = invoke(tmp_path)
    assert "something is already there" in str(result.exception)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


OPTIONS: dict[str, tuple[tuple[str, str], str]] = {
    "name": (("--name", "../digits"), "'../digits' cannot be a name"),
    "no name": (("--name", ""), "'' cannot be a name"),
    "limit": (("--max-drop", "nan"), "reading --max-drop: nan is no limit"),
    "noise": (("--min-sqnr", "inf"), "reading --min-sqnr: inf is no limit"),
    "metric": (("--metric", "f1"), "there is no metric 'f1'"),
    "function": (("--metric", "map=nowhere:score"), "No module named 'nowhere'"),
    "explanation": (("--explain", "intel-nuc"), "'intel-nuc' is not packaged for"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_are_refused_before_any_work(tmp_path: Path, case: str) -> None:
    """No limit lets everything through: nothing is less than NaN."""
    given, reason = OPTIONS[case]
    assert reason in refusal(invoke(tmp_path, *given), InputError, tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    text = refusal(invoke(tmp_path, model=tmp_path / "model.onnx"), InputError, tmp_path)
    assert "it is neither a file nor a folder" in text
    os.mkfifo(tmp_path / "cal.npz")
    text = refusal(invoke(tmp_path, calibration=tmp_path / "cal.npz"), InputError, tmp_path)
    assert "it is neither a file nor a folder" in text


def test_a_place_that_cannot_hold_the_package_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "file").touch()
    (tmp_path / "taken.report").touch()
    places: dict[str, tuple[type[EdgefleetError], str]] = {
        "link": (InputError, "something is already there"),
        "file/out": (StorageError, "Not a directory"),
        "n" * 300: (StorageError, "File name too long"),
        "taken": (InputError, "taken.report is in the way of the report"),
    }
    for place, (kind, reason) in places.items():
        text = refusal(invoke(tmp_path, "-o", str(tmp_path / place)), kind, tmp_path)
        assert reason in text
    assert list((tmp_path / "there").iterdir()) == []
