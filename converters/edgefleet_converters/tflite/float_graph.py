"""Float graph: a float file's operators by what they write and read, without unpacking its weights.

Decides nothing; `wiring` is for files that are changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from edgefleet_converters.tflite.delegation import operator_name


@dataclass(frozen=True, slots=True)
class FloatOperator:
    """Name, tensors that it reads and the first that it writes."""

    name: str
    inputs: tuple[int, ...]
    result: int


@dataclass(slots=True)
class FloatGraph:
    """A subgraph's operators in order, and by what they write and by what they read; `variable` is not constant."""

    table: Any
    operators: list[FloatOperator] = field(default_factory=list)
    writer: dict[int, FloatOperator] = field(default_factory=dict)
    readers: dict[int, list[FloatOperator]] = field(default_factory=dict)
    variable: set[int] = field(default_factory=set)

    def written(self, tensor: int, *names: str) -> FloatOperator | None:
        """The operator that writes a tensor, if it is one of these."""
        found = self.writer.get(tensor)
        return found if found is not None and found.name in names else None

    def tensor_name(self, tensor: int) -> str:
        """Name of a tensor in the file."""
        return str(self.table.Tensors(tensor).Name().decode())

    def is_float(self, tensor: int) -> bool:
        """Whether a tensor holds float32."""
        return bool(self.table.Tensors(tensor).Type() == schema.TensorType.FLOAT32)


def float_graphs(content: bytes) -> Iterator[FloatGraph]:
    """Every subgraph of a file."""
    model = schema.Model.GetRootAs(content)
    for at in range(model.SubgraphsLength()):
        yield _read(model, model.Subgraphs(at))


def _read(model: Any, table: Any) -> FloatGraph:
    graph = FloatGraph(table, variable={table.Inputs(at) for at in range(table.InputsLength())})
    for index in range(table.OperatorsLength()):
        stored = table.Operators(index)
        inputs = tuple(stored.Inputs(at) for at in range(stored.InputsLength()))
        results = [stored.Outputs(at) for at in range(stored.OutputsLength())]
        operator = FloatOperator(operator_name(model.OperatorCodes(stored.OpcodeIndex())), inputs, results[0])
        graph.operators.append(operator)
        graph.variable.update(results)
        graph.writer.update(dict.fromkeys(results, operator))
        for tensor in dict.fromkeys(inputs):
            graph.readers.setdefault(tensor, []).append(operator)
    return graph
