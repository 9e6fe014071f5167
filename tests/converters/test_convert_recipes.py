"""`edgefleet convert` for ONNX Runtime and OpenVINO: files, summary, and every refusal in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from onnx import helper

from converters.convert_runs import model as build
from converters.convert_runs import two_inputs
from edgefleet.errors import EdgefleetError, GateError, InputError, UnsupportedError
from edgefleet_converters.convert_cli import TARGETS, app
from edgefleet_converters.recipe_flow import OPERATORS, SUFFIXES
from edgefleet_converters.recipes import RECIPES
from edgefleet_demo import digits
from edgefleet_device_profiles.profile import Precision, Runtime


@pytest.fixture(name="samples", scope="module")
def _samples(tmp_path_factory: pytest.TempPathFactory, digits_data: digits.Digits) -> Path:
    path = tmp_path_factory.mktemp("samples") / "samples.npz"
    np.savez(path, x=digits_data.train_x[:64])
    return path


def convert(model: Path, output: Path, target: str, *options: str) -> Result:
    return CliRunner().invoke(app, [str(model), "--to", target, "-o", str(output), *options])


def refusal(model: Path, output: Path, target: str, *options: str, kind: type[EdgefleetError]) -> str:
    """A run that must be refused with one line and leave nothing; returns the line."""
    result = convert(model, output, target, *options)
    assert isinstance(result.exception, kind), result.exception or result.output
    assert not list(output.parent.iterdir())
    assert "\n" not in str(result.exception)
    return str(result.exception)


def test_the_command_offers_what_the_recipes_make() -> None:
    for name in ("onnxruntime", "openvino"):
        made = {precision for runtime, precision in RECIPES if runtime == name}
        assert set(TARGETS[name].precisions) == made
        assert all(Runtime(name) in table for table in (SUFFIXES, OPERATORS))
    assert set(Precision) >= {Precision(name) for target in TARGETS.values() for name in target.precisions}


def test_openvino_writes_a_pair(tmp_path: Path, samples: Path) -> None:
    options = ("--precision", "int8", "--calibration", str(samples))
    result = convert(digits.model_path(), tmp_path / "out.xml", "openvino", *options)
    assert result.exit_code == 0, result.exception
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.bin", "out.xml"]
    for text in (
        f"wrote     {tmp_path}/out.xml and {tmp_path}/out.bin (openvino int8, ",
        "FakeQuantize",
        "input     image: float32 [1, 1, 8, 8]\n",
        "output    logits: float32 [1, 10]\n",
        "check     logits: max |d| ",
        "seconds   reading ",
    ):
        assert text in result.stdout
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert f"{total:,} bytes" in result.stdout


def test_onnxruntime_with_two_inputs_and_a_free_axis(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    onnx.save(two_inputs(), model)
    output = tmp_path / "made" / "out.onnx"
    output.parent.mkdir()
    result = convert(model, output, "onnxruntime", "--dim", "seq=6", "--precision", "fp16")
    assert result.exit_code == 0, result.exception
    assert "note: the symbolic first axis 'batch' becomes 1" in result.stderr
    assert "input     ids: int64 [1, 6]\ninput     mask: float32 [1, 6, 8]\n" in result.stdout
    assert [path.name for path in output.parent.iterdir()] == ["out.onnx"]


def test_without_a_check(tmp_path: Path) -> None:
    result = convert(digits.model_path(), tmp_path / "out.onnx", "onnxruntime", "--no-check")
    assert result.exit_code == 0, result.exception
    assert "check     skipped (--no-check)" in result.stdout


def test_few_samples_are_a_note(tmp_path: Path, digits_data: digits.Digits) -> None:
    np.savez(tmp_path / "few.npz", x=digits_data.train_x[:5])
    options = ("--precision", "int8", "--calibration", str(tmp_path / "few.npz"))
    result = convert(digits.model_path(), tmp_path / "out.onnx", "onnxruntime", *options)
    assert "note: only 5 calibration samples" in result.stderr


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_int8_needs_samples(tmp_path: Path, target: str) -> None:
    output = tmp_path / f"out{SUFFIXES[Runtime(target)][0]}"
    text = refusal(digits.model_path(), output, target, "--precision", "int8", kind=InputError)
    assert text.startswith(f"converting to {target} int8: it needs samples")


def test_openvino_needs_the_name_that_it_looks_for(tmp_path: Path) -> None:
    text = refusal(digits.model_path(), tmp_path / "out.onnx", "openvino", kind=InputError)
    assert text.endswith("does not end in .xml; name it out.xml")


@pytest.mark.parametrize("option", [("--io", "uint8"), ("--bisect",), ("--keep-layout",), ("--mean", "0")])
def test_options_of_litert_are_refused(tmp_path: Path, option: tuple[str, ...]) -> None:
    text = refusal(digits.model_path(), tmp_path / "out.xml", "openvino", *option, kind=InputError)
    assert f"{option[0]} is for --to litert only" in text


def test_a_precision_that_the_runtime_has_not(tmp_path: Path) -> None:
    text = refusal(digits.model_path(), tmp_path / "out", "litert", "--precision", "int8-weights", kind=InputError)
    assert text.startswith("converting for litert: it has no int8-weights here; choose one of fp32, ")


def test_a_precision_that_does_not_suit_the_model(tmp_path: Path) -> None:
    options = ("--precision", "int8-dynamic")
    text = refusal(digits.model_path(), tmp_path / "out.onnx", "onnxruntime", *options, kind=UnsupportedError)
    assert "of this model's multiply-accumulates are in convolutions" in text


def test_a_file_that_computes_something_else_is_not_written(tmp_path: Path) -> None:
    """The difference of two products whose weights are the same in float16."""
    weights = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["first"]),
        helper.make_node("MatMul", ["x", "b"], ["second"]),
        helper.make_node("Sub", ["first", "second"], ["y"]),
    ]
    constants: dict[str, NDArray[np.generic]] = {"a": weights, "b": weights * np.float32(1.0001)}
    model = build(nodes, {"x": [1, 64]}, constants)
    (tmp_path / "in").mkdir()
    onnx.save(model, tmp_path / "in" / "model.onnx")
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "out.onnx"
    text = refusal(tmp_path / "in" / "model.onnx", output, "onnxruntime", "--precision", "fp16", kind=GateError)
    assert "the file differs from the source in 'y'" in text
