"""LiteRT for Microcontrollers itself, as its Python package: it runs our files in the arena that we say, to the byte.

The package has reference kernels and 64-bit pointers: what is estimated for a device's own kernels is not seen here.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from tflite_micro import runtime

from data import colour_digits
from edgefleet.errors import UnsupportedError
from edgefleet.package.manifest import TensorSpec
from edgefleet_converters.artefact import Artefact, Form
from edgefleet_converters.convert import ConvertJob, convert
from edgefleet_converters.step import Micro, Settings
from edgefleet_converters.tflite.micro_arena import plan_arena
from edgefleet_converters.tflite.micro_operators import RESOLVER_METHODS
from edgefleet_converters.tflite.writer import unpack
from edgefleet_demo import digits
from edgefleet_device_profiles.profile import Precision, Runtime
from patience import PATIENCE_S

ROOMY = Micro(kernels="reference", arena_bytes=2**20)


def source(path: Path, image: tuple[int, ...], output: str) -> Artefact:
    inputs = (TensorSpec(name="image", dtype="float32", shape=image),)
    outputs = (TensorSpec(name=output, dtype="float32", shape=(1, 10)),)
    return Artefact(files=(path,), inputs=inputs, outputs=outputs)


def digit_images() -> NDArray[np.float32]:
    return digits.load().heldout_x


def coloured_images() -> NDArray[np.float32]:
    return colour_digits.normalised(colour_digits.held_out()[0])


MODELS: dict[str, tuple[Artefact, Any]] = {
    "digits": (source(digits.model_path(), (1, 1, 8, 8), "logits"), digit_images),
    "colour digits": (source(colour_digits.MODEL, (1, 3, 32, 32), "scores"), coloured_images),
}


def made(name: str, folder: Path, micro: Micro = ROOMY) -> bytes:
    model, images = MODELS[name]
    np.savez(folder / "calibration.npz", image=images()[:100, np.newaxis])
    job = ConvertJob(
        runtime=Runtime.LITERT,
        precision=Precision.INT8,
        settings=Settings(micro=micro),
        form=Form.ONNX,
        source=model,
        calibration=folder / "calibration.npz",
        folder=folder / "steps",
    )
    return convert(job).files[0].read_bytes()


@pytest.mark.parametrize("name", MODELS)
def test_it_runs_in_the_arena_that_we_say(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = made(name, tmp_path)
    arena = plan_arena(unpack(content), "reference")
    interpreter = runtime.Interpreter.from_bytes(content, arena_size=arena.size_bytes)
    details = interpreter.get_input_details(0)
    interpreter.set_input(np.zeros(details["shape"], np.int8), 0)
    interpreter.invoke()
    interpreter.print_allocations()
    found = {part: int(size) for part, size in re.findall(r"allocation (\w+) (\d+) bytes", "".join(capfd.readouterr()))}
    assert found["head"] == arena.planned_bytes, "the plan of the tensors is the runtime's own"
    assert found["tail"] <= arena.persistent_bytes <= 2.5 * found["tail"], "what it keeps is estimated from above"


@pytest.mark.parametrize("name", MODELS)
def test_it_computes_what_litert_does(name: str, tmp_path: Path) -> None:
    """Both are integers throughout; their kernels round one step apart here and there."""
    content = made(name, tmp_path)
    micro = runtime.Interpreter.from_bytes(content, arena_size=ROOMY.arena_bytes)
    litert = Interpreter(model_content=content)
    litert.allocate_tensors()
    entry, result = litert.get_input_details()[0], litert.get_output_details()[0]
    scale, zero = entry["quantization"]
    same = 0
    images = MODELS[name][1]()[:100]
    for image in images:
        stored = np.clip(np.round(image[np.newaxis].transpose(0, 2, 3, 1) / scale) + zero, -128, 127).astype(np.int8)
        micro.set_input(stored, 0)
        micro.invoke()
        litert.set_tensor(entry["index"], stored)
        litert.invoke()
        same += int(micro.get_output(0).argmax() == litert.get_tensor(result["index"]).argmax())
    assert same >= 0.98 * len(images)


def test_our_table_of_operators_is_that_of_the_runtime() -> None:
    """Every builtin operator that has a registration among the library's symbols, and no other."""
    (library,) = Path(runtime.__file__).parent.glob("_runtime*.so")
    symbols = {name.decode() for name in re.findall(rb"\d+Register_([A-Z0-9_]+?)Ev", library.read_bytes())}
    builtins = {name for name in vars(schema.BuiltinOperator) if name.isupper()}
    assert symbols & builtins == set(RESOLVER_METHODS)


def test_an_arena_that_we_refuse_is_too_small_for_it(tmp_path: Path) -> None:
    """In a process of its own: where it has no room for its own data, the package may crash instead of raising."""
    file = tmp_path / "model.tflite"
    file.write_bytes(made("digits", tmp_path))
    need = plan_arena(unpack(file.read_bytes()), "reference")
    program = (
        "import sys; from tflite_micro import runtime; "
        "runtime.Interpreter.from_file(sys.argv[1], arena_size=int(sys.argv[2]))"
    )
    ended = [
        subprocess.run(
            [sys.executable, "-c", program, str(file), str(size)], check=False, timeout=PATIENCE_S
        ).returncode
        for size in (need.size_bytes, need.planned_bytes)
    ]
    assert ended[0] == 0
    assert ended[1] != 0
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(UnsupportedError, match="needs"):
        made("digits", other, Micro(kernels="reference", arena_bytes=need.planned_bytes))
