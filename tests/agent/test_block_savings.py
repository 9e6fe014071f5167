"""How much of a fine-tuned network a device has already: only the blocks of the new head are pulled."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from agent.test_preparation import Device
from edgefleet.package.digest import BLOCK_BYTES, block_count
from edgefleet_converters.tflite import lower

CHANNELS = (3, 64, 128, 256, 256)
CLASSES = 100


def network(head_seed: int) -> onnx.ModelProto:
    """A convolutional network with 3.9 MB of weights that do not depend on the seed, and a head of 100 kB that does."""
    generator, head = np.random.default_rng(0), np.random.default_rng(head_seed)
    nodes, constants, last = [], {}, "x"
    for place, (before, after) in enumerate(itertools.pairwise(CHANNELS)):
        constants[f"w{place}"] = generator.normal(size=(after, before, 3, 3)).astype(np.float32)
        nodes += [
            helper.make_node("Conv", [last, f"w{place}"], [f"c{place}"], pads=[1] * 4, strides=[2, 2]),
            helper.make_node("Relu", [f"c{place}"], [f"r{place}"]),
        ]
        last = f"r{place}"
    constants["head"] = head.normal(size=(CHANNELS[-1], CLASSES)).astype(np.float32)
    constants["bias"] = head.normal(size=CLASSES).astype(np.float32)
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head", "bias"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 64, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def as_onnx(model: onnx.ModelProto) -> bytes:
    return bytes(model.SerializeToString())


def as_tflite(model: onnx.ModelProto) -> bytes:
    return lower(model).content


@pytest.mark.parametrize("write", [as_onnx, as_tflite])
def test_of_a_new_head_only_its_own_blocks_are_pulled(
    tmp_path: Path, write: Callable[[onnx.ModelProto], bytes]
) -> None:
    """The file formats keep everything else where it was, so the blocks of a fixed size are enough."""
    device = Device(tmp_path)
    device.install(device.package("first", write(network(1))), active=True)
    tuned = device.package("tuned", write(network(2)))
    model = device.prepare(tuned).files[0].part
    blocks, missing = block_count(model.size_bytes), model.missing
    assert len(missing) <= 0.05 * blocks
    head_bytes = 4 * CLASSES * (CHANNELS[-1] + 1)
    assert model.size_bytes > 35 * head_bytes
    # The head, and the blocks that it shares at either end; weights and bias may lie apart.
    assert 1 <= len(missing) <= head_bytes // BLOCK_BYTES + 4
    assert device.install(tuned) == len(missing)
    device.slots.check(device.parts_of(tuned)[0])
