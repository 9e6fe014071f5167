"""Step: static int8 of a float .tflite file with ai-edge-quantizer, as the settings say; its borders stay float32.

Never the library's own ranges: a moving average costs 5 to 14 dB against the smallest and largest value seen.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType

import numpy as np
from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe
from ai_edge_quantizer.utils import qsv_utils

from edgefleet.errors import UnsupportedError
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.conversion.quantizing import BorderType
from edgefleet_converters.conversion.tensors import Array
from edgefleet_converters.step import Context, in_file_layout
from edgefleet_converters.steps.tflite_layers import float_results, padded_by_value
from edgefleet_converters.steps.tflite_ranges import find_ranges
from edgefleet_converters.tflite.float_scores import float_scores
from edgefleet_converters.tflite.islands import LEFT_FLOAT, close_islands, softmaxes_for_int8
from edgefleet_converters.tflite.moments import float_moments
from edgefleet_converters.tflite.requantize import fold_requantization
from edgefleet_converters.tflite.results import put_back, set_aside
from edgefleet_converters.tflite.stored_borders import store_borders
from edgefleet_converters.tflite.writer import SIGNATURE, pack, unpack

_NO_RANGES: Mapping[str, tuple[float, float]] = MappingProxyType({})
_BORDERS = (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT)
_ALL = qtyping.TFLOperationName.ALL_SUPPORTED


def run(artefact: Artefact, context: Context) -> Artefact:
    """Float .tflite in, int8 .tflite out, with the same inputs and outputs; raises InputError for an unknown tensor."""
    path, content = context.folder / "model.tflite", artefact.files[0].read_bytes()
    feeds, settings = in_file_layout(artefact, context.samples), context.settings
    kept = float_results(content, context.source, settings.float_tensors)
    path.write_bytes(quantize(content, feeds, ranges=find_ranges(content, feeds, settings.ranges), kept_float=kept))
    return artefact.model_copy(update={"files": (path,)})


def quantize(
    content: bytes,
    samples: list[dict[str, Array]],
    *,
    border: BorderType = "float32",
    ranges: Mapping[str, tuple[float, float]] = _NO_RANGES,
    kept_float: Collection[str] = (),
) -> bytes:
    """Int8 form of a float file, by samples (input name → array, in the file's layout).

    `border` is what float inputs and outputs become; `ranges` (tensor name → smallest, largest) go before what the
    samples show; operators that return one of `kept_float` stay float. So do those that XNNPACK takes in float32 only,
    the moments of normalisations and the scores of attention, except with int8 borders, and but for a SOFTMAX of int8
    values that is quicker in int8 all the same.
    """
    inner, aside = set_aside(content)
    tool = _tool(content, inner, border, kept_float)
    # By itself the recipe covers the borders too.
    seen = _ranges(content, samples, tool.get_quantization_recipe() if border == "float32" else recipe.static_wi8_ai8())
    if not seen:
        found = "no operator of it becomes int8" + (", with those that are to stay in float" if kept_float else "")
        raise UnsupportedError("quantising the model to int8", found, "ship a float variant")
    seen.update({name: _as_seen(span, seen.get(name)) for name, span in ranges.items()})
    quantized = tool.quantize(seen, enable_progress_report=False)
    if quantized.quantized_model is None:
        raise RuntimeError("ai-edge-quantizer returned no model")
    model = unpack(bytes(quantized.quantized_model))
    put_back(model, aside)
    if border != "float32":
        store_borders(model, border, {name: (np.min(span["min"]), np.max(span["max"])) for name, span in seen.items()})
    close_islands(model)
    fold_requantization(model)
    # The library leaves every operator at version 1, and older runtimes then misread what they do not know.
    return pack(model)


def _tool(content: bytes, inner: bytes, border: BorderType, kept_float: Collection[str]) -> quantizer.Quantizer:
    """The library's quantiser of `inner`, with what it is to leave alone."""
    tool = quantizer.Quantizer(bytearray(inner), recipe.static_wi8_ai8())
    # The recipe covers the graph's borders too; left out, they become QUANTIZE and DEQUANTIZE operators.
    # A file with int8 borders is for microcontrollers, which want integers throughout.
    floats = () if border == "int8" else tuple(map(qtyping.TFLOperationName, LEFT_FLOAT))
    for name in (*_BORDERS, *floats):
        tool.update_quantization_recipe(".*", name, algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE)
    for result in softmaxes_for_int8(content):
        scope = f"^{re.escape(result)};$"
        tool.add_static_config(scope, qtyping.TFLOperationName.SOFTMAX, activation_num_bits=8, weight_num_bits=8)
    parts = () if border == "int8" else (*float_moments(content), *float_scores(content))
    kept = "|".join(map(re.escape, (*kept_float, *padded_by_value(content), *parts)))
    if kept:
        # The library knows an operator by the names of what it returns, each with a semicolon behind it.
        tool.update_quantization_recipe(f"(^|;)({kept});", _ALL, algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE)
    return tool


# A tensor that is always 0 would get a scale of 4e-12, and the runtime corrupts its heap when it derives multipliers
# from that, or saturates. Any scale holds a zero.
LEAST_RANGE = 1e-6


def _ranges(
    content: bytes, samples: list[dict[str, Array]], covered: qtyping.ModelQuantizationRecipe
) -> dict[str, qtyping.QSV]:
    """Smallest and largest value of every tensor that a recipe covers over the calibration samples."""
    observer = calibrator.Calibrator(bytearray(content), num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    manager = quantizer.recipe_manager.RecipeManager()
    manager.load_quantization_recipe(covered)
    observer.calibrate({SIGNATURE: samples}, manager)
    ranges: dict[str, qtyping.QSV] = observer.get_model_qsvs()
    for span in ranges.values():
        if float(np.max(span["max"])) - float(np.min(span["min"])) < LEAST_RANGE:
            span["max"] = span["max"] + np.float32(1)
    return ranges


def _as_seen(span: tuple[float, float], seen: qtyping.QSV | None) -> qtyping.QSV:
    """A range in the form of what the quantiser saw: arrays of one element and of the tensor's rank."""
    shape = np.shape(seen["min"]) if seen else ()
    return {key: np.full(shape, value, np.float32) for key, value in zip(("min", "max"), span, strict=True)}
