"""LiteRT for microcontrollers: the arena's plan, the C source, what is refused, and int8 borders in every runner."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefleet.errors import UnsupportedError
from edgefleet.package.manifest import Mark
from edgefleet_agent.runtimes import Options
from edgefleet_agent.variant import Variant
from edgefleet_converters.artefact import Artefact, Form
from edgefleet_converters.convert import ConvertJob, convert
from edgefleet_converters.plan import make_plan
from edgefleet_converters.recipes import MICRO_KERNELS, RECIPES
from edgefleet_converters.score.infer import InferJob, infer, infer_sample, open_runner
from edgefleet_converters.score.metrics import Measured
from edgefleet_converters.step import Context, Micro, Settings
from edgefleet_converters.steps import quantize_tflite_micro, write_micro_source
from edgefleet_converters.tflite.micro_arena import SCRATCH, Need, place, plan_arena, planned_size
from edgefleet_converters.tflite.micro_operators import RESOLVER_METHODS, lacking
from edgefleet_converters.tflite.writer import unpack
from edgefleet_demo import digits
from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.profile import Precision, Runtime
from patience import PATIENCE_S

ROOMY = Micro(kernels="cmsis-nn", arena_bytes=384 * 1024)


def job(folder: Path, data: digits.Digits, source: Artefact, micro: Micro = ROOMY) -> ConvertJob:
    calibration = folder / "calibration.npz"
    np.savez(calibration, image=data.train_x[:64, np.newaxis])
    return ConvertJob(
        runtime=Runtime.LITERT,
        precision=Precision.INT8,
        settings=Settings(micro=micro),
        form=Form.ONNX,
        source=source,
        calibration=calibration,
        folder=folder / "steps",
    )


@pytest.fixture(scope="module")
def source() -> Artefact:
    image = {"name": "image", "dtype": "float32", "shape": (1, 1, 8, 8)}
    logits = {"name": "logits", "dtype": "float32", "shape": (1, 10)}
    return Artefact.model_validate({"files": (digits.model_path(),), "inputs": (image,), "outputs": (logits,)})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, digits_data: digits.Digits, source: Artefact) -> Artefact:
    return convert(job(tmp_path_factory.mktemp("micro"), digits_data, source))


def test_a_chain_needs_its_two_largest_neighbours() -> None:
    """Input 64 until step 1, then 32, 96 and 16: at step 2 are 32 and 96."""
    chain = [Need(64, 0, 1), Need(32, 1, 2), Need(96, 2, 3), Need(16, 3, 3)]
    assert planned_size(chain) == 128
    assert place(chain) == (0, 96, 0, 96)


def test_a_branch_that_waits_is_kept_free() -> None:
    """A residual block: x 48 is read again at step 3, so all three are there at once, and the sum takes a place."""
    block = [Need(48, 0, 3), Need(48, 1, 2), Need(48, 2, 3), Need(48, 3, 3)]
    offsets = place(block)
    assert planned_size(block) == 144
    assert offsets[1] == offsets[3]
    assert len({offsets[0], offsets[1], offsets[2]}) == 3


def test_the_largest_comes_first_so_that_a_small_one_may_lie_above_a_gap() -> None:
    """What the greedy order costs: 16 lies on 64 although 32 beneath it is free later."""
    assert place([Need(16, 0, 2), Need(64, 0, 0), Need(32, 2, 2)]) == (64, 0, 0)
    assert place([]) == ()
    assert planned_size([]) == 0


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 6), st.integers(0, 6)), max_size=9))
def test_no_two_that_live_together_share_a_byte(drawn: list[tuple[int, int, int]]) -> None:
    needs = [Need(16 * size, min(one, other), max(one, other)) for size, one, other in drawn]
    offsets = place(needs)
    for (at, one), (other_at, other) in itertools.combinations(zip(offsets, needs, strict=True), 2):
        assert not one.meets(other) or at + one.size_bytes <= other_at or other_at + other.size_bytes <= at
    alive = [sum(need.size_bytes for need in needs if need.first <= step <= need.last) for step in range(7)]
    assert max(alive) <= planned_size(needs) <= sum(need.size_bytes for need in needs)


def test_the_digits_model_has_the_arena_that_its_layers_ask_for(made: Artefact) -> None:
    """At the first residual block are three maps of 8 x 8 x 48; scratch and what the runtime keeps come on top."""
    arenas = {kernels: plan_arena(unpack(made.files[0].read_bytes()), kernels) for kernels in SCRATCH}
    assert 3 * 8 * 8 * 48 <= arenas["reference"].planned_bytes <= 4 * 8 * 8 * 48
    assert arenas["reference"].size_bytes <= arenas["cmsis-nn"].size_bytes < arenas["esp-nn"].size_bytes
    # ESP-NN copies the filter of 96 x 3 x 3 x 96 beside two maps of 4 x 4 x 96.
    assert arenas["esp-nn"].planned_bytes >= 96 * 9 * 96 + 2 * 4 * 4 * 96
    assert arenas["reference"].size_bytes % 16 == 0
    assert arenas["reference"].persistent_bytes > 8 * 960, "a multiplier and a shift for each of 960 channels"


def test_the_source_compiles_to_the_bytes_of_the_file(made: Artefact, tmp_path: Path) -> None:
    model, header, definition = made.files
    assert (header.name, definition.name) == ("model_data.h", "model_data.cc")
    main = tmp_path / "main.cc"
    main.write_text(
        f'#include "{header}"\n#include <cstdint>\n#include <cstdio>\n'
        "int main() {\n"
        "  if (reinterpret_cast<uintptr_t>(model_data) % 16 != 0 || model_data_size != MODEL_DATA_SIZE) return 1;\n"
        '  fprintf(stderr, "%d %d", MODEL_ARENA_SIZE, MODEL_OPERATOR_COUNT);\n'
        "  return fwrite(model_data, 1, model_data_size, stdout) == model_data_size ? 0 : 2;\n}\n"
    )
    program = tmp_path / "program"
    command = ["g++", "-std=c++11", "-Wall", "-Wextra", "-Werror", str(main), str(definition), "-o", str(program)]
    subprocess.run(command, check=True, timeout=PATIENCE_S)
    ran = subprocess.run([str(program)], check=True, capture_output=True, timeout=PATIENCE_S)
    assert ran.stdout == model.read_bytes()
    arena = plan_arena(unpack(model.read_bytes()), "cmsis-nn").size_bytes
    text = header.read_text(encoding="utf-8")
    methods = [
        line.split(".")[1].removesuffix("();") for line in text.splitlines() if line.startswith("//   resolver.")
    ]
    assert ran.stderr.decode() == f"{arena} {len(methods)}"
    assert {"AddConv2D", "AddDepthwiseConv2D", "AddFullyConnected", "AddMean"} <= set(methods)
    assert set(methods) <= set(RESOLVER_METHODS.values())
    assert made.size_bytes == model.stat().st_size, "C source is no load on the device"


def test_the_file_is_scored_with_the_sources_float_numbers(
    made: Artefact, source: Artefact, digits_data: digits.Digits, tmp_path: Path
) -> None:
    (image,), (logits,) = made.inputs, made.outputs
    assert (image.dtype, logits.dtype) == ("float32", "float32")
    assert image.quantization is not None
    assert logits.quantization is not None
    assert (image.quantization.dtype, logits.quantization.dtype) == ("int8", "int8")

    def run(runtime: Runtime, artefact: Artefact) -> Measured:
        samples = tmp_path / "samples.npz"
        np.savez(samples, image=digits_data.heldout_x[:, np.newaxis])
        return infer(
            InferJob(
                runtime=runtime, artefact=artefact, samples=samples, repeats=1, outputs=tmp_path / f"{runtime}.npz"
            )
        )

    found = run(Runtime.LITERT, made).outputs["logits"]
    exact = run(Runtime.ONNXRUNTIME, source).outputs["logits"]
    assert found.dtype == np.float32
    right = [(array[:, 0].argmax(axis=1) == digits_data.heldout_y).mean() for array in (found, exact)]
    assert right[0] >= right[1] - 0.005
    apart = np.abs(np.subtract(found, exact, dtype=np.float64))
    assert apart.mean() < 2 * logits.quantization.scale
    steps = found.astype(np.float64) / logits.quantization.scale
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)


def test_the_agent_runs_it_with_the_same_numbers(made: Artefact, digits_data: digits.Digits) -> None:
    spec = {
        "runtime": "litert",
        "model_file": made.files[0].name,
        "inputs": [tensor.model_dump(mode="json") for tensor in made.inputs],
        "outputs": [tensor.model_dump(mode="json") for tensor in made.outputs],
    }
    sample = {"image": digits_data.heldout_x[:1, np.newaxis]}
    expected = infer_sample(open_runner(Runtime.LITERT, made), made, sample, 0)
    found = Variant(made.files[0].parent, spec, Options()).infer({"image": sample["image"][0]})
    np.testing.assert_array_equal(found["logits"], expected["logits"])


def test_an_arena_that_is_too_small_is_refused_with_need_and_have(
    digits_data: digits.Digits, source: Artefact, tmp_path: Path
) -> None:
    small = Micro(kernels="esp-nn", arena_bytes=16 * 1024)
    with pytest.raises(UnsupportedError, match=r"needs \d+ KiB with esp-nn kernels, the device has 16 KiB"):
        convert(job(tmp_path, digits_data, source, small))


def test_operators_that_the_runtime_lacks_are_named(made: Artefact, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lacking(["CONV_2D", "GELU", "CONV_2D", "TOPK_V2", "GELU"]) == ("GELU", "TOPK_V2")
    assert RESOLVER_METHODS["DEPTHWISE_CONV_2D"] == "AddDepthwiseConv2D"
    assert RESOLVER_METHODS["SPACE_TO_BATCH_ND"] == "AddSpaceToBatchNd"
    monkeypatch.setattr(write_micro_source, "lacking", lambda _names: ("GELU",))
    context = Context({}, made.files[0].parent, Settings(micro=ROOMY))
    with pytest.raises(UnsupportedError, match=r"LiteRT for Microcontrollers has no GELU"):
        write_micro_source.run(made, context)


def test_a_layer_that_must_stay_in_float_is_refused(made: Artefact, tmp_path: Path) -> None:
    context = Context({}, tmp_path, Settings(micro=ROOMY, float_tensors=("logits",)))
    with pytest.raises(UnsupportedError, match="1 layers are to stay in float"):
        quantize_tflite_micro.run(made, context)


def test_a_microcontrollers_profile_chooses_kernels_and_arena() -> None:
    boards = [catalogue.load("esp32-s3"), catalogue.load("stm32h7")]
    plan = make_plan(boards, [Form.ONNX])
    assert [planned.name for planned in plan.variants] == [
        "litert-int8-micro-esp-nn-256k",
        "litert-int8-micro-cmsis-nn-384k",
    ]
    for planned, board in zip(plan.variants, boards, strict=True):
        assert planned.settings.micro is not None
        assert planned.settings.micro.kernels == MICRO_KERNELS[board.cpu.architecture]
        assert planned.settings.micro.arena_bytes == (board.budget.arena_kib or 0) * 1024
    assert set(MICRO_KERNELS.values()) <= set(SCRATCH)


def test_int16x8_is_off_xnnpack_and_no_profile_of_the_catalogue_asks_for_it() -> None:
    assert RECIPES[Runtime.LITERT, Precision.INT16X8].marks == (Mark.OFF_XNNPACK,)
    listed = {precision for name in catalogue.names() for allowed in catalogue.load(name).runtimes
              for precision in allowed.choices}  # fmt: skip
    assert Precision.INT16X8 not in listed
