"""Step: an ONNX file whose matrix products have 4-bit weights in blocks, each with a scale and a zero point.

ONNX Runtime multiplies them with activations that it quantises to 8 bits while it runs. Does not touch convolutions and
embeddings. ONNX Runtime's own tool knows MatMul but not Gemm, and needs onnx-ir.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgefleet_converters.analysis import analyze
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.step import Context
from edgefleet_converters.steps.onnx_layers import save_clean
from edgefleet_converters.steps.prepare_onnx import prepare
from edgefleet_converters.suitability import require_suitable
from edgefleet_device_profiles.profile import Precision, Runtime

BLOCK = 32
"""Weights that share a scale, along the axis that is summed over."""
DOMAIN = "com.microsoft"
_LARGEST = 15
_INT8_ACTIVATIONS = 4
"""Value of the operator's `accuracy_level` (onnxruntime, docs/ContribOperators.md, MatMulNBits)."""

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def run(artefact: Artefact, context: Context) -> Artefact:
    """Float ONNX in, a smaller one with the same inputs and outputs out; raises UnsupportedError."""
    require_suitable(Runtime.ONNXRUNTIME, Precision.INT4_WEIGHTS, analyze(onnx.load(artefact.files[0])))
    prepared, path = context.folder / "prepared.onnx", context.folder / "model.onnx"
    prepare(artefact.files[0], prepared)
    model = onnx.load(prepared)
    pack_products(model)
    save_clean(model, path)
    return artefact.model_copy(update={"files": (path,)})


def pack_products(model: onnx.ModelProto) -> None:
    """Replace every product with a constant matrix by MatMulNBits, in place."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    packed: dict[str, list[onnx.TensorProto]] = {}
    nodes = []
    for node in graph.node:
        weight = constants.get(node.input[1]) if len(node.input) > 1 else None
        transposed = _transposed(node)
        if weight is None or transposed is None or not _worthwhile(weight, transposed=transposed):
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
            continue
        array = numpy_helper.to_array(weight)
        rows = array if transposed else array.T
        key = f"{weight.name}/{'rows' if transposed else 'columns'}"
        if key not in packed:
            packed[key] = _tensors(key, rows)
        nodes += _product(node, [tensor.name for tensor in packed[key]], rows.shape)
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensor for tensors in packed.values() for tensor in tensors)
    if not any(entry.domain == DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def _transposed(node: onnx.NodeProto) -> bool | None:
    """Whether the weights are [N, K] rather than [K, N]; None for what is no plain product."""
    if node.op_type == "MatMul":
        return False
    values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    if node.op_type != "Gemm" or values.get("transA", 0):
        return None
    if values.get("alpha", 1.0) != 1.0 or values.get("beta", 1.0) != 1.0:
        return None
    return bool(values.get("transB", 0))


def _worthwhile(weight: onnx.TensorProto, *, transposed: bool) -> bool:
    """A float matrix with at least one whole block to sum over."""
    if weight.data_type != onnx.TensorProto.FLOAT or len(weight.dims) != 2:
        return False
    return int(weight.dims[1 if transposed else 0]) >= BLOCK


def _product(node: onnx.NodeProto, weights: list[str], shape: tuple[int, ...]) -> list[onnx.NodeProto]:
    bias = node.op_type == "Gemm" and len(node.input) > 2 and node.input[2]
    product = f"{node.output[0]}/product" if bias else node.output[0]
    made = helper.make_node(
        "MatMulNBits",
        [node.input[0], *weights],
        [product],
        node.name,
        domain=DOMAIN,
        N=shape[0],
        K=shape[1],
        bits=4,
        block_size=BLOCK,
        accuracy_level=_INT8_ACTIVATIONS,
    )
    return [made, helper.make_node("Add", [product, bias], list(node.output), f"{node.name}/bias")] if bias else [made]


def _tensors(name: str, rows: Floats) -> list[onnx.TensorProto]:
    levels, scales, zeros = quantize_blocks(rows)
    parts = (("levels", _nibbles(levels)), ("scales", scales), ("zeros", _nibbles(zeros)))
    return [numpy_helper.from_array(array, f"{name}/{part}") for part, array in parts]


def quantize_blocks(rows: Floats) -> tuple[Bytes, Floats, Bytes]:
    """Levels [N, blocks, BLOCK] from 0 to 15, scales and zero levels [N, blocks] of rows [N, K], padded with zeros."""
    count, width = rows.shape
    blocks = -(-width // BLOCK)
    padded = np.zeros((count, blocks * BLOCK), np.float32)
    padded[:, :width] = rows
    grouped = padded.reshape(count, blocks, BLOCK)
    low, high = np.minimum(grouped.min(axis=2), 0), np.maximum(grouped.max(axis=2), 0)
    scales = ((high - low) / _LARGEST).astype(np.float32)
    scales[scales == 0] = 1
    zeros = np.round(-low / scales)
    levels = np.clip(np.round(grouped / scales[..., np.newaxis]) + zeros[..., np.newaxis], 0, _LARGEST)
    return levels.astype(np.uint8), scales, zeros.astype(np.uint8)


def _nibbles(values: Bytes) -> Bytes:
    """Two values in a byte along the last axis, the first one in the low half."""
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros_like(values[..., :1])], axis=-1)
    return np.ascontiguousarray(values[..., ::2] | values[..., 1::2] << 4)
