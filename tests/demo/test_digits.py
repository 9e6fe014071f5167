"""The demo's data and model: the committed split, and what the committed file may hold and must reach.

It does not train: the same file from the same seed is checked by hand, as training needs torch.
"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from edgefleet_demo import digits

ALLOWED_OPS = {"Add", "Conv", "Flatten", "Gemm", "GlobalAveragePool", "Relu"}


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(digits.model_path())


def test_the_committed_split_is_the_stratified_one() -> None:
    split = json.loads((digits.DATA / "split.json").read_text(encoding="utf-8"))
    train, heldout = train_test_split(np.arange(1797), test_size=540, random_state=0, stratify=load_digits().target)
    assert split == {"train": train.tolist(), "heldout": heldout.tolist()}
    assert sorted(split["train"] + split["heldout"]) == list(range(1797))


def test_arrays_have_the_promised_shapes_types_and_range() -> None:
    data = digits.load()
    assert (data.train_x.shape, data.train_y.shape) == ((1257, 1, 8, 8), (1257,))
    assert (data.heldout_x.shape, data.heldout_y.shape) == ((540, 1, 8, 8), (540,))
    for images, labels in ((data.train_x, data.train_y), (data.heldout_x, data.heldout_y)):
        assert (images.dtype.name, labels.dtype.name) == ("float32", "int64")
        assert (images.min(), images.max()) == (0.0, 1.0)
        assert set(labels.tolist()) == set(range(10))


def test_images_keep_their_labels() -> None:
    data, bundle = digits.load(), load_digits()
    split = json.loads((digits.DATA / "split.json").read_text(encoding="utf-8"))
    last = split["heldout"][-1]
    np.testing.assert_array_equal(data.heldout_x[-1, 0] * 16, bundle.images[last])
    assert data.heldout_y[-1] == bundle.target[last]


def test_the_model_is_right_on_99_percent_of_the_held_out_images() -> None:
    data = digits.load()
    session = onnxruntime.InferenceSession(str(digits.model_path()), providers=["CPUExecutionProvider"])
    logits = [session.run(["logits"], {"image": image[np.newaxis]})[0] for image in data.heldout_x]
    assert {found.shape for found in logits} == {(1, 10)}
    assert np.mean(np.concatenate(logits).argmax(1) == data.heldout_y) >= 0.99


def test_the_model_is_small_static_and_of_plain_ops(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert {node.op_type for node in model.graph.node} == ALLOWED_OPS
    assert [(entry.domain, entry.version >= 17) for entry in model.opset_import] == [("", True)]
    assert 100_000 <= sum(onnx.numpy_helper.to_array(w).size for w in model.graph.initializer) <= 400_000
    assert digits.model_path().stat().st_size < 2_000_000
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"image": [1, 1, 8, 8], "logits": [1, 10]}


def test_the_model_holds_its_weights_and_no_trace_of_a_machine(model: onnx.ModelProto) -> None:
    assert not any(onnx.external_data_helper.uses_external_data(w) for w in model.graph.initializer)
    for described in (model, model.graph, *model.graph.node):
        assert not described.doc_string
        assert not described.metadata_props
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert not any(name == "" or name.startswith("/") for name in names)


def test_training_without_torch_ends_with_one_line_that_names_the_extra() -> None:
    without_torch = (
        "import runpy, sys; sys.modules['torch'] = None; runpy.run_module('edgefleet_demo.train', run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", without_torch], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "pip install 'edgefleet[train]'" in ended.stderr
