"""The lowering as a whole: the digits model, the file's form, what it loads, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx import helper

from converters.onnx_models import build, conv, in_litert, in_onnxruntime, operators
from edgefleet.errors import UnsupportedError
from edgefleet_converters.tflite import lower
from edgefleet_converters.tflite.operators import FOLDED, OPERATORS
from edgefleet_demo import digits

node = helper.make_node


def test_digits_model_agrees_with_onnxruntime_on_every_heldout_image(digits_data: digits.Digits) -> None:
    model = onnx.load(digits.model_path())
    lowered = lower(model)
    assert lowered.inputs[0].name == "image"
    assert lowered.inputs[0].shape == (1, 1, 8, 8)
    assert lowered.outputs[0].name == "logits"
    assert len(digits_data.heldout_x) == 540
    worst = 0.0
    for image in digits_data.heldout_x[:, np.newaxis]:
        found, expected = in_litert(lowered, image)["logits"], in_onnxruntime(model, image)["logits"]
        worst = max(worst, float(np.abs(found - expected).max()))
    assert worst <= 1e-4


def test_digits_model_has_no_transpose_left() -> None:
    assert "TRANSPOSE" not in operators(lower(onnx.load(digits.model_path())))


def test_the_same_model_gives_the_same_bytes() -> None:
    model = onnx.load(digits.model_path())
    assert lower(model).content == lower(model).content


def test_file_form() -> None:
    """Schema version, identifier, the signature's names, and 16-byte alignment of every buffer."""
    content = lower(conv(3, (8, 8), 5, (3, 3))).content
    assert content[4:8] == b"TFL3"
    model = schema.Model.GetRootAs(content)
    assert model.Version() == 3
    signature = model.SignatureDefs(0)
    assert signature.SignatureKey() == b"serving_default"
    assert signature.Inputs(0).Name() == b"x"
    assert signature.Outputs(0).Name() == b"y"
    sized = [model.Buffers(i) for i in range(model.BuffersLength()) if not model.Buffers(i).DataIsNone()]
    # Weights, bias, and the metadata's oldest runtime version.
    assert len(sized) == 3
    for buffer in sized:
        assert buffer._tab.Vector(buffer._tab.Offset(4)) % 16 == 0


def test_lowering_loads_no_other_toolchain() -> None:
    """In a process of its own, with constant folding exercised, which loads ONNX's reference evaluator."""
    code = """
        import sys
        import onnx
        from edgefleet_converters.tflite import lower
        from edgefleet_demo import digits
        lower(onnx.load(digits.model_path()))
        import onnx.reference
        heavy = {"onnx_ir", "torch", "tensorflow", "nncf", "openvino", "ai_edge_quantizer", "onnxruntime"}
        print(sorted(heavy & set(sys.modules)))
    """
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path)), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert done.stdout.strip() == "[]"


def test_all_unknown_operators_are_named_in_one_line() -> None:
    nodes = [
        node("MaxRoiPool", ["x", "x"], ["e"], pooled_shape=[2, 2], name="regions"),
        node("Relu", ["e"], ["r"]),
        node("MaxRoiPool", ["r", "r"], ["y"], pooled_shape=[2, 2], name="more"),
    ]
    with pytest.raises(UnsupportedError) as caught:
        lower(build(nodes, (1, 3, 4, 4)))
    text = str(caught.value)
    assert "MaxRoiPool (node 'regions'), MaxRoiPool (node 'more')" in text
    assert "Relu" not in text
    assert "\n" not in text


def test_an_operator_of_another_domain_is_named_with_it() -> None:
    model = build([node("Relu", ["x"], ["y"], name="g")], (1, 4))
    model.graph.node[0].CopyFrom(node("Gelu", ["x"], ["y"], domain="com.microsoft", name="g"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(UnsupportedError, match=r"com\.microsoft\.Gelu \(node 'g'\)"):
        lower(model)


REFUSED: dict[str, tuple[onnx.ModelProto, str]] = {
    "even size": (build([node("LRN", ["x"], ["y"], size=4)], (1, 6, 4, 4)), "size"),
    "shape of its data": (build([node("Unique", ["x"], ["y"])], (4, 4)), "Unique"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_form_that_is_not_known_is_refused_with_its_reason(case: str) -> None:
    model, reason = REFUSED[case]
    with pytest.raises(UnsupportedError) as caught:
        lower(model)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_table_and_the_folded_operators_do_not_overlap() -> None:
    assert not set(OPERATORS) & set(FOLDED)
