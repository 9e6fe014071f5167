"""ExecuTorch programs, run in ExecuTorch: the numbers of the source, int8 within its noise, the same bytes twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from executorch.runtime import Runtime as ExecutorchRuntime

from edgefleet.errors import UnsupportedError
from edgefleet_converters.artefact import Artefact, Form
from edgefleet_converters.intake.source import Source
from edgefleet_converters.score.infer import InferJob, infer
from edgefleet_converters.score.metrics import Measured
from edgefleet_converters.step import Context, Ranges, Samples, Settings
from edgefleet_converters.steps import quantize_executorch
from edgefleet_device_profiles.profile import Precision, Runtime
from full_torch.conftest import converted

# An export for ExecuTorch or CoreML takes 10 s on an idle processor, and several times that on a busy one.
pytestmark = pytest.mark.timeout(900)


def measured(runtime: Runtime, artefact: Artefact, samples: Samples, work: Path) -> Measured:
    np.savez(work / "samples.npz", allow_pickle=False, **samples)
    return infer(
        InferJob(runtime=runtime, artefact=artefact, samples=work / "samples.npz", repeats=4, outputs=work / "out.npz")
    )


def loss_db(expected: Measured, found: Measured, name: str) -> float:
    signal = expected.outputs[name].astype(np.float64)
    noise = signal - found.outputs[name].astype(np.float64)
    return 10 * float(np.log10(np.square(signal).sum() / np.square(noise).sum()))


def quantized(source: Source, samples: Samples, folder: Path, settings: Settings) -> list[str]:
    """Names of the convolutions and linear layers of the quantised program whose weights are int8."""
    folder.mkdir()
    artefact = source.forms[Form.TORCH]
    made = quantize_executorch.run(artefact, Context(samples, folder, settings, artefact))
    graph = torch.export.load(made.files[0]).graph
    return [
        node.name
        for node in graph.nodes
        if str(node.target).startswith(("aten.conv2d", "aten.linear")) and "dequantize" in node.args[1].name
    ]


def test_a_convolutional_network(resnet: Source, images: Samples, tmp_path: Path) -> None:
    expected = measured(Runtime.ONNXRUNTIME, resnet.forms[Form.ONNX], images, tmp_path)
    float32 = converted(resnet, Runtime.EXECUTORCH, Precision.FP32, images, tmp_path)
    int8 = converted(resnet, Runtime.EXECUTORCH, Precision.INT8, images, tmp_path)
    assert (float32.inputs, float32.outputs) == (int8.inputs, int8.outputs) == (resnet.inputs, resnet.outputs)
    assert int8.size_bytes < 0.35 * float32.size_bytes
    for artefact, least_db in ((float32, 100), (int8, 30)):
        found = measured(Runtime.EXECUTORCH, artefact, images, tmp_path)
        assert loss_db(expected, found, "output") > least_db
        assert found.runtime_version == "1.5.1"
        np.testing.assert_array_equal(found.repeated["output"][0], found.outputs["output"][:4])
    again = converted(resnet, Runtime.EXECUTORCH, Precision.INT8, images, tmp_path)
    assert again.files[0].read_bytes() == int8.files[0].read_bytes()


def test_a_transformer_with_two_inputs_and_outputs(transformer: Source, sentences: Samples, tmp_path: Path) -> None:
    expected = measured(Runtime.ONNXRUNTIME, transformer.forms[Form.ONNX], sentences, tmp_path)
    for precision, least_db in ((Precision.FP32, 100), (Precision.INT8, 20)):
        artefact = converted(transformer, Runtime.EXECUTORCH, precision, sentences, tmp_path)
        program = ExecutorchRuntime.get().load_program(artefact.files[0])
        assert program.load_method("forward").metadata.num_inputs() == 2
        found = measured(Runtime.EXECUTORCH, artefact, sentences, tmp_path)
        for name in ("classes", "states"):
            assert loss_db(expected, found, name) > least_db


@pytest.mark.parametrize("ranges", [Ranges.MINMAX, Ranges.MEAN, Ranges.MSE])
def test_layers_that_are_asked_for_stay_float(resnet: Source, images: Samples, tmp_path: Path, ranges: Ranges) -> None:
    every = quantized(resnet, images, tmp_path / "every", Settings(ranges=ranges))
    assert len(every) == 10
    # The first convolution, with its normalisation folded, the first shortcut, and the head.
    left = Settings(ranges=ranges, float_tensors=("getitem", "conv2d_5", "output"))
    fewer = quantized(resnet, images, tmp_path / "fewer", left)
    assert set(every) - set(fewer) == {"conv2d", "conv2d_5", "linear"}


def test_ranges_that_torchao_has_not_are_refused(resnet: Source, images: Samples, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="percentile ranges: torchao has no such observer; choose minmax"):
        quantized(resnet, images, tmp_path / "none", Settings(ranges=Ranges.PERCENTILE))
