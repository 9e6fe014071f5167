"""MediaPipe Tasks open the files that are made here: the metadata say all that an image classifier needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mediapipe import Image, ImageFormat
from mediapipe.tasks.python import BaseOptions
from mediapipe.tasks.python.vision import ImageClassifier, ImageClassifierOptions

from data import colour_digits
from edgefleet.package.manifest import Preprocessing, TensorSpec
from edgefleet_converters.artefact import Artefact, Form
from edgefleet_converters.conversion import flow
from edgefleet_converters.convert import ConvertJob, convert
from edgefleet_converters.metadata import write_metadata
from edgefleet_converters.metadata.facts import Facts
from edgefleet_converters.score.litert_runner import open_model
from edgefleet_device_profiles.profile import Precision, Runtime

FACTS = Facts(
    name="colour digits",
    source_digest="ab" * 32,
    preprocessing=(Preprocessing(input="image", layout="nchw", width=32, height=32, mean=(127.5,), std=(127.5,)),),
    labels=colour_digits.LABELS,
)
IMAGE = TensorSpec(name="image", dtype="float32", shape=(1, 3, 32, 32))
SCORES = TensorSpec(name="scores", dtype="float32", shape=(1, 10))
SOURCE = Artefact(files=(colour_digits.MODEL,), inputs=(IMAGE,), outputs=(SCORES,))
CHANNELS_LAST = IMAGE.model_copy(update={"permutation": (0, 2, 3, 1)})


def float32_file(folder: Path, facts: Facts | None = FACTS) -> Artefact:
    job = ConvertJob(
        runtime=Runtime.LITERT,
        precision=Precision.FP32,
        form=Form.ONNX,
        source=SOURCE,
        calibration=None,
        folder=folder,
        facts=facts,
    )
    return convert(job)


def uint8_file(folder: Path) -> Artefact:
    """What `edgefleet convert --io uint8 --mean 127 --std 127.5` writes, with the labels of a package."""
    images, _ = colour_digits.training()
    np.savez(folder / "calibration.npz", image=colour_digits.normalised(images[:200]))
    output = folder / "uint8.tflite"
    request = flow.Request(
        model=colour_digits.MODEL,
        output=output,
        precision="int8",
        calibration=folder / "calibration.npz",
        border="uint8",
        mean=127,
        std=127.5,
        check=False,
    )
    flow.convert(request, lambda _text: None)
    made = Artefact(files=(output,), inputs=(CHANNELS_LAST,), outputs=(SCORES,))
    described = folder / "described"
    described.mkdir()
    return write_metadata(Runtime.LITERT, made, FACTS, described)


def classified(path: Path) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], list[str]]:
    """Class and label of every held-out image, from the pixels alone."""
    options = ImageClassifierOptions(base_options=BaseOptions(model_asset_path=str(path)), max_results=1)
    images, _ = colour_digits.held_out()
    with ImageClassifier.create_from_options(options) as classifier:
        found = [
            classifier.classify(Image(image_format=ImageFormat.SRGB, data=np.ascontiguousarray(pixels)))
            .classifications[0]
            .categories[0]
            for pixels in images
        ]
    return np.array([category.index for category in found]), [category.category_name for category in found]


@pytest.mark.parametrize(("make", "dtype"), [(float32_file, "float32"), (uint8_file, "uint8")])
def test_it_classifies_as_our_own_runner_does(make: object, dtype: str, tmp_path: Path) -> None:
    made = make(tmp_path)  # type: ignore[operator] # one of the two functions above
    images, labels = colour_digits.held_out()
    found, names = classified(made.files[0])
    runner = open_model(made, 1)
    feeds = images if dtype == "uint8" else colour_digits.normalised(images).transpose(0, 2, 3, 1)
    own = [runner.infer({"image": np.ascontiguousarray(feed[np.newaxis])})["scores"].argmax() for feed in feeds]
    accuracy, expected = (found == labels).mean(), (np.array(own) == labels).mean()
    assert expected > 0.96
    assert abs(accuracy - expected) <= 0.01
    assert names == [colour_digits.LABELS[index] for index in found]


def test_a_float_file_without_metadata_is_what_it_refuses(tmp_path: Path) -> None:
    """So that the test above cannot pass without them."""
    with pytest.raises((OSError, RuntimeError, ValueError), match="NormalizationOptions"):
        classified(float32_file(tmp_path, None).files[0])
