"""Makes small Keras models and what they predict, in the keras environment: run as `python make_models.py FOLDER`.

Imports nothing of this project. Each model `NAME` leaves its file and `NAME.npz` with `in:…` and `out:…` arrays.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import h5py
import keras
import numpy as np
import tensorflow as tf
import tf_keras

SAMPLES = 4


def main(folder: Path) -> None:
    """Write all models."""
    tf.random.set_seed(0)
    keras.utils.set_random_seed(0)
    two = two_inputs()
    two.save(folder / "two.keras")
    two.save(folder / "two_new.h5")
    two.export(folder / "two_saved", verbose=False)
    predict(folder / "two", two, ["classes", "box"])
    predict(folder / "two_new", two, ["classes", "box"])
    predict(folder / "two_saved", two, ["output_0", "output_1"])
    mobile = mobile_like()
    mobile.save(folder / "mobile.h5")
    mobile.save(folder / "mobile_saved")
    for name in ("mobile", "mobile_saved"):
        predict(folder / name, mobile, ["classes"])
    recurrent = sequence()
    recurrent.save(folder / "recurrent.keras")
    predict(folder / "recurrent", recurrent, ["scores"])
    open_size().save(folder / "open.keras")
    refused(folder, mobile)


def two_inputs() -> Any:
    """Images and four numbers in; classes and a box out."""
    layers = keras.layers
    image, extra = keras.Input((16, 16, 3), name="image"), keras.Input((4,), name="extra")
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(image)
    x = layers.BatchNormalization()(layers.DepthwiseConv2D(3)(x))
    x = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), extra])
    outputs = [layers.Dense(5, activation="softmax", name="classes")(x), layers.Dense(2, name="box")(x)]
    return keras.Model([image, extra], outputs)


def mobile_like() -> Any:
    """Of the time before Keras 3, with a depthwise convolution and a function of TensorFlow's own."""
    layers = tf_keras.layers
    image = tf_keras.Input((16, 16, 3), name="image")
    x = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(8, 3, strides=2, padding="same")(image)))
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = tf.math.tanh(x)
    x = layers.GlobalAveragePooling2D()(x)
    return tf_keras.Model(image, layers.Dense(5, activation="softmax", name="classes")(x))


def sequence() -> Any:
    """Two recurrent layers."""
    layers = keras.layers
    x = given = keras.Input((12, 6), name="sequence")
    x = layers.GRU(8, return_sequences=True)(x)
    return keras.Model(given, layers.Dense(3, name="scores")(layers.LSTM(8)(x)))


def open_size() -> Any:
    """An image of any size."""
    given = keras.Input((None, None, 3), name="image")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(given))
    return keras.Model(given, keras.layers.Dense(2, name="scores")(x))


class Doubling(keras.layers.Layer):  # type: ignore[misc] # Keras has no types here
    """A layer of the person's own."""

    def call(self, x: Any) -> Any:
        """Twice what comes in."""
        return x * 2


def refused(folder: Path, mobile: Any) -> None:
    """Files that carry code, need code, or hold no model."""
    mark = str(folder / "ran")
    given = tf_keras.Input((4,), name="x")
    # The import is inside: the module of whoever loads the file is all that the code will see.
    code = lambda x: (__import__("pathlib").Path(mark).write_bytes(b""), x * 2)[1]  # noqa: E731 - it must be one
    doubled = tf_keras.layers.Lambda(code, name="doubled")(given)
    tf_keras.Model(given, doubled).save(folder / "lambda.h5")
    given = keras.Input((4,), name="x")
    # A layer inside a model inside a model.
    inner = keras.Sequential([keras.layers.Lambda(lambda x: x * 2, name="hidden")], name="inner")
    keras.Model(given, inner(given)).save(folder / "nested.keras")
    keras.Model(given, Doubling(name="mine")(given)).save(folder / "custom.keras")
    given = tf_keras.Input((4,), name="x")
    written = tf.io.encode_base64(tf.strings.as_string(given))
    tf_keras.Model(given, tf.strings.length(written)).save(folder / "reaching.h5")
    mobile.save_weights(folder / "only.weights.h5")
    with h5py.File(folder / "other.h5", "w") as file:
        file["x"] = np.zeros(3)
    module = tf.Module()
    signature = [tf.TensorSpec([1, 4], tf.float32, name="x")]
    module.run = tf.function(lambda x: {"y": tf.py_function(lambda v: v * 2, [x], tf.float32)}, signature)
    tf.saved_model.save(module, folder / "python_saved", signatures=module.run)
    mobile.layers[1].set_weights([np.full_like(array, np.nan) for array in mobile.layers[1].get_weights()])
    mobile.save(folder / "nan.h5")


def predict(path: Path, model: Any, names: list[str]) -> None:
    """Seeded inputs and what the model makes of them."""
    generator = np.random.default_rng(0)
    given = {
        tensor.name.split(":")[0]: generator.random((SAMPLES, *tensor.shape[1:]), np.float32) for tensor in model.inputs
    }
    found = model.predict(list(given.values()), verbose=0)
    found = found if isinstance(found, list) else [found]
    arrays = {f"in:{name}": array for name, array in given.items()}
    arrays |= {f"out:{name}": array for name, array in zip(names, found, strict=True)}
    np.savez(path.with_suffix(".npz"), allow_pickle=False, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
