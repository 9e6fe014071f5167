"""The lowering as a whole: an ONNX model becomes the bytes of a TFLite file and its inputs and outputs.

Does not quantise, and loads nothing but onnx, numpy and the TFLite schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import onnx

from edgefleet.errors import UnsupportedError
from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Draft
from edgefleet_converters.tflite.graph import Graph, Node, NotLowerableError, inverse, permuted
from edgefleet_converters.tflite.importer import Source, import_model, part
from edgefleet_converters.tflite.operators import FOLDED, OPERATORS
from edgefleet_converters.tflite.operators.contract import Lowering
from edgefleet_converters.tflite.operators.control import UNSETTLED
from edgefleet_converters.tflite.operators.detection import bound_selections
from edgefleet_converters.tflite.passes.activations import fuse_activations
from edgefleet_converters.tflite.passes.attention_forms import fold_attention_scale, keep_rows_last
from edgefleet_converters.tflite.passes.attention_guards import move_guards
from edgefleet_converters.tflite.passes.attention_masks import sum_masks
from edgefleet_converters.tflite.passes.clipping import name_clipping
from edgefleet_converters.tflite.passes.duplicates import drop_duplicates
from edgefleet_converters.tflite.passes.expansions import sink_expansions
from edgefleet_converters.tflite.passes.gains import part_gains
from edgefleet_converters.tflite.passes.hardswish import name_hard_swish
from edgefleet_converters.tflite.passes.int8_forms import int8_forms
from edgefleet_converters.tflite.passes.int8_maps import convolve_maps
from edgefleet_converters.tflite.passes.int8_masks import select_masks
from edgefleet_converters.tflite.passes.layout import assign_layouts
from edgefleet_converters.tflite.passes.layout_table import MARK, channels_last
from edgefleet_converters.tflite.passes.liveness import needed
from edgefleet_converters.tflite.passes.projections import part_projections
from edgefleet_converters.tflite.passes.recognise import recognise
from edgefleet_converters.tflite.passes.reshapes import merge_reshapes
from edgefleet_converters.tflite.passes.scaling import fold_scaling
from edgefleet_converters.tflite.passes.shared_heads import share_heads
from edgefleet_converters.tflite.passes.transposed_operands import absorb_transposes
from edgefleet_converters.tflite.passes.value_products import turn_values
from edgefleet_converters.tflite.runtime_versions import min_runtime_version
from edgefleet_converters.tflite.writer import write

CANONICAL: tuple[Callable[[Graph], Graph], ...] = (
    drop_duplicates,
    merge_reshapes,
    name_clipping,
    name_hard_swish,
    recognise,
    part_gains,
    fold_scaling,
    part_projections,
    share_heads,
    sink_expansions,
    move_guards,
    fold_attention_scale,
    fold_scaling,
    fuse_activations,
)
"""What comes between the import and layout assignment, in order."""

Layout = Literal["nchw", "nhwc"]
_RULED = frozenset((*OPERATORS, *FOLDED))
_DOING = "lowering the model to TFLite"
_SHAPELESS = "a result whose shape only its data decide"
_NO_LAYOUTS: Mapping[str, Layout] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class LoweredTensor:
    """An input or output of the file, described in the source's layout.

    `permutation` maps the source's axes to the file's (`file = source.transpose(permutation)`); None means the same.
    `bounded`: run-time data decide the length of the first axis, and `shape` has the largest that it can be.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    permutation: tuple[int, ...] | None = None
    bounded: bool = False


@dataclass(frozen=True, slots=True)
class Lowered:
    """A .tflite file, and its inputs and outputs by their source names, in the source's order."""

    content: bytes
    inputs: tuple[LoweredTensor, ...]
    outputs: tuple[LoweredTensor, ...]

    @property
    def min_runtime_version(self) -> str:
        """The first TensorFlow Lite release, in TensorFlow's numbering, that has all the file's operators."""
        return min_runtime_version(self.content)


class _RefusedError(Exception):
    """Nodes that their own rule cannot express: name → what is said of it."""

    def __init__(self, nodes: dict[str, str]) -> None:
        self.nodes = nodes
        super().__init__()


def lower(
    model: onnx.ModelProto | Source,
    *,
    keep_layout: bool = False,
    input_layout: Mapping[str, Layout] = _NO_LAYOUTS,
    int8: bool = False,
) -> Lowered:
    """Lower a model with static shapes; raises UnsupportedError naming everything that has no TFLite form.

    `keep_layout` leaves all inputs and outputs as in the source; `input_layout` decides it for single inputs. `int8`
    gives the float file the forms that stay on XNNPACK once it is quantised. A node whose own rule refuses it is
    lowered through its function body, if it has one.
    """
    asked = {name: layout == "nhwc" for name, layout in input_layout.items()}
    opened: frozenset[str] = frozenset()
    source = part(model)
    del model
    while True:
        try:
            imported = import_model(source, _RULED, opened)
            graph = _passed(imported.graph, asked, keep=keep_layout)
            graph = int8_forms(convolve_maps(select_masks(graph))) if int8 else sum_masks(graph)
            draft = _pruned(_drafted(graph), graph)
            break
        except NotLowerableError as error:
            raise _unsupported([str(error)]) from error
        except _RefusedError as refused:
            more = (refused.nodes.keys() & imported.openable) - opened
            if not more:
                raise _unsupported(list(refused.nodes.values())) from refused
            opened |= more
    # From here on only the draft holds the weights, and the writer lets go of each as it writes it.
    graph = replace(graph, constants={})
    del source, imported
    outputs = dict(zip(graph.output_names, graph.outputs, strict=True))
    bounded = frozenset(name for name, tensor in draft.tensors.items() if tensor.bounded)
    return _lowered(graph, write(draft, {name: name for name in graph.inputs}, outputs), bounded)


def _passed(graph: Graph, asked: Mapping[str, bool], *, keep: bool) -> Graph:
    strange = asked.keys() - set(graph.inputs)
    if strange:
        raise NotLowerableError(f"a layout for {sorted(strange)}, which the model does not have as an input")
    unknown = {
        node.name: f"{node.operator} (node {node.name!r})"
        for node in graph.nodes
        if node.operator not in OPERATORS and node.operator not in FOLDED
    }
    graph = bound_selections(graph)
    unknown = {**_shapeless(graph), **unknown}
    if unknown:
        raise _RefusedError({**_refused(graph), **unknown})
    return _arranged(graph, asked, keep=keep)


def _arranged(graph: Graph, asked: Mapping[str, bool], *, keep: bool) -> Graph:
    for step in CANONICAL:
        graph = step(graph)
    return keep_rows_last(turn_values(absorb_transposes(merge_reshapes(assign_layouts(graph, asked, keep=keep)))))


def _refused(graph: Graph) -> dict[str, str]:
    """What the rules refuse in a graph that cannot be lowered anyway, so that all of it is said at once."""
    kept = [node for node in graph.nodes if _is_static(graph, node)]
    read = {name for node in kept for name in node.inputs}
    ends = tuple(name for node in kept for name in node.outputs if name and name not in read)
    try:
        _drafted(_arranged(replace(graph, nodes=tuple(kept), outputs=ends, output_names=ends), {}, keep=True))
    except _RefusedError as refused:
        return refused.nodes
    except NotLowerableError:
        return {}
    return {}


def _shapeless(graph: Graph) -> dict[str, str]:
    """Nodes that make the first values without a static shape."""
    return {
        node.name: f"{node.operator} (node {node.name!r}: {UNSETTLED.get(node.operator, _SHAPELESS)})"
        for node in graph.nodes
        if _are_static(graph, node.inputs) and not _are_static(graph, node.outputs)
    }


def _is_static(graph: Graph, node: Node) -> bool:
    return _are_static(graph, (*node.inputs, *node.outputs))


def _are_static(graph: Graph, names: Sequence[str]) -> bool:
    values = [graph.values.get(name) for name in names if name and name not in graph.constants]
    return all(value is not None and value.shape is not None for value in values)


def _unsupported(found: list[str]) -> UnsupportedError:
    return UnsupportedError(
        _DOING,
        f"no TFLite form is known for {', '.join(found)}",
        "replace these operators in the model, or choose profiles that do not need litert",
    )


def _drafted(graph: Graph) -> Draft:
    draft = Draft()
    for name in (*graph.inputs, *(name for node in graph.nodes for name in node.outputs)):
        if name:
            draft.temporary(name, graph.shape(name), graph.values[name].dtype)
    refused = {}
    for node in graph.nodes:
        try:
            _rule(node)(node, Emitter(node, _seen_by(node, graph), draft))
        except NotLowerableError as error:
            refused[node.name] = f"{node.operator} (node {node.name!r}: {error})"
    if refused:
        raise _RefusedError(refused)
    return draft


def _seen_by(node: Node, graph: Graph) -> Graph:
    """The graph with the layouts that hold for one node: what it reads and writes channels-last by its mark.

    One tensor can stand for several values of the source, each with its own axes, so only the node can tell.
    """
    if MARK not in node.attributes:
        return replace(graph, layouts={})
    layout = channels_last(len(graph.shape(node.inputs[0])))
    return replace(graph, layouts={node.inputs[0]: layout, node.outputs[0]: layout})


def _rule(node: Node) -> Lowering:
    if node.operator not in OPERATORS:
        raise NotLowerableError("it could not be folded away")
    return OPERATORS[node.operator]


def _pruned(draft: Draft, graph: Graph) -> Draft:
    """Without the operators that no output needs, and the tensors that no operator uses."""
    operators = needed(draft.operators, graph.outputs)
    used = {*graph.inputs, *graph.outputs}
    for operator in operators:
        used.update(operator.inputs, operator.outputs)
    tensors = {name: tensor for name, tensor in draft.tensors.items() if name in used}
    return Draft(tensors, operators)


def _lowered(graph: Graph, content: bytes, bounded: frozenset[str]) -> Lowered:
    return Lowered(
        content,
        inputs=tuple(_described(graph, name, name) for name in graph.inputs),
        outputs=tuple(
            replace(_described(graph, public, name), bounded=name in bounded)
            for public, name in zip(graph.output_names, graph.outputs, strict=True)
        ),
    )


def _described(graph: Graph, public: str, name: str) -> LoweredTensor:
    stored, layout = graph.shape(name), graph.layouts.get(name)
    shape = stored if layout is None else permuted(stored, inverse(layout))
    return LoweredTensor(public, graph.dtype(name), shape, layout)
