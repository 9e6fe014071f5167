"""Every precision of `edgefleet convert` on the digits model: accuracy, size, types of inputs and outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converters.convert_runs import accuracy, convert, converted, refusal, two_inputs
from edgefleet.errors import InputError
from edgefleet_converters.convert_cli import TARGETS
from edgefleet_demo import digits


@pytest.fixture(name="samples", scope="module")
def _samples(tmp_path_factory: pytest.TempPathFactory, digits_data: digits.Digits) -> Path:
    path = tmp_path_factory.mktemp("samples") / "samples.npz"
    np.savez(path, x=digits_data.train_x[:200])
    return path


PRECISIONS = TARGETS["litert"].precisions


# Least accuracy on 540 images (the source has 0.9981), and the largest share of the fp32 file's 989 kB.
EXPECTED = {
    "fp32": (0.998, 1.0),
    "fp16": (0.998, 0.52),
    "int8": (0.994, 0.3),
    "int8-dynamic": (0.994, 0.3),
    "int4-weights": (0.985, 0.17),
    "int16x8": (0.998, 0.3),
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_precision_keeps_the_accuracy(
    tmp_path: Path, samples: Path, digits_data: digits.Digits, precision: str
) -> None:
    extra = ["--calibration", str(samples)] if precision in ("int8", "int16x8") else []
    result, interpreter = converted(tmp_path, digits.model_path(), "--precision", precision, *extra)
    least, share = EXPECTED[precision]
    assert accuracy(interpreter, digits_data.heldout_x, digits_data) >= least
    assert (tmp_path / "out.tflite").stat().st_size <= share * 990_000
    for text in (f"(litert {precision}, ", "operators ", "XNNPACK: ", "0 transposes", "seconds   reading "):
        assert text in result.stdout
    assert "image: float32 [1, 8, 8, 1], the source's axes [0, 2, 3, 1] (NHWC)" in result.stdout
    assert "check     logits: max |d| " in result.stdout


def test_a_uint8_input_is_the_image_itself(tmp_path: Path, samples: Path, digits_data: digits.Digits) -> None:
    """With mean 0 and std 255 the levels 0 to 255 are the values 0 to 1 of the source."""
    options = ["--precision", "int8", "--calibration", str(samples), "--io", "uint8", "--mean", "0", "--std", "255"]
    result, interpreter = converted(tmp_path, digits.model_path(), *options)
    assert "image: uint8 [1, 8, 8, 1]" in result.stdout
    assert "logits: uint8 [1, 10], scale " in result.stdout
    scale, zero_point = interpreter.get_input_details()[0]["quantization"]
    assert (scale, zero_point) == (pytest.approx(1 / 255), 0)
    assert accuracy(interpreter, np.round(digits_data.heldout_x * 255), digits_data) >= 0.994


def test_a_mean_becomes_the_zero_point(tmp_path: Path, samples: Path) -> None:
    options = ["--precision", "int8", "--calibration", str(samples), "--io", "uint8", "--mean", "127.5", "--std", "64"]
    result, interpreter = converted(tmp_path, digits.model_path(), *options, "--no-check")
    scale, zero_point = interpreter.get_input_details()[0]["quantization"]
    assert (scale, zero_point) == (pytest.approx(1 / 64), 128)
    assert "the mean 127.5 is taken as 128" in result.stderr


def test_int8_inputs_and_outputs(tmp_path: Path, samples: Path, digits_data: digits.Digits) -> None:
    options = ["--precision", "int8", "--calibration", str(samples), "--io", "int8"]
    _, interpreter = converted(tmp_path, digits.model_path(), *options, "--no-check")
    details = interpreter.get_input_details()[0]
    scale, zero_point = details["quantization"]
    assert details["dtype"] is np.int8
    levels = np.clip(np.round(digits_data.heldout_x / scale) + zero_point, -128, 127)
    assert accuracy(interpreter, levels, digits_data) >= 0.994


def test_int8_of_a_model_with_several_inputs_and_types(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    ids = generator.integers(0, 11, (64, 6))
    np.savez(tmp_path / "samples.npz", ids=ids, mask=generator.uniform(size=(64, 6, 8)).astype(np.float32), y=ids)
    options = ["--dim", "seq=6", "--precision", "int8", "--calibration", str(tmp_path / "samples.npz")]
    result, interpreter = converted(tmp_path, two_inputs(), *options)
    assert "ids: int64 [1, 6]" in result.stdout
    assert "int8" in {np.dtype(item["dtype"]).name for item in interpreter.get_tensor_details()}


def test_a_folder_of_samples(tmp_path: Path, digits_data: digits.Digits) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    for position, image in enumerate(digits_data.train_x[:30]):
        np.save(folder / f"{position}.npy", image)
    np.save(folder / "more.npy", digits_data.train_x[30:50])
    (folder / "notes.txt").write_text("not a sample")
    result, interpreter = converted(
        tmp_path, digits.model_path(), "--precision", "int8", "--calibration", str(folder), "--no-check"
    )
    assert "note:" not in result.stderr
    assert accuracy(interpreter, digits_data.heldout_x, digits_data) >= 0.99


def test_few_samples_are_said(tmp_path: Path, digits_data: digits.Digits) -> None:
    np.savez(tmp_path / "few.npz", image=digits_data.train_x[:31])
    options = ["--precision", "int8", "--calibration", str(tmp_path / "few.npz"), "--no-check"]
    result = convert(tmp_path, digits.model_path(), *options)
    assert "only 31 calibration samples; int8 ranges from fewer than 32 are guesses" in result.stderr


def test_int8_without_samples_is_refused(tmp_path: Path) -> None:
    text = refusal(tmp_path, digits.model_path(), "--precision", "int8", kind=InputError)
    assert InputError.exit_code == 2
    assert "give --calibration with 32 or more samples" in text


X = np.zeros((40, 1, 8, 8), np.float32)
SAMPLES = {
    "shape": ({"x": X[..., :7]}, "'image' is float32 [40, 1, 8, 7], expected float32 [N, 1, 8, 8]"),
    "layout": ({"x": X.transpose(0, 2, 3, 1)}, "'image' is float32 [40, 8, 8, 1], expected float32 [N, 1, 8, 8]"),
    "dtype": ({"x": X.astype(np.uint8)}, "'image' is uint8 [40, 1, 8, 8], expected float32"),
    "name": ({"pixels": X}, "no array for 'image' (there are: pixels)"),
    "empty": ({"x": X[:0]}, "'image' has no samples"),
    "nan": ({"x": np.full_like(X, np.nan)}, "NaN or infinite values in 40 of 40 samples of 'image'"),
}


@pytest.mark.parametrize("case", SAMPLES)
def test_samples_that_are_not_the_models_inputs(tmp_path: Path, case: str) -> None:
    arrays, reason = SAMPLES[case]
    np.savez(tmp_path / "samples.npz", **arrays)  # type: ignore[arg-type] # mypy takes them for allow_pickle
    options = ["--precision", "int8", "--calibration", str(tmp_path / "samples.npz")]
    assert reason in refusal(tmp_path, digits.model_path(), *options, kind=InputError)


OPTIONS = {
    "io without int8": (["--io", "uint8"], "only int8 has integer inputs and outputs"),
    "mean alone": (["--precision", "int8", "--io", "uint8", "--mean", "1"], "only one of --mean and --std"),
    "mean of floats": (["--precision", "int8", "--mean", "0", "--std", "1"], "give --io uint8"),
    "mean out of range": (["--precision", "int8", "--io", "uint8", "--mean", "-3", "--std", "1"], "from 0 to 255"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_contradict(tmp_path: Path, samples: Path, case: str) -> None:
    options, reason = OPTIONS[case]
    text = refusal(tmp_path, digits.model_path(), *options, "--calibration", str(samples), kind=InputError)
    assert reason in text
