"""Trained Keras models become ONNX by tf2onnx, and .tflite by tf.lite's own converter; needs its own environment.

`python real_models_keras.py MODELS RESULTS`; one line per model, its input's shape. Measures nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

# Quiet only after the line above.
import tensorflow as tf
import tf2onnx
import tf_keras

SOURCES = {"kws": "kws_ref_model", "vww_96": "vww_96.h5", "sww": "sww.h5"}
CALIBRATION = {"sww": ("sww_calibration_samples.npz", "specs")}


def lite(model: Any, batch: tuple[int, ...], samples: np.ndarray[Any, Any] | None) -> bytes:
    """tf.lite's file of one sample, float, or int8 inside of float32 inputs and outputs."""
    entry = tf.TensorSpec((1, *batch), tf.float32, name="input")
    function = tf.function(lambda x: model(x, training=False)).get_concrete_function(entry)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], model)
    if samples is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = _fed(samples)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return bytes(converter.convert())


def _fed(samples: np.ndarray[Any, Any]) -> Callable[[], Iterator[list[np.ndarray[Any, Any]]]]:
    return lambda: ([sample[None].astype(np.float32)] for sample in samples)


def main() -> None:
    """Write NAME.onnx, NAME_fp32.tflite, and where there are samples NAME.npz and NAME_int8.tflite."""
    models, results = Path(sys.argv[1]), Path(sys.argv[2])
    for name, source in SOURCES.items():
        # Files from before Keras 3 hold options that it refuses.
        model = tf_keras.models.load_model(models / source, compile=False)
        proto, _ = tf2onnx.convert.from_keras(model)
        (results / f"{name}.onnx").write_bytes(proto.SerializeToString())
        shape = tuple(model.inputs[0].shape[1:])
        (results / f"{name}_fp32.tflite").write_bytes(lite(model, shape, None))
        if name in CALIBRATION:
            file, key = CALIBRATION[name]
            samples = np.load(models / file)[key].astype(np.float32)
            arrays: dict[str, Any] = {proto.graph.input[0].name: samples}
            np.savez(results / f"{name}.npz", **arrays)
            (results / f"{name}_int8.tflite").write_bytes(lite(model, shape, samples))
        print(name, *shape)


if __name__ == "__main__":
    main()
