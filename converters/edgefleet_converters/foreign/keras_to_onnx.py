"""A Keras file or a SavedModel becomes an ONNX file, in an environment with TensorFlow, Keras 3, tf_keras and tf2onnx.

Inputs keep their layout (NHWC) and get a batch of 1. Code that a model file carries is looked for before anything is
loaded, and is not run unless `trust` is set.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

OPSET = 17
# Layers that carry Python bytecode.
_CODE = ("Lambda", "__lambda__")
# Parts of names of TensorFlow functions that a TFOpLambda layer may not call: they reach outside the model.
_REACHING_OUT = ("io", "py_func", "py_function", "numpy_function", "raw_ops", "load_op_library", "load_library")
# Operators of a graph that run code, or read and write files of its own choosing.
_FOREIGN_OPERATORS = ("PyFunc", "PyFuncStateless", "EagerPyFunc", "ReadFile", "WriteFile", "MatchingFiles")
_MODULES = ("keras", "tf_keras", "tensorflow", "builtins", "")


class _RefusedError(Exception):
    """What was found and what to do, for the person."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.found, self.remedy = found, remedy


def convert(job: dict[str, Any]) -> dict[str, Any]:
    """`model`, `output`, `shapes` (input name → sizes) and `trust` in; names in the source's order out.

    `refused` is [what was found, what to do] where the model cannot be taken as it is.
    """
    try:
        inputs, outputs = _convert(Path(job["model"]), Path(job["output"]), job["shapes"], trust=job["trust"])
    except _RefusedError as error:
        return {"inputs": [], "outputs": [], "refused": [error.found, error.remedy]}
    return {"inputs": inputs, "outputs": outputs, "refused": None}


def _convert(model: Path, output: Path, shapes: dict[str, list[int]], *, trust: bool) -> tuple[list[str], list[str]]:
    function, signature, outputs = (_saved_model if model.is_dir() else _keras)(model, trust=trust)
    import tensorflow as tf  # noqa: PLC0415 - after the file was looked at
    import tf2onnx  # noqa: PLC0415 - the same

    wanted = [tf.TensorSpec(_static(name, shape, shapes), dtype, name=name) for name, shape, dtype in signature]
    unknown = set(shapes) - {name for name, _, _ in signature}
    if unknown:
        listed = ", ".join(name for name, _, _ in signature)
        raise _RefusedError(f"--shape {min(unknown)}: the model has no such input", f"its inputs are: {listed}")
    proto, _ = tf2onnx.convert.from_function(tf.function(function), wanted, opset=OPSET)
    named = _rename_outputs(proto, outputs)
    output.write_bytes(proto.SerializeToString())
    return [name for name, _, _ in signature], named


def _static(name: str, shape: list[int | None], shapes: dict[str, list[int]]) -> list[int]:
    """The shape asked for, else the model's own with a batch of 1."""
    asked = shapes.get(name)
    shown = f"[{', '.join('?' if size is None else str(size) for size in shape)}]"
    if asked is not None:
        if len(asked) != len(shape) or any(old not in (None, new) for old, new in zip(shape, asked, strict=True)):
            found = f"--shape {name}={','.join(map(str, asked))} does not fit"
            raise _RefusedError(found, f"the model's input is {shown}")
        return list(asked)
    found_sizes = [1 if axis == 0 and size is None else size for axis, size in enumerate(shape)]
    if None in found_sizes:
        raise _RefusedError(f"input {name!r} has the shape {shown}", f"give it with --shape {name}=1,…")
    return [size for size in found_sizes if size is not None]


def _rename_outputs(proto: Any, names: list[str]) -> list[str]:
    """Give the graph's outputs the model's own names where these are free; returns the names that they have now."""
    from onnx import helper  # noqa: PLC0415 - after the file was looked at

    taken = {item.name for item in (*proto.graph.input, *proto.graph.initializer)}
    taken |= {name for node in proto.graph.node for name in node.output}
    given = []
    for item, name in zip(proto.graph.output, names, strict=True):
        free = name
        while free in taken:
            free += "_out"
        proto.graph.node.append(helper.make_node("Identity", [item.name], [free]))
        item.name = free
        taken.add(free)
        given.append(free)
    return given


# ---- Keras files


def _keras(path: Path, *, trust: bool) -> tuple[Any, list[tuple[str, Any, Any]], list[str]]:
    try:
        version, config = _keras_config(path)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise _RefusedError(f"not a readable Keras file ({error})", "save it with model.save('model.keras')") from error
    if not trust:
        _refuse_code(config)
    model = _load_keras(path, version, trust=trust)
    outputs = [str(name) for name in getattr(model, "output_names", None) or ["output"]]
    tensors = model.inputs
    if not tensors:
        raise _RefusedError("the model was never built, so its input shapes are unknown", "call it once and save again")
    names = [str(name) for name in getattr(model, "input_names", ())]
    if len(names) != len(tensors):
        names = [tensor.name.split(":")[0] for tensor in tensors]
    signature = [(name, list(tensor.shape), tensor.dtype) for name, tensor in zip(names, tensors, strict=True)]

    def run(*values: Any) -> list[Any]:
        found = model(list(values) if len(values) > 1 else values[0], training=False)
        return _flat(found)

    return run, signature, _distinct(outputs)


def _flat(found: Any) -> list[Any]:
    """Outputs in the model's order."""
    import tensorflow as tf  # noqa: PLC0415 - after the file was looked at

    return list(tf.nest.flatten(found))


def _distinct(names: list[str]) -> list[str]:
    """Names with a number behind those that come again."""
    return [name if names.index(name) == place else f"{name}_{place}" for place, name in enumerate(names)]


def _keras_config(path: Path) -> tuple[str, Any]:
    """Keras's version and the model's configuration, read without building anything."""
    import h5py  # noqa: PLC0415 - a SavedModel does not need it

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if not {"metadata.json", "config.json"} <= set(archive.namelist()):
                raise _RefusedError("not a Keras file (no config.json in it)", "save it with model.save('model.keras')")
            version = json.loads(archive.read("metadata.json")).get("keras_version", "3")
            return str(version), json.loads(archive.read("config.json"))
    if not h5py.is_hdf5(path):
        raise _RefusedError("neither a .keras nor an HDF5 file", "save it with model.save('model.keras')")
    with h5py.File(path, "r") as file:
        config = file.attrs.get("model_config")
        if config is None:
            raise _RefusedError(
                "it holds weights only, no model", "save the whole model with model.save('model.keras')"
            )
        return str(file.attrs.get("keras_version", "2")), json.loads(config)


def _refuse_code(config: Any) -> None:
    for entry in _entries(config):
        kind, inner = str(entry.get("class_name")), entry.get("config")
        name = inner.get("name", kind) if isinstance(inner, dict) else kind
        if kind in _CODE:
            found = f"the {kind.strip('_').capitalize()} layer {name!r} carries Python code, which is not run"
            raise _RefusedError(found, "replace it by layers, or give --trust if you trust whoever made the file")
        if kind in ("TFOpLambda", "SlicingOpLambda"):
            called = str(inner.get("function", "") if isinstance(inner, dict) else "").split(".")
            if any(part in _REACHING_OUT for part in called):
                found = f"the layer {name!r} calls {'.'.join(called)}, which reaches outside the model"
                raise _RefusedError(found, "give --trust if you trust whoever made the file")
        module = str(entry.get("module") or "").split(".")[0]
        registered = entry.get("registered_name")
        # Keras's own classes are in its modules, or registered under the name "Keras>…", or not at all.
        if module not in _MODULES or (registered and not entry.get("module") and not registered.startswith("Keras>")):
            found = f"{kind} ({name!r}) is a class of your own, and its code is not in the file"
            raise _RefusedError(found, "export the model to ONNX or as a SavedModel where the class is defined")


def _entries(config: Any) -> Iterator[dict[str, Any]]:
    """Every serialised object in a configuration."""
    if isinstance(config, dict):
        if "class_name" in config:
            yield config
        for value in config.values():
            yield from _entries(value)
    elif isinstance(config, list):
        for value in config:
            yield from _entries(value)


def _load_keras(path: Path, version: str, *, trust: bool) -> Any:
    """Files of Keras 1 and 2 through tf_keras: Keras 3 refuses what they say of DepthwiseConv2D, among others."""
    if version.split(".", maxsplit=1)[0] in ("1", "2"):
        import tf_keras as tool  # noqa: PLC0415 - one of the two is enough
    else:
        import keras as tool  # noqa: PLC0415 - the same
    try:
        return tool.models.load_model(path, compile=False, safe_mode=not trust)
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        found = f"Keras {version} saved it, and it cannot be loaded ({lines[0] if lines else type(error).__name__})"
        remedy = "export the model to ONNX or as a SavedModel where it was trained"
        raise _RefusedError(found, remedy) from error


# ---- SavedModel


def _saved_model(folder: Path, *, trust: bool) -> tuple[Any, list[tuple[str, Any, Any]], list[str]]:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # noqa: PLC0415 - Keras files do not need it
    from tensorflow.core.protobuf import saved_model_pb2  # noqa: PLC0415 - the same

    graph_file = folder / "saved_model.pb"
    try:
        described = saved_model_pb2.SavedModel.FromString(graph_file.read_bytes())
    except (OSError, DecodeError) as error:
        raise _RefusedError("no readable saved_model.pb in this folder", "give a SavedModel's folder") from error
    if not trust:
        _refuse_operators(described)
    import tensorflow as tf  # noqa: PLC0415 - after the file was looked at

    loaded = tf.saved_model.load(str(folder))
    chosen = _chosen_signature(list(loaded.signatures))
    called = loaded.signatures[chosen]
    _, by_name = called.structured_input_signature
    # The format keeps the names in a map, which has no order: the alphabet's it is.
    order = sorted(by_name)
    signature = [(name, _sizes(by_name[name].shape), by_name[name].dtype) for name in order]
    outputs = sorted(called.structured_outputs)

    def run(*values: Any) -> list[Any]:
        found = called(**dict(zip(order, values, strict=True)))
        return [found[name] for name in outputs]

    # TensorFlow frees the variables of a model that nobody holds.
    run.model = loaded  # type: ignore[attr-defined]
    return run, signature, outputs


def _chosen_signature(names: list[str]) -> str:
    if "serving_default" in names:
        return "serving_default"
    if len(names) == 1:
        return names[0]
    found = f"it has the signatures {', '.join(names)}" if names else "it has no signature"
    raise _RefusedError(found, "save it with one signature, called serving_default")


def _sizes(shape: Any) -> list[int | None]:
    if shape.rank is None:
        raise _RefusedError("an input has no shape at all", "save the model with the rank of its inputs")
    return list(shape)


def _refuse_operators(described: Any) -> None:
    for graph in described.meta_graphs:
        bodies = [graph.graph_def.node, *(function.node_def for function in graph.graph_def.library.function)]
        for node in (node for body in bodies for node in body):
            if node.op in _FOREIGN_OPERATORS:
                found = f"its operator {node.op} ({node.name!r}) runs code or reaches outside the model"
                raise _RefusedError(found, "give --trust if you trust whoever made it")
