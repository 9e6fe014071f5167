"""Step: weights of a float .tflite file in 8 bits and activations in 16; its inputs and outputs stay float32.

More exact than int8 and, off XNNPACK, many times slower: it is made only where it is asked for.
"""

from __future__ import annotations

import numpy as np
from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe
from ai_edge_quantizer.utils import qsv_utils

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.conversion.tensors import Array
from edgefleet_converters.step import Context, in_file_layout
from edgefleet_converters.steps.quantize_tflite import LEAST_RANGE
from edgefleet_converters.tflite.writer import SIGNATURE, reversioned

_BORDERS = (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT)


def run(artefact: Artefact, context: Context) -> Artefact:
    """Float .tflite in, one with 16-bit activations out, with the same float32 inputs and outputs."""
    path = context.folder / "model.tflite"
    path.write_bytes(quantize(artefact.files[0].read_bytes(), in_file_layout(artefact, context.samples)))
    return artefact.model_copy(update={"files": (path,)})


def quantize(content: bytes, samples: list[dict[str, Array]]) -> bytes:
    """A float file by samples (input name → array, in the file's layout); ranges are the extremes seen."""
    tool = quantizer.Quantizer(bytearray(content), recipe.static_wi8_ai16())
    for name in _BORDERS:
        tool.update_quantization_recipe(".*", name, algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE)
    observer = calibrator.Calibrator(bytearray(content), num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    manager = quantizer.recipe_manager.RecipeManager()
    manager.load_quantization_recipe(tool.get_quantization_recipe())
    observer.calibrate({SIGNATURE: samples}, manager)
    ranges = observer.get_model_qsvs()
    for span in ranges.values():
        if float(np.max(span["max"])) - float(np.min(span["min"])) < LEAST_RANGE:
            span["max"] = span["max"] + np.float32(1)
    found = tool.quantize(ranges, enable_progress_report=False).quantized_model
    if found is None:
        raise RuntimeError("ai-edge-quantizer returned no model")
    # The library leaves every operator at version 1, and older runtimes then misread what they do not know.
    return reversioned(bytes(found))
