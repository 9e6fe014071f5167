"""Which operators the quantiser makes int8 and which XNNPACK takes, by files of one operator in the installed LiteRT.

`python -m conformance.delegation_probe` prints the rows of `edgefleet_converters.tflite.delegation.ROWS`.
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import calibrator, quantizer, recipe
from ai_edge_quantizer.utils import qsv_utils
from numpy.typing import NDArray

from edgefleet_converters.tflite.file import Draft, Quantization, options_of
from edgefleet_converters.tflite.writer import SIGNATURE, write

Array = NDArray[Any]
_random = np.random.default_rng(0)
IMAGE, ROW = (1, 8, 8, 16), (4, 16)
_SCALE = Quantization((0.0625,), (0,))


@dataclass(frozen=True)
class OneOperator:
    """A file of one operator: the shapes of its float inputs, its constants, and the shape of what it returns.

    `data` are (position, shape), `weights` (position, array); what both leave open is the output's.
    """

    output: tuple[int, ...]
    data: tuple[tuple[int, ...], ...] = (IMAGE,)
    constants: tuple[Array, ...] = ()
    options: str = ""
    fields: dict[str, object] = field(default_factory=dict)
    constants_first: bool = False


def _ints(*values: object) -> Array:
    return np.array(values, np.int32)


def _floats(*shape: int) -> Array:
    return _random.normal(size=shape).astype(np.float32) * 0.2


_STRIDES = {"strideW": 1, "strideH": 1}
_WINDOW = {"strideW": 2, "strideH": 2, "filterWidth": 2, "filterHeight": 2, "padding": schema.Padding.VALID}
_RELU6 = {"fusedActivationFunction": schema.ActivationFunctionType.RELU6}
_PADS = np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32)
_DOUBLE, _HALF = (1, 16, 16, 16), (1, 4, 4, 16)


def _unary(options: str = "", **fields: object) -> OneOperator:
    return OneOperator(IMAGE, options=options, fields=fields)


def _binary(options: str, **fields: object) -> OneOperator:
    return OneOperator(IMAGE, data=(IMAGE, IMAGE), options=options, fields=fields)


def _reduction() -> OneOperator:
    return OneOperator((1, 1, 1, 16), constants=(_ints(1, 2),), options="Reducer", fields={"keepDims": True})


CASES: dict[str, OneOperator] = {
    "ABS": _unary("Abs"),
    "ADD": _binary("Add"),
    "AVERAGE_POOL_2D": OneOperator(_HALF, options="Pool2D", fields=_WINDOW),
    "BATCH_MATMUL": OneOperator((1, 8, 8, 8), data=(IMAGE, (1, 8, 16, 8)), options="BatchMatMul"),
    "BATCH_TO_SPACE_ND": OneOperator((1, 16, 16, 4), ((4, 8, 8, 4),), (_ints(2, 2), _ints([0, 0], [0, 0]))),
    "BROADCAST_TO": OneOperator((2, 8, 8, 16), constants=(_ints(2, 8, 8, 16),)),
    "CEIL": _unary(),
    "CONCATENATION": OneOperator((1, 8, 8, 32), (IMAGE, IMAGE), options="Concatenation", fields={"axis": 3}),
    "CONV_2D": OneOperator(
        IMAGE, constants=(_floats(16, 3, 3, 16), _floats(16)), options="Conv2D", fields={**_STRIDES, **_RELU6}
    ),
    "COS": _unary("Cos"),
    "CUMSUM": OneOperator(IMAGE, constants=(np.array(1, np.int32),), options="Cumsum"),
    "DEPTHWISE_CONV_2D": OneOperator(
        IMAGE,
        constants=(_floats(1, 3, 3, 16), _floats(16)),
        options="DepthwiseConv2D",
        fields={**_STRIDES, "depthMultiplier": 1},
    ),
    "DEPTH_TO_SPACE": OneOperator((1, 16, 16, 4), options="DepthToSpace", fields={"blockSize": 2}),
    "DIV": _binary("Div"),
    "ELU": _unary(),
    "EXP": _unary("Exp"),
    "EXPAND_DIMS": OneOperator((1, 1, 8, 16), ((1, 8, 16),), (_ints(1),), "ExpandDims"),
    "FLOOR": _unary(),
    "FULLY_CONNECTED": OneOperator((4, 8), (ROW,), (_floats(8, 16), _floats(8)), "FullyConnected"),
    "GATHER": OneOperator((1, 8, 8, 4), constants=(_ints(3, 1, 0, 5),), options="Gather", fields={"axis": 3}),
    "GATHER_ND": OneOperator((2, 16), (ROW,), (_ints([1], [3]),), "GatherNd"),
    "GELU": _unary("Gelu"),
    "HARD_SWISH": _unary("HardSwish"),
    "L2_NORMALIZATION": _unary("L2Norm"),
    "LEAKY_RELU": _unary("LeakyRelu", alpha=0.1),
    "LOCAL_RESPONSE_NORMALIZATION": _unary("LocalResponseNormalization", radius=2, bias=1.0, alpha=1e-4, beta=0.75),
    "LOG": _unary(),
    "LOGISTIC": _unary(),
    "LOG_SOFTMAX": _unary("LogSoftmax"),
    "MAXIMUM": _binary("MaximumMinimum"),
    "MAX_POOL_2D": OneOperator(_HALF, options="Pool2D", fields=_WINDOW),
    "MEAN": _reduction(),
    "MINIMUM": _binary("MaximumMinimum"),
    "MIRROR_PAD": OneOperator((1, 10, 10, 16), constants=(_PADS,), options="MirrorPad"),
    "MUL": _binary("Mul"),
    "NEG": _unary("Neg"),
    "PACK": OneOperator((1, 8, 8, 2, 16), data=(IMAGE, IMAGE), options="Pack", fields={"axis": 3, "valuesCount": 2}),
    "PAD": OneOperator((1, 10, 10, 16), constants=(_PADS,), options="Pad"),
    "PADV2": OneOperator((1, 10, 10, 16), constants=(_PADS, np.array(-2, np.float32)), options="PadV2"),
    "POW": _binary("Pow"),
    "PRELU": OneOperator(IMAGE, constants=(_floats(1, 1, 16),)),
    "REDUCE_MAX": _reduction(),
    "REDUCE_MIN": _reduction(),
    "RELU": _unary(),
    "RELU6": _unary(),
    "RELU_N1_TO_1": _unary(),
    "RESHAPE": OneOperator(
        (1, 64, 16), constants=(_ints(1, 64, 16),), options="Reshape", fields={"newShape": [1, 64, 16]}
    ),
    "RESIZE_BILINEAR": OneOperator(_DOUBLE, constants=(_ints(16, 16),), options="ResizeBilinear"),
    "RESIZE_NEAREST_NEIGHBOR": OneOperator(_DOUBLE, constants=(_ints(16, 16),), options="ResizeNearestNeighbor"),
    "REVERSE_V2": OneOperator(IMAGE, constants=(_ints(2),)),
    "ROUND": _unary(),
    "RSQRT": _unary(),
    "SIGN": _unary("Sign"),
    "SIN": _unary(),
    "SLICE": OneOperator((1, 4, 8, 16), constants=(_ints(0, 2, 0, 0), _ints(1, 4, 8, 16)), options="Slice"),
    "SOFTMAX": OneOperator(ROW, (ROW,), options="Softmax", fields={"beta": 1.0}),
    "SPACE_TO_BATCH_ND": OneOperator((4, 4, 4, 16), constants=(_ints(2, 2), _ints([0, 0], [0, 0]))),
    "SPACE_TO_DEPTH": OneOperator((1, 4, 4, 64), options="SpaceToDepth", fields={"blockSize": 2}),
    "SPLIT": OneOperator(
        (1, 8, 8, 8), constants=(_ints(3).reshape(()),), options="Split", fields={"numSplits": 2}, constants_first=True
    ),
    "SPLIT_V": OneOperator(
        (1, 8, 8, 8), constants=(_ints(8, 8), np.array(3, np.int32)), options="SplitV", fields={"numSplits": 2}
    ),
    "SQRT": _unary(),
    "SQUARE": _unary("Square"),
    "SQUARED_DIFFERENCE": _binary("SquaredDifference"),
    "SQUEEZE": OneOperator((8, 8, 16), options="Squeeze"),
    "STRIDED_SLICE": OneOperator(
        (1, 4, 4, 16), constants=(_ints(0, 0, 0, 0), _ints(1, 8, 8, 16), _ints(1, 2, 2, 1)), options="StridedSlice"
    ),
    "SUB": _binary("Sub"),
    "SUM": _reduction(),
    "TANH": _unary(),
    "TILE": OneOperator((1, 16, 8, 16), constants=(_ints(1, 2, 1, 1),)),
    "TRANSPOSE": OneOperator((1, 16, 8, 8), constants=(_ints(0, 3, 1, 2),), options="Transpose"),
    "TRANSPOSE_CONV": OneOperator(
        _DOUBLE,
        constants=(_ints(1, 16, 16, 16), _floats(16, 2, 2, 16)),
        options="TransposeConv",
        fields={"strideW": 2, "strideH": 2},
        constants_first=True,
    ),
    "UNPACK": OneOperator((1, 8, 16), options="Unpack", fields={"axis": 1, "num": 8}),
}
# Whose int8 output has the scale and zero point that its kernel prescribes.
_FIXED_OUTPUT = {
    "LOGISTIC": Quantization((1 / 256,), (-128,)),
    "SOFTMAX": Quantization((1 / 256,), (-128,)),
    "TANH": Quantization((1 / 128,), (0,)),
    "L2_NORMALIZATION": Quantization((1 / 128,), (0,)),
}
_OUTPUTS = {"SPLIT": 2, "SPLIT_V": 2, "UNPACK": 8}


def file_of(operator: str, dtype: str = "float32") -> bytes:
    """The operator's one-operator file; int8 by hand, with float constants quantised over the whole tensor."""
    case, draft = CASES[operator], Draft()
    quantization = _SCALE if dtype == "int8" else None
    for position, shape in enumerate(case.data):
        draft.temporary(f"x{position}", shape, dtype, quantization)
    for position, array in enumerate(case.constants):
        _add_constant(draft, f"c{position}", array, dtype)
    outputs = [f"y{position}" for position in range(_OUTPUTS.get(operator, 1))]
    for name in outputs:
        draft.temporary(name, case.output, dtype, _FIXED_OUTPUT.get(operator, _SCALE) if quantization else None)
    data = [f"x{position}" for position in range(len(case.data))]
    constants = [f"c{position}" for position in range(len(case.constants))]
    inputs = (*constants, *data) if case.constants_first else (*data, *constants)
    options = options_of(case.options, **case.fields) if case.options else None
    draft.emit(operator, inputs, tuple(outputs), options)
    return write(draft, {name: name for name in data}, {name: name for name in outputs})


def _add_constant(draft: Draft, name: str, array: Array, dtype: str) -> None:
    if dtype != "int8" or array.dtype != np.float32:
        draft.constant(name, array)
    elif array.ndim == 1:
        draft.constant(
            name, (array / _SCALE.scales[0] ** 2).astype(np.int32), Quantization((_SCALE.scales[0] ** 2,), (0,))
        )
    else:
        draft.constant(name, (array / _SCALE.scales[0]).round().clip(-127, 127).astype(np.int8), _SCALE)


def quantised(content: bytes, samples: Sequence[dict[str, Array]] = ()) -> bytes | None:
    """What the quantiser makes of a float file with int8 inputs and outputs; None where it fails.

    `samples` are calibration inputs; without them, random ones.
    """
    with _quiet():
        tool = quantizer.Quantizer(bytearray(content), recipe.static_wi8_ai8())
        observer = calibrator.Calibrator(bytearray(content), num_threads=1, qsv_update_func=qsv_utils.min_max_update)
        manager = quantizer.recipe_manager.RecipeManager()
        manager.load_quantization_recipe(tool.get_quantization_recipe())
        try:
            observer.calibrate({SIGNATURE: list(samples) or _random_inputs(content)}, manager)
            made = tool.quantize(observer.get_model_qsvs()).quantized_model
        except (RuntimeError, ValueError):
            return None
    return None if made is None else bytes(made)


def _random_inputs(content: bytes) -> list[dict[str, Array]]:
    interpreter = Interpreter(model_content=content)
    details = interpreter.get_input_details()
    draw = np.random.default_rng(1).normal
    return [{item["name"]: draw(size=item["shape"]).astype(np.float32) for item in details} for _ in range(4)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def outside(content: bytes) -> list[str]:
    """Names of the operators that LiteRT leaves to its own kernels, in order: what no delegate took.

    Raises RuntimeError or ValueError when the file does not run.
    """
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    nodes = interpreter._get_ops_details()
    delegates = [node for node in nodes if node["op_name"] == "DELEGATE"]
    plain = [node for node in nodes if node["op_name"] != "DELEGATE"]
    producer = {int(name): node["index"] for node in plain for name in node["outputs"]}
    by_index = {node["index"]: node for node in plain}
    inside: set[int] = set()
    for delegate in delegates:
        given, waiting = {int(name) for name in delegate["inputs"]}, [int(name) for name in delegate["outputs"]]
        while waiting:
            tensor = waiting.pop()
            index = producer.get(tensor)
            if tensor not in given and index is not None and index not in inside:
                inside.add(index)
                waiting.extend(int(name) for name in by_index[index]["inputs"])
    return [node["op_name"] for node in plain if node["index"] not in inside]


def is_quantised(operator: str) -> bool:
    """Whether the quantiser turns the operator's float file into one whose operator is int8."""
    made = quantised(file_of(operator))
    if made is None:
        return False
    model = schema.ModelT.InitFromPackedBuf(made, 0)
    graph, code = model.subgraphs[0], getattr(schema.BuiltinOperator, operator)
    for node in graph.operators:
        found = model.operatorCodes[node.opcodeIndex]
        if max(found.builtinCode, found.deprecatedBuiltinCode) == code:
            return bool(graph.tensors[node.outputs[0]].type == schema.TensorType.INT8)
    return False


def row(operator: str) -> str:
    """The words of the operator's row: `quantised`, and the types that XNNPACK takes."""
    words = []
    made = quantised(file_of(operator)) if is_quantised(operator) else None
    if made is not None:
        words.append("quantised")
    for dtype, content in (("float32", file_of(operator)), ("int8", made or file_of(operator, "int8"))):
        with contextlib.suppress(RuntimeError, ValueError):
            if not outside(content):
                words.append(dtype)
    return " ".join(words)


def main() -> None:
    """Print the table."""
    for operator in CASES if len(sys.argv) < 2 else sys.argv[1:]:
        print(f'        "{operator}": "{row(operator)}",', flush=True)


if __name__ == "__main__":
    main()
