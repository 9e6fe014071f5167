"""Runtimes opened as the settings say: providers, devices, threads, precisions; or a word about what is not there."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgefleet.errors import MissingExtraError, UnsupportedError
from edgefleet_agent import runtimes
from edgefleet_agent.runtimes import Options, open_model
from edgefleet_agent.settings import RuntimeSettings

X = np.arange(4, dtype=np.float32).reshape(1, 4)


@pytest.fixture(scope="session", name="onnx_file")
def _onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Multiplies by 3, as a matrix does."""
    weights = numpy_helper.from_array(3 * np.eye(4, dtype=np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "triple", [x], [y], [weights])
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="session", name="openvino_file")
def _openvino_file(onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Our own module first: it has openvino not report its import over the network.
    ov: Any = importlib.import_module("edgefleet_agent.runtimes.openvino").ov
    path = tmp_path_factory.mktemp("openvino") / "model.xml"
    ov.save_model(ov.convert_model(onnx_file), path, compress_to_fp16=False)
    return path


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("runtime", "fixture"), [("onnxruntime", "onnx_file"), ("openvino", "openvino_file")])
def test_a_model_runs_with_as_many_threads_as_it_is_told(
    runtime: str, fixture: str, threads: int, request: pytest.FixtureRequest
) -> None:
    model = open_model(runtime, request.getfixturevalue(fixture), Options(threads=threads))
    np.testing.assert_array_equal(model.infer({"x": X})["y"], 3 * X)
    opened: Any = model
    if runtime == "openvino":
        assert opened._request.get_compiled_model().get_property("INFERENCE_NUM_THREADS") == threads
    else:
        assert opened._session.get_session_options().intra_op_num_threads == threads


def test_a_provider_that_this_onnxruntime_has_not_is_refused_and_not_replaced(onnx_file: Path) -> None:
    """ONNX Runtime itself would warn and run on the processor."""
    wanted = ("TensorrtExecutionProvider", "CPUExecutionProvider")
    with pytest.raises(UnsupportedError, match=r"no TensorrtExecutionProvider: this onnxruntime has .*CPUExecution"):
        open_model("onnxruntime", onnx_file, Options(providers=wanted))


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_load_is_refused_and_not_replaced(
    onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where onnxruntime-gpu is installed and CUDA's libraries are not."""
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: names)
    with pytest.raises(UnsupportedError, match="no CUDAExecutionProvider: the session opened with CPUExecution"):
        open_model("onnxruntime", onnx_file, Options(providers=tuple(names)))


def test_a_providers_own_options_reach_it(onnx_file: Path) -> None:
    options = Options(provider_options={"CPUExecutionProvider": {"use_arena": "0"}})
    opened: Any = open_model("onnxruntime", onnx_file, options)
    assert "CPUExecutionProvider" in opened._session.get_provider_options()
    np.testing.assert_array_equal(opened.infer({"x": X})["y"], 3 * X)


def test_a_device_that_openvino_does_not_find_is_refused(openvino_file: Path) -> None:
    with pytest.raises(UnsupportedError, match="no device NPU: OpenVINO finds CPU"):
        open_model("openvino", openvino_file, Options(device="NPU"))


def test_openvino_computes_at_float32_unless_it_is_told_otherwise(openvino_file: Path) -> None:
    """Its plugin would pick a shorter type by the processor."""
    opened: Any = open_model("openvino", openvino_file, Options())
    assert opened._request.get_compiled_model().get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (Options(threads=3), {"INFERENCE_NUM_THREADS": 3, "INFERENCE_PRECISION_HINT": "f32"}),
        (Options(device="GPU", threads=3, precision_hint="f16"), {"INFERENCE_PRECISION_HINT": "f16"}),
        (Options(device="NPU", precision_hint="device"), {}),
    ],
)
def test_only_the_processors_plugin_is_told_of_threads(options: Options, wanted: dict[str, object]) -> None:
    from edgefleet_agent.runtimes import openvino  # noqa: PLC0415 - importing it has openvino tell nobody

    assert openvino.compile_settings(options) == {"PERFORMANCE_HINT": "LATENCY"} | wanted


def test_a_runtime_that_is_not_installed_names_its_extra(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(runtimes.RUNTIMES, "onnxruntime", ("edgefleet_agent.runtimes.none_such", "agent,onnx"))
    with pytest.raises(MissingExtraError, match=r"edgefleet\[agent,onnx\]"):
        open_model("onnxruntime", onnx_file, Options())


def test_the_settings_say_what_a_runtime_is_told() -> None:
    said = RuntimeSettings().model_dump()
    assert Options(**said) == Options()
    assert list(said) == list(Options.__dataclass_fields__)
