"""Shapes and layouts on the command line of `edgefleet convert`: what is fixed, what is said, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from converters.convert_runs import converted, model, refusal, two_inputs
from converters.onnx_models import weights
from edgefleet.errors import InputError, UnsupportedError


def reshaped(*shape: int) -> onnx.ModelProto:
    """A Relu after a Reshape to literal sizes; the input is [N, 4, 4]."""
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["r"], name="fold"), helper.make_node("Relu", ["r"], ["y"])]
    return model(nodes, {"x": ["N", 4, 4]}, {"shape": np.array(shape, np.int64)})


CONVOLUTION = model(
    [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])],
    {"x": ["N", 3, 3, 3]},
    {"w": weights(3, 3, 1, 1)},
)


def test_a_symbolic_first_axis_becomes_1_and_is_said(tmp_path: Path) -> None:
    result, interpreter = converted(tmp_path, two_inputs(), "--dim", "seq=6")
    assert "note: the symbolic first axis 'batch' becomes 1" in result.stderr
    assert {tuple(item["shape"]) for item in interpreter.get_input_details()} == {(1, 6), (1, 6, 8)}
    assert "check     y: max |d| " in result.stdout


@pytest.mark.parametrize("options", [["--shape", "ids=2,6"], ["--dim", "seq=6", "--dim", "batch=2"]])
def test_one_input_or_the_symbols_fix_all_others(tmp_path: Path, options: list[str]) -> None:
    result, interpreter = converted(tmp_path, two_inputs(), *options, "--no-check")
    assert "becomes 1" not in result.stderr
    assert {tuple(item["shape"]) for item in interpreter.get_input_details()} == {(2, 6), (2, 6, 8)}


def test_all_free_symbols_are_listed(tmp_path: Path) -> None:
    add = model([helper.make_node("Add", ["x", "z"], ["y"])], {"x": ["N", "h", "w"], "z": ["N", "h", ""]})
    text = refusal(tmp_path, add, kind=InputError)
    assert "free sizes: h of input 'x' axis 1, input 'z' axis 1, w of input 'x' axis 2, z[2] of input 'z'" in text
    assert "--dim SYMBOL=N or --shape NAME=1,3,224,224" in text


BAD = {
    "unknown symbol": (["--dim", "length=6"], "no input has this symbol; the model's symbols are: batch, seq"),
    "unknown input": (["--shape", "words=1,6"], "the model has no such input; its inputs are: ids, mask"),
    "rank": (["--shape", "ids=1,6,8"], "--shape ids=1,6,8 has 3 axes; the model's input is [batch, seq]"),
    "static axis": (["--shape", "mask=1,6,9"], "axis 2 is already 8"),
    "two sizes": (["--shape", "ids=1,6", "--dim", "seq=7"], "axis 1 is already 7"),
    "no number": (["--dim", "seq=many"], "'many' is not a size"),
    "zero": (["--shape", "ids=0,6"], "'0' is not a size"),
    "no pair": (["--shape", "1,6"], "it is not NAME=VALUE"),
    "twice": (["--dim", "seq=6", "--dim", "seq=7"], "'seq' is given twice"),
    "layout": (["--dim", "seq=6", "--input-layout", "mask=nwc"], "'nwc' is not a layout"),
    "layout of whom": (["--dim", "seq=6", "--input-layout", "x=nhwc"], "no such input; its inputs are: ids, mask"),
    "layout rank": (["--dim", "seq=6", "--input-layout", "mask=nhwc"], "the input has 3 axes"),
}


@pytest.mark.parametrize("case", BAD)
def test_shapes_that_do_not_fit(tmp_path: Path, case: str) -> None:
    options, reason = BAD[case]
    assert reason in refusal(tmp_path, two_inputs(), *options, kind=InputError)


def test_a_literal_batch_in_a_reshape(tmp_path: Path) -> None:
    merging = refusal(tmp_path, reshaped(1, -1), "--dim", "N=4", kind=InputError)
    assert "the Reshape 'fold' has the literal batch 1 in [1, -1], not 4; give --dim N=1" in merging
    impossible = refusal(tmp_path, reshaped(8, 16), kind=InputError)
    assert "the Reshape 'fold' has the literal batch 8 in [8, 16], not 1; give --dim N=8" in impossible


def test_a_reshape_that_only_may_mix_samples_is_said(tmp_path: Path) -> None:
    result, _ = converted(tmp_path, reshaped(2, -1), "--no-check")
    assert "literal batch 2 in [2, -1], not 1: samples may be mixed" in result.stderr
    result, _ = converted(tmp_path, reshaped(4, 4), "--no-check")
    assert "mixed" not in result.stderr


@pytest.mark.parametrize(
    ("options", "stored", "described"),
    [
        ([], (1, 3, 3, 3), "(NHWC)"),
        (["--keep-layout"], (1, 3, 3, 3), ""),
        (["--input-layout", "x=nchw"], (1, 3, 3, 3), ""),
    ],
)
def test_layouts_of_a_model_whose_axes_are_all_alike(
    tmp_path: Path, options: list[str], stored: tuple[int, ...], described: str
) -> None:
    """Height, width and channels of 3: only the summary and the check can tell the layouts apart."""
    result, interpreter = converted(tmp_path, CONVOLUTION, *options)
    assert tuple(interpreter.get_input_details()[0]["shape"]) == stored
    line = next(line for line in result.stdout.splitlines() if line.startswith("input"))
    assert line.endswith(described or "[1, 3, 3, 3]")


def test_unsupported_types_are_named(tmp_path: Path) -> None:
    half = model([helper.make_node("Relu", ["x"], ["y"], name="act")], {"x": [2]}, types={"x": TensorProto.BFLOAT16})
    assert "Relu (node 'act': " in refusal(tmp_path, half, kind=UnsupportedError)
