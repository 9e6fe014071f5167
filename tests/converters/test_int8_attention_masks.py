"""Static int8 of masked attention: what a mask leaves of the scores, rows that are hidden whole, what stays int8."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from attention_graphs import LOWEST, ROWS_LAST, SWAPPED, Sizes, finished, heads_of, language, number, without_nan
from numpy.typing import NDArray
from onnx import TensorProto

from conformance_graphs.building import Building
from conformance_graphs.judge import inputs_of, reference_session, run, stored
from conformance_graphs.sequences import bert
from edgefleet_converters.steps.quantize_tflite import quantize
from edgefleet_converters.tflite import Lowered, lower
from edgefleet_converters.tflite.float_scores import float_scores
from edgefleet_converters.tflite.wiring import Wiring, wirings
from edgefleet_converters.tflite.writer import unpack

Array = NDArray[Any]
Feed = Mapping[str, Array]
SIZES = Sizes(batch=2, length=20, heads=2, size=8, groups=2)
MASKS = ("integer", "weighted", "given", "boolean", "guarded")


def attention(mask: str, fill: float) -> onnx.ModelProto:
    """A block whose mask is its second input: of 0 and 1, of float 0 and 1, to be added as it is, or of bool."""
    b, s = Building(3), SIZES
    x = b.input(s.batch, s.length, s.width)
    kinds = {"integer": TensorProto.INT64, "boolean": TensorProto.BOOL, "guarded": TensorProto.BOOL}
    seen = b.input(s.batch, 1, 1, s.length, kind=kinds.get(mask, TensorProto.FLOAT))
    query, key, value = (heads_of(b, b.linear(x, s.width), s, s.heads) for _ in range(3))
    scores = b.node("Div", b.node("MatMul", query, b.node("Transpose", key, perm=SWAPPED)), number(b, s.size**0.5))
    if mask in ("boolean", "guarded"):
        scores = b.node("Where", seen, scores, number(b, fill))
    else:
        shown = b.node("Cast", seen, to=TensorProto.FLOAT) if mask == "integer" else seen
        hidden = b.node("Mul", b.node("Sub", number(b, 1), shown), number(b, fill))
        scores = b.node("Add", scores, seen if mask == "given" else hidden)
    shares = b.node("Softmax", scores, axis=-1)
    return finished(b, x, without_nan(b, shares) if mask == "guarded" else shares, value, s)


def feed(model: onnx.ModelProto, seed: int, visible: Iterable[int], fill: float) -> Feed:
    """Normal x, and a mask that shows the first few positions of each sequence."""
    x, seen = model.graph.input
    counts = np.array(list(visible)).reshape(-1, 1, 1, 1)
    shown = np.arange(SIZES.length).reshape(1, 1, 1, -1) < counts
    kind = onnx.helper.tensor_dtype_to_np_dtype(seen.type.tensor_type.elem_type)
    adds = "Sub" not in {node.op_type for node in model.graph.node} or seen.name in model.graph.node[-9].input
    del adds
    normal = np.random.default_rng(seed).normal(size=(SIZES.batch, SIZES.length, SIZES.width))
    return {x.name: normal.astype(np.float32), seen.name: shown.astype(kind)}
