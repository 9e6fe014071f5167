"""Step: static int8 of a float .tflite file with ai-edge-quantizer; its inputs and outputs stay float32.

Ranges are the smallest and largest value seen: the library's default, a moving average, costs 5 to 14 dB.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe
from ai_edge_quantizer.utils import qsv_utils
from numpy.typing import NDArray

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.tflite.writer import SIGNATURE


def run(artefact: Artefact, calibration: NDArray[np.float32], folder: Path) -> Artefact:
    """Float .tflite in, int8 .tflite out, with the same float32 inputs and outputs."""
    content = artefact.files[0].read_bytes()
    tool = quantizer.Quantizer(bytearray(content), recipe.static_wi8_ai8())
    # The recipe covers the graph's borders too; left out, they become QUANTIZE and DEQUANTIZE operators.
    for border in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        tool.update_quantization_recipe(".*", border, algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE)
    quantized = tool.quantize(_ranges(content, artefact, calibration, tool), enable_progress_report=False)
    if quantized.quantized_model is None:
        raise RuntimeError("ai-edge-quantizer returned no model")
    path = folder / "model.tflite"
    path.write_bytes(quantized.quantized_model)
    return Artefact(files=(path,), inputs=artefact.inputs, outputs=artefact.outputs)


def _ranges(
    content: bytes, artefact: Artefact, calibration: NDArray[np.float32], tool: quantizer.Quantizer
) -> dict[str, qtyping.QSV]:
    """Smallest and largest value of every tensor over the calibration samples."""
    spec = artefact.inputs[0]
    observer = calibrator.Calibrator(bytearray(content), num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    samples = [
        {spec.name: np.ascontiguousarray(sample.transpose(spec.permutation) if spec.permutation else sample)}
        for sample in calibration
    ]
    manager = quantizer.recipe_manager.RecipeManager()
    manager.load_quantization_recipe(tool.get_quantization_recipe())
    observer.calibrate({SIGNATURE: samples}, manager)
    ranges: dict[str, qtyping.QSV] = observer.get_model_qsvs()
    return ranges
