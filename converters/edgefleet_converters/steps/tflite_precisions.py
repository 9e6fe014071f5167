"""Any precision of a float .tflite file: the table of the quantiser's recipes, and the job of `edgefleet convert`.

Not a step itself: the steps named after their precision call it. Static int8 is `quantize_tflite`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from ai_edge_quantizer import qtyping, quantizer, recipe

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.conversion.quantizing import Quantized, QuantizeJob
from edgefleet_converters.conversion.tensors import Array, load_feeds
from edgefleet_converters.steps import quantize_tflite, quantize_tflite_int16x8
from edgefleet_converters.tflite.writer import reversioned
from edgefleet_device_profiles.profile import Precision

_EIGHT_BITS_ONLY = (
    qtyping.TFLOperationName.DEPTHWISE_CONV_2D,
    qtyping.TFLOperationName.CONV_2D_TRANSPOSE,
    qtyping.TFLOperationName.BATCH_MATMUL,
)


def run_job(text: str) -> Quantized:
    """The child's side of `edgefleet convert`: the file that the job names, quantised."""
    job = QuantizeJob.model_validate_json(text)
    content = job.source.read_bytes()
    if job.feeds is None:
        found = quantize_weights(content, job.precision)
    else:
        feeds = load_feeds(job.feeds, job.inputs)
        found = _calibrated(content, feeds, job)
    job.result.write_bytes(found)
    return Quantized(size_bytes=len(found))


def _calibrated(content: bytes, feeds: list[dict[str, Array]], job: QuantizeJob) -> bytes:
    if job.precision is Precision.INT16X8:
        return quantize_tflite_int16x8.quantize(content, feeds)
    return quantize_tflite.quantize(content, feeds, border=job.border, ranges=job.ranges)


def quantize_artefact(artefact: Artefact, precision: Precision, folder: Path) -> Artefact:
    """An artefact's one file with other weights, in `folder`."""
    path = folder / "model.tflite"
    path.write_bytes(quantize_weights(artefact.files[0].read_bytes(), precision))
    return artefact.model_copy(update={"files": (path,)})


def quantize_weights(content: bytes, precision: Precision) -> bytes:
    """A float file in a precision that needs no samples."""
    tool = quantizer.Quantizer(bytearray(content), WITHOUT_SAMPLES[precision]())
    found = tool.quantize(enable_progress_report=False).quantized_model
    if found is None:
        raise RuntimeError("ai-edge-quantizer returned no model")
    # The library leaves every operator at version 1, and older runtimes then misread what they do not know.
    return reversioned(bytes(found))


def _float16() -> qtyping.ModelQuantizationRecipe:
    """Weights in float16, widened by a DEQUANTIZE that the runtime folds when it loads the file."""
    manager = quantizer.recipe_manager.RecipeManager()
    manager.add_weight_only_config(
        ".*",
        qtyping.TFLOperationName.ALL_SUPPORTED,
        num_bits=16,
        granularity=qtyping.QuantGranularity.TENSORWISE,
        algorithm_key=quantizer.AlgorithmName.FLOAT_CASTING,
    )
    found: qtyping.ModelQuantizationRecipe = manager.get_quantization_recipe()
    return found


def _int4_weights() -> qtyping.ModelQuantizationRecipe:
    """Weights in 4 bits where a kernel takes them, else in 8; activations are quantised while the model runs.

    Widening the weights to float32 before each use would give the same size and be four times slower.
    """
    manager = quantizer.recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe.dynamic_wi4_afp32())
    for operator in _EIGHT_BITS_ONLY:
        manager.add_dynamic_config(".*", operator, num_bits=8)
    found: qtyping.ModelQuantizationRecipe = manager.get_quantization_recipe()
    return found


WITHOUT_SAMPLES: Mapping[Precision, Callable[[], qtyping.ModelQuantizationRecipe]] = MappingProxyType(
    {
        Precision.FP16: _float16,
        Precision.INT8_DYNAMIC: recipe.dynamic_wi8_afp32,
        Precision.INT4_WEIGHTS: _int4_weights,
    }
)
