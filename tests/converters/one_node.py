"""Models of one node with any inputs, and one call that compares their lowering with a reference.

Inputs that are not named as constants are fed at run time; outputs have no declared types.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgefleet_converters.tflite import Lowered, lower

Array = NDArray[np.generic]


@dataclass(frozen=True)
class OneNode:
    """A node by its operator; `inputs` in order, None where one is absent, and the names of its outputs."""

    operator: str
    inputs: tuple[Array | None, ...]
    outputs: tuple[str, ...] = ("y",)
    opset: int = 22
    constant: Collection[int] = ()
    attributes: Mapping[str, object] = field(default_factory=dict)

    def fed(self) -> dict[str, Array]:
        """The inputs that are fed, by name."""
        return {
            f"i{position}": array
            for position, array in enumerate(self.inputs)
            if array is not None and position not in self.constant
        }

    def model(self) -> onnx.ModelProto:
        """The node as a model."""
        names = ["" if array is None else f"i{position}" for position, array in enumerate(self.inputs)]
        node = helper.make_node(self.operator, names, list(self.outputs), **self.attributes)
        fed = self.fed()
        graph = helper.make_graph(
            [node],
            "one",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
                for name, array in fed.items()
            ],
            [onnx.ValueInfoProto(name=name) for name in self.outputs if name],
            [
                numpy_helper.from_array(array, name)
                for name, array in zip(names, self.inputs, strict=True)
                if array is not None and name not in fed
            ],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)


def in_onnxruntime(case: OneNode) -> dict[str, Array]:
    """Outputs by ONNX Runtime."""
    session = onnxruntime.InferenceSession(case.model().SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, case.fed()), strict=True))


def in_reference(case: OneNode) -> dict[str, Array]:
    """Outputs by ONNX's own reference implementation."""
    with np.errstate(all="ignore"):
        found = ReferenceEvaluator(case.model()).run(None, case.fed())
    return dict(zip([name for name in case.outputs if name], found, strict=True))


def in_litert(case: OneNode) -> tuple[Lowered, dict[str, Array]]:
    """The lowered file, with its layout kept, and its outputs."""
    lowered = lower(case.model(), keep_layout=True)
    interpreter = Interpreter(model_content=lowered.content, num_threads=1)
    return lowered, interpreter.get_signature_runner()(**case.fed())


def assert_equal(case: OneNode, expected: Mapping[str, Array], tolerance: float = 1e-5) -> Lowered:
    """LiteRT computes what is expected, in shape, type and value."""
    lowered, found = in_litert(case)
    assert sorted(found) == sorted(expected)
    for name, want in expected.items():
        assert (found[name].shape, found[name].dtype) == (want.shape, want.dtype)
        got, exact = found[name].astype(np.float64), want.astype(np.float64)
        np.testing.assert_allclose(got, exact, rtol=tolerance, atol=tolerance, err_msg=name)
    return lowered
