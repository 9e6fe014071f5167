"""Finds the first tensor in which the lowered file differs from the source: for `--bisect`.

Looks at the float lowering only; a quantised file differs everywhere, a little.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx

from edgefleet.errors import UnsupportedError
from edgefleet_converters.conversion.check import TOLERANCES, Difference, compare
from edgefleet_converters.conversion.samples import Samples
from edgefleet_converters.conversion.source import without_weights
from edgefleet_converters.tflite import lower
from edgefleet_converters.tflite.lowering import Layout
from edgefleet_device_profiles.profile import Precision

NOTHING_FOUND = "no tensor differs"


def first_difference(
    model: onnx.ModelProto, feeds: Samples, *, keep_layout: bool, input_layout: Mapping[str, Layout], int8: bool
) -> str:
    """One line: the first tensor that differs, with its node and by how much; or that there is none.

    All tensors at once first. That takes operators apart that are fused otherwise, so if all of them agree, the model
    is cut at single tensors, and the first bad cut is found by halving. `int8` looks at the forms that int8 is made of.
    """
    names = _tensors(model)

    def differences(wanted: Sequence[str]) -> list[Difference]:
        with _outputs(model, wanted):
            lowered = lower(model, keep_layout=keep_layout, input_layout=input_layout, int8=int8)
            with tempfile.TemporaryDirectory(prefix="edgefleet-bisect-") as work:
                source, file = Path(work) / "cut.onnx", Path(work) / "cut.tflite"
                onnx.save(model, source)
                file.write_bytes(lowered.content)
                found = compare(source, file, (lowered.inputs, lowered.outputs), feeds)
        if found.without_reference:
            raise UnsupportedError("looking for the first difference", found.without_reference, "check the model")
        return [item for item in found.outputs if item.exceeds(TOLERANCES[Precision.FP32])]

    try:
        wrong = {item.name: item for item in differences(names)}
    except UnsupportedError:
        # Some tensor has no form as an output; the cuts go round it.
        wrong = {}
    first = next((wrong[name] for name in names if name in wrong), None) or _by_halving(names, differences)
    return f"first difference: {_named(model, first)}" if first else NOTHING_FOUND


def _by_halving(names: Sequence[str], measure: Callable[[Sequence[str]], list[Difference]]) -> Difference | None:
    """First tensor whose cut differs, if the last one's does."""
    if not (found := measure(names[-1:])):
        return None
    low, high = 0, len(names) - 1
    best: Difference = found[0]
    while low < high:
        middle = (low + high) // 2
        if found := measure([names[middle]]):
            best, high = found[0], middle
        else:
            low = middle + 1
    return best


def _tensors(model: onnx.ModelProto) -> list[str]:
    """Tensors with static types that the graph's own nodes compute, in order; the outputs are the last ones."""
    inferred = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    static = {
        item.name
        for item in (*inferred.value_info, *inferred.output)
        if item.type.HasField("tensor_type")
        and all(dim.HasField("dim_value") for dim in item.type.tensor_type.shape.dim)
    }
    outputs = [item.name for item in model.graph.output]
    computed = [name for node in model.graph.node if node.op_type != "Constant" for name in node.output]
    return [name for name in computed if name in static and name not in outputs] + outputs


@contextmanager
def _outputs(model: onnx.ModelProto, names: Sequence[str]) -> Iterator[None]:
    """The model with other outputs, for a while."""
    graph = model.graph
    own = [onnx.ValueInfoProto.FromString(item.SerializeToString()) for item in graph.output]
    known = {item.name: item for item in own}
    del graph.output[:]
    graph.output.extend(known.get(name, onnx.ValueInfoProto(name=name)) for name in names)
    try:
        yield
    finally:
        del graph.output[:]
        graph.output.extend(own)


def _named(model: onnx.ModelProto, difference: Difference) -> str:
    maker = next((node for node in model.graph.node if difference.name in node.output), None)
    made = f" of {maker.op_type} (node {maker.name!r})" if maker is not None else ""
    return f"{difference.name!r}{made}, {difference.text}"
