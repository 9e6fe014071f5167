"""Graphs of unusual form: outputs that nothing computes, functions, branches, types, layouts that are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from converters.onnx_models import assert_same, build, conv, in_litert, operators, weights
from edgefleet.errors import UnsupportedError
from edgefleet_converters.tflite import Lowered, lower

node = helper.make_node
Array = NDArray[Any]


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, Sequence[int]]],
    outputs: Sequence[str],
    constants: dict[str, Array] | None = None,
    opset: int = 18,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(name, kind, list(shape)) for name, (kind, shape) in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def run(lowered: Lowered, **given: Array) -> dict[str, Array]:
    interpreter = Interpreter(model_content=lowered.content, num_threads=1)
    found: dict[str, Array] = interpreter.get_signature_runner()(**given)
    return found


X = weights(2, 3)


def test_outputs_that_are_inputs_constants_or_the_same_value_twice() -> None:
    nodes = [node("Relu", ["x"], ["r"]), node("Identity", ["r"], ["s"]), node("Identity", ["x"], ["t"])]
    model = model_of(nodes, {"x": (TensorProto.FLOAT, (2, 3))}, ["x", "r", "s", "t", "k"], {"k": X})
    found = run(lower(model), x=X)
    assert list(found) != []
    for name, wanted in {"x": X, "r": np.maximum(X, 0), "s": np.maximum(X, 0), "t": X, "k": X}.items():
        np.testing.assert_array_equal(found[name], wanted)


def test_an_input_that_nothing_reads() -> None:
    inputs = dict.fromkeys(("x", "unused"), (TensorProto.FLOAT, (2, 3)))
    lowered = lower(model_of([node("Relu", ["x"], ["y"])], inputs, ["y"]))
    assert [item.name for item in lowered.inputs] == ["x", "unused"]
    np.testing.assert_array_equal(run(lowered, x=X, unused=X)["y"], np.maximum(X, 0))


def test_a_model_of_constants_only() -> None:
    found = run(lower(model_of([node("Add", ["k", "k"], ["y"])], {}, ["y"], {"k": X})))
    np.testing.assert_array_equal(found["y"], X + X)


@pytest.mark.parametrize("kind", ["int64", "int32", "uint8", "int8", "bool"])
def test_types_other_than_float(kind: str) -> None:
    dtype = np.dtype(kind)
    elements = helper.np_dtype_to_tensor_dtype(dtype)
    lowered = lower(model_of([node("Transpose", ["x"], ["y"])], {"x": (elements, (2, 3))}, ["y"]))
    assert (lowered.inputs[0].dtype, lowered.outputs[0].dtype) == (kind, kind)
    x = np.arange(6).reshape(2, 3).astype(dtype)
    np.testing.assert_array_equal(run(lowered, x=x)["y"], x.T)


def test_small_integers_wrap_around() -> None:
    inputs = dict.fromkeys(("a", "b"), (TensorProto.INT8, (3,)))
    a, b = np.array([100, -100, 3], np.int8), np.array([100, -100, 4], np.int8)
    np.testing.assert_array_equal(
        run(lower(model_of([node("Add", ["a", "b"], ["y"])], inputs, ["y"])), a=a, b=b)["y"], a + b
    )


def test_float64_is_refused_by_name() -> None:
    model = model_of([node("Exp", ["x"], ["y"])], {"x": (TensorProto.DOUBLE, (3,))}, ["y"])
    with pytest.raises(UnsupportedError, match="EXP has no float64 kernel"):
        lower(model)


def test_a_function_of_the_model_is_inlined_with_its_attributes() -> None:
    """Twice, with different attributes, one of them the default; inner names must not meet."""
    inner = node("LeakyRelu", ["a"], ["t"])
    reference = inner.attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT)
    reference.ref_attr_name = "slope"
    body = helper.make_function(
        "mine",
        "Leaky",
        ["a"],
        ["c"],
        [inner, node("Identity", ["t"], ["c"])],
        [helper.make_opsetid("", 18)],
        attribute_protos=[helper.make_attribute("slope", 0.5)],
    )
    nodes = [node("Leaky", ["x"], ["h"], domain="mine", slope=0.25), node("Leaky", ["h"], ["y"], domain="mine")]
    model = model_of(nodes, {"x": (TensorProto.FLOAT, (2, 3))}, ["y"])
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.functions.append(body)
    np.testing.assert_allclose(run(lower(model), x=X)["y"], np.where(X > 0, X, X * 0.125), rtol=1e-6)


def test_a_node_that_its_own_rule_refuses_is_opened() -> None:
    """Softmax of float64 has no kernel either way, so the refusal names the parts of its body."""
    model = model_of([node("Softmax", ["x"], ["y"], axis=1)], {"x": (TensorProto.DOUBLE, (2, 3))}, ["y"])
    with pytest.raises(UnsupportedError, match="ReduceMax"):
        lower(model)


def test_a_branch_with_a_known_condition_is_taken() -> None:
    branches = {
        f"{name}_branch": helper.make_graph([node(operator, ["x"], [name])], name, [], [onnx.ValueInfoProto(name=name)])
        for name, operator in (("then", "Relu"), ("else", "Neg"))
    }
    model = model_of(
        [node("If", ["c"], ["y"], **branches)],
        {"x": (TensorProto.FLOAT, (2, 3))},
        ["y"],
        {"c": np.array(False)},
    )
    lowered = lower(model)
    assert operators(lowered) == ["NEG"]
    np.testing.assert_array_equal(run(lowered, x=X)["y"], -X)


def test_dropout_masks_are_constants() -> None:
    lowered = lower(model_of([node("Dropout", ["x"], ["y", "m"])], {"x": (TensorProto.FLOAT, (2, 3))}, ["y", "m"]))
    found = run(lowered, x=X)
    np.testing.assert_array_equal(found["y"], X)
    assert found["m"].dtype == np.bool_
    assert found["m"].all()


def test_layouts_that_are_asked_for() -> None:
    model, x = conv(3, (6, 6), 4, (3, 3)), weights(1, 3, 6, 6)
    free, kept = lower(model), lower(model, keep_layout=True)
    assert free.inputs[0].permutation == (0, 2, 3, 1)
    assert (kept.inputs[0].permutation, kept.outputs[0].permutation) == (None, None)
    np.testing.assert_array_equal(in_litert(free, x)["y"], in_litert(kept, x)["y"])
    assert lower(model, input_layout={"x": "nchw"}).inputs[0].permutation is None
    assert lower(model, keep_layout=True, input_layout={"x": "nhwc"}).inputs[0].permutation == (0, 2, 3, 1)
    with pytest.raises(UnsupportedError, match="does not have as an input"):
        lower(model, input_layout={"image": "nhwc"})


def test_softmax_along_any_axis_and_of_old_opsets() -> None:
    assert_same(build([node("Softmax", ["x"], ["y"], axis=1)], (2, 3, 4)))
    assert_same(build([node("Softmax", ["x"], ["y"], axis=1)], (2, 3, 4, 2), opset=9))


def test_clip_with_bounds_of_all_kinds() -> None:
    low, high = {"low": np.array(-1, np.float32)}, {"high": np.array(0.5, np.float32)}
    assert_same(build([node("Clip", ["x", "low"], ["y"])], (2, 3), low))
    assert_same(build([node("Clip", ["x", "", "high"], ["y"])], (2, 3), high))
    assert_same(build([node("Clip", ["x", "low", "high"], ["y"])], (2, 3), {**low, **high}))
