"""Forms for int8: the same in float as before, all of it on XNNPACK in int8, and no worse than what it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from conformance.delegation_probe import outside
from conformance.delegation_probe import quantised as quantised_by_the_library
from edgefleet_converters.steps import quantize_tflite
from edgefleet_converters.tflite.delegation import outside_xnnpack
from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Draft
from edgefleet_converters.tflite.graph import Activation, Array, Graph, Node, Value
from edgefleet_converters.tflite.operators import OPERATORS
from edgefleet_converters.tflite.passes.int8_forms import int8_forms
from edgefleet_converters.tflite.writer import write

Floats = NDArray[np.float32]
IMAGE = (1, 8, 8, 16)
LAST: dict[str, object] = {"channels_last": 1}
"""What layout assignment writes on a node that it has placed channels-last."""
POOL = {**LAST, "kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}


def graph_of(
    operator: str,
    shape: Sequence[int],
    attributes: Mapping[str, object],
    constants: Mapping[str, Array] | None = None,
    activation: Activation = Activation.NONE,
) -> Graph:
    """The operator between two convolutions, on stored axes; its constants are inputs after the first."""
    weight = np.random.default_rng(7).normal(size=(16, 16, 1, 1)).astype(np.float32) * 0.5
    nodes = (
        Node("before", "Conv", ("x", "weight"), ("v",), dict(LAST), opset=18),
        Node("tested", operator, ("v", *(constants or {})), ("u",), dict(attributes), activation, 18),
        Node("after", "Conv", ("u", "weight"), ("y",), dict(LAST), opset=18),
    )
    shapes = {"x": IMAGE, "v": IMAGE, "u": tuple(shape), "y": tuple(shape)}
    values = {name: Value(name, "float32", at) for name, at in shapes.items()}
    return Graph(nodes, values, {"weight": weight, **(constants or {})}, ("x",), ("y",), ("y",))


def lowered(graph: Graph) -> bytes:
    """The graph's file, by the operators' own rules."""
    draft = Draft()
    for name, value in graph.values.items():
        draft.temporary(name, value.shape or (), value.dtype)
    for node in graph.nodes:
        marked = node.attributes.get("channels_last")
        layouts = dict.fromkeys((node.inputs[0], node.outputs[0]), (0, 2, 3, 1)) if marked else {}
        OPERATORS[node.operator](node, Emitter(node, replace(graph, layouts=layouts), draft))
    used = {name for operator in draft.operators for name in (*operator.inputs, *operator.outputs)}
    kept = Draft({name: tensor for name, tensor in draft.tensors.items() if name in used}, draft.operators)
    return write(kept, {"x": "x"}, {"y": "y"})


def run(content: bytes, x: Floats) -> Floats:
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    found: Floats = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return found


def samples() -> list[dict[str, NDArray[Any]]]:
    random = np.random.default_rng(11)
    return [{"x": random.normal(size=IMAGE).astype(np.float32)} for _ in range(8)]


def ratio_db(content: bytes, quantised: bytes) -> float:
    """Signal to quantisation noise of an int8 file over the samples that it was calibrated with."""
    pairs = [(run(content, sample["x"]), run(quantised, sample["x"])) for sample in samples()]
    signal = sum(float((wanted**2).sum()) for wanted, _ in pairs)
    noise = sum(float(((wanted - found) ** 2).sum()) for wanted, found in pairs)
    return 10 * float(np.log10(signal / noise))


def operators(graph: Graph) -> list[str]:
    return [node.operator for node in graph.nodes[1:-1]]


def scalar(value: float) -> Array:
    return np.array(value, np.float32)


CASES: dict[str, tuple[Graph, list[str]]] = {
    "hard swish": (graph_of("HardSwish", IMAGE, {}), ["Add", "Mul", "Mul"]),
    "hard sigmoid of MobileNetV3": (graph_of("HardSigmoid", IMAGE, {"alpha": 1 / 6}), ["Add", "Mul"]),
    "hard sigmoid": (graph_of("HardSigmoid", IMAGE, {}), ["Mul", "Add", "Mul"]),
    "relu": (graph_of("Relu", IMAGE, {}), ["Mul"]),
    "relu6": (graph_of("Clip", IMAGE, {}, {"low": scalar(0), "high": scalar(6)}), ["Mul"]),
    "division": (graph_of("Div", IMAGE, {}, {"by": np.linspace(1, 3, 16, dtype=np.float32)}), ["Mul"]),
    "average pool of the whole image": (
        graph_of("AveragePool", (1, 1, 1, 16), {**LAST, "kernel_shape": (8, 8)}),
        ["GlobalAveragePool"],
    ),
    "max pool of any sign": (
        graph_of("MaxPool", (1, 4, 4, 16), POOL),
        ["Slice", "Slice", "Concat", "Slice", "Slice", "Concat", "MaxPool"],
    ),
}
NEAREST = {
    (2, 2): ["Concat", "Reshape", "Concat", "Reshape"],
    (1, 3): ["Concat", "Reshape"],
    (3, 1): ["Reshape", "Concat", "Reshape"],
}


@pytest.mark.parametrize("case", CASES)
def test_a_form_computes_the_same_and_is_int8_on_xnnpack(case: str) -> None:
    plain, wanted = CASES[case]
    formed = int8_forms(plain)
    assert operators(formed) == wanted
    before, after = lowered(plain), lowered(formed)
    for sample in samples():
        np.testing.assert_allclose(run(after, sample["x"]), run(before, sample["x"]), rtol=1e-5, atol=1e-5)
    made = quantize_tflite.quantize(after, samples())
    assert outside(made) == outside_xnnpack(made) == []


@pytest.mark.parametrize("case", [case for case in CASES if case != "max pool of any sign"])
def test_a_form_loses_nothing_against_what_it_stands_for(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _ = CASES[case]
    before, after = lowered(plain), lowered(int8_forms(plain))
    formed = ratio_db(after, quantize_tflite.quantize(after, samples()))
    # As the library quantises it: without leaving float what XNNPACK takes in float only.
    monkeypatch.setattr(quantize_tflite, "LEFT_FLOAT", ())
    assert formed > ratio_db(before, quantize_tflite.quantize(before, samples())) - 0.1


def test_the_quantiser_fails_on_what_the_max_pool_form_replaces() -> None:
    plain, _ = CASES["max pool of any sign"]
    assert quantised_by_the_library(lowered(plain), samples()) is None
    content = lowered(int8_forms(plain))
    assert ratio_db(content, quantize_tflite.quantize(content, samples())) > 35


@pytest.mark.parametrize("factors", NEAREST, ids=str)
@pytest.mark.parametrize(
    "attributes",
    [
        {"mode": "nearest"},
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    ],
    ids=["half pixel", "asymmetric"],
)
def test_nearest_by_whole_factors_is_concatenations(factors: tuple[int, int], attributes: dict[str, object]) -> None:
    shape = (1, 8 * factors[0], 8 * factors[1], 16)
    plain = graph_of("Resize", shape, {**LAST, **attributes}, {"scales": np.array([1, 1, *factors], np.float32)})
    formed = int8_forms(plain)
    assert operators(formed) == NEAREST[factors]
    content = lowered(formed)
    bare = lowered(_without_tested(plain))
    for sample in samples()[:2]:
        repeated = run(bare, sample["x"]).repeat(factors[0], 1).repeat(factors[1], 2)
        np.testing.assert_allclose(run(content, sample["x"]), repeated, rtol=1e-5, atol=1e-5)
    made = quantize_tflite.quantize(content, samples())
    assert outside(made) == outside_xnnpack(made) == []
    assert ratio_db(content, made) > 35


@pytest.mark.parametrize(
    "plain",
    [
        graph_of("Gelu", IMAGE, {}),
        graph_of("Clip", IMAGE, {}, {"low": scalar(-1), "high": scalar(1)}),
        graph_of("Div", IMAGE, {}, {"by": np.array([1, 0] * 8, np.float32)}),
        graph_of("AveragePool", (1, 4, 4, 16), POOL),
        graph_of("AveragePool", (1, 1, 1, 16), {**LAST, "kernel_shape": (8, 8)}, activation=Activation.RELU6),
        graph_of("MaxPool", (1, 4, 4, 16), {**POOL, "pads": (0, 0, 1, 1)}),
        graph_of("MaxPool", (1, 4, 4, 16), {**POOL, "channels_last": 0}),
        graph_of("Resize", (1, 16, 16, 16), {"mode": "nearest"}, {"s": np.array([1, 2, 2, 1], np.float32)}),
        graph_of("Resize", (1, 16, 16, 16), {**LAST, "mode": "linear"}, {"s": np.array([1, 1, 2, 2], np.float32)}),
        graph_of(
            "Resize", (1, 16, 16, 16), {**LAST, "nearest_mode": "floor"}, {"s": np.array([1, 1, 2, 2], np.float32)}
        ),
        graph_of("Resize", (1, 12, 12, 16), {**LAST}, {"s": np.array([1, 1, 1.5, 1.5], np.float32)}),
    ],
    ids=lambda plain: plain.nodes[1].operator,
)
def test_what_has_no_form_stays_as_it_is(plain: Graph) -> None:
    formed = int8_forms(plain)
    assert formed.nodes == plain.nodes
    assert formed.constants.keys() == plain.constants.keys()
    assert formed.values == plain.values


def test_a_max_pool_behind_a_relu_is_left_to_zero_padding() -> None:
    plain = graph_of("MaxPool", (1, 4, 4, 16), POOL)
    rectified = replace(plain, nodes=(replace(plain.nodes[0], activation=Activation.RELU), *plain.nodes[1:]))
    formed = int8_forms(rectified)
    assert formed.nodes == rectified.nodes
    content = lowered(formed)
    made = quantize_tflite.quantize(content, samples())
    assert "PADV2" not in outside(content)
    assert outside(made) == []


def test_a_smaller_average_pool_is_float_between_int8() -> None:
    content = lowered(graph_of("AveragePool", (1, 4, 4, 16), {**LAST, "kernel_shape": (2, 2), "strides": (2, 2)}))
    made = quantize_tflite.quantize(content, samples())
    assert outside(made) == outside_xnnpack(made) == []
    assert ratio_db(content, made) > 33


def test_integers_are_not_touched() -> None:
    plain = graph_of("Relu", IMAGE, {})
    values = {**plain.values, "u": Value("u", "int32", IMAGE)}
    assert int8_forms(replace(plain, values=values)).nodes == plain.nodes


def _without_tested(plain: Graph) -> Graph:
    """The graph's two convolutions alone."""
    before, _, after = plain.nodes
    values = {**{name: plain.values[name] for name in ("x", "v")}, "y": replace(plain.values["v"], name="y")}
    return replace(plain, nodes=(before, replace(after, inputs=("v", "weight"))), values=values)
