"""Matrix products: MatMul and Gemm.

Integers are multiplied and summed exactly, never through floats; 64-bit floats and uint64 are refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import FUSED, Tensor, options_of
from edgefleet_converters.tflite.graph import RIGHT_TRANSPOSED, Activation, Node, NotLowerableError
from edgefleet_converters.tflite.kernels import working_dtype
from edgefleet_converters.tflite.operators.contract import Lowering

# Where all batch axes need not be joined first: the kernels broadcast up to here.
_PLAIN_RANK = 4
# Whole floats up to here are exact, and fit every integer type that is multiplied.
_LARGEST_FACTOR = 1 << 24
# The expansion takes factorially many products.
_LARGEST_DETERMINANT = 4


def matmul(node: Node, e: Emitter) -> None:
    """MatMul: numpy's matmul on any ranks; float32, float16 through float32, 32-bit and 64-bit integers wrap."""
    left, right = e.input(0), e.input(1)
    if node.integer(RIGHT_TRANSPOSED, 0):
        made = activated(e, e.batch_matmul(left, right, transposed=True), node.activation)
    elif _is_connected(left, right):
        made = connected(e, left, e.transpose(right, (1, 0)), None, node.activation)
    else:
        made = activated(e, product(e, left, right), node.activation)
    e.into(node.outputs[0], made)


def _is_connected(left: Tensor, right: Tensor) -> bool:
    """Whether a product is FULLY_CONNECTED as it is: by constant weights."""
    weights = right.data is not None and right.rank == 2 and left.data is None
    return weights and left.dtype == "float32" and 2 <= left.rank <= _PLAIN_RANK


def activated(e: Emitter, value: Tensor, activation: Activation) -> Tensor:
    """The value after an activation that no operator before it could take."""
    if activation == Activation.RELU:
        return e.relu(value)
    return e.relu6(value) if activation == Activation.RELU6 else value


def product(e: Emitter, left: Tensor, right: Tensor) -> Tensor:
    """Numpy's matmul of two tensors of one type; vectors lose their axis again."""
    if not left.rank or not right.rank or left.shape[-1] != right.shape[max(right.rank - 2, 0)]:
        raise NotLowerableError(f"a product of {left.shape} and {right.shape}")
    a = e.reshape(left, (1, *left.shape)) if left.rank == 1 else left
    b = e.reshape(right, (*right.shape, 1)) if right.rank == 1 else right
    made = _matrices(e, a, b)
    shape = list(made.shape)
    if right.rank == 1:
        shape.pop()
    if left.rank == 1:
        shape.pop(-1 if right.rank == 1 else -2)
    return e.reshape(made, shape)


def _matrices(e: Emitter, left: Tensor, right: Tensor) -> Tensor:
    if left.dtype == "float16":
        return e.cast(_matrices(e, e.cast(left, "float32"), e.cast(right, "float32")), "float16")
    if left.dtype != "float32":
        return _exact(e, left, right)
    if _is_connected(left, right):
        return connected(e, left, e.transpose(right, (1, 0)), None)
    if right.rank == 2 and left.rank > _PLAIN_RANK:
        rows = _matrices(e, e.reshape(left, (-1, left.shape[-1])), right)
        return e.reshape(rows, (*left.shape[:-1], right.shape[-1]))
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    if len(batch) + 2 <= _PLAIN_RANK:
        return e.batch_matmul(left, right)
    a = e.reshape(e.broadcast_to(left, (*batch, *left.shape[-2:])), (math.prod(batch), *left.shape[-2:]))
    b = e.reshape(e.broadcast_to(right, (*batch, *right.shape[-2:])), (math.prod(batch), *right.shape[-2:]))
    return e.reshape(e.batch_matmul(a, b), (*batch, left.shape[-2], right.shape[-1]))


def _exact(e: Emitter, left: Tensor, right: Tensor) -> Tensor:
    """[..., M, K, 1] x [..., 1, K, N], summed over K: integers wrap around as in the source."""
    if left.dtype not in ("int32", "int64", "uint32"):
        raise NotLowerableError(f"a product of {left.dtype} matrices")
    wide = "int64" if left.dtype == "uint32" else left.dtype
    a, b = e.cast(left, wide), e.cast(right, wide)
    rows = e.reshape(a, (*a.shape, 1))
    columns = e.reshape(b, (*b.shape[:-2], 1, *b.shape[-2:]))
    return e.cast(e.reduce_sum(e.mul(rows, columns), [-2], keepdims=False), left.dtype)


def connected(
    e: Emitter, value: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation = Activation.NONE
) -> Tensor:
    """Value [..., K] x weight [N, K] transposed, plus bias [N]: FULLY_CONNECTED, which keeps the axes."""
    if bias is None:
        bias = e.constant(np.zeros(weight.shape[0], np.float32), role="bias")
    if value.rank == 2:
        return e.fully_connected(value, weight, bias, activation)
    options = options_of("FullyConnected", fusedActivationFunction=FUSED[activation], keepNumDims=True)
    shape = (*value.shape[:-1], weight.shape[0])
    return e.call("FULLY_CONNECTED", [value, weight, bias], shape, value.dtype, options, version=5)


def gemm(node: Node, e: Emitter) -> None:
    """Gemm: alpha A' B' + beta C, C broadcast; float32, float16 through float32, integers with whole alpha and beta.

    Constant weights become FULLY_CONNECTED with alpha folded into them and beta into a constant bias of one row.
    """
    alpha, beta, dtype = node.number("alpha", 1.0), node.number("beta", 1.0), e.input(0).dtype
    left, right = _turned(node, e, 0, "transA"), _turned(node, e, 1, "transB")
    if not dtype.startswith("float"):
        least = 0 if dtype.startswith("u") else -_LARGEST_FACTOR
        if not all(factor == int(factor) and least <= factor <= _LARGEST_FACTOR for factor in (alpha, beta)):
            raise NotLowerableError(f"alpha {alpha} and beta {beta} with {dtype}")
        made = _plus(e, _times(e, product(e, left, right), int(alpha)), int(beta))
        e.into(node.outputs[0], e.cast(made, dtype))
        return
    working = working_dtype("FULLY_CONNECTED", dtype)
    a, b = e.cast(left, working), e.cast(right, working)
    if b.data is not None and a.data is None and _is_row(e):
        # A view where alpha is 1: the writer brings weights in order as it writes them.
        turned = b.data.T if alpha == 1.0 else b.data.T.astype(np.float32) * np.float32(alpha)
        weight = e.constant(turned, role="weight")
        made = connected(e, a, weight, _bias(e, weight.shape[0], beta), node.activation)
    else:
        made = activated(e, _plus(e, _times(e, product(e, a, b), alpha), beta), node.activation)
    e.into(node.outputs[0], e.cast(made, dtype))


def _turned(node: Node, e: Emitter, position: int, attribute: str) -> Tensor:
    value = e.input(position)
    return e.transpose(value, (1, 0)) if node.integer(attribute, 0) else value


def _times(e: Emitter, value: Tensor, factor: float) -> Tensor:
    return value if factor == 1 else e.mul(value, factor)


def _plus(e: Emitter, value: Tensor, beta: float) -> Tensor:
    if not e.has(2) or beta == 0:
        return value
    return e.add(value, _times(e, e.cast(e.input(2), value.dtype), beta))


def _is_row(e: Emitter) -> bool:
    """Whether C is absent, or constant and the same for every row."""
    if not e.has(2):
        return True
    bias = e.input(2)
    return bias.data is not None and (bias.rank < 2 or bias.shape[0] == 1)


def _bias(e: Emitter, features: int, beta: float) -> Tensor:
    if not e.has(2):
        return e.constant(np.zeros(features, np.float32), role="bias")
    bias = e.array(2, "bias").astype(np.float32) * np.float32(beta)
    return e.constant(np.broadcast_to(bias.reshape(-1), (features,)), role="bias")


def determinant(node: Node, e: Emitter) -> None:
    """Det of float32 matrices of up to 4 x 4, by expansion along the first row; larger ones are refused."""
    value = e.input(0)
    size = value.shape[-1]
    if size > _LARGEST_DETERMINANT:
        raise NotLowerableError(f"the determinant of {size} x {size} matrices")
    flat = e.reshape(value, (math.prod(value.shape[:-2]), size * size))
    cells = e.split(flat, 1, [1] * (size * size))
    made = _expanded(e, [cells[row * size : (row + 1) * size] for row in range(size)])
    e.into(node.outputs[0], e.reshape(made, e.output().shape))


def _expanded(e: Emitter, rows: Sequence[Sequence[Tensor]]) -> Tensor:
    if len(rows) == 1:
        return rows[0][0]
    parts = [
        e.mul(cell, _expanded(e, [[*row[:column], *row[column + 1 :]] for row in rows[1:]]))
        for column, cell in enumerate(rows[0])
    ]
    total = parts[0]
    for column, part in enumerate(parts[1:], 1):
        total = e.sub(total, part) if column % 2 else e.add(total, part)
    return total


OPERATORS: dict[str, Lowering] = {"Det": determinant, "Gemm": gemm, "MatMul": matmul}
