"""The built-in check of `edgefleet convert`, its search for the first difference, and what a run costs without it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from converters.convert_runs import Array, convert, converted, model, refusal, two_inputs
from converters.onnx_models import weights
from edgefleet.errors import GateError
from edgefleet_converters.conversion.check import TOLERANCES, Comparison, Difference
from edgefleet_converters.conversion.differences import of_rows
from edgefleet_converters.tflite import lowering
from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.graph import Node
from edgefleet_converters.tflite.operators import OPERATORS
from edgefleet_demo import digits
from edgefleet_device_profiles.profile import Precision

# x → first (Tanh) → guilty (Sigmoid) → sum (Add with Relu fused in) → y (Neg)
CHAIN = model(
    [
        helper.make_node("Tanh", ["x"], ["first"], name="before"),
        helper.make_node("Sigmoid", ["first"], ["middle"], name="guilty"),
        helper.make_node("Add", ["middle", "c"], ["sum"], name="add"),
        helper.make_node("Relu", ["sum"], ["rest"], name="cut"),
        helper.make_node("Neg", ["rest"], ["y"], name="after"),
    ],
    {"x": [2, 6]},
    {"c": weights(6)},
)


def _offset(node: Node, e: Emitter) -> None:
    e.into(node.outputs[0], e.add(e.sigmoid(e.input(0)), 0.25))


def _deaf(node: Node, e: Emitter) -> None:
    """Add without the activation that was fused into it."""
    e.into(node.outputs[0], e.add(e.input(0), e.input(1)))


def _defect(monkeypatch: pytest.MonkeyPatch, operator: str, rule: object) -> None:
    monkeypatch.setattr(lowering, "OPERATORS", {**OPERATORS, operator: rule})


def test_a_wrong_file_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _defect(monkeypatch, "Sigmoid", _offset)
    text = refusal(tmp_path, CHAIN, kind=GateError)
    assert "the file differs from the source in 'y': max |d| 0.25" in text
    assert "--bisect" in text


def test_an_older_file_survives_a_wrong_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out.tflite").write_text("older")
    _defect(monkeypatch, "Sigmoid", _offset)
    assert convert(tmp_path, CHAIN).exit_code != 0
    assert (tmp_path / "out.tflite").read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "out.tflite"]


def test_without_the_check_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _defect(monkeypatch, "Sigmoid", _offset)
    result, _ = converted(tmp_path, CHAIN, "--no-check")
    assert "check     skipped (--no-check)" in result.stdout


def test_bisect_names_the_first_tensor_that_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _defect(monkeypatch, "Sigmoid", _offset)
    text = refusal(tmp_path, CHAIN, "--bisect", kind=GateError)
    assert "first difference: 'middle' of Sigmoid (node 'guilty'), max |d| 0.25" in text


def test_bisect_finds_what_only_fused_operators_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every tensor as an output nothing is fused, and nothing differs; halving the graph finds it."""
    _defect(monkeypatch, "Add", _deaf)
    text = refusal(tmp_path, CHAIN, "--bisect", kind=GateError)
    assert "first difference: 'rest' of Relu (node 'cut')" in text


def test_bisect_of_a_right_file(tmp_path: Path) -> None:
    result, _ = converted(tmp_path, CHAIN, "--bisect")
    assert "bisect    no tensor differs" in result.stdout


def test_a_model_that_onnxruntime_cannot_run_is_converted_and_said(tmp_path: Path) -> None:
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    function = helper.make_function("mine", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    own = model(
        [helper.make_node("Twice", ["x"], ["t"], domain="mine"), helper.make_node("Neg", ["t"], ["y"])], {"x": [2]}
    )
    own.functions.append(function)
    own.opset_import.append(helper.make_opsetid("mine", 1))
    own.graph.node.append(helper.make_node("Unheard", ["x"], ["unused"], domain="elsewhere"))
    own.opset_import.append(helper.make_opsetid("elsewhere", 1))
    result, _ = converted(tmp_path, own)
    assert "note: not checked: ONNX Runtime cannot run the model: " in result.stderr
    assert "check     not possible" in result.stdout


@pytest.mark.parametrize(
    ("difference", "exceeds"),
    [
        (Difference(name="y", largest=0.9e-3, reference=1.0), False),
        (Difference(name="y", largest=1.1e-3, reference=1.0), True),
        (Difference(name="y", largest=0.9e-5, reference=0.0), False),
        (Difference(name="y", unequal="1 of 4 values"), True),
        (Difference(name="y", rows=True, largest=0, reference=0), False),
        (Difference(name="y", rows=True, largest=1, reference=900), True),
        (Difference(name="y", rows=True, largest=1, reference=1000), False),
    ],
)
def test_what_is_more_than_rounding(difference: Difference, *, exceeds: bool) -> None:
    assert difference.exceeds(1e-3) is exceeds


@pytest.mark.parametrize(("rows", "of", "exceeds"), [(2, 6, False), (3, 6, True), (5, 100, False), (6, 100, True)])
def test_float16_may_select_another_box_in_the_place_of_one(rows: int, of: int, *, exceeds: bool) -> None:
    assert Difference(name="y", rows=True, largest=rows, reference=of).exceeds(TOLERANCES[Precision.FP16]) is exceeds


def selecting() -> onnx.ModelProto:
    """NonMaxSuppression of Sigmoid(x), [1, 2, 24], over fixed boxes: the scores decide how many rows there are."""
    corners = np.random.default_rng(2).random((1, 24, 2)).astype(np.float32)
    constants: dict[str, Array] = {
        "boxes": np.concatenate([corners, corners + np.float32(0.4)], 2),
        "most": np.array([9], np.int64),
        "overlap": np.array([0.5], np.float32),
        "least": np.array([0.6], np.float32),
    }
    names = ["boxes", "kept", "most", "overlap", "least"]
    nodes = [helper.make_node("Sigmoid", ["x"], ["kept"]), helper.make_node("NonMaxSuppression", names, ["y"])]
    return model(nodes, {"x": [1, 2, 24]}, constants)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_selected_rows_are_compared_as_a_set(tmp_path: Path, precision: str) -> None:
    samples = np.random.default_rng(1).normal(size=(4, 1, 2, 24)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=samples)
    given = ("--precision", precision, "--calibration", str(tmp_path / "x.npz"))
    result, interpreter = converted(tmp_path, selecting(), *given)
    assert "output    y: int64 [up to 18, 3]" in result.stdout
    found = re.search(r"check {5}y: rows in any order: 0 in only one of the two, (\d+) in the source", result.stdout)
    assert found is not None
    assert int(found[1]) > 18
    runner = interpreter.get_signature_runner()
    assert len({len(runner(x=sample)["y"]) for sample in samples}) > 1


def test_a_file_that_selects_other_rows_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _defect(monkeypatch, "Sigmoid", lambda node, e: e.into(node.outputs[0], e.mul(e.sigmoid(e.input(0)), 0.7)))
    text = refusal(tmp_path, selecting(), kind=GateError)
    assert re.search(r"'y': rows in any order: [1-9]\d* in only one of the two", text)


def test_neither_the_order_of_rows_nor_their_number_hides_a_difference() -> None:
    rows = np.array([[0, 0, 5], [0, 1, 2], [0, 1, 7]])
    one, more = rows[:1], np.array([[0, 0, 6], [0, 0, 5]])
    same = [rows, rows, rows, rows[::-1], one]
    assert of_rows("y", [rows[::-1], rows, rows, rows, one], same).text == (
        "rows in any order: 0 in only one of the two, 13 in the source (0 on the given samples)"
    )
    found = of_rows("y", [rows[:2], rows, rows, rows, more], same)
    assert (found.largest, found.reference, found.golden) == (2, 13, 1)
    none = of_rows("y", [rows[:0]], [rows])
    assert Comparison(samples=1, outputs=(none,)).notes[0].startswith("'y' differs by half of its rows or more")
    assert of_rows("y", [one, one], [one, one]).constant


def test_values_that_are_not_numbers_must_be_the_same_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = model([helper.make_node("Log", ["x"], ["y"])], {"x": [64]})
    result, _ = converted(tmp_path, log)
    assert "check     y: max |d| " in result.stdout
    (tmp_path / "out.tflite").unlink()
    _defect(monkeypatch, "Log", lambda node, e: e.into(node.outputs[0], e.log(e.abs(e.input(0)))))
    assert "values are NaN or infinite in only one of the two" in refusal(tmp_path, log, kind=GateError)


def _process(*arguments: str, code: str = "") -> str:
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "edgefleet.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_float_conversion_without_the_check_loads_no_toolchain(tmp_path: Path) -> None:
    arguments = [str(digits.model_path()), "--to", "litert", "--no-check", "-o", str(tmp_path / "out.tflite")]
    code = (
        "import json, sys; from edgefleet_converters.convert_cli import app\n"
        f"app({arguments!r}, standalone_mode=False)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    loaded = set(json.loads(_process(code=code).splitlines()[-1]))
    assert "onnx" in loaded
    heavy = {
        "ai_edge_quantizer",
        "nncf",
        "onnx_ir",
        "onnxruntime",
        "openvino",
        "pydantic",
        "rich",
        "tensorflow",
        "torch",
    }
    assert loaded & heavy == set()
    assert (tmp_path / "out.tflite").stat().st_size > 900_000


def test_the_whole_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = time.perf_counter()
    output = _process(
        "convert", str(digits.model_path()), "--to", "litert", "--no-check", "-o", str(tmp_path / "out.tflite")
    )
    with capsys.disabled():
        print(f"\nedgefleet convert digits.onnx --no-check: {time.perf_counter() - start:.2f} s as a process")
    assert "operators 18: 8 CONV_2D" in output
    assert np.fromfile(tmp_path / "out.tflite", np.uint8, 4, offset=4).tobytes() == b"TFL3"


def test_the_model_file_is_left_alone(tmp_path: Path) -> None:
    converted(tmp_path, CHAIN, "--bisect")
    assert onnx.load(tmp_path / "model.onnx") == CHAIN


def test_an_output_that_never_changes_proves_little(tmp_path: Path) -> None:
    flat = model([helper.make_node("Mul", ["x", "zero"], ["y"])], {"x": [3]}, {"zero": np.zeros(3, np.float32)})
    result, _ = converted(tmp_path, flat)
    assert "but the source gives the same for every sample" in result.stdout


def test_inputs_without_axes_and_inputs_that_nothing_reads(tmp_path: Path) -> None:
    odd = model([helper.make_node("Add", ["x", "z"], ["y"])], {"x": [], "z": [3], "spare": [2]})
    result, interpreter = converted(tmp_path, odd)
    assert "check     y: max |d| 0 of" in result.stdout
    assert len(interpreter.get_input_details()) == 3


def test_bisect_with_several_inputs_and_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _defect(monkeypatch, "Mul", lambda node, e: e.into(node.outputs[0], e.add(e.input(0), e.input(1))))
    text = refusal(tmp_path, two_inputs(), "--dim", "seq=4", "--bisect", kind=GateError)
    assert "first difference: 'kept' of Mul" in text


def test_a_file_that_lost_its_meaning_is_said() -> None:
    """A precision without a tolerance is written all the same, but not without a word."""
    kept, lost = (
        Difference(name="kept", largest=0.4, reference=1.0),
        Difference(name="lost", largest=0.6, reference=1.0),
    )
    assert Comparison(samples=3, outputs=(kept,)).notes == []
    (note,) = Comparison(samples=3, outputs=(kept, lost)).notes
    assert note.startswith("'lost' differs by half of its largest value or more")
