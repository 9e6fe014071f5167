"""The child's side of PyTorch intake: the model as a program with static shapes, and as ONNX, checked against it.

Imports torch at the top, so only child processes import this module.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from itertools import starmap
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import torch
from torch.utils import _pytree as pytree

from edgefleet.errors import InputError, UnsupportedError
from edgefleet.package.manifest import DType, TensorSpec
from edgefleet_converters.intake.torch_model import Model, open_model
from edgefleet_converters.intake.torch_program import ONNX_FILE, PROGRAM_FILE, Exported, ExportJob

OPSET = 18
"""What torch writes its operators in: any other is converted from it. TensorRT 8 does not know Gelu of opset 20."""
LARGEST_DIFFERENCE = 1e-4
"""Between torch and the ONNX form on the example inputs; more is said to the person."""
_STATIC = "give tensors only as inputs and outputs"


def export_model(text: str) -> Exported:
    """Write a job's PROGRAM_FILE and ONNX_FILE; raises InputError or UnsupportedError."""
    job = ExportJob.model_validate_json(text)
    doing = f"reading the model {job.model}"
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    program = _fixed(open_model(job, doing), job, doing)
    inputs, outputs = _inputs(program, doing), _outputs(program, doing)
    torch.export.save(program, job.work / PROGRAM_FILE)
    model = _onnx(program, [spec.name for spec in inputs], [spec.name for spec in outputs], doing)
    onnx.save(model, job.work / ONNX_FILE)
    return Exported(inputs=inputs, outputs=outputs, notes=_compared(program, model, inputs, outputs))


def arguments(program: Any, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Tensors in the order of the program's inputs, as the arguments that its module is called with."""
    args, kwargs = pytree.tree_unflatten(list(tensors), program.call_spec.in_spec)
    return args, kwargs


def _fixed(model: Model, job: ExportJob, doing: str) -> Any:
    """The program with every size a number: those asked for, the example's, and 1 for a symbolic batch."""
    program = model.program or _exported(model.module, model.args, model.kwargs, doing)
    values = {name: _value(program, name, doing) for name in program.graph_signature.user_inputs}
    unknown = [name for name in job.shapes if name not in values]
    if unknown:
        raise InputError(doing, f"it has no input {unknown[0]!r}", f"its inputs are {', '.join(values)}")
    shapes = _sizes(values, job, doing)
    example = pytree.tree_leaves(program.example_inputs) if program.example_inputs else [None] * len(values)
    tensors = [
        _resized(tensor, value, shape) for tensor, value, shape in zip(example, values.values(), shapes, strict=True)
    ]
    if all(tuple(value.shape) == shape for value, shape in zip(values.values(), shapes, strict=True)):
        program.example_inputs = arguments(program, tensors)
        return program
    return _exported(model.module, *arguments(program, tensors), doing)


def _row_major(tensor: Any) -> Any:
    """The same numbers with the strides of a new tensor: devices feed such, and a program remembers its example's.

    ExecuTorch takes an image with one channel and a view's strides for channels-last, and then fails when it runs.
    """
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)


def _exported(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None, doing: str) -> Any:
    args, kwargs = pytree.tree_map_only(torch.Tensor, _row_major, (args, kwargs))
    try:
        return torch.export.export(module, args, kwargs)
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        found = f"torch.export cannot follow it ({type(error).__name__}: {first.strip()})"
        remedy = "check that it runs on inputs of these sizes, and take out what depends on their values"
        raise UnsupportedError(doing, found, remedy) from error


def _value(program: Any, name: object, doing: str) -> Any:
    """The tensor without data that torch.export traced for an input."""
    value = next((node.meta.get("val") for node in program.graph.nodes if node.name == name), None)
    if not isinstance(value, torch.Tensor):
        raise UnsupportedError(doing, f"its input {name!r} is not a tensor, and is fixed in the export", _STATIC)
    return value


def _sizes(values: dict[str, Any], job: ExportJob, doing: str) -> list[tuple[int, ...]]:
    """Static shapes by the rule of all intake: what was asked for, and 1 for a symbolic first axis."""
    free: list[str] = []
    shapes = [job.shapes.get(name) or _shape(name, value, job.dims, free) for name, value in values.items()]
    symbols = {str(axis) for value in values.values() for axis in value.shape if not isinstance(axis, int)}
    unknown = [name for name in job.dims if name not in symbols]
    if unknown:
        found = f"it has no symbolic size {unknown[0]!r} (there are: {', '.join(sorted(symbols)) or 'none'})"
        raise InputError(doing, found, "give --shape NAME=1,3,224,224")
    if free:
        raise InputError(doing, f"free sizes: {', '.join(free)}", "give --shape NAME=1,3,224,224")
    return shapes


def _shape(name: str, value: Any, dims: dict[str, int], free: list[str]) -> tuple[int, ...]:
    sizes = []
    for place, axis in enumerate(value.shape):
        if not isinstance(axis, int) and place and str(axis) not in dims:
            free.append(f"axis {place} of {name!r} ({axis})")
        sizes.append(axis if isinstance(axis, int) else dims.get(str(axis), 1))
    return tuple(sizes)


def _resized(tensor: Any, value: Any, shape: tuple[int, ...]) -> Any:
    """The example repeated or cut to a shape, so that its values stay ones that the model knows.

    Without an example: seeded normal numbers, and zeros for other types.
    """
    if tensor is None or tensor.dim() != len(shape) or 0 in tensor.shape:
        generator = torch.Generator().manual_seed(0)
        made = torch.randn(shape, generator=generator) if value.is_floating_point() else torch.zeros(shape)
        return made.to(value.dtype)
    for axis, size in enumerate(shape):
        tensor = tensor.index_select(axis, torch.arange(size) % tensor.shape[axis])
    return tensor.detach()


def _inputs(program: Any, doing: str) -> tuple[TensorSpec, ...]:
    names = program.graph_signature.user_inputs
    return tuple(_spec(str(name), _value(program, name, doing), doing) for name in names)


def _outputs(program: Any, doing: str) -> tuple[TensorSpec, ...]:
    """The keys of a model that returns a dict or the like; else `output`, or `output_0` and so on."""
    places = range(program.call_spec.out_spec.num_leaves)
    paths, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(places, program.call_spec.out_spec))
    names = ["_".join(_part(key) for key in path) or "output" for path, _ in paths]
    names = [f"output_{name}" if name[0].isdigit() else name for name in names]
    nodes = {node.name: node for node in program.graph.nodes}
    values = [nodes[name].meta.get("val") if name in nodes else name for name in program.graph_signature.user_outputs]
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, torch.Tensor):
            raise UnsupportedError(doing, f"its output {name!r} is {value!r}, not a tensor", _STATIC)
    return tuple(starmap(lambda name, value: _spec(name, value, doing), zip(names, values, strict=True)))


def _part(key: Any) -> str:
    """A step of the way to a leaf, as a word: a dict's key, a field, or a place in a sequence."""
    for field in ("key", "name", "idx"):
        if hasattr(key, field):
            return str(getattr(key, field))
    return str(key)


def _spec(name: str, value: Any, doing: str) -> TensorSpec:
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in get_args(DType):
        raise UnsupportedError(doing, f"{name!r} is {dtype}", "use numbers of a usual type at its borders")
    return TensorSpec.model_validate({"name": name, "dtype": dtype, "shape": tuple(value.shape)})


def _onnx(program: Any, inputs: list[str], outputs: list[str], doing: str) -> onnx.ModelProto:
    """The program as ONNX, without the notes on the person's source files that torch writes into it."""
    try:
        exported = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=inputs, output_names=outputs, verbose=False
        )
        model: onnx.ModelProto = exported.model_proto
    except Exception as error:
        cause = error.__cause__ or error
        first = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        found = f"torch.onnx cannot express it ({first.strip()})"
        raise UnsupportedError(doing, found, "replace that operator, or export the model as ONNX yourself") from error
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for item in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        item.doc_string = ""
        del item.metadata_props[:]
    return model


def _compared(
    program: Any, model: onnx.ModelProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> tuple[str, ...]:
    """What to say about the ONNX form: nothing where it gives torch's own numbers on the example inputs."""
    tensors = pytree.tree_leaves(program.example_inputs)
    args, kwargs = program.example_inputs
    with torch.no_grad():
        expected = pytree.tree_leaves(program.module()(*args, **kwargs))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {spec.name: tensor.numpy() for spec, tensor in zip(inputs, tensors, strict=True)}
    found = session.run([spec.name for spec in outputs], feeds)
    notes = []
    for spec, mine, tensor in zip(outputs, found, expected, strict=True):
        theirs = tensor.numpy()
        difference = float(np.abs(np.subtract(mine, theirs, dtype=np.float64)).max(initial=0))
        if not difference <= LARGEST_DIFFERENCE:
            largest = float(np.abs(theirs.astype(np.float64)).max(initial=0))
            notes.append(
                f"the ONNX form of output {spec.name!r} differs from torch by up to {difference:.3g} "
                f"on the example inputs, where it reaches {largest:.3g}"
            )
    return tuple(notes)
