"""Gives every input a static shape: from `--shape` and `--dim`, and 1 for a symbolic first axis.

Never guesses another axis: all symbols that stay free are listed in one error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from edgefleet.errors import InputError
from edgefleet_converters.conversion.source import is_small, without_weights

_DOING = "fixing the input shapes"
Shapes = Mapping[str, tuple[int, ...]]


def fix_shapes(model: onnx.ModelProto, shapes: Shapes, dims: Mapping[str, int]) -> list[str]:
    """Make all input shapes of the model static, in place; returns what the person should be told."""
    inputs = _inputs(model)
    bound = _bound(inputs, shapes, dims)
    free, first = _symbols(inputs, bound)
    batch = {symbol: bound.get(symbol, 1) for symbol in first if symbol not in free}
    if free:
        listed = ", ".join(f"{symbol} of {where}" for symbol, where in free.items())
        raise InputError(_DOING, f"free sizes: {listed}", "give each with --dim SYMBOL=N or --shape NAME=1,3,224,224")
    notes = [f"the symbolic first axis {symbol!r} becomes 1" for symbol in batch if symbol not in bound]
    _substitute(model, {symbol: size for symbol, size in bound.items() if symbol not in batch})
    # Only now is the batch the one thing that is still symbolic, so that it can be followed through the graph.
    notes += _check_reshapes(model, batch)
    _substitute(model, batch)
    return notes


def _inputs(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Inputs that are fed at run time; axes without any name get one, so that they can be spoken of."""
    constants = {tensor.name for tensor in model.graph.initializer}
    found = {item.name: item for item in model.graph.input if item.name not in constants}
    for name, item in found.items():
        for axis, dim in enumerate(item.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value") and not dim.dim_param:
                dim.dim_param = f"{name}[{axis}]"
    return found


def _bound(inputs: Mapping[str, onnx.ValueInfoProto], shapes: Shapes, dims: Mapping[str, int]) -> dict[str, int]:
    """Sizes of symbols, from both options."""
    known = {dim.dim_param for item in inputs.values() for dim in item.type.tensor_type.shape.dim if dim.dim_param}
    for symbol in dims:
        if symbol not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise InputError(_DOING, f"--dim {symbol}: no input has this symbol", f"the model's symbols are: {listed}")
    bound = dict(dims)
    for name, sizes in shapes.items():
        if name not in inputs:
            listed = ", ".join(inputs)
            raise InputError(_DOING, f"--shape {name}: the model has no such input", f"its inputs are: {listed}")
        _unify(inputs[name], sizes, bound)
    return bound


def _unify(item: onnx.ValueInfoProto, sizes: tuple[int, ...], bound: dict[str, int]) -> None:
    """Bind the symbols of one input to the sizes asked for; raises InputError where they do not fit."""
    tensor = item.type.tensor_type
    given = f"--shape {item.name}={','.join(map(str, sizes))}"
    if not tensor.HasField("shape"):
        tensor.shape.CopyFrom(onnx.TensorShapeProto(dim=[onnx.TensorShapeProto.Dimension(dim_value=n) for n in sizes]))
        return
    declared = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
    shown = f"the model's input is [{', '.join(map(str, declared))}]"
    if len(declared) != len(sizes):
        raise InputError(_DOING, f"{given} has {len(sizes)} axes", shown)
    for axis, (old, new) in enumerate(zip(declared, sizes, strict=True)):
        found = bound.setdefault(old, new) if isinstance(old, str) else old
        if found != new:
            raise InputError(_DOING, f"{given}: axis {axis} is already {found}", shown)


def _symbols(
    inputs: Mapping[str, onnx.ValueInfoProto], bound: Mapping[str, int]
) -> tuple[dict[str, str], dict[str, None]]:
    """Symbols that nothing gives a size to → the inputs that have them; and those that are only ever first axes."""
    places: dict[str, list[tuple[str, int]]] = {}
    shapeless: dict[str, str] = {}
    for name, item in inputs.items():
        tensor = item.type.tensor_type
        if item.type.HasField("tensor_type") and not tensor.HasField("shape"):
            shapeless[f"the whole shape ({name})"] = f"input {name!r}"
        for axis, dim in enumerate(tensor.shape.dim):
            if dim.dim_param:
                places.setdefault(dim.dim_param, []).append((name, axis))
    first = {symbol: None for symbol, found in places.items() if all(axis == 0 for _, axis in found)}
    free = {
        symbol: ", ".join(f"input {name!r} axis {axis}" for name, axis in found)
        for symbol, found in places.items()
        if symbol not in bound and symbol not in first
    }
    return {**free, **shapeless}, first


def _substitute(model: onnx.ModelProto, sizes: Mapping[str, int]) -> None:
    graph = model.graph
    for item in (*graph.input, *graph.output, *graph.value_info):
        for dim in item.type.tensor_type.shape.dim:
            if dim.dim_param in sizes:
                dim.dim_value = sizes[dim.dim_param]


def _check_reshapes(model: onnx.ModelProto, batch: Mapping[str, int]) -> list[str]:
    """Look for a Reshape that was exported with another batch than the one chosen; it would mix the samples.

    Raises InputError where the elements cannot fit, or where a batch above 1 would be merged into another axis.
    """
    suspects = [(node, shape) for node, shape in _literal_reshapes(model) if shape[0] not in batch.values()]
    if not batch or not suspects:
        return []
    inferred = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    types = {item.name: item.type.tensor_type.shape.dim for item in (*inferred.input, *inferred.value_info)}
    notes = []
    for node, shape in suspects:
        axes = types.get(node.input[0], ())
        if not axes or axes[0].dim_param not in batch:
            continue
        size = batch[axes[0].dim_param]
        rest = [axis.dim_value for axis in axes[1:]]
        found = f"the Reshape {node.name or node.output[0]!r} has the literal batch {shape[0]} in {shape}, not {size}"
        remedy = f"give --dim {axes[0].dim_param}={shape[0]}, or export the model with a batch of {size}"
        if -1 not in shape:
            target = int(np.prod([rest[axis - 1] if n == 0 else n for axis, n in enumerate(shape)]))
            if all(rest) and target != size * int(np.prod(rest)):
                raise InputError(_DOING, found, remedy)
        elif size > 1:
            raise InputError(_DOING, found, remedy)
        else:
            notes.append(f"{found}: samples may be mixed")
    return notes


def _literal_reshapes(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, list[int]]]:
    """Reshapes by a constant shape that begins with a literal size."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants.update((node.output[0], item.t) for item in node.attribute if item.name == "value")
        elif node.op_type == "Reshape" and len(node.input) > 1 and is_small(constants.get(node.input[1])):
            shape = [int(size) for size in numpy_helper.to_array(constants[node.input[1]]).ravel()]
            if shape and shape[0] > 0:
                yield node, shape
