"""Which layout the inputs and outputs of a model get: chosen, asked for, or kept; never by the sizes of the axes."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx
import pytest
from ai_edge_litert.interpreter import Interpreter
from onnx import TensorProto, helper, numpy_helper

from conformance.verdicts import Verdict
from conformance_graphs.judge import Graph, inputs_of, judge, reference_session, run
from conformance_graphs.networks import NETWORKS
from converters.onnx_models import build, operators, weights
from edgefleet.errors import UnsupportedError
from edgefleet_converters.tflite import Lowered, lower

node = helper.make_node
LAST = (0, 2, 3, 1)
CUBE = (1, 3, 3, 3)


def assert_right(model: onnx.ModelProto, lowered: Lowered) -> None:
    """The file and ONNX Runtime agree when each tensor is brought into the layout that the file names."""
    feeds = inputs_of(model, 0)
    interpreter = Interpreter(model_content=lowered.content, num_threads=1)
    interpreter.allocate_tensors()
    for wanted, found in zip(reference_session(model).run(None, feeds), run(interpreter, lowered, feeds), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def cube() -> onnx.ModelProto:
    """A convolution of channels, height and width that are all 3: no size tells which is which."""
    return build([node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])], CUBE, {"w": weights(3, 3, 3, 3)})


def attention() -> onnx.ModelProto:
    """Scores plus a mask [batch, 1, rows, columns], which is of rank 4 and is no image, beside a convolution."""
    inputs = {"image": (1, 4, 3, 3), "q": (1, 4, 3, 3), "mask": (1, 1, 3, 3)}
    nodes = [
        node("Conv", ["image", "w"], ["c"], pads=[1, 1, 1, 1]),
        node("Transpose", ["q"], ["k"], perm=[0, 1, 3, 2]),
        node("MatMul", ["q", "k"], ["scores"]),
        node("Add", ["scores", "mask"], ["masked"]),
        node("Softmax", ["masked"], ["p"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, inputs["q"]) for name in ("c", "p")],
        [numpy_helper.from_array(weights(4, 4, 3, 3), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_an_image_of_ambiguous_sizes_is_stored_channels_last() -> None:
    lowered = lower(cube())
    assert [lowered.inputs[0].permutation, lowered.outputs[0].permutation] == [LAST, LAST]
    assert operators(lowered) == ["CONV_2D"]
    assert_right(cube(), lowered)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(("asked", "permutation"), [("nchw", None), ("nhwc", LAST)])
def test_an_ambiguous_input_is_what_was_asked_for(
    keep: bool, asked: Literal["nchw", "nhwc"], permutation: tuple[int, ...] | None
) -> None:
    lowered = lower(cube(), keep_layout=keep, input_layout={"x": asked})
    assert lowered.inputs[0].permutation == permutation
    assert lowered.outputs[0].permutation == (None if keep else LAST)
    assert operators(lowered).count("TRANSPOSE") == (permutation is None) + keep
    assert_right(cube(), lowered)


@pytest.mark.parametrize("keep", [False, True])
def test_a_graph_that_is_nhwc_already_stays_so_without_transposes(keep: bool) -> None:
    model = NETWORKS["NHWC as tf2onnx writes"]()
    lowered = lower(model, keep_layout=keep)
    assert all(item.permutation is None for item in (*lowered.inputs, *lowered.outputs))
    assert "TRANSPOSE" not in operators(lowered)
    assert any(item.op_type == "Transpose" for item in model.graph.node)
    assert judge(Graph("", "", NETWORKS["NHWC as tf2onnx writes"])).verdict is Verdict.PASSED


def test_a_graph_that_is_nhwc_already_can_be_asked_for_its_axes_in_another_order() -> None:
    model = NETWORKS["NHWC as tf2onnx writes"]()
    name = model.graph.input[0].name
    lowered = lower(model, input_layout={name: "nhwc"})
    # Its own axes, taken for NCHW, as the override says: what that stores is stated and honoured.
    assert lowered.inputs[0].permutation == LAST
    assert_right(model, lowered)


def test_an_attention_mask_of_rank_4_keeps_its_layout() -> None:
    lowered = lower(attention())
    assert {item.name: item.permutation for item in lowered.inputs} == {"image": LAST, "q": None, "mask": None}
    assert {item.name: item.permutation for item in lowered.outputs} == {"c": LAST, "p": None}
    assert "TRANSPOSE" not in operators(lowered)
    assert_right(attention(), lowered)


def test_an_attention_mask_is_turned_only_where_that_is_asked_for() -> None:
    lowered = lower(attention(), input_layout={"mask": "nhwc", "image": "nchw"})
    assert {item.name: item.permutation for item in lowered.inputs} == {"image": None, "q": None, "mask": LAST}
    assert_right(attention(), lowered)
    kept = lower(attention(), keep_layout=True)
    assert all(item.permutation is None for item in (*kept.inputs, *kept.outputs))
    assert_right(attention(), kept)


def test_only_rank_4_has_a_channels_last_form() -> None:
    model = build([node("Relu", ["x"], ["y"])], (2, 3, 4))
    with pytest.raises(UnsupportedError, match="not of rank 4"):
        lower(model, input_layout={"x": "nhwc"})
