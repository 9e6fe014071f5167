"""LinearAttention and CausalConvWithState: layers that carry a state from one part of a sequence to the next.

LinearAttention is written step by step, so its file grows with the length of the sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor, options_of
from edgefleet_converters.tflite.graph import Array, Node, NotLowerableError
from edgefleet_converters.tflite.operators.precision import WORKING, finish, widened


@dataclass(frozen=True, slots=True)
class _Step:
    """One position: key [batch, heads, size, 1], value [batch, heads, 1, size]; what the rule lacks is None."""

    key: Tensor
    value: Tensor
    decay: Tensor | None
    beta: Tensor | None


def linear_attention(node: Node, e: Emitter) -> None:
    """LinearAttention with each of its update rules; float32 or float16, computed in float32.

    state = exp(decay) state + key (x) value, for the delta rules with beta (value - state key) as the value.
    """
    rule = node.text("update_rule", "gated_delta")
    if e.has(4) != ("gated" in rule) or e.has(5) != ("delta" in rule):
        raise NotLowerableError(f"decay or beta against update_rule={rule}")
    heads = node.integer("kv_num_heads", 0)
    query = _steps(e, 0, node.integer("q_num_heads", 0))
    keys, values = (_steps(e, position, heads) for position in (1, 2))
    decays = _decays(e, heads, keys[0].shape[-1]) if e.has(4) else [None] * len(query)
    betas = _steps(e, 5, e.input(5).shape[2]) if e.has(5) else [None] * len(query)
    state = widened(e, 3) if e.has(3) else None
    found = []
    for position, asking in enumerate(query):
        key = keys[position]
        upright = e.reshape(key, (*key.shape[:2], -1, 1))
        state = _updated(e, state, _Step(upright, values[position], decays[position], betas[position]))
        found.append(_read(e, asking, state))
    _finish_attention(node, e, found, keys[0].shape[-1], state)


def _steps(e: Emitter, position: int, heads: int) -> list[Tensor]:
    """[batch, length, heads x size] as one [batch, heads, 1, size] for each step."""
    value = widened(e, position)
    if value.rank != 3 or heads < 1 or value.shape[2] % heads:
        raise NotLowerableError(f"{heads} heads in a value {value.shape}")
    batch, length, size = value.shape
    parts = e.split(value, 1, [1] * length)
    return [e.reshape(part, (batch, heads, 1, size // heads)) for part in parts]


def _decays(e: Emitter, heads: int, size: int) -> list[Tensor]:
    """exp(decay) for each step, per head or per key number, upright as the state's rows are."""
    if e.input(4).shape[2] not in (heads, heads * size):
        raise NotLowerableError(f"a decay {e.input(4).shape} for {heads} heads of size {size}")
    return [e.exp(e.reshape(step, (*step.shape[:2], -1, 1))) for step in _steps(e, 4, heads)]


def _updated(e: Emitter, state: Tensor | None, step: _Step) -> Tensor:
    """The state [batch, heads, key size, value size] after one position; None is a state of zeros."""
    value = step.value
    if state is not None and step.decay is not None:
        state = e.mul(state, step.decay)
    if step.beta is not None:
        if state is not None:
            flat = e.reshape(step.key, (*step.key.shape[:2], 1, -1))
            value = e.sub(value, e.batch_matmul(flat, state))
        value = e.mul(value, step.beta)
    written = e.mul(step.key, value)
    return written if state is None else e.add(state, written)


def _read(e: Emitter, query: Tensor, state: Tensor) -> Tensor:
    """[batch, 1, query heads x value size]; queries that share a state are rows of one product."""
    batch, heads, _, size = query.shape
    if heads % state.shape[1] or size != state.shape[2]:
        raise NotLowerableError(f"queries {query.shape} of a state {state.shape}")
    stacked = e.reshape(query, (batch, state.shape[1], -1, size))
    return e.reshape(e.batch_matmul(stacked, state), (batch, 1, heads * state.shape[3]))


def _finish_attention(node: Node, e: Emitter, found: list[Tensor], size: int, state: Tensor | None) -> None:
    """Outputs: what was read, times `scale` (0 means 1 / sqrt(key size)), and the last state."""
    scale = node.number("scale", 0.0) or 1 / math.sqrt(size)
    result = e.mul(e.concat(found, 1), scale)
    finish(e, 0, result)
    if state is not None:
        finish(e, 1, state)


def causal_convolution(node: Node, e: Emitter) -> None:
    """CausalConvWithState: a depthwise convolution over what came before; float32 or float16, constant weights.

    The state is the last (kernel - 1) positions of the input; a kernel of 1 has none to hand out.
    """
    value, weight = widened(e, 0), e.array(1, "weight").astype(np.float32)
    channels, _, kernel = weight.shape
    bias = e.array(2, "bias").astype(np.float32) if e.has(2) else np.zeros(channels, np.float32)
    padded = e.concat([widened(e, 3), value], 2) if e.has(3) else e.pad(value, [(0, 0), (0, 0), (kernel - 1, 0)])
    if e.wants(1):
        state = e.split(padded, 2, (padded.shape[2] - kernel + 1, kernel - 1))[1]
        finish(e, 1, state)
    found = _depthwise(e, padded, weight, bias)
    if node.text("activation", "none") in ("silu", "swish"):
        found = e.mul(found, e.sigmoid(found))
    turned = e.transpose(e.reshape(found, (value.shape[0], value.shape[2], channels)), (0, 2, 1))
    finish(e, 0, turned)


def _depthwise(e: Emitter, padded: Tensor, weight: Array, bias: Array) -> Tensor:
    batch, channels, length = padded.shape
    kernel = weight.shape[2]
    rows = e.reshape(e.transpose(padded, (0, 2, 1)), (batch, 1, length, channels))
    inputs = [
        rows,
        e.constant(weight.transpose(1, 2, 0)[None], role="weight"),
        e.constant(bias, role="bias"),
    ]
    options = options_of("DepthwiseConv2D", padding=schema.Padding.VALID, strideH=1, strideW=1, depthMultiplier=1)
    return e.call("DEPTHWISE_CONV_2D", inputs, (batch, 1, length - kernel + 1, channels), WORKING, options)
