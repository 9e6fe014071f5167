"""Data from arrays, folders of images, CSV files and functions: always in the source's layout, names and dtype."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgefleet.errors import InputError
from edgefleet.package.manifest import TensorSpec
from edgefleet_converters.data import load_calibration, load_evaluation
from edgefleet_converters.data.images import find, normalised
from edgefleet_converters.data.labels import read_labels
from edgefleet_converters.data.sets import LOADERS, kind_of
from edgefleet_converters.intake.input_spec import ImageInput, InputSpec, Resize

IMAGE = TensorSpec(name="image", dtype="float32", shape=(1, 3, 4, 6))
SPEC = InputSpec(inputs={"image": ImageInput(layout="nchw", scale=255)})
PAIR = (TensorSpec(name="a", dtype="float32", shape=(1, 2)), TensorSpec(name="b", dtype="int64", shape=(1, 3)))


def picture(path: Path, level: int, size: tuple[int, int] = (6, 4)) -> Path:
    """One image whose red is `level` and whose green grows from left to right."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[..., 0] = level
    pixels[..., 1] = np.arange(size[0]) * 10
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


# ---- arrays and labels


def test_an_npy_file_with_labels_of_its_own(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((5, 3, 4, 6), np.float32))
    np.save(tmp_path / "y.npy", np.arange(5))
    found = load_evaluation(tmp_path / "x.npy", (IMAGE,), labels=tmp_path / "y.npy")
    assert found.samples["image"].shape == (5, 1, 3, 4, 6)
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("y.txt", "dog\ncat\n\ndog\n"),
        ("y.csv", "file,label\na.png,dog\nb.png,cat\nc.png,dog\n"),
        ("z.csv", "1\n0\n1\n"),
    ],
)
def test_labels_in_text_files(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_labels(tmp_path / name, ("cat", "dog")).tolist() == [1, 0, 1]


def test_measurements_are_labels_too_and_unknown_names_are_not(tmp_path: Path) -> None:
    (tmp_path / "y.txt").write_text("1.5\n2\n", encoding="utf-8")
    found = read_labels(tmp_path / "y.txt", ())
    assert found.dtype == np.float32
    assert found.tolist() == [1.5, 2]
    (tmp_path / "y.txt").write_text("cat\nowl\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"'owl' is neither a number nor one of the labels \(cat, dog\)"):
        read_labels(tmp_path / "y.txt", ("cat", "dog"))


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    x = np.ones((5, 3, 4, 6), np.float32)
    np.savez(tmp_path / "x.npz", image=x, y=np.arange(5))
    np.save(tmp_path / "y.npy", np.arange(4))
    with pytest.raises(InputError, match="labels in the data, and in"):
        load_evaluation(tmp_path / "x.npz", (IMAGE,), labels=tmp_path / "y.npy")
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(InputError, match=r"y is int64 \[4\], expected integers \[5\]"):
        load_evaluation(tmp_path / "x.npy", (IMAGE,), labels=tmp_path / "y.npy")


def test_a_known_layout_mistake_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((5, 4, 6, 3), np.float32))
    with pytest.raises(
        InputError, match=r"looks like NHWC, and the model wants NCHW: transpose it with \(0, 3, 1, 2\)"
    ):
        load_calibration(tmp_path / "x.npy", (IMAGE,))
    np.save(tmp_path / "x.npy", np.ones((5, 3, 4, 6), np.float32))
    nhwc = TensorSpec(name="image", dtype="float32", shape=(1, 4, 6, 3))
    with pytest.raises(
        InputError, match=r"looks like NCHW, and the model wants NHWC: transpose it with \(0, 2, 3, 1\)"
    ):
        load_calibration(tmp_path / "x.npy", (nhwc,))


# ---- images


def test_class_folders(tmp_path: Path) -> None:
    for place, name in enumerate(["dog", "cat", "cat", "dog"]):
        picture(tmp_path / name / f"{place}.png", level=51 * place)
    found = load_evaluation(tmp_path, (IMAGE,), SPEC)
    image = found.samples["image"].astype(np.float32, copy=False)
    assert image.shape == (4, 1, 3, 4, 6)
    assert str(found.samples["image"].dtype) == IMAGE.dtype
    assert found.labels is not None
    assert found.labels.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(image[:, 0, 0, 0, 0], [0.2, 0.4, 0, 0.6], atol=1e-6)
    np.testing.assert_allclose(image[0, 0, 1, 2], np.arange(6) * 10 / 255, atol=1e-6)
    named = load_evaluation(tmp_path, (IMAGE,), SPEC.model_copy(update={"labels": ("dog", "cow", "cat")}))
    assert named.labels is not None
    assert named.labels.tolist() == [2, 2, 0, 0]
    assert load_calibration(tmp_path, (IMAGE,), SPEC)["image"].shape == image.shape


def test_folders_that_are_numbers_are_their_own_classes(tmp_path: Path) -> None:
    for number in (0, 2, 10):
        picture(tmp_path / str(number) / "a.png", level=number)
    files, labels = find(tmp_path, (), "")
    assert labels is not None
    assert [(file.parent.name, int(label)) for file, label in zip(files, labels, strict=True)] == [
        ("0", 0),
        ("10", 10),
        ("2", 2),
    ]


def test_rows_of_a_csv_file(tmp_path: Path) -> None:
    picture(tmp_path / "pictures" / "a.png", level=255)
    picture(tmp_path / "pictures" / "b.png", level=0)
    (tmp_path / "set.csv").write_text("file,label\npictures/b.png,1\npictures/a.png,0\n", encoding="utf-8")
    found = load_evaluation(tmp_path / "set.csv", (IMAGE,), SPEC)
    assert found.labels is not None
    assert found.labels.tolist() == [1, 0]
    assert found.samples["image"][:, 0, 0, 0, 0].tolist() == [0, 1]
    (tmp_path / "set.csv").write_text("pictures/a.png\n", encoding="utf-8")
    assert load_evaluation(tmp_path / "set.csv", (IMAGE,), SPEC).labels is None


def test_resizing(tmp_path: Path) -> None:
    picture(tmp_path / "large.png", level=255, size=(12, 8))
    with pytest.raises(InputError, match=r"large\.png is 12 x 8, and the input takes 6 x 4 \(width x height\)"):
        load_calibration(tmp_path, (IMAGE,), SPEC)
    image = ImageInput(layout="nchw", scale=255, resize=Resize(width=6, height=4, method="area"))
    found = load_calibration(tmp_path, (IMAGE,), InputSpec(inputs={"image": image}))["image"].astype(np.float32)
    np.testing.assert_allclose(found[0, 0, 1, 0], (np.arange(6) * 20 + 5) / 255, atol=1e-6)


PIXELS: NDArray[np.uint8] = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


def test_colours_layouts_and_types() -> None:
    plain = normalised(PIXELS, ImageInput(layout="nhwc"), np.dtype(np.uint8))
    np.testing.assert_array_equal(plain, PIXELS)
    swapped = normalised(PIXELS, ImageInput(layout="nchw", colour="bgr", mean=(1, 2, 3)), np.dtype(np.float32))
    # Mean and deviation are in the order that the model sees: blue first.
    np.testing.assert_array_equal(swapped[0], PIXELS[..., 2].astype(np.float32) - 1)
    np.testing.assert_array_equal(swapped[2], PIXELS[..., 0].astype(np.float32) - 3)
    signed = normalised(PIXELS, ImageInput(layout="nhwc", mean=(128,)), np.dtype(np.int8))
    np.testing.assert_array_equal(signed, PIXELS.astype(np.int16) - 128)


def test_folders_that_are_no_data_sets(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no images in this folder"):
        load_calibration(tmp_path, (IMAGE,), SPEC)
    picture(tmp_path / "cat" / "a.png", 1)
    with pytest.raises(InputError, match="images say nothing of their normalisation; describe it in the input spec"):
        load_calibration(tmp_path, (IMAGE,))
    with pytest.raises(InputError, match=r"the model has inputs a, b; give \.npz files"):
        load_calibration(tmp_path, PAIR, SPEC)
    picture(tmp_path / "b.png", 1)
    with pytest.raises(InputError, match="images beside the class folders cat"):
        find(tmp_path, (), "reading")
    (tmp_path / "set.csv").write_text("b.png,0\ngone.png,1\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"there is no file .*gone\.png"):
        find(tmp_path / "set.csv", (), "reading")


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:44])
    with pytest.raises(InputError, match=r"b\.png is not a readable image"):
        load_calibration(tmp_path, (IMAGE,), SPEC)


# ---- functions

FUNCTIONS = """
import numpy as np

def pairs():
    for start in (0, 3):
        yield {"a": np.full((3, 2), start, "float32"), "b": np.ones((3, 3), "int64")}, np.arange(start, start + 3)

def single():
    yield np.ones((2, 3, 4, 6), "float32")

def nothing():
    yield from ()

def nameless():
    yield np.ones((2, 2), "float32")

def some_labels():
    batch = {"a": np.ones((3, 2), "float32"), "b": np.ones((3, 3), "int64")}
    yield batch
    yield batch, np.arange(3)

def breaks():
    raise RuntimeError("the disk is gone")

def text():
    return "batches"
"""


@pytest.fixture(name="here")
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_batches.py").write_text(FUNCTIONS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("here")
def test_batches_with_labels_for_two_inputs() -> None:
    found = load_evaluation("my_batches:pairs", PAIR)
    assert found.samples["a"].shape == (6, 1, 2)
    assert found.samples["b"].dtype == np.int64
    assert found.samples["a"][:, 0, 0].tolist() == [0, 0, 0, 3, 3, 3]
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_function_in_a_file(here: Path) -> None:
    found = load_evaluation("my_batches.py:single", (IMAGE,))
    assert found.samples["image"].shape == (2, 1, 3, 4, 6)
    assert found.labels is None
    assert load_calibration(f"{here}/my_batches.py:single", (IMAGE,))["image"].shape == (2, 1, 3, 4, 6)


BROKEN = {
    "my_batches:nothing": "the function yielded no batches",
    "my_batches:nameless": "a batch without names, and the model has inputs a, b",
    "my_batches:some_labels": "1 of 2 batches have labels",
    "my_batches:breaks": "it failed: RuntimeError: the disk is gone",
    "my_batches:text": "the function gave str, not batches",
    "my_batches:gone": "there is no such function",
    "gone:gone": "there is no such function",
}


@pytest.mark.parametrize("place", BROKEN)
@pytest.mark.usefixtures("here")
def test_functions_that_are_no_data_sets(place: str) -> None:
    with pytest.raises(InputError, match=BROKEN[place]):
        load_calibration(place, PAIR)


def test_every_kind_of_place_has_a_loader(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png", 1)
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays" / "a.npy", np.ones(1))
    places: list[str | Path] = ["a.npz", "a.npy", "set.csv", "module:function", "file.py:function"]
    places += [tmp_path / "images", tmp_path / "arrays"]
    found = [kind_of(place) for place in places]
    assert found == ["arrays", "arrays", "images", "batches", "batches", "images", "arrays"]
    assert set(found) == set(LOADERS)
