"""The lowering as a whole: an ONNX model becomes the bytes of a TFLite file and its inputs and outputs.

Does not quantise, and loads nothing but onnx, numpy and the TFLite schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import onnx

from edgefleet.errors import UnsupportedError
from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Draft
from edgefleet_converters.tflite.graph import Graph, Node, NotLowerableError, inverse, permuted
from edgefleet_converters.tflite.importer import import_model
from edgefleet_converters.tflite.operators import FOLDED, OPERATORS
from edgefleet_converters.tflite.operators.contract import Lowering
from edgefleet_converters.tflite.passes.activations import fuse_activations
from edgefleet_converters.tflite.passes.batchnorm import fold_batchnorm
from edgefleet_converters.tflite.passes.layout import assign_layouts
from edgefleet_converters.tflite.writer import write

CANONICAL: tuple[Callable[[Graph], Graph], ...] = (fold_batchnorm, fuse_activations)
"""What comes between the import and layout assignment, in order."""

Layout = Literal["nchw", "nhwc"]
_RULED = frozenset((*OPERATORS, *FOLDED))
_DOING = "lowering the model to TFLite"
_NO_LAYOUTS: Mapping[str, Layout] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class LoweredTensor:
    """An input or output of the file, described in the source's layout.

    `permutation` maps the source's axes to the file's (`file = source.transpose(permutation)`); None means the same.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    permutation: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Lowered:
    """A .tflite file, and its inputs and outputs by their source names, in the source's order."""

    content: bytes
    inputs: tuple[LoweredTensor, ...]
    outputs: tuple[LoweredTensor, ...]


class _RefusedError(Exception):
    """Nodes that their own rule cannot express: name → what is said of it."""

    def __init__(self, nodes: dict[str, str]) -> None:
        self.nodes = nodes
        super().__init__()


def lower(
    model: onnx.ModelProto, *, keep_layout: bool = False, input_layout: Mapping[str, Layout] = _NO_LAYOUTS
) -> Lowered:
    """Lower a model with static shapes; raises UnsupportedError naming everything that has no TFLite form.

    `keep_layout` leaves all inputs and outputs as in the source; `input_layout` decides it for single inputs. A node
    whose own rule refuses it is lowered through its function body, if it has one.
    """
    asked = {name: layout == "nhwc" for name, layout in input_layout.items()}
    opened: frozenset[str] = frozenset()
    while True:
        try:
            imported = import_model(model, _RULED, opened)
            graph = _passed(imported.graph, asked, keep=keep_layout)
            return _lowered(graph, _write(graph))
        except NotLowerableError as error:
            raise _unsupported([str(error)]) from error
        except _RefusedError as refused:
            more = (refused.nodes.keys() & imported.openable) - opened
            if not more:
                raise _unsupported(list(refused.nodes.values())) from refused
            opened |= more


def _passed(graph: Graph, asked: Mapping[str, bool], *, keep: bool) -> Graph:
    strange = asked.keys() - set(graph.inputs)
    if strange:
        raise NotLowerableError(f"a layout for {sorted(strange)}, which the model does not have as an input")
    unknown = {
        node.name: f"{node.operator} (node {node.name!r})"
        for node in graph.nodes
        if node.operator not in OPERATORS and node.operator not in FOLDED
    }
    if unknown:
        raise _RefusedError(unknown)
    for step in CANONICAL:
        graph = step(graph)
    return assign_layouts(graph, asked, keep=keep)


def _unsupported(found: list[str]) -> UnsupportedError:
    return UnsupportedError(
        _DOING,
        f"no TFLite form is known for {', '.join(found)}",
        "replace these operators in the model, or choose profiles that do not need litert",
    )


def _write(graph: Graph) -> bytes:
    draft = Draft()
    for name in (*graph.inputs, *(name for node in graph.nodes for name in node.outputs)):
        if name:
            draft.temporary(name, graph.shape(name), graph.values[name].dtype)
    refused = {}
    for node in graph.nodes:
        try:
            _rule(node)(node, Emitter(node, graph, draft))
        except NotLowerableError as error:
            refused[node.name] = f"{node.operator} (node {node.name!r}: {error})"
    if refused:
        raise _RefusedError(refused)
    inputs = {name: name for name in graph.inputs}
    outputs = dict(zip(graph.output_names, graph.outputs, strict=True))
    return write(_pruned(draft, graph), inputs, outputs)


def _rule(node: Node) -> Lowering:
    if node.operator not in OPERATORS:
        raise NotLowerableError("it could not be folded away")
    return OPERATORS[node.operator]


def _pruned(draft: Draft, graph: Graph) -> Draft:
    """Without the tensors that no operator uses."""
    used = {*graph.inputs, *graph.outputs}
    for operator in draft.operators:
        used.update(operator.inputs, operator.outputs)
    tensors = {name: tensor for name, tensor in draft.tensors.items() if name in used}
    return Draft(tensors, draft.operators)


def _lowered(graph: Graph, content: bytes) -> Lowered:
    return Lowered(
        content,
        inputs=tuple(_described(graph, name, name) for name in graph.inputs),
        outputs=tuple(
            _described(graph, public, name) for public, name in zip(graph.output_names, graph.outputs, strict=True)
        ),
    )


def _described(graph: Graph, public: str, name: str) -> LoweredTensor:
    stored, layout = graph.shape(name), graph.layouts.get(name)
    shape = stored if layout is None else permuted(stored, inverse(layout))
    return LoweredTensor(public, graph.dtype(name), shape, layout)
