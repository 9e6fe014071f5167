"""Attention: two batched products with a softmax between them; the table of its family.

Heads that share keys and values are stacked into the rows of one product, so nothing is repeated.
"""

from __future__ import annotations

import math

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor, options_of
from edgefleet_converters.tflite.graph import Node, NotLowerableError
from edgefleet_converters.tflite.operators.attention_mask import masking
from edgefleet_converters.tflite.operators.contract import Lowering
from edgefleet_converters.tflite.operators.linear_attention import causal_convolution, linear_attention
from edgefleet_converters.tflite.operators.precision import WORKING, finish, widened
from edgefleet_converters.tflite.operators.rotary import rotary_embedding


def attention(node: Node, e: Emitter) -> None:
    """Attention (opset 23 and newer) of [batch, heads, length, size] or [batch, length, heads x size] values.

    float32 or float16, all of it computed in float32 whatever `softmax_precision` asks for. A row in which no key is
    visible gives zeros. Heads that are not a multiple of those of the keys are refused.
    """
    query = _with_heads(e, widened(e, 0), node.integer("q_num_heads", 0))
    key, value = (_extended(node, e, position) for position in (1, 2))
    if query.shape[1] % key.shape[1] or key.shape[:3] != value.shape[:3]:
        raise NotLowerableError(f"{query.shape[1]} heads over keys {key.shape} and values {value.shape}")
    scores = _scores(node, e, query, key)
    capped = _capped(node, e, scores)
    mask = masking(node, e, query.shape[2], key.shape[2])
    biased = capped if mask.bias is None else e.add(capped, mask.bias)
    weights = e.softmax(biased)
    if mask.alive is not None:
        # A row of -inf alone has no softmax: the kernel gives NaN.
        weights = e.select(mask.alive, weights, 0.0)
    found = _without_heads(e, _weighted(e, weights, value), e.input(0).rank)
    by_mode = {0: scores, 1: capped, 2: biased, 3: weights}
    mode = node.integer("qk_matmul_output_mode", 0)
    if mode not in by_mode:
        raise NotLowerableError(f"qk_matmul_output_mode={mode}")
    for position, result in enumerate((found, key, value, by_mode[mode])):
        finish(e, position, result)


def _with_heads(e: Emitter, value: Tensor, heads: int) -> Tensor:
    """[batch, heads, length, size]."""
    if value.rank == 4:
        return value
    if value.rank != 3 or heads < 1 or value.shape[2] % heads:
        raise NotLowerableError(f"{heads} heads in a value {value.shape}")
    batch, length, size = value.shape
    return e.transpose(e.reshape(value, (batch, length, heads, size // heads)), (0, 2, 1, 3))


def _extended(node: Node, e: Emitter, position: int) -> Tensor:
    """Keys (input 1) or values (2) with the past ones (4, 5) before them."""
    new = _with_heads(e, widened(e, position), node.integer("kv_num_heads", 0))
    past = position + 3
    return e.concat([widened(e, past), new], 2) if e.has(past) else new


def _scores(node: Node, e: Emitter, query: Tensor, key: Tensor) -> Tensor:
    """[batch, heads, queries, keys]: scaled products of every query with every key."""
    batch, heads, queries, size = query.shape
    scale = node.number("scale", 1 / math.sqrt(size))
    scaled = query if scale == 1.0 else e.mul(query, scale)
    stacked = e.reshape(scaled, (batch, key.shape[1], -1, size))
    shape = (*stacked.shape[:3], key.shape[2])
    options = options_of("BatchMatMul", adjX=False, adjY=True)
    found = e.call("BATCH_MATMUL", [stacked, key], shape, WORKING, options)
    return e.reshape(found, (batch, heads, queries, key.shape[2]))


def _capped(node: Node, e: Emitter, scores: Tensor) -> Tensor:
    bound = node.number("softcap", 0.0)
    return e.mul(e.tanh(e.mul(scores, 1 / bound)), bound) if bound > 0 else scores


def _weighted(e: Emitter, weights: Tensor, value: Tensor) -> Tensor:
    batch, heads, queries, keys = weights.shape
    stacked = e.reshape(weights, (batch, value.shape[1], -1, keys))
    return e.reshape(e.batch_matmul(stacked, value), (batch, heads, queries, value.shape[3]))


def _without_heads(e: Emitter, value: Tensor, rank: int) -> Tensor:
    if rank == 4:
        return value
    batch, heads, length, size = value.shape
    return e.reshape(e.transpose(value, (0, 2, 1, 3)), (batch, length, heads * size))


OPERATORS: dict[str, Lowering] = {
    "Attention": attention,
    "CausalConvWithState": causal_convolution,
    "LinearAttention": linear_attention,
    "RotaryEmbedding": rotary_embedding,
}
