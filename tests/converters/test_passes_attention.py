"""Attention written out in parts, as exporters do it: where its scalar goes, and how its keys are turned.

Dead operators and HardSigmoid, which came with it, are here too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from ai_edge_litert.interpreter import Interpreter
from onnx import TensorProto, helper

from conformance_graphs.building import Building
from converters.onnx_models import build, in_litert, in_onnxruntime, operators, weights
from edgefleet_converters.tflite import Lowered, lower, lowering
from edgefleet_converters.tflite.passes.attention_forms import fold_attention_scale

BATCH, LENGTH, HEADS, SIZE = 2, 7, 3, 8
WIDTH = HEADS * SIZE
ROWS_LAST, ROWS_FIRST, SWAPPED = [0, 2, 1, 3], [0, 2, 3, 1], [0, 1, 3, 2]


def number(b: Building, value: float) -> str:
    return b.constant(np.array(value, np.float32))


def split(b: Building, data: str) -> str:
    return b.node("Reshape", b.linear(data, WIDTH), b.integers(BATCH, LENGTH, HEADS, SIZE))


def mixed(b: Building, scores: str, value: str) -> str:
    """Softmax, the product with the values, and the heads side by side again."""
    found = b.node("MatMul", b.node("Softmax", scores, axis=-1), value)
    turned = b.node("Transpose", found, perm=ROWS_LAST)
    return b.linear(b.node("Reshape", turned, b.integers(BATCH, LENGTH, WIDTH)), WIDTH)


def operands(b: Building) -> tuple[str, str, str]:
    """Queries, keys transposed in their head split, and values, of one input."""
    data = b.input(BATCH, LENGTH, WIDTH)
    query = b.node("Transpose", split(b, data), perm=ROWS_LAST)
    key = b.node("Transpose", split(b, data), perm=ROWS_FIRST)
    return query, key, b.node("Transpose", split(b, data), perm=ROWS_LAST)


def torch_like() -> onnx.ModelProto:
    """Scores divided by the root of the size."""
    b = Building(1)
    query, key, value = operands(b)
    return b.model(mixed(b, b.node("Div", b.node("MatMul", query, key), number(b, SIZE**0.5)), value))


def fused_torch_like() -> onnx.ModelProto:
    """Queries and keys multiplied by half of the scale each, as scaled_dot_product_attention becomes."""
    b = Building(2)
    data = b.input(BATCH, LENGTH, WIDTH)
    query, key, value = (b.node("Transpose", split(b, data), perm=ROWS_LAST) for _ in range(3))
    key = b.node("Mul", b.node("Transpose", key, perm=SWAPPED), number(b, SIZE**-0.25))
    return b.model(mixed(b, b.node("MatMul", b.node("Mul", query, number(b, SIZE**-0.25)), key), value))


def keras_like() -> onnx.ModelProto:
    """As tf2onnx writes Keras: queries multiplied before their transpose, keys turned in two steps."""
    b = Building(3)
    data = b.input(BATCH, LENGTH, WIDTH)
    query = b.node("Transpose", b.node("Mul", number(b, SIZE**-0.5), split(b, data)), perm=ROWS_LAST)
    key = b.node("Transpose", b.node("Transpose", split(b, data), perm=ROWS_LAST), perm=SWAPPED)
    return b.model(mixed(b, b.node("MatMul", query, key), b.node("Transpose", split(b, data), perm=ROWS_LAST)))


def masked() -> onnx.ModelProto:
    """A mask added to scaled scores, hiding what comes later."""
    b = Building(4)
    query, key, value = operands(b)
    hidden = b.constant(np.triu(np.full((LENGTH, LENGTH), -1e4, np.float32), 1))
    scores = b.node("Mul", b.node("MatMul", query, key), number(b, SIZE**-0.5))
    return b.model(mixed(b, b.node("Add", scores, hidden), value))


def checked(model: onnx.ModelProto, tolerance: float = 1e-5) -> Lowered:
    """The file of a model whose outputs are, relative to the largest value, those of ONNX Runtime."""
    shape = [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
    x = weights(*shape, seed=9)
    lowered = lower(model)
    found, expected = in_litert(lowered, x), in_onnxruntime(model, x)
    for name, array in expected.items():
        assert np.abs(found[name] - array).max() <= tolerance * np.abs(array).max()
    return lowered


def plainly_lowered(model: onnx.ModelProto, patch: pytest.MonkeyPatch) -> Lowered:
    """The file without what knows of attention."""
    with patch.context() as patched:
        steps = tuple(step for step in lowering.CANONICAL if step is not fold_attention_scale)
        patched.setattr(lowering, "CANONICAL", steps)
        patched.setattr(lowering, "keep_rows_last", lambda graph: graph)
        return checked(model)


LEAN = Counter(FULLY_CONNECTED=4, RESHAPE=4, TRANSPOSE=4, BATCH_MATMUL=2, SOFTMAX=1)


@pytest.mark.parametrize("make", [torch_like, fused_torch_like, keras_like], ids=lambda make: make.__name__)
def test_nothing_is_left_of_a_scale(make: Callable[[], onnx.ModelProto], monkeypatch: pytest.MonkeyPatch) -> None:
    before = Counter(operators(plainly_lowered(make(), monkeypatch)))
    after = Counter(operators(checked(make())))
    assert after == LEAN
    assert before.total() > after.total()
    assert before["TRANSPOSE"] >= after["TRANSPOSE"]


def test_a_mask_stays_where_it_is() -> None:
    assert Counter(operators(checked(masked()))) == LEAN + Counter(ADD=1)


def test_keys_are_split_with_whole_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def permutations(lowered: Lowered) -> list[list[int]]:
        interpreter = Interpreter(model_content=lowered.content, num_threads=1)
        interpreter.allocate_tensors()
        turns = [item["inputs"][1] for item in interpreter._get_ops_details() if item["op_name"] == "TRANSPOSE"]
        return [interpreter.get_tensor(turn).tolist() for turn in turns]

    assert ROWS_FIRST in permutations(plainly_lowered(torch_like(), monkeypatch))
    assert permutations(checked(torch_like())) == [ROWS_LAST] * 4


def test_without_weights_to_take_it_one_factor_is_on_the_smaller_operand() -> None:
    nodes = [
        helper.make_node("Softplus", ["x"], ["q"]),
        helper.make_node("Transpose", ["q"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Abs", ["x"], ["k"]),
        helper.make_node("MatMul", ["k", "t"], ["s"]),
        helper.make_node("Mul", ["s", "c"], ["m"]),
        helper.make_node("Softmax", ["m"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "x"], ["y"]),
    ]
    factor = {"c": np.array(0.3, np.float32)}
    small, large = (operators(checked(build(nodes, shape, factor))) for shape in ((2, 9, 4), (2, 4, 9)))
    assert small.index("MUL") < small.index("BATCH_MATMUL")
    assert large.index("MUL") > large.index("BATCH_MATMUL")


def look_alike(case: str) -> onnx.ModelProto:
    """Attention but for one thing, which the case names."""
    b = Building(5)
    query, key, value = operands(b)
    scores = b.node("MatMul", query, key)
    scaled = b.node("Div", scores, number(b, SIZE**0.5))
    shares = b.node("Softmax", scaled, axis=2 if case == "other axis" else -1)
    found = b.node("MatMul", shares, value)
    more = {
        "other axis": [],
        "scores are an output": [scores],
        "scaled scores are an output": [scaled],
        "scores are read": [b.node("Abs", scores)],
        "scaled scores are read": [b.node("Abs", scaled)],
    }
    return b.model(found, *more[case])


CASES = (
    "other axis",
    "scores are an output",
    "scaled scores are an output",
    "scores are read",
    "scaled scores are read",
)


@pytest.mark.parametrize("case", CASES)
def test_what_only_looks_like_attention_keeps_its_scale(case: str) -> None:
    found = operators(checked(look_alike(case)))
    assert [name for name in found if name in ("MUL", "DIV")] == ["DIV"]


@pytest.mark.parametrize("reader", ["query", "projection"])
def test_weights_that_something_else_reads_are_not_scaled(reader: str) -> None:
    b = Building(6)
    data = b.input(BATCH, LENGTH, WIDTH)
    projected = [b.linear(data, WIDTH) for _ in range(2)]
    cut = [b.node("Reshape", each, b.integers(BATCH, LENGTH, HEADS, SIZE)) for each in projected]
    query = b.node("Transpose", cut[0], perm=ROWS_LAST)
    key = b.node("Transpose", cut[1], perm=ROWS_FIRST)
    scores = b.node("MatMul", b.node("Mul", query, number(b, 0.5)), b.node("Mul", key, number(b, 0.5)))
    found = b.node("MatMul", b.node("Softmax", scores, axis=-1), query)
    others = [b.node("Abs", query), b.node("Abs", key)]
    if reader == "projection":
        others = [b.node("Abs", projected[0]), b.node("Abs", projected[1])]
    checked(b.model(found, *others))


def test_operators_that_no_output_needs_are_left_out() -> None:
    hidden = 5
    nodes = [helper.make_node("GRU", ["x", "w", "r"], ["all", "y"], hidden_size=hidden)]
    model = build(nodes, (4, 1, 3), {"w": weights(1, 3 * hidden, 3), "r": weights(1, 3 * hidden, hidden)})
    lowered = checked(model)
    details = Interpreter(model_content=lowered.content, num_threads=1)._get_ops_details()
    read = {at for item in details for at in item["inputs"]}
    assert [item["op_name"] for item in details if not read.intersection(item["outputs"])] == [details[-1]["op_name"]]


@pytest.mark.parametrize(("alpha", "count"), [(1 / 6, 2), (0.2, 3), (-0.7, 3)])
def test_hard_sigmoid_is_a_sixth_of_a_relu6(alpha: float, count: int) -> None:
    node = helper.make_node("HardSigmoid", ["x"], ["y"], alpha=alpha, beta=0.45)
    model = build([node], (4, 50))
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert len(operators(checked(model, 1e-6))) == count
