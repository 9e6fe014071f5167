"""PyTorch intake: what the person may give, what comes out, and every refusal in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter

from edgefleet.errors import EdgefleetError, InputError, UnsupportedError
from edgefleet_converters.artefact import Form
from edgefleet_converters.intake.source import Source, SourceKind
from edgefleet_converters.step import Samples
from edgefleet_converters.tflite import lower
from full_torch import torch_models
from full_torch.conftest import MODELS, read


def in_torch(source: Source, **inputs: np.ndarray) -> list[np.ndarray]:
    program = torch.export.load(source.forms[Form.TORCH].files[0])
    names = [spec.name for spec in source.inputs]
    args, kwargs = program.example_inputs
    given = dict(zip(names, map(torch.from_numpy, (inputs[name] for name in names)), strict=True))
    found = program.module()(*given.values()) if args else program.module()(**{name: given[name] for name in kwargs})
    return [tensor.detach().numpy() for tensor in (found.values() if isinstance(found, dict) else [found])]


def in_onnxruntime(source: Source, **inputs: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(source.forms[Form.ONNX].files[0], providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run([spec.name for spec in source.outputs], inputs)
    return found


def test_a_module_becomes_a_program_and_an_onnx_file_with_the_same_borders(resnet: Source) -> None:
    assert resnet.kind is SourceKind.PYTORCH
    assert [(spec.name, spec.dtype, spec.shape) for spec in resnet.inputs] == [("image", "float32", (1, 3, 32, 32))]
    assert [(spec.name, spec.dtype, spec.shape) for spec in resnet.outputs] == [("output", "float32", (1, 10))]
    assert {form: (artefact.inputs, artefact.outputs) for form, artefact in resnet.forms.items()} == {
        Form.ONNX: (resnet.inputs, resnet.outputs),
        Form.TORCH: (resnet.inputs, resnet.outputs),
    }
    assert resnet.notes == ()


def test_inputs_by_name_and_outputs_in_a_dict_keep_their_names(transformer: Source) -> None:
    assert [(spec.name, spec.dtype, spec.shape) for spec in transformer.inputs] == [
        ("tokens", "int64", (1, 16)),
        ("mask", "float32", (1, 16)),
    ]
    assert [(spec.name, spec.shape) for spec in transformer.outputs] == [("classes", (1, 5)), ("states", (1, 16, 32))]


def test_both_forms_compute_the_same_as_the_module(
    resnet: Source, transformer: Source, images: Samples, sentences: Samples
) -> None:
    for source, samples, make in (
        (resnet, images, torch_models.resnet),
        (transformer, sentences, torch_models.transformer),
    ):
        feed = {name: np.array(array[3]) for name, array in samples.items()}
        with torch.no_grad():
            found = make()[0].eval()(**{name: torch.from_numpy(array) for name, array in feed.items()})
        expected = [tensor.numpy() for tensor in (found.values() if isinstance(found, dict) else [found])]
        for mine, theirs, own in zip(in_onnxruntime(source, **feed), in_torch(source, **feed), expected, strict=True):
            np.testing.assert_allclose(theirs, own, atol=1e-6)
            np.testing.assert_allclose(mine, own, atol=1e-5)


def test_the_onnx_form_names_no_file_of_the_person(resnet: Source) -> None:
    content = resnet.forms[Form.ONNX].files[0].read_bytes()
    assert MODELS.name.encode() not in content
    assert b"site-packages" not in content


def test_the_onnx_form_lowers_without_an_added_transpose(resnet: Source, transformer: Source) -> None:
    model = onnx.load(resnet.forms[Form.ONNX].files[0])
    interpreter = Interpreter(model_content=lower(model).content)
    assert "TRANSPOSE" not in {operator["op_name"] for operator in interpreter._get_ops_details()}
    lowered = lower(onnx.load(transformer.forms[Form.ONNX].files[0]))
    assert [spec.name for spec in lowered.inputs] == ["tokens", "mask"]


def test_the_same_function_gives_the_same_digest_and_another_shape_another(resnet: Source, tmp_path: Path) -> None:
    again = read(f"{MODELS}:resnet", tmp_path)
    assert again.digest == resnet.digest
    larger = read(f"{MODELS}:resnet", tmp_path, image=(2, 3, 40, 40))
    assert larger.digest != resnet.digest
    assert larger.inputs[0].shape == (2, 3, 40, 40)
    assert larger.outputs[0].shape == (2, 10)


def test_a_saved_program_is_the_same_source(resnet: Source, tmp_path: Path) -> None:
    module, example = torch_models.resnet()
    torch.export.save(torch.export.export(module.eval(), (example,)), tmp_path / "net.pt2")
    assert read(str(tmp_path / "net.pt2"), tmp_path).digest == resnet.digest


def test_a_symbolic_batch_becomes_one_and_other_symbols_are_asked_for(resnet: Source, tmp_path: Path) -> None:
    module = torch_models.resnet()[0].eval()
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=8, max=64)}
    example = torch.randn(2, 3, 32, 32)
    batch = torch.export.export(module, (example,), dynamic_shapes=({0: sizes[0]},))
    torch.export.save(batch, tmp_path / "batch.pt2")
    assert read(str(tmp_path / "batch.pt2"), tmp_path).digest == resnet.digest
    tall = torch.export.export(module, (example,), dynamic_shapes=(sizes,))
    torch.export.save(tall, tmp_path / "tall.pt2")
    with pytest.raises(InputError, match=r"free sizes: axis 2 of 'image' .*--shape"):
        read(str(tmp_path / "tall.pt2"), tmp_path)
    assert read(str(tmp_path / "tall.pt2"), tmp_path, image=(1, 3, 48, 32)).inputs[0].shape == (1, 3, 48, 32)


def test_a_function_is_found_in_the_folder_that_the_person_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resnet: Source
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "zoo.py").write_text(MODELS.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path / "mine")
    assert read("zoo:resnet", tmp_path).digest == resnet.digest
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["zoo.py"]


def test_a_pickled_module_is_refused_unless_it_is_trusted(resnet: Source, tmp_path: Path) -> None:
    path = tmp_path / "module.pt"
    torch.save(torch_models.resnet()[0], path)
    with pytest.raises(InputError, match=r"runs whatever code it holds; .*--trust"):
        read(str(path), tmp_path)
    with pytest.raises(InputError, match=r"no example of its inputs; give --shape image="):
        read(str(path), tmp_path, trust=True)
    assert read(str(path), tmp_path, trust=True, image=(1, 3, 32, 32)).digest == resnet.digest


REFUSALS = {
    f"{MODELS}:depends_on_values": (UnsupportedError, "torch.export cannot follow it"),
    f"{MODELS}:fails": (InputError, r"fails\(\) raised RuntimeError: no weights here"),
    f"{MODELS}:gives_a_module": (InputError, r"returned ResNet8; let it return \(module, example inputs\)"),
    f"{MODELS}:absent": (InputError, "no function 'absent'"),
    "absent_module:net": (InputError, "importing absent_module failed .ModuleNotFoundError"),
    "absent.py:net": (InputError, "importing absent.py failed .FileNotFoundError"),
    "absent.pt2": (InputError, "there is no such file"),
}


@pytest.mark.parametrize("model", REFUSALS)
def test_what_cannot_be_read_is_one_line(model: str, tmp_path: Path) -> None:
    kind, text = REFUSALS[model]
    with pytest.raises(kind, match=text) as caught:
        read(model, tmp_path)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_models_say_what_to_do(tmp_path: Path) -> None:
    module = torch_models.resnet()[0].eval()
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    torch.jit.save(torch.jit.trace(module, torch.randn(1, 3, 32, 32)), tmp_path / "script.pt")
    (tmp_path / "noise.pt").write_bytes(b"noise" * 100)
    (tmp_path / "noise.pt2").write_bytes(b"noise" * 100)
    for name, text in (
        ("weights.pth", "it holds weights without a model .OrderedDict.; write a function"),
        ("script.pt", "it is TorchScript"),
        ("noise.pt", "; "),
        ("noise.pt2", "not a saved torch.export program"),
    ):
        with pytest.raises(EdgefleetError, match=text):
            read(str(tmp_path / name), tmp_path)


def test_a_shape_for_an_unknown_input_names_the_inputs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no input 'picture'; its inputs are image"):
        read(f"{MODELS}:resnet", tmp_path, picture=(1, 3, 32, 32))
