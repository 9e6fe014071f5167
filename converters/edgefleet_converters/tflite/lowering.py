"""The lowering as a whole: an ONNX model becomes the bytes of a float TFLite file and its tensor specs.

Does not quantise, and loads nothing but onnx, numpy and the TFLite schema.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx

from edgefleet.errors import UnsupportedError
from edgefleet.package.manifest import TensorSpec
from edgefleet_converters.tflite.file import Draft
from edgefleet_converters.tflite.graph import Array, Graph, Node, NotLowerableError, inverse, permuted
from edgefleet_converters.tflite.importer import import_model
from edgefleet_converters.tflite.operators import FOLDED, OPERATORS
from edgefleet_converters.tflite.passes.activations import fuse_activations
from edgefleet_converters.tflite.passes.batchnorm import fold_batchnorm
from edgefleet_converters.tflite.passes.constants import fold_constants
from edgefleet_converters.tflite.passes.layout import assign_layouts
from edgefleet_converters.tflite.writer import write

PASSES: tuple[Callable[[Graph], Graph], ...] = (fold_batchnorm, fuse_activations, assign_layouts)
"""What follows constant folding, in order; operators that folding removes are not asked for a TFLite form."""

_DOING = "lowering the model to TFLite"


@dataclass(frozen=True, slots=True)
class Lowered:
    """A float32 .tflite file, and its inputs and outputs in the source's layout with their permutations."""

    content: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def lower(model: onnx.ModelProto) -> Lowered:
    """Lower a model with static shapes; raises UnsupportedError naming what has no TFLite form."""
    graph = fold_constants(import_model(model))
    _require_known(graph)
    try:
        for step in PASSES:
            graph = step(graph)
        content = _write(graph)
    except NotLowerableError as error:
        raise _unsupported([str(error)]) from error
    return Lowered(
        content,
        inputs=tuple(_spec(graph, name) for name in graph.inputs),
        outputs=tuple(_spec(graph, name) for name in graph.outputs),
    )


def _require_known(graph: Graph) -> None:
    unknown = [
        f"{node.operator} (node {node.name!r})"
        for node in graph.nodes
        if node.operator not in OPERATORS and node.operator not in FOLDED
    ]
    if unknown:
        raise _unsupported(unknown)


def _unsupported(found: list[str]) -> UnsupportedError:
    return UnsupportedError(
        _DOING,
        f"no TFLite form is known for {', '.join(found)}",
        "replace these operators in the model, or choose profiles that do not need litert",
    )


def _write(graph: Graph) -> bytes:
    draft = Draft()
    for name in (*graph.inputs, *(name for node in graph.nodes for name in (*node.inputs, *node.outputs))):
        if name and name not in draft.tensors:
            _declare(graph, name, draft)
    refused = []
    for node in graph.nodes:
        try:
            _lower_node(node, graph, draft)
        except NotLowerableError as error:
            refused.append(f"{node.operator} (node {node.name!r}: {error})")
    if refused:
        raise _unsupported(refused)
    return write(_pruned(draft, graph), graph.inputs, graph.outputs)


def _lower_node(node: Node, graph: Graph, draft: Draft) -> None:
    if node.operator not in OPERATORS:
        raise NotLowerableError("it could not be folded away")
    OPERATORS[node.operator](node, graph, draft)


def _declare(graph: Graph, name: str, draft: Draft) -> None:
    if name in graph.constants:
        draft.constant(name, _narrow(graph.constants[name]))
    else:
        draft.temporary(name, graph.shape(name), graph.values[name].dtype)


def _narrow(array: Array) -> Array:
    """float64 constants become float32: TFLite's kernels have no other float."""
    return array.astype("float32") if array.dtype == "float64" else array


def _pruned(draft: Draft, graph: Graph) -> Draft:
    """Without the tensors that no operator uses: source constants that a lowering rewrote."""
    used = {*graph.inputs, *graph.outputs}
    for operator in draft.operators:
        used.update(operator.inputs, operator.outputs)
    tensors = {name: tensor for name, tensor in draft.tensors.items() if name in used}
    return Draft(tensors, draft.operators)


def _spec(graph: Graph, name: str) -> TensorSpec:
    stored, layout = graph.shape(name), graph.layouts.get(name)
    shape = stored if layout is None else permuted(stored, inverse(layout))
    return TensorSpec(name=name, dtype="float32", shape=shape, permutation=layout)
