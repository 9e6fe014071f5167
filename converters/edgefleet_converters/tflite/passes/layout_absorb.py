"""Weights that pay for a layout: rows or columns of the matrix beside a Reshape are reordered ahead of run time.

Only matrices that nothing else reads are touched, so that no weight exists in two orders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.tflite.graph import Array, Graph, Node, NotLowerableError
from edgefleet_converters.tflite.passes.layout_axes import Order

Consumers = Mapping[str, list[Node]]
# Elementwise operators of one operand, which do not care for the order of elements.
_BETWEEN = frozenset(("Identity", "LeakyRelu", "Relu", "Sigmoid", "Tanh"))


@dataclass(frozen=True, slots=True)
class Slot:
    """One constant of a matrix product, and its axis that runs along the flattened elements."""

    name: str
    axis: int


def absorbs_into_readers(graph: Graph, node: Node, consumers: Consumers) -> bool:
    """Whether a Reshape to [batch, features] is read by products with constant weights only."""
    return _is_flattening(graph, node.inputs[0], node.outputs[0]) and bool(reader_slots(graph, node, consumers))


def absorbs_into_producer(graph: Graph, node: Node, consumers: Consumers, producers: Mapping[str, Node]) -> bool:
    """Whether a Reshape from [batch, features] reads a product with constant weights, alone."""
    return _is_flattening(graph, node.outputs[0], node.inputs[0]) and bool(
        producer_slots(graph, node, consumers, producers)
    )


def reordering(shape: tuple[int, ...], order: Order) -> NDArray[np.int64]:
    """Positions of the flattened elements, but the batch axis, in the sequence that `order` stores them in."""
    rest = tuple(axis - 1 for axis in order[1:])
    return np.arange(int(np.prod(shape[1:]))).reshape(shape[1:]).transpose(rest).ravel()


def reordered(array: Array, slot: Slot, positions: NDArray[np.int64]) -> Array:
    """The constant with its elements along the slot's axis in a new order."""
    return np.take(array, positions, axis=slot.axis)


def reader_slots(graph: Graph, node: Node, consumers: Consumers) -> list[Slot]:
    """The weights of all readers, each once; nothing when one of the readers is something else."""
    slots: dict[str, Slot] = {}
    readers: list[Node] = []
    waiting = [node.outputs[0]]
    while waiting:
        name = waiting.pop()
        if name in graph.outputs or not consumers.get(name):
            return []
        for reader in consumers[name]:
            if reader.operator in _BETWEEN:
                waiting.append(reader.outputs[0])
                continue
            slot = _input_slot(graph, reader, name)
            if slot is None:
                return []
            slots[slot.name] = slot
            readers.append(reader)
    if any(other not in readers for name in slots for other in consumers[name]):
        return []
    return list(slots.values())


def producer_slots(graph: Graph, node: Node, consumers: Consumers, producers: Mapping[str, Node]) -> list[Slot]:
    """The weight and bias of the one product that a Reshape reads, past activations; nothing if it is not alone."""
    name = node.inputs[0]
    reader = node
    while graph.sole_consumer(name, consumers) is reader and name in producers:
        source = producers[name]
        if source.operator in _BETWEEN:
            name, reader = source.inputs[0], source
            continue
        slots = _output_slots(graph, source)
        return slots if all(len(consumers[slot.name]) == 1 for slot in slots) else []
    return []


def _is_flattening(graph: Graph, wide: str, flat: str) -> bool:
    try:
        shape, result = graph.shape(wide), graph.shape(flat)
    except NotLowerableError:
        return False
    return len(shape) > 2 and len(result) == 2 and shape[0] == result[0]


def _input_slot(graph: Graph, node: Node, data: str) -> Slot | None:
    weight = node.input(1)
    if node.inputs[0] != data or data in node.inputs[1:] or weight not in graph.constants:
        return None
    if node.operator == "Gemm" and not node.integer("transA", 0):
        return Slot(weight, node.integer("transB", 0))
    if node.operator == "MatMul" and graph.constants[weight].ndim == 2:
        return Slot(weight, 0)
    return None


def _output_slots(graph: Graph, node: Node) -> list[Slot]:
    weight, bias = node.input(1), node.input(2)
    if weight not in graph.constants or graph.constants[weight].ndim != 2:
        return []
    if node.operator == "MatMul":
        return [Slot(weight, 1)]
    if node.operator != "Gemm" or (bias and bias not in graph.constants):
        return []
    slots = [Slot(weight, 1 - node.integer("transB", 0))]
    if bias and graph.constants[bias].ndim and graph.constants[bias].shape[-1] > 1:
        slots.append(Slot(bias, graph.constants[bias].ndim - 1))
    return slots
