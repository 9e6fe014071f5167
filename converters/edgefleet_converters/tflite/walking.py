"""What a walk over a model's nodes offers to those that write out control flow and sequences in their place.

The walk itself is in `expansion`; nothing here decides anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import onnx

from edgefleet_converters.tflite.evaluation import Known
from edgefleet_converters.tflite.graph import Array, Node, Value


@dataclass(slots=True)
class Scope:
    """The names that one body sees: its own name of each value → the value's name in the whole graph."""

    opsets: Mapping[str, int]
    prefix: str = ""
    names: dict[str, str] = field(default_factory=dict)

    def child(self, prefix: str) -> Scope:
        """Scope of a subgraph, which sees the outer names too."""
        return Scope(self.opsets, prefix, dict(self.names))


class Walk(Protocol):
    """The graph while it is being walked, by whole-graph names."""

    known: dict[str, Known]
    nodes: list[Node]
    sequences: dict[str, tuple[str, ...]]

    def value(self, name: str) -> Value:
        """Name, dtype and static shape of a value."""

    def constant(self, wanted: str, value: Array) -> str:
        """Record a constant under a free name like `wanted`, which is returned."""

    def sequence(self, wanted: str, elements: Iterable[str]) -> str:
        """Record a sequence of tensors under a free name like `wanted`, which is returned."""

    def know_initializers(self, graph: onnx.GraphProto, scope: Scope) -> None:
        """Record a subgraph's own constants in its scope."""

    def run(self, nodes: Iterable[onnx.NodeProto], scope: Scope) -> None:
        """Walk nodes in order; their outputs are in `scope` afterwards."""

    def run_body(self, graph: onnx.GraphProto, scope: Scope, arguments: Sequence[str]) -> list[str]:
        """Walk a subgraph on whole-graph names `arguments`; returns the names of its outputs."""


Control = Callable[[Walk, onnx.NodeProto, Scope, Sequence[str]], list[str] | None]
"""Writes out one node; the whole-graph names of its outputs, or None when it must stay as it is."""
