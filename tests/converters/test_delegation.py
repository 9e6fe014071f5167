"""The committed table of what XNNPACK takes, against the installed runtime, and float islands in int8 files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from conformance.delegation_probe import CASES, file_of, outside, row
from edgefleet_converters.steps.quantize_tflite import quantize
from edgefleet_converters.tflite.delegation import ROWS, is_delegated, is_quantised, outside_xnnpack
from edgefleet_converters.tflite.file import Draft, options_of
from edgefleet_converters.tflite.islands import LEFT_FLOAT, softmax_pays_in_int8, softmaxes_for_int8
from edgefleet_converters.tflite.writer import write

Array = NDArray[Any]
Floats = NDArray[np.float32]
SHAPE = (1, 8, 8, 16)


def test_the_table_has_a_row_for_every_case_and_for_conversions() -> None:
    assert set(ROWS) == {*CASES, "QUANTIZE", "DEQUANTIZE"}


@pytest.mark.parametrize("operator", CASES)
def test_a_row_is_what_the_installed_runtime_does(operator: str) -> None:
    assert row(operator) == ROWS[operator]


def test_rows_answer_by_type() -> None:
    assert is_quantised("HARD_SWISH")
    assert (is_delegated("HARD_SWISH", "float32"), is_delegated("HARD_SWISH", "int8")) == (True, False)
    assert not is_delegated("ADD", "int32")
    assert not is_delegated("ADD", "quantised")
    assert not is_quantised("NO_SUCH_OPERATOR")


def samples(count: int = 6) -> list[dict[str, Array]]:
    random = np.random.default_rng(5)
    return [{"x": random.normal(size=SHAPE).astype(np.float32)} for _ in range(count)]


def between_convolutions(*operators: tuple[str, str, dict[str, object]]) -> bytes:
    """Conv → operators → conv, on 8 x 8 x 16: (operator, options table, fields)."""
    random, draft = np.random.default_rng(2), Draft()
    draft.temporary("x", SHAPE)
    value = "x"
    for position, (operator, table, fields) in enumerate(
        [("CONV_2D", "Conv2D", {}), *operators, ("CONV_2D", "Conv2D", {})]
    ):
        inputs: tuple[str, ...] = (value,)
        if operator == "CONV_2D":
            fields = {"strideW": 1, "strideH": 1}  # noqa: PLW2901 - the convolution's own
            weight = (random.normal(size=(16, 1, 1, 16)) * 0.4).astype(np.float32)
            bias = np.zeros(16, np.float32)
            inputs = (value, draft.constant(f"w{position}", weight), draft.constant(f"b{position}", bias))
        result = draft.temporary(f"y{position}", SHAPE)
        draft.emit(operator, inputs, (result,), options_of(table, **fields) if table else None)
        value = result
    return write(draft, {"x": "x"}, {"y": value})


def run(content: bytes, x: Floats) -> Floats:
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    found: Floats = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return found


def ratio_db(content: bytes, quantised: bytes) -> float:
    """Signal to quantisation noise over the samples."""
    pairs = [(run(content, sample["x"]), run(quantised, sample["x"])) for sample in samples()]
    signal = sum(float((wanted**2).sum()) for wanted, _ in pairs)
    noise = sum(float(((wanted - found) ** 2).sum()) for wanted, found in pairs)
    return 10 * float(np.log10(signal / noise))


def types_of(content: bytes, operator: str) -> list[int]:
    """Types of what the operators of one kind return."""
    model, code = schema.ModelT.InitFromPackedBuf(content, 0), getattr(schema.BuiltinOperator, operator)
    codes = [max(item.builtinCode, item.deprecatedBuiltinCode) for item in model.operatorCodes]
    graph = model.subgraphs[0]
    return [graph.tensors[item.outputs[0]].type for item in graph.operators if codes[item.opcodeIndex] == code]


@pytest.mark.parametrize(
    "operators",
    [
        [("LEAKY_RELU", "LeakyRelu", {"alpha": 0.1})],
        [("ELU", "", {})],
        [("HARD_SWISH", "HardSwish", {})],
        [("GELU", "Gelu", {}), ("SIGN", "Sign", {})],
        [
            ("LOGISTIC", "", {}),
            ("LOCAL_RESPONSE_NORMALIZATION", "LocalResponseNormalization", {"radius": 2}),
        ],
        [("TANH", "", {}), ("SOFTMAX", "Softmax", {"beta": 1.0})],
    ],
)
def test_the_table_names_the_operators_that_the_runtime_leaves_outside(
    operators: list[tuple[str, str, dict[str, object]]],
) -> None:
    content = between_convolutions(*operators)
    for made in (content, quantize(content, samples())):
        assert outside_xnnpack(made) == outside(made)


@pytest.mark.parametrize(
    ("operator", "table", "fields"), [("LEAKY_RELU", "LeakyRelu", {"alpha": 0.1}), ("ELU", "", {})]
)
def test_an_island_that_xnnpack_takes_in_int8_becomes_int8(
    operator: str, table: str, fields: dict[str, object]
) -> None:
    content = between_convolutions((operator, table, fields))
    made = quantize(content, samples())
    assert types_of(made, operator) == [schema.TensorType.INT8]
    assert types_of(made, "DEQUANTIZE") == [schema.TensorType.FLOAT32]
    assert outside(made) == []
    assert ratio_db(content, made) > 25


@pytest.mark.parametrize("alpha", [0.0002, 0.0005])
def test_a_slope_that_xnnpack_cannot_hold_stays_a_float_island(alpha: float) -> None:
    made = quantize(between_convolutions(("LEAKY_RELU", "LeakyRelu", {"alpha": alpha})), samples())
    assert types_of(made, "LEAKY_RELU") == [schema.TensorType.FLOAT32]
    assert outside(made) == []


def test_an_island_that_keeps_its_scale_is_requantised_behind_it() -> None:
    draft = Draft()
    draft.temporary("x", SHAPE)
    weight = (np.random.default_rng(4).normal(size=(16, 1, 1, 16)) * 0.4).astype(np.float32)
    inputs = ("x", draft.constant("w", weight), draft.constant("b", np.zeros(16, np.float32)))
    draft.emit("CONV_2D", inputs, (draft.temporary("c", SHAPE),), options_of("Conv2D", strideW=1, strideH=1))
    axes = draft.constant("axes", np.array([1, 2], np.int32))
    draft.emit("REDUCE_MAX", ("c", axes), (draft.temporary("m", (1, 1, 1, 16)),), options_of("Reducer", keepDims=True))
    draft.emit("ADD", ("c", "m"), (draft.temporary("y", SHAPE),), options_of("Add"))
    content = write(draft, {"x": "x"}, {"y": "y"})
    made = quantize(content, samples())
    assert types_of(made, "REDUCE_MAX") == [schema.TensorType.INT8]
    assert outside(made) == []
    assert ratio_db(content, made) > 30


def test_what_xnnpack_takes_in_float_only_is_left_float() -> None:
    assert {"SOFTMAX", "GELU", "HARD_SWISH"} <= set(LEFT_FLOAT)
    content = between_convolutions(("SOFTMAX", "Softmax", {"beta": 1.0}))
    made = quantize(content, samples())
    assert types_of(made, "SOFTMAX") == [schema.TensorType.FLOAT32]
    assert types_of(made, "CONV_2D") == [schema.TensorType.INT8] * 2
    assert outside(made) == []


@pytest.mark.parametrize(
    ("rows", "depth", "macs", "pays"),
    [
        pytest.param(1, 10, 10_000_000, False, id="classifier"),
        pytest.param(1, 3, 12, False, id="tiny classifier"),
        pytest.param(1024, 4, 2_000_000, True, id="segmentation of four classes"),
        pytest.param(1024, 4, 200_000_000, False, id="the same behind a large network"),
        pytest.param(65536, 4, 2_000_000_000, True, id="segmentation of a large image"),
        pytest.param(320, 8, 4_000_000, True, id="boxes of eight bins"),
        pytest.param(33600, 16, 4_000_000, False, id="boxes of sixteen bins"),
        pytest.param(2364, 197, 4_000_000, False, id="attention"),
    ],
)
def test_a_softmax_is_int8_where_its_rows_are_short_and_many(rows: int, depth: int, macs: int, pays: bool) -> None:
    assert softmax_pays_in_int8(rows, depth, macs) == pays


def headed(operator: str, source: tuple[int, ...], weights: tuple[int, ...], table: str) -> bytes:
    """One operator to 8 x 8 x 4, and a softmax over its 64 rows."""
    draft, result = Draft(), (1, 8, 8, 4) if len(source) == 4 else (64, 4)
    draft.temporary("x", source)
    draft.temporary("v", result)
    inputs: tuple[str, ...] = ("x", draft.constant("w", np.zeros(weights, np.float32)))
    inputs = ("", *reversed(inputs)) if operator == "TRANSPOSE_CONV" else inputs
    draft.emit(operator, inputs, ("v",), options_of(table))
    draft.emit("SOFTMAX", ("v",), (draft.temporary("s", result),), options_of("Softmax", beta=1.0))
    return write(draft, {"x": "x"}, {"s": "s"})


@pytest.mark.parametrize(
    ("operator", "source", "few", "many", "table"),
    [
        ("CONV_2D", (1, 8, 8, 16), (4, 27, 27, 16), (4, 29, 29, 16), "Conv2D"),
        ("DEPTHWISE_CONV_2D", (1, 8, 8, 4), (1, 109, 109, 4), (1, 113, 113, 4), "DepthwiseConv2D"),
        ("TRANSPOSE_CONV", (1, 8, 8, 16), (4, 27, 27, 16), (4, 29, 29, 16), "TransposeConv"),
        ("FULLY_CONNECTED", (64, 12000), (4, 12000), (4, 12500), "FullyConnected"),
        ("BATCH_MATMUL", (64, 12000), (12000, 4), (12500, 4), "BatchMatMul"),
    ],
)
def test_the_multiply_adds_of_the_model_decide_whether_a_softmax_is_worth_it(
    operator: str, source: tuple[int, ...], few: tuple[int, ...], many: tuple[int, ...], table: str
) -> None:
    assert softmaxes_for_int8(headed(operator, source, few, table)) == ["s"]
    wider = (64, many[0]) if operator == "BATCH_MATMUL" else source
    assert softmaxes_for_int8(headed(operator, wider, many, table)) == []


def test_a_dense_head_is_int8_and_a_classifier_beside_it_float() -> None:
    draft = Draft()
    draft.temporary("x", SHAPE)
    for name, shape in (("head(1)+", (1, 256, 4)), ("head(1)+2", (1, 1024))):
        wanted = draft.constant(f"shape of {name}", np.array(shape, np.int32))
        draft.emit("RESHAPE", ("x", wanted), (draft.temporary(f"r {name}", shape),), options_of("Reshape"))
        draft.emit("SOFTMAX", (f"r {name}",), (draft.temporary(name, shape),), options_of("Softmax", beta=1.0))
    content = write(draft, {"x": "x"}, {"dense": "head(1)+", "classes": "head(1)+2"})
    made = quantize(content, samples())
    assert types_of(made, "SOFTMAX") == [schema.TensorType.INT8, schema.TensorType.FLOAT32]
    assert outside(made) == outside_xnnpack(made) == ["SOFTMAX"]
    interpreter = Interpreter(model_content=made, num_threads=1)
    found = interpreter.get_signature_runner()(**samples()[0])["dense"]
    powers = np.exp(samples()[0]["x"].reshape(1, 256, 4))
    np.testing.assert_allclose(found, powers / powers.sum(-1, keepdims=True), atol=2 / 256)


def test_a_file_of_one_operator_can_be_made_in_both_types() -> None:
    assert types_of(file_of("CONV_2D"), "CONV_2D") == [schema.TensorType.FLOAT32]
    assert types_of(file_of("CONV_2D", "int8"), "CONV_2D") == [schema.TensorType.INT8]


def test_int8_borders_leave_nothing_float() -> None:
    made = quantize(between_convolutions(("SOFTMAX", "Softmax", {"beta": 1.0})), samples(), border="int8")
    assert types_of(made, "SOFTMAX") == [schema.TensorType.INT8]
    assert types_of(made, "QUANTIZE") == types_of(made, "DEQUANTIZE") == []
