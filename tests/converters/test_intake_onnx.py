"""ONNX intake: old opsets and formats come out new and compute the same; weights that are no numbers are named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from converters.onnx_models import weights
from edgefleet.errors import InputError, UnsupportedError
from edgefleet_converters.artefact import Form
from edgefleet_converters.intake.onnx_file import OLDEST_IR, OLDEST_OPSET, read_onnx
from edgefleet_converters.intake.source import Source
from edgefleet_converters.tflite import lower

Constants = Mapping[str, NDArray[np.generic]]
SHAPE = (1, 3, 8, 8)


def old_model(nodes: Sequence[onnx.NodeProto], constants: Constants, opset: int, ir_version: int) -> onnx.ModelProto:
    """`x` to `y`; up to IR version 3 every initializer is a graph input too."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)]
    for name, array in constants.items() if ir_version < 4 else ():
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        inputs.append(helper.make_tensor_value_info(name, kind, array.shape))
    graph = helper.make_graph(
        list(nodes),
        "old",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def node(kind: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


Case = tuple[Sequence[onnx.NodeProto], Constants]
CLASSIFIER: Case = (
    [
        node("Conv", "x w", "a", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("BatchNormalization", "a s b m v", "c"),
        node("Relu", "c", "d"),
        node("MaxPool", "d", "e", kernel_shape=[2, 2], strides=[2, 2]),
        node("Dropout", "e", "f", ratio=0.5),
        node("GlobalAveragePool", "f", "g"),
        node("Flatten", "g", "h"),
        node("Gemm", "h fw fb", "i", transB=1),
        node("Softmax", "i", "y"),
    ],
    {"w": weights(4, 3, 3, 3), "s": weights(4), "b": weights(4), "m": weights(4), "v": np.abs(weights(4)),
     "fw": weights(5, 4), "fb": weights(5)},
)  # fmt: skip
ATTRIBUTES: Case = (
    [
        node("Slice", "x", "a", starts=[0, 1], ends=[3, 7], axes=[1, 2]),
        node("Pad", "a", "b", pads=[0, 0, 1, 1, 0, 0, 1, 1]),
        node("Clip", "b", "c", min=-0.5, max=0.5),
        node("Squeeze", "c", "d", axes=[0]),
        node("Unsqueeze", "d", "e", axes=[0]),
        node("ReduceSum", "e", "f", axes=[2], keepdims=0),
        node("Softmax", "f", "y", axis=1),
    ],
    {},
)
UPSAMPLE: Case = ([node("Upsample", "x sc", "y", mode="nearest")], {"sc": np.array([1, 1, 2, 2], np.float32)})
LSTM: Case = (
    [
        node("Reshape", "x s", "a"),
        helper.make_node("LSTM", ["a", "w", "r"], ["b", "c", "d"], hidden_size=4),
        node("Squeeze", "b", "y", axes=[1]),
    ],
    {"s": np.array([8, 1, 24], np.int64), "w": weights(1, 16, 24), "r": weights(1, 16, 4)},
)


def read(path: Path, model: onnx.ModelProto) -> Source:
    onnx.save(model, path / "model.onnx")
    return read_onnx(path / "model.onnx", path, shapes={}, dims={})


def run(path: Path) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(["y"], {"x": weights(*SHAPE, seed=3)})[0]
    return found


@pytest.mark.parametrize("version", [(9, 3), (9, 4)], ids=str)
@pytest.mark.parametrize(
    "case", [CLASSIFIER, ATTRIBUTES, UPSAMPLE, LSTM], ids=["classifier", "attributes", "upsample", "lstm"]
)
def test_an_old_model_computes_the_same(tmp_path: Path, case: Case, version: tuple[int, int]) -> None:
    source = read(tmp_path, old_model(*case, *version))
    file = source.forms[Form.ONNX].files[0]
    raised = onnx.load(file)
    assert raised.opset_import[0].version >= OLDEST_OPSET
    assert raised.ir_version >= OLDEST_IR
    assert [spec.name for spec in source.inputs] == ["x"]
    np.testing.assert_allclose(run(file), run(tmp_path / "model.onnx"), rtol=1e-5, atol=1e-6)
    assert lower(raised).content


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    nodes, constants = CLASSIFIER
    spoilt = {name: array.copy() for name, array in constants.items()}
    spoilt["fw"][0, :3] = np.nan
    spoilt["s"][1] = np.nan
    with pytest.raises(InputError, match=r"NaN values in the weights 's' \(1 of 4\), 'fw' \(3 of 20\); go back to"):
        read(tmp_path, old_model(nodes, spoilt, 9, 4))


def test_nan_in_a_constant_node_is_found_and_infinity_is_not_meant(tmp_path: Path) -> None:
    mask = np.array([0, -np.inf, 0, 0, 0, 0, 0, 0], np.float32)
    nodes = [helper.make_node("Constant", [], ["m"], value=numpy_helper.from_array(mask)), node("Add", "x m", "y")]
    assert read(tmp_path, old_model(nodes, {}, 17, 8)).inputs
    mask[0] = np.nan
    nodes[0] = helper.make_node("Constant", [], ["m"], value=numpy_helper.from_array(mask))
    with pytest.raises(InputError, match=r"'m' \(1 of 8\)"):
        read(tmp_path, old_model(nodes, {}, 17, 8))


def test_a_model_without_inputs(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.zeros(2, np.float32), "c")],
    )
    with pytest.raises(UnsupportedError, match="it has no inputs"):
        read(tmp_path, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
