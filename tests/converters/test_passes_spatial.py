"""Operators that layout assignment places channels-last between convolutions, or leaves where that costs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from converters.onnx_models import assert_same, build, operators, weights
from edgefleet_converters.tflite import lower

Constants = Mapping[str, NDArray[np.generic]]
node = helper.make_node
IMAGE = (1, 4, 4, 4)
W, POINT = weights(4, 4, 3, 3), weights(4, 4, 1, 1)
FIRST = node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1])
LAST = node("Conv", ["d", "v"], ["y"])
S, B = weights(4), weights(4, seed=1)
GRID = np.random.default_rng(0).uniform(-1.2, 1.2, (1, 5, 5, 2)).astype(np.float32)
REGIONS, OF_IMAGE = np.array([[0, 0, 3, 3], [1, 1, 2, 3]], np.float32), np.zeros(2, np.int64)
ALIGN = {"output_height": 2, "output_width": 2, "sampling_ratio": 2}

BETWEEN: dict[str, tuple[onnx.NodeProto, Constants, int]] = {
    "depth to space": (node("DepthToSpace", ["c"], ["d"], blocksize=2), {"v": weights(4, 1, 1, 1)}, 18),
    "space to depth": (node("SpaceToDepth", ["c"], ["d"], blocksize=2), {"v": weights(4, 16, 1, 1)}, 18),
    "grid": (node("GridSample", ["c", "g"], ["d"]), {"g": GRID}, 16),
    "regions": (node("RoiAlign", ["c", "r", "i"], ["d"], **ALIGN), {"r": REGIONS, "i": OF_IMAGE, "v": POINT}, 16),
    "groups": (node("GroupNormalization", ["c", "s", "b"], ["d"], num_groups=2), {"s": S, "b": B}, 21),
    "groups, old": (node("GroupNormalization", ["c", "s", "b"], ["d"], num_groups=2), {"s": S[:2], "b": B[:2]}, 18),
    "instances": (node("InstanceNormalization", ["c", "s", "b"], ["d"]), {"s": S, "b": B}, 18),
}


@pytest.mark.parametrize("case", BETWEEN)
def test_nothing_is_transposed_between_convolutions(case: str) -> None:
    between, constants, opset = BETWEEN[case]
    lowered = assert_same(build([FIRST, between, LAST], IMAGE, {"w": W, "v": W, **constants}, opset=opset))
    # SPACE_TO_DEPTH is a transpose of blocks, of rank 6.
    assert operators(lowered).count("TRANSPOSE") == (case == "space to depth")
    assert lowered.outputs[0].permutation == (0, 2, 3, 1)


QUANTIZED: Constants = {
    "scale": np.array(0.05, np.float32),
    "zero": np.array(128, np.uint8),
    "w": np.random.default_rng(0).integers(-100, 100, (4, 4, 3, 3)).astype(np.int8),
    "scales": np.array([0.01, 0.02, 0.015, 0.01], np.float32),
    "zeros": np.zeros(4, np.int8),
}


@pytest.mark.parametrize(
    ("steps", "tolerance"),
    [
        (
            [
                node("ConvInteger", ["q", "w", "zero"], ["i"], pads=[1, 1, 1, 1]),
                node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
            ],
            1e-5,
        ),
        (
            [
                node("QLinearConv", ["q", "scale", "zero", "w", "scales", "zeros", "scale", "zero"], ["r"]),
                node("QLinearConv", ["r", "scale", "zero", "w", "scales", "zeros", "scale", "zero"], ["t"]),
                node("DequantizeLinear", ["t", "scale", "zero"], ["y"]),
            ],
            0.051,
        ),
    ],
    ids=["ConvInteger", "QLinearConv"],
)
def test_convolutions_of_quantised_numbers_are_channels_last(steps: Sequence[onnx.NodeProto], tolerance: float) -> None:
    quantize = node("QuantizeLinear", ["x", "scale", "zero"], ["q"])
    lowered = assert_same(build([quantize, *steps], (1, 4, 5, 5), QUANTIZED), tolerance)
    assert "TRANSPOSE" not in operators(lowered)


@pytest.mark.parametrize("shape", [(1, 4, 6), IMAGE, (1, 4, 3, 2, 2)], ids=str)
@pytest.mark.parametrize("operator", ["GroupNormalization", "InstanceNormalization"])
def test_a_normalisation_by_itself_is_left_where_it_is(operator: str, shape: tuple[int, ...]) -> None:
    groups = {"num_groups": 2} if operator == "GroupNormalization" else {}
    model = build([node(operator, ["x", "s", "b"], ["y"], **groups)], shape, {"s": S, "b": B}, opset=21)
    assert "TRANSPOSE" not in operators(assert_same(model))
    assert "TRANSPOSE" not in operators(lower(model, keep_layout=True))


@pytest.mark.parametrize(
    ("made", "shape", "constants"),
    [
        (node("Conv", ["image", "x"], ["y"]), (3, 3, 2, 2), {"image": weights(1, 3, 3, 3)}),
        (node("GridSample", ["image", "x"], ["y"]), (1, 3, 3, 2), {"image": weights(1, 3, 3, 3)}),
        (node("RoiAlign", ["image", "x", "i"], ["y"], **ALIGN), (2, 4), {"image": weights(1, 3, 3, 3), "i": OF_IMAGE}),
    ],
    ids=lambda item: item.op_type if isinstance(item, onnx.NodeProto) else "",
)
def test_a_constant_image_is_brought_into_the_layout_that_is_read(
    made: onnx.NodeProto, shape: tuple[int, ...], constants: Constants
) -> None:
    assert_same(build([made], shape, constants, opset=16))
