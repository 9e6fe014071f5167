"""What a model costs wherever it runs: per layer arithmetic, parameters and activations, and the memory of all.

Pure: reads a graph and runs nothing. How long it takes on a device is `roofline`'s business; whether it is accurate
there, the gate's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from edgefleet.errors import UnsupportedError
from edgefleet_converters.operator_work import COUNTED, FUSED, LOOKUPS, PRODUCTS, VIEWS, is_counted, macs, operations
from edgefleet_converters.tflite.graph import Graph, Node, NotLowerableError
from edgefleet_converters.tflite.importer import Source, import_model, part
from edgefleet_device_profiles.profile import Precision, Profile
from edgefleet_device_profiles.roofline import LayerWork, Widths, predict, widths

_FLOATS = frozenset({"bfloat16", "float16", "float32", "float64"})


@dataclass(frozen=True, slots=True)
class Extent:
    """Size of tensors: numbers that a precision may narrow, and bytes of the rest."""

    floats: int = 0
    fixed_bytes: int = 0

    def __add__(self, other: Extent) -> Extent:
        return Extent(self.floats + other.floats, self.fixed_bytes + other.fixed_bytes)

    def __sub__(self, other: Extent) -> Extent:
        return Extent(self.floats - other.floats, self.fixed_bytes - other.fixed_bytes)


@dataclass(frozen=True, slots=True)
class Layer:
    """One operator, with those that a runtime folds into it; `live` is all that must be in memory while it runs."""

    name: str
    operators: tuple[str, ...]
    macs: int
    parameters: int
    work: LayerWork
    live: Extent


@dataclass(frozen=True, slots=True)
class Analysis:
    """All layers in the order in which they run, and the constants, each counted once however often it is read.

    `notes` say what could not be counted.
    """

    layers: tuple[Layer, ...]
    parameters: int
    weights: Extent
    notes: tuple[str, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        return sum(layer.macs for layer in self.layers)

    def weight_bytes(self, bits: Widths) -> int:
        """What the weights take on disk and in memory."""
        return bits.weight_bytes(self.weights.floats, self.weights.fixed_bytes)

    def activation_bytes(self, bits: Widths) -> int:
        """Most bytes of activations that are alive at once, in the order of the file; nothing computed in place."""
        alive = (bits.activation_bytes(layer.live.floats, layer.live.fixed_bytes) for layer in self.layers)
        return max(alive, default=0)


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a model can be on a device: the limit that it breaks by most, or comes nearest to, in `unit`."""

    ok: bool
    limit: str
    need: float
    have: float
    unit: str


def analyze(model: onnx.ModelProto | Source) -> Analysis:
    """Analyse a checked model whose inputs have static shapes; raises UnsupportedError where it has no such graph."""
    try:
        # Operators without a row are opened into their function bodies, which have rows.
        graph = import_model(part(model), COUNTED).graph
    except NotLowerableError as error:
        remedy = "export the model with dense tensors as its inputs and weights"
        raise UnsupportedError("analysing the model", str(error), remedy) from error
    groups, roots = _groups(graph), _roots(graph)
    alive = _alive(graph, groups, roots)
    layers = tuple(_layer(graph, group, roots, live) for group, live in zip(groups, alive, strict=True))
    read = {name for node in graph.nodes for name in node.inputs if name in graph.constants}
    return Analysis(
        layers,
        sum(_elements(graph, name) for name in read if _is_parameter(graph, name)),
        sum((_constant_extent(graph, name) for name in read), Extent()),
        tuple(_notes(graph)),
    )


def fits(analysis: Analysis, profile: Profile, precision: Precision) -> Fit:
    """Hold the least that a model needs in a precision against the profile's limits.

    Memory is the weights and the activations alive at once, without the runtime's own; a microcontroller reads its
    weights from flash, so only activations are in its arena. Latency is the roofline's lower bound, and energy what
    the idle device draws in that time. Limits that the profile does not state are none.
    """
    found = _limits(analysis, profile, precision)
    return max(found, key=lambda fit: fit.need / fit.have if fit.have > 0 else math.inf)


def _limits(analysis: Analysis, profile: Profile, precision: Precision) -> Iterator[Fit]:
    """Every limit that the profile states, memory always among them."""
    bits = widths(profile, precision)
    weights, activations = analysis.weight_bytes(bits), analysis.activation_bytes(bits)
    budget, storage = profile.budget, profile.storage
    memory = activations if budget.arena_kib is not None else weights + activations
    yield _fit("memory", memory / 2**20, profile.memory.usable_mib, "MiB")
    if storage.total_mib is not None:
        yield _fit("storage", weights / 2**20, storage.total_mib - storage.free_floor_mib, "MiB")
    if budget.arena_kib is not None:
        yield _fit("arena", activations / 2**10, budget.arena_kib, "KiB")
    if budget.size_mib is not None:
        yield _fit("size budget", weights / 2**20, budget.size_mib, "MiB")
    if budget.memory_mib is not None:
        yield _fit("memory budget", memory / 2**20, budget.memory_mib, "MiB")
    predicted = predict((layer.work for layer in analysis.layers), profile, precision)
    if predicted is not None and budget.latency_ms is not None:
        yield _fit("latency budget", predicted.time_s * 1e3, budget.latency_ms, "ms")
    if predicted is not None and budget.energy_mj is not None:
        yield _fit("energy budget", predicted.time_s * profile.power.idle_w * 1e3, budget.energy_mj, "mJ")


def _fit(limit: str, need: float, have: float, unit: str) -> Fit:
    return Fit(need <= have, limit, need, have, unit)


def _groups(graph: Graph) -> list[list[Node]]:
    """The nodes in order, each product together with the elementwise tail that runtimes fuse into it."""
    consumers = graph.consumers()
    groups: list[list[Node]] = []
    tails: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.operator in VIEWS:
            continue
        flowing = [name for name in node.inputs if name and name not in graph.constants]
        group = tails.pop(flowing[0], None) if len(flowing) == 1 and node.operator in FUSED else None
        if group is not None and graph.sole_consumer(flowing[0], consumers) is node:
            group.append(node)
        else:
            group = [node]
            groups.append(group)
        if group[0].operator in PRODUCTS:
            tails[node.output(0)] = group
    return groups


def _roots(graph: Graph) -> dict[str, str]:
    """The output of a view → the value whose memory it is."""
    roots: dict[str, str] = {}
    for node in graph.nodes:
        if node.operator in VIEWS:
            roots[node.output(0)] = roots.get(node.input(0), node.input(0))
    return roots


def _reads(graph: Graph, group: Sequence[Node], roots: Mapping[str, str]) -> list[str]:
    """Values that flow into a group, each once."""
    inner = {node.output(0) for node in group[:-1]}
    names = (roots.get(name, name) for node in group for name in node.inputs if name and name not in inner)
    return [name for name in dict.fromkeys(names) if name not in graph.constants]


def _writes(group: Sequence[Node]) -> list[str]:
    inner = {node.output(0) for node in group[:-1]}
    return [name for node in group for name in node.outputs if name and name not in inner]


def _alive(graph: Graph, groups: Sequence[Sequence[Node]], roots: Mapping[str, str]) -> list[Extent]:
    """What is in memory while each group runs: what it reads and writes, and what a later one or the caller reads."""
    last = {name: place for place, group in enumerate(groups) for name in _reads(graph, group, roots)}
    for place, group in enumerate(groups):
        for name in _writes(group):
            last.setdefault(name, place)
    asked = (roots.get(name, name) for name in graph.outputs)
    last.update({name: len(groups) for name in asked if name not in graph.constants})
    freed: dict[int, Extent] = {}
    for name, place in last.items():
        freed[place] = freed.get(place, Extent()) + _extent(graph, name)
    now = sum((_extent(graph, name) for name in graph.inputs if name in last), Extent())
    found = []
    for place, group in enumerate(groups):
        now = sum((_extent(graph, name) for name in _writes(group)), now)
        found.append(now)
        now -= freed.get(place, Extent())
    return found


def _layer(graph: Graph, group: Sequence[Node], roots: Mapping[str, str], live: Extent) -> Layer:
    constants = dict.fromkeys(name for node in group for name in node.inputs if name in graph.constants)
    moved = sum((_extent(graph, name) for name in _writes(group)), Extent())
    weights = Extent()
    looked_up = roots.get(group[0].input(0), group[0].input(0)) if group[0].operator in LOOKUPS else ""
    # The rows that a lookup reads are as many as it writes.
    for name in constants:
        weights += moved if name == looked_up else _constant_extent(graph, name)
    moved = sum((moved if name == looked_up else _extent(graph, name) for name in _reads(graph, group, roots)), moved)
    return Layer(
        name=group[0].name,
        operators=tuple(node.operator for node in group),
        macs=sum(_static(macs, node, graph) for node in group),
        parameters=sum(_elements(graph, name) for name in constants if _is_parameter(graph, name)),
        work=LayerWork(
            sum(_static(operations, node, graph) for node in group),
            weights.floats,
            moved.floats,
            weights.fixed_bytes,
            moved.fixed_bytes,
        ),
        live=live,
    )


def _extent(graph: Graph, name: str) -> Extent:
    """A value's size; nothing where its shape is not static, which a note says."""
    shape = graph.values[name].shape
    return Extent() if shape is None else _sized(math.prod(shape), graph.values[name].dtype, narrows=True)


def _constant_extent(graph: Graph, name: str) -> Extent:
    """A constant's size; every precision leaves vectors and scalars, such as biases, as they are."""
    array = graph.constants[name]
    return _sized(array.size, str(array.dtype), narrows=array.ndim > 1)


def _sized(elements: int, dtype: str, *, narrows: bool) -> Extent:
    if dtype in _FLOATS and narrows:
        return Extent(elements)
    known = np.dtype(dtype).itemsize if dtype in np.sctypeDict else 1
    return Extent(0, elements * (4 if dtype in _FLOATS else known))


def _elements(graph: Graph, name: str) -> int:
    return int(graph.constants[name].size)


def _is_parameter(graph: Graph, name: str) -> bool:
    """Whether a constant was learnt, or made of what was: not a scalar of a formula, and no shape or index."""
    array = graph.constants[name]
    return array.ndim > 0 and str(array.dtype) not in ("bool", "int64", "object")


def _static(count: Callable[[Node, Graph], int], node: Node, graph: Graph) -> int:
    try:
        return count(node, graph)
    except NotLowerableError:
        return 0


def _notes(graph: Graph) -> Iterator[str]:
    unknown = sorted({node.operator for node in graph.nodes if not is_counted(node.operator)})
    if unknown:
        yield f"not counted, but for the bytes they read and write: {', '.join(unknown)}"
    shapeless = [name for node in graph.nodes for name in node.outputs if name and graph.values[name].shape is None]
    if shapeless:
        yield f"{len(shapeless)} values have no static shape and count as empty, first of all {shapeless[0]!r}"
