"""A quantised file's operators with who writes and who reads each tensor, for the passes that run after the quantiser.

Holds ModelT objects of the schema, which the passes change in place; decides nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ai_edge_litert import schema_py_generated as schema

_BUILTIN_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}


@dataclass(slots=True, eq=False)
class Wiring:
    """A SubGraphT of `model`; `writer` and `readers` are by tensor index and follow the passes' changes."""

    model: Any
    table: Any
    names: list[str]
    writer: dict[int, Any] = field(default_factory=dict)
    readers: dict[int, list[Any]] = field(default_factory=dict)

    def name(self, operator: Any) -> str:
        """BuiltinOperator name."""
        return str(self.names[operator.opcodeIndex])

    def is_int8(self, tensor: int) -> bool:
        """Whether a tensor is stored as int8."""
        return bool(self.table.tensors[tensor].type == schema.TensorType.INT8)

    def is_result(self, tensor: int) -> bool:
        """Whether the model returns a tensor."""
        return tensor in map(int, self.table.outputs)

    def code(self, name: str) -> int:
        """Index of an operator's code by its BuiltinOperator name; added where the file has none."""
        if name not in self.names:
            code = schema.OperatorCodeT()
            code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
            self.model.operatorCodes.append(code)
            self.names.append(name)
        return self.names.index(name)

    def remove(self, gone: Sequence[Any]) -> None:
        """Take operators out of the subgraph's list, once nobody reads what they wrote."""
        places = set(map(id, gone))
        self.table.operators = [operator for operator in self.table.operators if id(operator) not in places]


def wirings(model: Any) -> Iterator[Wiring]:
    """Every subgraph of a ModelT."""
    names = [_BUILTIN_NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes]
    for table in model.subgraphs:
        found = Wiring(model, table, names)
        for operator in table.operators:
            found.writer.update((int(index), operator) for index in operator.outputs)
            for index in operator.inputs:
                found.readers.setdefault(int(index), []).append(operator)
        yield found
