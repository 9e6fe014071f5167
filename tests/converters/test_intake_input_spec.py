"""The input spec: what it may say, what it must fit, and what the package carries of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgefleet.errors import InputError
from edgefleet.package.manifest import Preprocessing, TensorSpec
from edgefleet_converters.intake.input_spec import InputSpec, read_input_spec

IMAGE = TensorSpec(name="image", dtype="float32", shape=(1, 3, 24, 32))
NUMBERS = TensorSpec(name="numbers", dtype="int64", shape=(1, 7))
GOOD = """
labels = ["cat", "dog"]

[inputs.image]
layout = "nchw"
colour = "bgr"
scale = 255
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
resize = { width = 32, height = 24, method = "bicubic" }
dtype = "float32"
"""


def read(folder: Path, text: str) -> InputSpec:
    (folder / "spec.toml").write_text(text, encoding="utf-8")
    return read_input_spec(folder / "spec.toml", (IMAGE, NUMBERS))


def test_the_whole_of_it(tmp_path: Path) -> None:
    spec = read(tmp_path, GOOD)
    assert spec.labels == ("cat", "dog")
    assert spec.preprocessing((IMAGE, NUMBERS)) == (
        Preprocessing(
            input="image",
            layout="nchw",
            colour="bgr",
            width=32,
            height=24,
            method="bicubic",
            scale=255,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
    )
    low, high = spec.inputs["image"].span
    assert low == pytest.approx(-0.485 / 0.229)
    assert high == pytest.approx((1 - 0.406) / 0.225)


def test_one_number_for_all_channels_and_labels_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\n\ndog \n", encoding="utf-8")
    spec = read(tmp_path, 'labels = "names.txt"\n[inputs.image]\nlayout = "nchw"\nmean = 127.5\nstd = 127.5\n')
    assert spec.labels == ("cat", "dog")
    assert spec.inputs["image"].mean == (127.5,)
    assert spec.inputs["image"].span == (-1, 1)


REFUSED = {
    "no TOML": ("[inputs", "not readable as TOML"),
    "unknown key": ('[inputs.image]\nlayout = "nchw"\nnormalise = true', "inputs.image.normalise: Extra inputs"),
    "unknown layout": ('[inputs.image]\nlayout = "chw"', "inputs.image.layout: Input should be 'nchw' or 'nhwc'"),
    "no layout": ("[inputs.image]\nscale = 255", "inputs.image.layout: Field required"),
    "two means": ('[inputs.image]\nlayout = "nchw"\nmean = [1, 2]', "mean has 2 numbers, and rgb has 3"),
    "no deviation": ('[inputs.image]\nlayout = "nchw"\nstd = 0', "std must be above 0"),
    "scale": ('[inputs.image]\nlayout = "nchw"\nscale = 0', "inputs.image.scale: Input should be greater than 0"),
    "unknown input": ('[inputs.x]\nlayout = "nchw"', "the model has no input 'x'; its inputs are: image, numbers"),
    "no image": ('[inputs.numbers]\nlayout = "nchw"', r"input 'numbers' has the shape \[1, 7\], and is no image"),
    "layout": ('[inputs.image]\nlayout = "nhwc"', "nhwc and rgb ask for 3 on axis 3"),
    "colour": ('[inputs.image]\nlayout = "nchw"\ncolour = "gray"', "nchw and gray ask for 1 on axis 1"),
    "dtype": ('[inputs.image]\nlayout = "nchw"\ndtype = "uint8"', "input 'image' is float32, not uint8"),
    "resize": (
        '[inputs.image]\nlayout = "nchw"\nresize = { width = 24, height = 32 }',
        r"resize gives 24 x 32, and input 'image' takes 32 x 24 \(width x height\)",
    ),
    "labels twice": ('labels = ["cat", "dog", "cat"]', "the label 'cat' is listed twice"),
    "no label file": ('labels = "gone.txt"', "No such file or directory .*gone.txt"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(tmp_path: Path, case: str) -> None:
    text, reason = REFUSED[case]
    with pytest.raises(InputError, match=reason) as refused:
        read(tmp_path, text)
    assert "\n" not in str(refused.value)
    assert str(tmp_path / "spec.toml") in str(refused.value)
