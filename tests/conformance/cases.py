"""The cases: ONNX's node tests in memory, with the inputs that a committed table names frozen to constants."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.backend.test.loader import load_node_model_tests

Array = NDArray[np.generic]
_TABLE = Path(__file__).with_name("cases.json")
_EXPANDED = re.compile(r"_expanded(_ver\d+)?$")


@dataclass(frozen=True, slots=True)
class Case:
    """One node test: its model with frozen inputs as initializers, and data sets of (other inputs, outputs)."""

    name: str
    operator: str
    model: onnx.ModelProto
    data: tuple[tuple[tuple[Array, ...], tuple[Array, ...]], ...]


def load(only: str = "") -> list[Case]:
    """All cases whose name contains `only`, in the table's order; raises SystemExit for another onnx."""
    table = json.loads(_TABLE.read_text())
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = {test.name: test for test in load_node_model_tests()}
    if onnx.__version__ != table["onnx"] or len(found) != table["total"] or table["cases"].keys() - found.keys():
        raise SystemExit(f"the cases are those of onnx {table['onnx']}, this is {onnx.__version__} with {len(found)}")
    operators = {name: _operator(test.model) for name, test in found.items()}
    return [
        _case(found[name], operators.get(_EXPANDED.sub("", name), operators[name]), frozen)
        for name, frozen in table["cases"].items()
        if only in name
    ]


def _operator(model: onnx.ModelProto) -> str:
    """The operator under test: the one that is not there to feed or to read it."""
    kinds: list[str] = [node.op_type for node in model.graph.node]
    return next((kind for kind in kinds if kind not in ("Constant", "Identity")), kinds[0])


def _case(test: object, operator: str, frozen: Sequence[str]) -> Case:
    model = onnx.ModelProto()
    model.CopyFrom(test.model)  # type: ignore[attr-defined]
    names = [item.name for item in model.graph.input]
    sets = [([np.asarray(x) for x in given], [np.asarray(x) for x in wanted]) for given, wanted in test.data_sets]  # type: ignore[attr-defined]
    for name in frozen:
        model.graph.initializer.append(numpy_helper.from_array(sets[0][0][names.index(name)], name))
    kept = [position for position, name in enumerate(names) if name not in frozen]
    free = [item for item in model.graph.input if item.name not in frozen]
    del model.graph.input[:]
    model.graph.input.extend(free)
    data = tuple((tuple(given[position] for position in kept), tuple(wanted)) for given, wanted in sets)
    return Case(test.name, operator, model, data)  # type: ignore[attr-defined]
