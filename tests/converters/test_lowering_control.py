"""Branches, loops, scans, sequences and optionals: what is settled before run time, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters.node_checks import Array, check, expected_of, in_litert, model_of
from converters.onnx_models import weights
from edgefleet.errors import UnsupportedError
from edgefleet_converters.tflite import lower

node = helper.make_node


def body(nodes: Sequence[onnx.NodeProto], inputs: Sequence[str], outputs: Sequence[str]) -> onnx.GraphProto:
    """A subgraph; names that end in `?` are a bool, in `#` an int64, all others float32 of no given shape."""
    kinds = {"?": TensorProto.BOOL, "#": TensorProto.INT64}

    def described(name: str) -> onnx.ValueInfoProto:
        scalar = name[-1] in kinds
        return helper.make_tensor_value_info(name, kinds.get(name[-1], TensorProto.FLOAT), [] if scalar else None)

    return helper.make_graph(
        list(nodes), "body", [described(name) for name in inputs], [described(name) for name in outputs]
    )


def whole(value: int) -> Array:
    return np.array(value, np.int64)


def _if(condition: str, then: Sequence[onnx.NodeProto], other: Sequence[onnx.NodeProto]) -> onnx.NodeProto:
    return node("If", [condition], ["y"], then_branch=body(then, [], ["a"]), else_branch=body(other, [], ["b"]))


@pytest.mark.parametrize("taken", [True, False])
def test_if_of_a_known_condition_takes_one_branch(taken: bool) -> None:
    choice = _if("c", [node("Relu", ["x"], ["a"])], [node("Flatten", ["x"], ["b"])])
    x = weights(2, 3, 4)
    made = lower(model_of([choice], {"x": x}, {"c": np.array(taken)}, 18), keep_layout=True)
    expected = np.maximum(x, 0) if taken else x.reshape(2, 12)
    np.testing.assert_array_equal(in_litert(made.content, {"x": x})["y"], expected)


@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_if_of_a_computed_condition_chooses_between_results(taken: bool, shape: tuple[int, ...]) -> None:
    choice = _if("c", [node("Relu", ["x"], ["a"])], [node("Neg", ["x"], ["b"])])
    check(choice, {"x": weights(2, 3), "c": np.full(shape, taken)})


def test_if_whose_branches_differ_in_shape_is_refused() -> None:
    choice = _if("c", [node("Relu", ["x"], ["a"])], [node("Flatten", ["x"], ["b"])])
    inputs: dict[str, Array] = {"x": weights(2, 3, 4), "c": np.array(1, np.bool_)}
    with pytest.raises(UnsupportedError, match=r"If \(node 'If_0': .* branches whose results differ"):
        lower(model_of([choice], inputs, {}, 18))


def _counting(limit: str, condition: str, outputs: Sequence[str] = ("y", "rows")) -> onnx.NodeProto:
    """Each turn adds x times the number of the turn, and gathers the sum."""
    nodes = [
        node("Identity", ["going?"], ["next?"]),
        node("Cast", ["turn#"], ["number"], to=TensorProto.FLOAT),
        node("Mul", ["x", "number"], ["step"]),
        node("Add", ["sum", "step"], ["total"]),
        node("Neg", ["total"], ["row"]),
    ]
    inner = body(nodes, ["turn#", "going?", "sum"], ["next?", "total", "row"])
    return node("Loop", [limit, condition, "start"], list(outputs), body=inner)


@pytest.mark.parametrize("turns", [1, 5])
def test_loop_of_a_known_trip_count(turns: int) -> None:
    inputs = {"x": weights(2, 3), "start": weights(2, 3, seed=1)}
    check(_counting("n", "", ("y", "rows")), inputs, {"n": whole(turns)})
    check(_counting("n", "c", ("y", "rows")), inputs, {"n": whole(turns), "c": np.array(1, np.bool_)})


def test_loop_whose_known_condition_ends_it() -> None:
    nodes = [
        node("Less", ["turn#", "last#"], ["next?"]),
        node("Add", ["sum", "x"], ["total"]),
    ]
    inner = body(nodes, ["turn#", "going?", "sum"], ["next?", "total"])
    looping = node("Loop", ["", "", "start"], ["y"], body=inner)
    check(looping, {"x": weights(3), "start": weights(3, seed=1)}, {"last#": whole(4)})


def test_loop_that_takes_no_turn() -> None:
    nodes = [node("Add", ["sum", "x"], ["total"]), node("Identity", ["going?"], ["next?"])]
    inner = body(nodes, ["turn#", "going?", "sum"], ["next?", "total"])
    looping = node("Loop", ["n", "", "start"], ["y"], body=inner)
    check(looping, {"x": weights(3), "start": weights(3, seed=1)}, {"n": whole(0)})


@pytest.mark.parametrize("constant", [{}, {"n": whole(1000)}])
def test_loop_of_unknown_or_many_turns_is_refused(constant: dict[str, Array]) -> None:
    inputs: dict[str, Array] = {"x": weights(2, 3), "start": weights(2, 3)}
    if not constant:
        inputs["n"] = whole(3)
    with pytest.raises(UnsupportedError, match=r"Loop \(node 'Loop_0': its number of turns"):
        lower(model_of([_counting("n", "")], inputs, constant, 18))


def test_loop_whose_condition_depends_on_data_is_refused() -> None:
    nodes = [node("ReduceMax", ["sum"], ["top"], keepdims=0), node("Less", ["top", "x0"], ["next?"])]
    nodes.append(node("Add", ["sum", "x"], ["total"]))
    looping = node("Loop", ["", "", "start"], ["y"], body=body(nodes, ["turn#", "going?", "sum"], ["next?", "total"]))
    with pytest.raises(UnsupportedError, match=r"Loop \(node 'Loop_0': its number of turns"):
        lower(model_of([looping], {"x": weights(3), "start": weights(3)}, {"x0": np.array(5, np.float32)}, 18))


def test_weights_of_a_body_are_stored_once() -> None:
    nodes = [node("MatMul", ["sum", "w"], ["total"]), node("Identity", ["going?"], ["next?"])]
    inner = body(nodes, ["turn#", "going?", "sum"], ["next?", "total"])
    inner.initializer.append(numpy_helper.from_array(weights(64, 64) / 8, "w"))
    looping = node("Loop", ["n", "", "x"], ["y"], body=inner)
    model = model_of([looping], {"x": weights(2, 64)}, {"n": whole(10)}, 18)
    made = lower(model, keep_layout=True)
    inputs = {"x": weights(2, 64)}
    expected = expected_of(model, inputs, reference=False)["y"]
    np.testing.assert_allclose(in_litert(made.content, inputs)["y"], expected, rtol=1e-4, atol=1e-4)
    assert len(made.content) < 2 * 64 * 64 * 4


def _scan(**attributes: object) -> onnx.NodeProto:
    nodes = [node("Add", ["sum", "a"], ["t"]), node("Sub", ["t", "b"], ["total"]), node("Mul", ["t", "b"], ["row"])]
    inner = body(nodes, ["sum", "a", "b"], ["total", "row"])
    return node("Scan", ["start", "p", "q"], ["y", "rows"], body=inner, num_scan_inputs=2, **attributes)


def test_scan() -> None:
    check(_scan(), {"start": weights(3), "p": weights(5, 3), "q": weights(5, 3, seed=1)})


def test_scan_along_other_axes_and_backwards() -> None:
    turned = _scan(
        scan_input_axes=[1, -1], scan_input_directions=[0, 1], scan_output_axes=[1], scan_output_directions=[1]
    )
    check(turned, {"start": weights(3), "p": weights(3, 5), "q": weights(3, 5, seed=1)})


def test_scan_of_a_batch_before_opset_9() -> None:
    nodes = [node("Add", ["sum", "a"], ["total"]), node("Identity", ["total"], ["row"])]
    inner = body(nodes, ["sum", "a"], ["total", "row"])
    for name in (*inner.input, *inner.output):
        name.type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, [4]))
    scanning = node("Scan", ["", "start", "p"], ["y", "rows"], body=inner, num_scan_inputs=1)
    start, steps = weights(2, 4), weights(2, 3, 4, seed=1)
    made = lower(model_of([scanning], {"start": start, "p": steps}, {}, 8), keep_layout=True)
    found = in_litert(made.content, {"start": start, "p": steps})
    sums = start[:, None] + np.cumsum(steps, axis=1)
    np.testing.assert_allclose(found["y"], sums[:, -1], rtol=1e-5)
    np.testing.assert_allclose(found["rows"], sums, rtol=1e-5)


SEQUENCES: dict[str, list[onnx.NodeProto]] = {
    "element": [node("SequenceConstruct", ["x", "z", "x"], ["s"]), node("SequenceAt", ["s", "minus"], ["y"])],
    "inserted": [
        node("SequenceEmpty", [], ["e"]),
        node("SequenceInsert", ["e", "x"], ["f"]),
        node("SequenceInsert", ["f", "z", "zero"], ["g"]),
        node("ConcatFromSequence", ["g"], ["y"], axis=1),
    ],
    "erased": [
        node("SequenceConstruct", ["x", "z", "z"], ["s"]),
        node("SequenceErase", ["s", "zero"], ["t"]),
        node("ConcatFromSequence", ["t"], ["y"], axis=-1, new_axis=1),
    ],
    "length": [
        node("SequenceConstruct", ["x", "z"], ["s"]),
        node("SequenceLength", ["s"], ["n"]),
        node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
        node("Mul", ["x", "f"], ["y"]),
    ],
    "split": [
        node("SplitToSequence", ["x"], ["s"], axis=1, keepdims=0),
        node("SequenceAt", ["s", "minus"], ["y"]),
    ],
    "split in sizes": [
        node("SplitToSequence", ["x", "two"], ["s"], axis=1),
        node("SequenceAt", ["s", "minus"], ["y"]),
    ],
}


@pytest.mark.parametrize("case", SEQUENCES)
def test_sequence_of_known_length(case: str) -> None:
    constants = {"zero": whole(0), "minus": whole(-1), "two": whole(2)}
    used = {name for listed in SEQUENCES[case] for name in listed.input}
    inputs = {name: weights(2, 3, seed=len(name)) for name in ("x", "z") if name in used}
    check(SEQUENCES[case], inputs, {name: array for name, array in constants.items() if name in used})


def test_a_sequence_at_a_computed_position_is_refused() -> None:
    nodes = [node("SequenceConstruct", ["x", "x"], ["s"]), node("SequenceAt", ["s", "i"], ["y"])]
    with pytest.raises(UnsupportedError, match="SequenceAt"):
        lower(model_of(nodes, {"x": weights(2, 3), "i": whole(0)}, {}, 18))


def test_an_optional_is_its_value() -> None:
    nodes = [
        node("Optional", ["x"], ["o"]),
        node("OptionalHasElement", ["o"], ["h"]),
        node("OptionalGetElement", ["o"], ["g"]),
        node("Where", ["h", "g", "zero"], ["y"]),
    ]
    x = weights(2, 3)
    made = lower(model_of(nodes, {"x": x}, {"zero": np.zeros((), np.float32)}, 18), keep_layout=True)
    np.testing.assert_array_equal(in_litert(made.content, {"x": x})["y"], x)


@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
def test_n_grams_of_numbers(mode: str) -> None:
    counting = node(
        "TfIdfVectorizer",
        ["x"],
        ["y"],
        min_gram_length=1,
        max_gram_length=3,
        max_skip_count=2,
        mode=mode,
        ngram_counts=[0, 3, 9],
        ngram_indexes=list(range(8)),
        pool_int64s=[1, 2, 3, 1, 2, 2, 3, 3, 1, 1, 2, 3, 3, 2, 1],
        weights=[0.5, 2.0, 1.0, 3.0, 1.5, 0.25, 4.0, 0.75],
    )
    tokens = np.random.default_rng(0).integers(0, 4, size=(3, 9))
    check(counting, {"x": tokens.astype(np.int64)}, opset=9)
    check(counting, {"x": tokens[0].astype(np.int32)}, opset=9)


def test_text_is_refused() -> None:
    model = model_of([node("StringConcat", ["x", "x"], ["y"])], {"x": np.array(["a"], np.object_)}, {}, 20)
    with pytest.raises(UnsupportedError, match="StringConcat"):
        lower(model)
