"""What a model costs: published networks, operators by hand, memory against a second way to find it, and limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from conformance_graphs.building import Building
from converters.one_node import OneNode
from converters.onnx_models import build, weights
from edgefleet.errors import UnsupportedError
from edgefleet_converters.analysis import Analysis, Extent, Fit, analyze, fits
from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.profile import Budget, Defaults, Peak, Precision, Profile, Storage
from edgefleet_device_profiles.roofline import LayerWork, Widths

FLOAT = Widths(32, 32)


# Published networks ------------------------------------------------------------------------------------


class Light(Building):
    """Weights are zeros: they cost no time to make, and only their shapes count."""

    def normal(self, *shape: int, scale: float = 1.0) -> str:  # noqa: ARG002 - as it is there
        return self.constant(np.zeros(shape, np.float32))

    def normed(self, data: str, filters: int, kernel: int, stride: int = 1, group: int = 1) -> str:
        return self.norm(self.conv(data, filters, kernel, stride, group, bias=False))

    def relu(self, data: str) -> str:
        return self.node("Relu", data)

    def classified(self, data: str, classes: int) -> onnx.ModelProto:
        return self.model(self.dense(self.node("Flatten", self.node("GlobalAveragePool", data), axis=1), classes))


def mobilenet_v2() -> onnx.ModelProto:
    b = Light(0)
    data = b.relu(b.normed(b.input(1, 3, 224, 224), 32, 3, 2))
    blocks = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expand, filters, count, first in blocks:
        for stride in (first, *[1] * (count - 1)):
            wide = b.shape(data)[1] * expand
            inner = b.relu(b.normed(data, wide, 1)) if expand > 1 else data
            inner = b.normed(b.relu(b.normed(inner, wide, 3, stride, wide)), filters, 1)
            data = b.node("Add", data, inner) if b.shape(data) == b.shape(inner) else inner
    return b.classified(b.relu(b.normed(data, 1280, 1)), 1000)


def resnet50() -> onnx.ModelProto:
    """Version 1.5: the 3x3 convolution has the stride."""
    b = Light(0)
    data = b.relu(b.normed(b.input(1, 3, 224, 224), 64, 7, 2))
    data = b.node("MaxPool", data, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for filters, count, first in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for stride in (first, *[1] * (count - 1)):
            inner = b.relu(b.normed(b.relu(b.normed(data, filters, 1)), filters, 3, stride))
            inner = b.normed(inner, filters * 4, 1)
            short = data if b.shape(data) == b.shape(inner) else b.normed(data, filters * 4, 1, stride)
            data = b.relu(b.node("Add", inner, short))
    return b.classified(data, 1000)


def resnet8() -> onnx.ModelProto:
    b = Light(0)
    data = b.relu(b.normed(b.input(1, 3, 32, 32), 16, 3))
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        inner = b.normed(b.relu(b.normed(data, filters, 3, stride)), filters, 3)
        data = b.relu(b.node("Add", inner, data if stride == 1 else b.conv(data, filters, 1, stride)))
    return b.classified(data, 10)


@pytest.mark.parametrize(
    ("network", "macs", "parameters"),
    [
        # torchvision's documentation: 0.30 and 4.09 G; 3,504,872 and 25,557,032 learnt numbers, and the running
        # statistics of all normalisations.
        (mobilenet_v2, 300_774_272, 3_504_872 + 34_112),
        (resnet50, 4_089_184_256, 25_557_032 + 53_120),
        # MLPerf Tiny, image classification: 12.5 M.
        (resnet8, 12_501_632, 78_426),
    ],
)
def test_published_networks(network: Callable[[], onnx.ModelProto], macs: int, parameters: int) -> None:
    found = analyze(network())
    assert (found.macs, found.parameters, found.notes) == (macs, parameters, ())


@pytest.mark.parametrize(
    ("name", "macs", "parameters"),
    [
        # torchvision's documentation: 2.83 G and 7,978,856 learnt numbers; this file adds four to each of 41,824
        # normalised channels, whose scale and shift it writes as operators of their own. SqueezeNet 1.1: 0.35 G.
        ("light_densenet121", 2_834_161_664, 7_978_856 + 4 * 41_824),
        ("light_squeezenet", 349_151_936, 1_235_496),
    ],
)
def test_networks_that_come_with_onnx(name: str, macs: int, parameters: int) -> None:
    path = Path(onnx.__file__).parent / "backend/test/data/light" / f"{name}.onnx"
    found = analyze(onnx.load(path))
    assert (found.macs, found.parameters, found.notes) == (macs, parameters, ())


def test_memory_of_mobilenet_v2() -> None:
    """The widest point is the second block's depthwise convolution: 96 channels at 112 x 112 in, at 56 x 56 out."""
    found = analyze(mobilenet_v2())
    assert found.activation_bytes(FLOAT) == 4 * 96 * (112 * 112 + 56 * 56)
    assert found.activation_bytes(Widths(8, 8)) == 96 * (112 * 112 + 56 * 56)
    # 2-D and 4-D weights shrink to a quarter; biases and normalisations do not.
    assert found.weight_bytes(FLOAT) == 4 * found.parameters
    assert found.weight_bytes(Widths(8, 8)) == found.weights.floats + found.weights.fixed_bytes
    assert 0.25 < found.weight_bytes(Widths(8, 8)) / found.weight_bytes(FLOAT) < 0.28


# Operators by hand -------------------------------------------------------------------------------------


def zeros(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.zeros(shape, np.float32)


def only(case: OneNode) -> LayerWork:
    (layer,) = analyze(case.model()).layers
    assert layer.operators == (case.operator,)
    return layer.work


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "macs"),
    [
        # [1, 8, 10, 10] by [16, 8, 3, 3] → [1, 16, 8, 8]
        ("Conv", (zeros(1, 8, 10, 10), zeros(16, 8, 3, 3)), {}, 16 * 8 * 8 * 8 * 9),
        ("Conv", (zeros(1, 8, 10, 10), zeros(8, 1, 3, 3)), {"group": 8}, 8 * 8 * 8 * 9),
        ("Conv", (zeros(1, 8, 10, 10), zeros(16, 2, 3, 3)), {"group": 4, "strides": [2, 2]}, 16 * 4 * 4 * 2 * 9),
        ("Conv", (zeros(2, 4, 20), zeros(6, 4, 5)), {}, 2 * 6 * 16 * 4 * 5),
        ("ConvTranspose", (zeros(1, 8, 5, 5), zeros(8, 4, 3, 3)), {"strides": [2, 2]}, 8 * 25 * 4 * 9),
        ("ConvTranspose", (zeros(1, 8, 5, 5), zeros(8, 2, 2, 2)), {"group": 2}, 8 * 25 * 2 * 4),
        ("Gemm", (zeros(3, 5), zeros(5, 7)), {}, 3 * 5 * 7),
        ("Gemm", (zeros(5, 3), zeros(7, 5)), {"transA": 1, "transB": 1}, 3 * 5 * 7),
        ("MatMul", (zeros(2, 3, 4, 5), zeros(5, 6)), {}, 2 * 3 * 4 * 5 * 6),
        ("MatMul", (zeros(2, 1, 4, 5), zeros(3, 5, 6)), {}, 2 * 3 * 4 * 5 * 6),
        ("MatMul", (zeros(5), zeros(5)), {}, 5),
        ("Einsum", (zeros(2, 3, 4), zeros(2, 5, 4)), {"equation": "bij,bkj->bik"}, 2 * 3 * 5 * 4),
        ("Einsum", (zeros(2, 7, 3, 4), zeros(4, 5)), {"equation": "...ij,jk->...ik"}, 2 * 7 * 3 * 4 * 5),
        # X [seq 6, batch 2, 3], W [1, 4·5, 3], R [1, 4·5, 5]
        ("LSTM", (zeros(6, 2, 3), zeros(1, 20, 3), zeros(1, 20, 5)), {"hidden_size": 5}, 6 * 2 * 20 * (3 + 5)),
        (
            "GRU",
            (zeros(6, 2, 3), zeros(2, 15, 3), zeros(2, 15, 5)),
            {"hidden_size": 5, "direction": "bidirectional"},
            6 * 2 * 2 * 15 * (3 + 5),
        ),
        ("RNN", (zeros(6, 2, 3), zeros(1, 5, 3), zeros(1, 5, 5)), {"hidden_size": 5}, 6 * 2 * 5 * (3 + 5)),
    ],
)
def test_products(
    operator: str, inputs: tuple[np.ndarray[tuple[int, ...], np.dtype[np.float32]], ...],
    attributes: Mapping[str, object], macs: int,
) -> None:  # fmt: skip
    fed = 2 if operator in ("Einsum", "MatMul") else 1
    case = OneNode(operator, inputs, constant=range(fed, len(inputs)), attributes=attributes)
    (layer,) = analyze(case.model()).layers
    assert layer.macs == macs
    assert layer.work.operations == 2 * macs
    assert layer.work.weights == sum(array.size for array in inputs[fed:])


def test_attention_counts_both_products_and_the_past() -> None:
    # 4 heads of 8 over 6 queries and 10 keys, values of 16: 4·6·10·(8 + 16).
    plain = (zeros(1, 4, 6, 8), zeros(1, 4, 10, 8), zeros(1, 4, 10, 16))
    assert only(OneNode("Attention", plain, opset=23)).operations == 2 * 4 * 6 * 10 * (8 + 16)
    # Grouped: two heads of keys serve four of queries.
    grouped = (zeros(1, 4, 6, 8), zeros(1, 2, 10, 8), zeros(1, 2, 10, 8))
    assert only(OneNode("Attention", grouped, opset=23)).operations == 2 * 4 * 6 * 10 * (8 + 8)
    # Flat heads.
    flat = (zeros(1, 6, 32), zeros(1, 10, 32), zeros(1, 10, 32))
    heads = {"q_num_heads": 4, "kv_num_heads": 4}
    assert only(OneNode("Attention", flat, opset=23, attributes=heads)).operations == 2 * 6 * 10 * (32 + 32)
    past = (*grouped, None, zeros(1, 2, 5, 8), zeros(1, 2, 5, 8))
    case = OneNode("Attention", past, ("y", "keys", "values"), opset=23)
    assert only(case).operations == 2 * 4 * 6 * 15 * (8 + 8)


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "operations"),
    [
        ("Add", (zeros(4, 5), zeros(5)), {}, 20),
        ("Relu", (zeros(4, 5),), {}, 20),
        ("MaxPool", (zeros(1, 3, 8, 8),), {"kernel_shape": [2, 2], "strides": [2, 2]}, 3 * 16 * 4),
        ("GlobalAveragePool", (zeros(1, 3, 8, 8),), {}, 192),
        ("ReduceMean", (zeros(4, 5),), {"keepdims": 0}, 20),
        ("Transpose", (zeros(4, 5),), {}, 0),
        ("Concat", (zeros(4, 5), zeros(4, 5)), {"axis": 0}, 0),
        ("BatchNormalization", (zeros(1, 3, 4), *[zeros(3)] * 4), {}, 24),
    ],
)
def test_other_operators_count_elements(
    operator: str, inputs: tuple[np.ndarray[tuple[int, ...], np.dtype[np.float32]], ...],
    attributes: Mapping[str, object], operations: int,
) -> None:  # fmt: skip
    found = analyze(OneNode(operator, inputs, attributes=attributes).model())
    assert found.macs == 0
    assert found.layers[0].work.operations == operations
    assert found.notes == ()


def test_a_transcendental_function_costs_more_than_an_addition() -> None:
    assert only(OneNode("Sigmoid", (zeros(5),))).operations > only(OneNode("Neg", (zeros(5),))).operations


def test_a_function_without_a_row_is_counted_in_parts() -> None:
    node = helper.make_node("Twice", ["x"], ["y"], domain="own")
    body = helper.make_function(
        "own", "Twice", ["x"], ["y"], [helper.make_node("Add", ["x", "x"], ["y"])], [helper.make_opsetid("", 17)]
    )
    model = helper.make_model(
        helper.make_graph(
            [node],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [7])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [7])],
        ),
        functions=[body],
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("own", 1)],
    )
    (layer,) = analyze(model).layers
    assert (layer.operators, layer.work.operations) == (("Add",), 7)


def test_what_cannot_be_counted_is_said() -> None:
    model = build([helper.make_node("Det", ["x"], ["y"])], (3, 4, 4))
    assert analyze(model).notes == ("not counted, but for the bytes they read and write: Det",)
    shapeless = build(
        [helper.make_node("NonZero", ["x"], ["places"]), helper.make_node("Cast", ["places"], ["y"], to=1)], (3, 4)
    )
    (note,) = analyze(shapeless).notes
    assert note == "2 values have no static shape and count as empty, first of all 'places'"


def test_an_input_that_is_no_tensor_is_refused_in_one_line() -> None:
    sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [3])
    output = helper.make_tensor_value_info("y", TensorProto.INT64, [])
    graph = helper.make_graph([helper.make_node("SequenceLength", ["x"], ["y"])], "g", [sequence], [output])
    with pytest.raises(UnsupportedError, match=r"analysing the model: the input 'x' is not a tensor; export") as caught:
        analyze(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert "\n" not in str(caught.value)


# Bytes -------------------------------------------------------------------------------------------------


def test_activations_are_what_a_layer_reads_and_writes() -> None:
    work = only(OneNode("Conv", (zeros(1, 8, 10, 10), zeros(16, 8, 3, 3), zeros(16)), constant=(1, 2)))
    assert work == LayerWork(2 * 73_728, 16 * 8 * 9, 800 + 1024, fixed_weight_bytes=64)


def test_an_elementwise_tail_of_constants_belongs_to_the_product_before_it() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("Mul", ["c", "k"], ["m"]),
        helper.make_node("Relu", ["m"], ["r"]),
        helper.make_node("Add", ["r", "r2"], ["y"], name="sum"),
        helper.make_node("Relu", ["x"], ["r2"]),
    ]
    nodes.insert(0, nodes.pop())
    found = analyze(build(nodes, (1, 4, 6, 6), {"w": weights(4, 4, 1, 1), "k": weights(4, 1, 1)}))
    assert [layer.operators for layer in found.layers] == [("Relu",), ("Conv", "Mul", "Relu"), ("Add",)]
    conv = found.layers[1]
    assert conv.work == LayerWork(2 * 4 * 144 + 2 * 144, 20, 288)
    assert conv.parameters == 20


def test_a_tail_that_somebody_else_reads_stays_a_layer() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
        helper.make_node("Neg", ["c"], ["z"]),
    ]
    found = analyze(build(nodes, (1, 4, 6, 6), {"w": weights(4, 4, 1, 1)}, outputs=("y", "z")))
    assert [layer.operators for layer in found.layers] == [("Conv",), ("Relu",), ("Neg",)]
    asked = analyze(build(nodes[:2], (1, 4, 6, 6), {"w": weights(4, 4, 1, 1)}, outputs=("c", "y")))
    assert [layer.operators for layer in asked.layers] == [("Conv",), ("Relu",)]


def test_a_lookup_reads_the_rows_that_it_writes() -> None:
    table, rows = zeros(1000, 16), np.zeros((1, 5), np.int64)
    model = OneNode("Gather", (table, rows), constant=(0,)).model()
    found = analyze(model)
    assert found.layers[0].work == LayerWork(0, 80, 80, fixed_activation_bytes=40)
    assert found.weight_bytes(FLOAT) == 64_000
    fed = only(OneNode("Gather", (table, rows)))
    assert (fed.weights, fed.activations) == (0, 160)


def test_weights_that_are_read_twice_are_kept_once() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["y"])]
    found = analyze(build(nodes, (1, 8), {"w": weights(8, 8)}))
    assert (found.parameters, found.weight_bytes(FLOAT)) == (64, 256)
    assert [layer.parameters for layer in found.layers] == [64, 64]


# Peak memory -------------------------------------------------------------------------------------------


def chain(*operators: tuple[str, list[str], str]) -> list[onnx.NodeProto]:
    return [helper.make_node(operator, inputs, [output]) for operator, inputs, output in operators]


def test_a_residual_is_alive_until_it_is_added() -> None:
    nodes = chain(("Neg", ["x"], "a"), ("Relu", ["a"], "b"), ("Abs", ["b"], "c"), ("Add", ["c", "a"], "y"))
    found = analyze(build(nodes, (10,)))
    assert [layer.live for layer in found.layers] == [Extent(20), Extent(20), Extent(30), Extent(30)]
    assert found.activation_bytes(FLOAT) == 120


def test_a_view_takes_no_memory_and_no_time() -> None:
    shape = {"s": np.array([2, 5], np.int64)}
    nodes = chain(("Neg", ["x"], "a"), ("Reshape", ["a", "s"], "b"), ("Abs", ["b"], "y"))
    found = analyze(build(nodes, (10,), shape))
    assert [layer.operators for layer in found.layers] == [("Neg",), ("Abs",)]
    assert [layer.live for layer in found.layers] == [Extent(20), Extent(20)]


def test_an_output_that_is_a_constant_or_the_input_itself() -> None:
    nodes = [*chain(("Relu", ["x"], "y"), ("Identity", ["x"], "same")), helper.make_node("Identity", ["w"], ["fixed"])]
    found = analyze(build(nodes, (10,), {"w": weights(10)}, outputs=("y", "same", "fixed")))
    assert [(layer.operators, layer.live) for layer in found.layers] == [(("Relu",), Extent(20))]


def test_integers_do_not_shrink() -> None:
    nodes = [helper.make_node("ArgMax", ["x"], ["y"], axis=0, keepdims=0)]
    found = analyze(build(nodes, (10, 4)))
    assert found.layers[0].live == Extent(40, 4 * 8)
    assert found.activation_bytes(Widths(8, 8)) == 40 + 32


@settings(max_examples=60)
@given(st.data())
def test_live_values_are_those_of_a_second_way_to_find_them(data: st.DataObject) -> None:
    """Random graphs of additions over values of different lengths; every value is asked about at every step."""
    sizes, nodes, reads = {"x": 3}, [], []
    for place in range(data.draw(st.integers(1, 12))):
        chosen = data.draw(st.lists(st.sampled_from(sorted(sizes)), min_size=1, max_size=3))
        sizes[f"v{place}"] = sum(sizes[name] for name in chosen)
        nodes.append(helper.make_node("Concat", chosen, [f"v{place}"], axis=0))
        reads.append(set(chosen))
    outputs = sorted({f"v{len(nodes) - 1}", data.draw(st.sampled_from([f"v{at}" for at in range(len(nodes))]))})
    used = {name for names in reads for name in names} | set(outputs)
    if len(used - {"x"}) < len(nodes):
        outputs = sorted({*outputs, *(set(sizes) - used - {"x"})})
    found = analyze(build(nodes, (3,), outputs=outputs))

    def is_alive(name: str, step: int) -> bool:
        born = -1 if name == "x" else int(name[1:])
        later = any(name in names for names in reads[step:])
        return born <= step and (later or name in outputs or born == step)

    expected = [sum(size for name, size in sizes.items() if is_alive(name, step)) for step in range(len(nodes))]
    assert [layer.live.floats for layer in found.layers] == expected


# Does it fit? ------------------------------------------------------------------------------------------

MODEL = build([helper.make_node("MatMul", ["x", "w"], ["y"])], (1024, 1024), {"w": weights(1024, 1024)})
"""4 MiB of weights and 8 MiB of activations in float32; 2³¹ operations."""


@pytest.fixture(name="square", scope="module")
def _square() -> Analysis:
    return analyze(MODEL)


def board(usable_mib: float = 64.0, **update: object) -> Profile:
    profile = catalogue.load("raspberry-pi-5")
    memory = profile.memory.model_copy(update={"usable_mib": usable_mib})
    return profile.model_copy(update={"memory": memory, "budget": Budget(), "storage": Storage(), **update})


@pytest.mark.parametrize(
    ("profile", "precision", "limit", "need", "have"),
    [
        (board(12.0), Precision.FP32, None, 12.0, 12.0),
        (board(11.9), Precision.FP32, "memory", 12.0, 11.9),
        (board(3.0), Precision.INT8, None, 3.0, 3.0),
        (board(8.9), Precision.INT8_DYNAMIC, "memory", 9.0, 8.9),
        (board(storage=Storage(total_mib=5.0, free_floor_mib=2.0)), Precision.FP32, "storage", 4.0, 3.0),
        (board(storage=Storage(total_mib=2.0, free_floor_mib=2.0)), Precision.INT8, "storage", 1.0, 0.0),
        (board(budget=Budget(size_mib=3.5)), Precision.FP32, "size budget", 4.0, 3.5),
        (board(budget=Budget(memory_mib=3.5)), Precision.FP32, "memory budget", 12.0, 3.5),
        (board(budget=Budget(arena_kib=1024)), Precision.INT8, "arena", 2048.0, 1024.0),
        # Weights stay in flash: 2 MiB of activations alone.
        (board(2.0, budget=Budget(arena_kib=2048)), Precision.INT8, None, 2.0, 2.0),
    ],
)
def test_the_limit_that_a_model_breaks_is_named(
    square: Analysis, profile: Profile, precision: Precision, limit: str | None, need: float, have: float
) -> None:
    found = fits(square, profile.model_copy(update={"peak": None}), precision)
    assert found.ok is (limit is None)
    assert found.limit == limit or limit is None
    assert found.need == pytest.approx(need)
    assert found.have == have


def test_a_latency_below_the_roofline_is_refused(square: Analysis) -> None:
    peak = Peak(fp32_gops=2**31 / 1e7, bandwidth_gb_s=1000.0)  # 10 ms on all cores
    profile = board(peak=peak, defaults=Defaults(threads=4))

    def limited(budget: Budget) -> Fit:
        return fits(square, profile.model_copy(update={"budget": budget}), Precision.FP32)

    slow = limited(Budget(latency_ms=9.0))
    assert (slow.ok, slow.limit, slow.unit) == (False, "latency budget", "ms")
    assert slow.need == pytest.approx(10.0)
    assert limited(Budget(latency_ms=11.0)).ok
    hungry = limited(Budget(energy_mj=9.0 * profile.power.idle_w))
    assert (hungry.ok, hungry.limit, hungry.unit) == (False, "energy budget", "mJ")


def test_of_several_broken_limits_the_worst_is_named(square: Analysis) -> None:
    profile = board(11.0, peak=None, budget=Budget(size_mib=1.0))
    assert fits(square, profile, Precision.FP32).limit == "size budget"
