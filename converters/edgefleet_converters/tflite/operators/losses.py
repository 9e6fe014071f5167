"""Losses over classes: NegativeLogLikelihoodLoss and SoftmaxCrossEntropyLoss.

The bodies of these operators gather at labels that may be the ignored one, outside the classes; here the label's class
is found by comparison, which no label can leave.
"""

from __future__ import annotations

import math

import numpy as np

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor
from edgefleet_converters.tflite.graph import Node, NotLowerableError
from edgefleet_converters.tflite.kernels import working_dtype
from edgefleet_converters.tflite.operators.contract import Lowering


def negative_log_likelihood(node: Node, e: Emitter) -> None:
    """NegativeLogLikelihoodLoss: input [N, C, ...] float, target [N, ...] integer, optional weight [C]."""
    value = e.input(0)
    rows = _rows(e, e.cast(value, working_dtype("SUM", value.dtype)))
    e.into(node.outputs[0], e.reshape(e.cast(_loss(node, e, rows), value.dtype), e.output().shape))


def softmax_cross_entropy(node: Node, e: Emitter) -> None:
    """SoftmaxCrossEntropyLoss: log-softmax over the classes (axis 1), which may be an output, then the loss."""
    value = e.input(0)
    rows = e.log_softmax(_rows(e, e.cast(value, working_dtype("SUM", value.dtype))))
    if e.wants(1):
        e.into(node.outputs[1], e.cast(e.reshape(e.transpose(rows, (0, 2, 1)), value.shape), value.dtype))
    e.into(node.outputs[0], e.reshape(e.cast(_loss(node, e, rows), value.dtype), e.output().shape))


def _rows(e: Emitter, value: Tensor) -> Tensor:
    """[N, C, ...] as [N, positions, C]."""
    flat = e.reshape(value, (*value.shape[:2], math.prod(value.shape[2:])))
    return e.transpose(flat, (0, 2, 1))


def _loss(node: Node, e: Emitter, rows: Tensor) -> Tensor:
    """The reduced loss of log-probabilities [N, positions, C], or one for each of [N, positions]."""
    labels = e.reshape(e.input(1), (*rows.shape[:2], 1))
    is_class = e.equal(labels, np.arange(rows.shape[2], dtype=labels.dtype).reshape(1, 1, -1))
    ignored = node.integer("ignore_index", 0) if "ignore_index" in node.attributes else None
    if ignored is not None:
        is_class = e.logical_and(is_class, e.not_equal(labels, ignored))
    picked = e.neg(e.reduce_sum(e.select(is_class, rows, 0.0), [2], keepdims=False))
    weights = _weights(e, is_class) if e.has(2) or ignored is not None else None
    if e.has(2) and weights is not None:
        picked = e.mul(picked, weights)
    reduction = node.text("reduction", "mean")
    if reduction == "none":
        return picked
    if reduction not in ("sum", "mean"):
        raise NotLowerableError(f"reduction {reduction!r}")
    if reduction == "mean" and weights is None:
        return e.reduce_mean(picked, [0, 1], keepdims=False)
    total = e.reduce_sum(picked, [0, 1], keepdims=False)
    if reduction == "mean" and weights is not None:
        total = e.div(total, e.reduce_sum(weights, [0, 1], keepdims=False))
    return total


def _weights(e: Emitter, is_class: Tensor) -> Tensor:
    """The weight of each label, [N, positions]: of its class, or 1; 0 where it is ignored."""
    of_class = (
        e.reshape(e.cast(e.input(2), working_dtype("SUM", e.input(2).dtype)), (1, 1, -1))
        if e.has(2)
        else np.ones((1, 1, 1), np.float32)
    )
    return e.reduce_sum(e.select(is_class, of_class, np.zeros((), np.float32)), [2], keepdims=False)


OPERATORS: dict[str, Lowering] = {
    "NegativeLogLikelihoodLoss": negative_log_likelihood,
    "SoftmaxCrossEntropyLoss": softmax_cross_entropy,
}
