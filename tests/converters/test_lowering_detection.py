"""NonMaxSuppression against ONNX Runtime: random boxes, equal scores, both box formats, thresholds, and refusals.

ONNX's own node tests are run by the conformance suite.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from onnx import TensorProto, helper

from converters.one_node import Array, OneNode, assert_equal, in_litert, in_onnxruntime
from edgefleet.errors import UnsupportedError
from edgefleet_converters.tflite import LoweredTensor, lower

_COUNT = 24


def _boxes(generator: np.random.Generator, batch: int) -> NDArray[np.float32]:
    """Corners in any order, in steps of 1/8, so that overlaps are often equal to one another."""
    return (generator.integers(0, 24, (batch, _COUNT, 4)) / 8).astype(np.float32)


def _case(
    boxes: Array,
    scores: Array,
    limit: int | None = 8,
    overlap: float | None = 0.3,
    score: float | None = 0.4,
    **extra: int,
) -> OneNode:
    inputs = (
        boxes,
        scores,
        None if limit is None else np.array([limit], np.int64),
        None if overlap is None else np.array([overlap], np.float32),
        None if score is None else np.array([score], np.float32),
    )
    return OneNode("NonMaxSuppression", inputs, opset=11, constant=(2, 3, 4), attributes=extra)


def _agrees(case: OneNode) -> int:
    """Number of rows, the same in both runtimes."""
    expected = in_onnxruntime(case)
    assert_equal(case, expected)
    return len(expected["y"])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("form", [0, 1])
def test_random_boxes(seed: int, form: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.permutation(2 * 3 * _COUNT).reshape(2, 3, _COUNT).astype(np.float32) / 200
    boxes = _boxes(generator, 2)
    if form:
        boxes[..., 2:] -= 0.25  # some sides are negative
    assert _agrees(_case(boxes, scores, center_point_box=form))


@pytest.mark.parametrize("seed", range(6))
def test_of_equal_scores_the_first_box_comes_first(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 4, (1, 2, _COUNT)).astype(np.float32) / 4
    assert _agrees(_case(_boxes(generator, 1), scores, score=0.25))


@pytest.mark.parametrize("overlap", [None, 0.0, 0.25, 1 / 3, 0.5, 0.99])
def test_an_overlap_that_equals_the_threshold_keeps_the_box(overlap: float | None) -> None:
    boxes = np.array([[[0, 0, 1, 1], [0, 0, 1, 2], [0, 1, 1, 2], [0, 0.5, 1, 1.5], [0, 0, 1, 4]]], np.float32)
    scores = np.array([[[0.9, 0.8, 0.7, 0.6, 0.5]]], np.float32)
    assert _agrees(_case(boxes, scores, overlap=overlap))


@pytest.mark.parametrize("score", [None, -1.0, 0.5, 2.0])
def test_scores_have_to_exceed_the_threshold(score: float | None) -> None:
    scores = np.array([[[0.75, 0.5, 0.25, -0.5, -2.0]]], np.float32)
    boxes = np.array([[[0, at, 1, at + 1] for at in range(0, 10, 2)]], np.float32)
    rows = _agrees(_case(boxes, scores, score=score))
    assert rows == {None: 5, -1.0: 4, 0.5: 1, 2.0: 0}[score]


@pytest.mark.parametrize("limit", [None, 0, 1, 100])
def test_boxes_per_class(limit: int | None) -> None:
    generator = np.random.default_rng(3)
    scores = generator.random((1, 2, _COUNT), np.float32)
    assert _agrees(_case(_boxes(generator, 1), scores, limit)) <= 2 * min(limit or 0, _COUNT)


def test_boxes_without_a_surface_or_with_an_endless_one() -> None:
    boxes = np.array([[[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 2e38, 2], [0, 0, 1, 1]]], np.float32)
    scores = np.array([[[0.9, 0.8, 0.7, 0.6, 0.5]]], np.float32)
    assert _agrees(_case(boxes, scores)) == 4


def test_the_same_file_again_gives_other_lengths() -> None:
    generator = np.random.default_rng(4)
    boxes, scores = _boxes(generator, 1), generator.random((1, 1, _COUNT), np.float32)
    runner = Interpreter(model_content=in_litert(_case(boxes, scores))[0].content, num_threads=1).get_signature_runner()
    lengths = set()
    for factor in (1.0, 0.5, 0.0, 0.7, 1.0):
        case = _case(boxes, (scores * np.float32(factor)).astype(np.float32))
        found = runner(**case.fed())["y"]
        np.testing.assert_array_equal(found, in_onnxruntime(case)["y"])
        lengths.add(len(found))
    assert len(lengths) >= 3


def test_the_output_says_that_its_length_is_bounded() -> None:
    generator = np.random.default_rng(5)
    lowered, _ = in_litert(_case(_boxes(generator, 2), generator.random((2, 3, _COUNT), np.float32)))
    assert lowered.outputs == (LoweredTensor("y", "int64", (2 * 3 * 8, 3), bounded=True),)
    (detail,) = Interpreter(model_content=lowered.content).get_output_details()
    assert detail["shape_signature"].tolist() == [-1, 3]


def test_the_threshold_of_scores_may_be_computed() -> None:
    generator = np.random.default_rng(6)
    case = _case(_boxes(generator, 1), generator.random((1, 1, _COUNT), np.float32))
    fed = OneNode("NonMaxSuppression", case.inputs, opset=11, constant=(2, 3))
    assert _agrees(fed)


@pytest.mark.parametrize(
    ("constant", "overlap", "said"),
    [
        ((3, 4), 0.5, "max_output_boxes_per_class"),
        ((2, 4), 0.5, "iou_threshold"),
        ((2, 3, 4), 1.0, "iou_threshold=1.0"),
    ],
)
def test_refused(constant: tuple[int, ...], overlap: float, said: str) -> None:
    generator = np.random.default_rng(7)
    inputs = _case(_boxes(generator, 1), generator.random((1, 1, _COUNT), np.float32), overlap=overlap).inputs
    with pytest.raises(UnsupportedError, match=said):
        lower(OneNode("NonMaxSuppression", inputs, opset=11, constant=constant).model())


@pytest.mark.parametrize("reader", ["Shape", "Abs"])
@pytest.mark.parametrize("also_output", [True, False])
def test_a_result_that_the_graph_reads_is_refused(reader: str, *, also_output: bool) -> None:
    generator = np.random.default_rng(8)
    model = _case(_boxes(generator, 1), generator.random((1, 1, _COUNT), np.float32)).model()
    model.graph.node.append(helper.make_node(reader, ["y"], ["z"]))
    if not also_output:
        del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.INT64, None))
    with pytest.raises(UnsupportedError, match=r"NonMaxSuppression.*only its data decide"):
        lower(model)


def test_behind_a_network() -> None:
    """The rest of the graph computes boxes and scores, in the layout that the lowering chooses."""
    generator = np.random.default_rng(9)
    weight = generator.normal(size=(5, 3, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Reshape", ["c", "to"], ["r"]),
        helper.make_node("Split", ["r", "parts"], ["b", "s"], axis=1),
        helper.make_node("Transpose", ["b"], ["boxes"], perm=[0, 2, 1]),
        helper.make_node("NonMaxSuppression", ["boxes", "s", "limit", "overlap"], ["y"], center_point_box=1),
    ]
    constants = {
        "w": weight,
        "to": np.array([1, 5, 64], np.int64),
        "parts": np.array([4, 1], np.int64),
        "limit": np.array([20], np.int64),
        "overlap": np.array([0.2], np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ("rows", 3))],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = generator.normal(size=(1, 3, 8, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, {"x": x})
    lowered = lower(model)
    runner = Interpreter(model_content=lowered.content, num_threads=1).get_signature_runner()
    fed = x if lowered.inputs[0].permutation is None else x.transpose(lowered.inputs[0].permutation)
    np.testing.assert_array_equal(runner(x=np.ascontiguousarray(fed))["y"], want)
