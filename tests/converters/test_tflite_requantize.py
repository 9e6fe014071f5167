"""QUANTIZE operators between two int8 scales: which go, what the file computes without them, and which must stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from conformance.delegation_probe import outside
from conformance_graphs.judge import inputs_of, stored
from conformance_graphs.networks import NETWORKS
from edgefleet_converters.steps import quantize_tflite
from edgefleet_converters.tflite import lower
from edgefleet_converters.tflite.delegation import outside_xnnpack
from edgefleet_converters.tflite.file import Draft, Quantization, options_of
from edgefleet_converters.tflite.requantize import EACH, PRODUCT, WIDEST, fold_requantization
from edgefleet_converters.tflite.wiring import wirings
from edgefleet_converters.tflite.writer import pack, reversioned, unpack, write

Array = NDArray[Any]
Ranges = dict[str, tuple[float, float]]
Quantise = Callable[..., bytes]
SHAPE = (1, 4, 4, 8)
WIDE = (1, 4, 4, 16)
X: Ranges = {"x": (-3.0, 3.0)}
"""With a range for every tensor, the scales are those of the test and not of its random numbers."""


@pytest.fixture(name="unfolded")
def _unfolded(monkeypatch: pytest.MonkeyPatch) -> Quantise:
    """The quantiser's file as it was before this pass."""

    def quantised(*given: Any, **named: Any) -> bytes:
        with monkeypatch.context() as patch:
            patch.setattr(quantize_tflite, "fold_requantization", lambda _model: None)
            return quantize_tflite.quantize(*given, **named)

    return quantised


class Drawing:
    """A float file, tensor by tensor; all of 4 x 4 x 8 but what is joined."""

    def __init__(self) -> None:
        self.draft, self.random = Draft(), np.random.default_rng(3)
        self.bias = np.linspace(-0.7, 0.7, 8, dtype=np.float32)
        self.draft.temporary("x", SHAPE)

    def conv(self, source: str, result: str, channels: int = 8) -> None:
        """1 x 1, with a bias that matters."""
        weight = self.random.normal(size=(8, 1, 1, channels)).astype(np.float32) * 0.12
        inputs = (source, self.draft.constant(f"w_{result}", weight), self.draft.constant(f"b_{result}", self.bias))
        self.put("CONV_2D", inputs, result, SHAPE, options_of("Conv2D", strideW=1, strideH=1))

    def join(self, one: str, other: str, result: str) -> None:
        """Along the channels."""
        self.put("CONCATENATION", (one, other), result, WIDE, options_of("Concatenation", axis=3))

    def put(
        self, operator: str, inputs: tuple[str, ...], result: str, shape: tuple[int, ...], options: object = None
    ) -> None:
        """Any operator."""
        self.draft.emit(operator, inputs, (self.draft.temporary(result, shape),), options)

    def reshape(self, source: str, result: str, shape: tuple[int, ...]) -> None:
        """To another shape of as many elements."""
        wanted = self.draft.constant(f"shape_{result}", np.array(shape, np.int32))
        self.put("RESHAPE", (source, wanted), result, shape, options_of("Reshape", newShape=shape))

    def file(self, *outputs: str) -> bytes:
        """Its bytes."""
        return write(self.draft, {"x": "x"}, {name: name for name in outputs})


def samples(count: int = 4) -> list[dict[str, Array]]:
    random = np.random.default_rng(5)
    return [{"x": random.uniform(-3, 3, size=SHAPE).astype(np.float32)} for _ in range(count)]


def run(content: bytes, x: Array) -> dict[str, Array]:
    interpreter = Interpreter(model_content=content, num_threads=1)
    found: dict[str, Array] = interpreter.get_signature_runner()(x=x)
    return found


def requantising(content: bytes) -> int:
    """How many QUANTIZE operators go from int8 to int8."""
    return sum(
        wiring.name(operator) == "QUANTIZE"
        and wiring.is_int8(operator.inputs[0])
        and wiring.is_int8(operator.outputs[0])
        for wiring in wirings(unpack(content))
        for operator in wiring.table.operators
    )


def steps(one: bytes, other: bytes, output: str, span: tuple[float, float]) -> int:
    """Largest difference of an output of the given range, in steps of it."""
    step = (span[1] - span[0]) / 255
    pairs = [(run(one, sample["x"])[output], run(other, sample["x"])[output]) for sample in samples()]
    return max(round(float(np.abs(left - right).max()) / step) for left, right in pairs)


def joined_after_a_reshape() -> bytes:
    """Nothing but the QUANTIZE reads what it changes, and a RESHAPE with one scale lies before it."""
    drawing = Drawing()
    drawing.conv("x", "a")
    drawing.reshape("a", "r", SHAPE)
    drawing.conv("x", "c")
    drawing.join("r", "c", "y")
    return drawing.file("y")


def test_what_only_the_quantize_reads_takes_its_scale_whatever_that_is(unfolded: Quantise) -> None:
    ranges = {**X, "a": (-3.0, 3.0), "r": (-3.0, 3.0), "c": (-9.0, 8.0), "y": (-9.0, 8.0)}
    content = joined_after_a_reshape()
    before, after = (
        unfolded(content, samples(), ranges=ranges),
        quantize_tflite.quantize(content, samples(), ranges=ranges),
    )
    assert (requantising(before), requantising(after)) == (1, 0)
    assert outside(after) == outside_xnnpack(after) == []
    assert steps(before, after, "y", ranges["y"]) == 1
    plain = [run(content, sample["x"])["y"] for sample in samples()]

    def error(made: bytes) -> float:
        found = [run(made, sample["x"])["y"] for sample in samples()]
        return float(np.mean([np.square(left - right).mean() for left, right in zip(plain, found, strict=True)]))

    assert error(after) < error(before)
    assert reversioned(after) == after


def forked(span: float) -> tuple[bytes, Ranges]:
    """A convolution reads the tensor that is joined too; the joined tensor's range is `span` times that tensor's."""
    drawing = Drawing()
    drawing.conv("x", "a")
    drawing.conv("a", "b")
    drawing.conv("x", "c")
    drawing.join("a", "c", "y")
    wide = (-3 * span, 3 * span)
    return drawing.file("y", "b"), {**X, "a": (-3.0, 3.0), "b": (-3.0, 3.0), "c": wide, "y": wide}


def test_another_reader_takes_a_slightly_coarser_scale_and_its_bias_follows(unfolded: Quantise) -> None:
    content, ranges = forked(WIDEST - 0.05)
    before, after = (
        unfolded(content, samples(), ranges=ranges),
        quantize_tflite.quantize(content, samples(), ranges=ranges),
    )
    assert (requantising(before), requantising(after)) == (1, 0)
    assert outside(after) == outside_xnnpack(after) == []
    assert steps(before, after, "y", ranges["y"]) == 1
    # A bias at the old scale would be up to 0.14 off, which is 6 steps.
    assert steps(before, after, "b", ranges["b"]) <= 3
    assert biases(before)["b"] == pytest.approx(biases(after)["b"], abs=1e-4)


def biases(content: bytes) -> dict[str, Array]:
    """The real values of each convolution's bias, by the name of what the convolution returns."""
    found = {}
    for wiring in wirings(unpack(content)):
        for operator in wiring.table.operators:
            if wiring.name(operator) == "CONV_2D":
                tensor = wiring.table.tensors[operator.inputs[2]]
                stored_values = wiring.model.buffers[tensor.buffer].data.view(np.int32)
                result = wiring.table.tensors[operator.outputs[0]].name.decode()
                found[result] = stored_values * np.asarray(tensor.quantization.scale)
    return found


def much_coarser() -> tuple[bytes, Ranges]:
    return forked(WIDEST + 0.05)


def narrower() -> tuple[bytes, Ranges]:
    content, ranges = forked(1.0)
    return content, {**ranges, "y": (-2.0, 2.0)}


def a_fixed_scale() -> tuple[bytes, Ranges]:
    drawing = Drawing()
    drawing.conv("x", "a")
    drawing.put("LOGISTIC", ("a",), "s", SHAPE)
    drawing.join("s", "x", "y")
    return drawing.file("y"), {**X, "a": (-3.0, 3.0), "y": (-3.0, 3.0)}


@pytest.mark.parametrize("made", [much_coarser, narrower, a_fixed_scale], ids=lambda made: made.__name__)
def test_a_scale_that_must_not_change_does_not(made: Callable[[], tuple[bytes, Ranges]], unfolded: Quantise) -> None:
    content, ranges = made()
    before = unfolded(content, samples(), ranges=ranges)
    assert requantising(before) >= 1
    assert quantize_tflite.quantize(content, samples(), ranges=ranges) == before


NARROW, COARSE = Quantization((0.05,), (3,)), Quantization((0.0625,), (-4,))


class Int8Drawing(Drawing):
    """An int8 file, written as such: `a` has the narrow scale and is what a QUANTIZE to the coarse one reads."""

    def __init__(self) -> None:
        super().__init__()
        self.step("QUANTIZE", ("x",), "i", NARROW)
        self.step("ADD", ("i", "i"), "a", NARROW, options_of("Add"))

    def step(
        self, operator: str, inputs: tuple[str, ...], result: str, scale: Quantization | None, options: object = None
    ) -> None:
        """Any operator with a result in int8, or in float without a scale."""
        self.draft.temporary(result, SHAPE, "int8" if scale else "float32", scale)
        self.draft.emit(operator, inputs, (result,), options)

    def same(self, source: str, result: str, scale: Quantization) -> None:
        """A RESHAPE that changes nothing."""
        shape = self.draft.constant("shape", np.array(SHAPE, np.int32))
        self.step("RESHAPE", (source, shape), result, scale, options_of("Reshape", newShape=SHAPE))

    def weighed(self, source: str, result: str, scale: Quantization) -> None:
        """A convolution; the bias is the same stored numbers each time, at the scale that its input gives it."""
        if "w" not in self.draft.tensors:
            self.draft.constant("w", np.eye(8, dtype=np.int8).reshape(8, 1, 1, 8), Quantization((0.5,), (0,)))
        bias = Quantization((scale.scales[0] * 0.5,), (0,))
        self.draft.constant(f"b_{result}", np.arange(-40, 40, 10, dtype=np.int32), bias)
        options = options_of("Conv2D", strideW=1, strideH=1)
        self.step("CONV_2D", (source, "w", f"b_{result}"), result, NARROW, options)

    def folded(self, *outputs: str) -> tuple[bytes, bytes]:
        """The file before and after."""
        before = self.file(*outputs)
        model = unpack(before)
        fold_requantization(model)
        return before, pack(model)


def test_a_chain_of_scales_goes() -> None:
    drawing = Int8Drawing()
    drawing.same("a", "r", NARROW)
    drawing.step("QUANTIZE", ("r",), "q", COARSE)
    drawing.step("DEQUANTIZE", ("q",), "y", None)
    before, after = drawing.folded("y")
    assert (requantising(before), requantising(after)) == (1, 0)
    assert steps(before, after, "y", (0.0, 255 * COARSE.scales[0])) <= 1


def test_what_the_model_returns_keeps_its_scale() -> None:
    drawing = Int8Drawing()
    drawing.same("a", "r", NARROW)
    drawing.step("QUANTIZE", ("r",), "q", COARSE)
    drawing.step("DEQUANTIZE", ("q",), "y", None)
    before, after = drawing.folded("y", "a")
    assert before == after
    before, after = drawing_of_a_returned_conversion().folded("q")
    assert before == after


def drawing_of_a_returned_conversion() -> Int8Drawing:
    drawing = Int8Drawing()
    drawing.step("QUANTIZE", ("a",), "q", COARSE)
    return drawing


def test_no_reshape_comes_to_follow_another() -> None:
    drawing = Int8Drawing()
    drawing.same("a", "r", NARROW)
    drawing.step("QUANTIZE", ("r",), "q", COARSE)
    drawing.same("q", "s", COARSE)
    drawing.step("DEQUANTIZE", ("s",), "y", None)
    before, after = drawing.folded("y")
    assert before == after


@pytest.mark.parametrize("writer", ["ADD", "SUB", "MUL", "CONV_2D"])
def test_a_ratio_of_scales_that_xnnpack_does_not_take_is_not_made(writer: str) -> None:
    drawing = Int8Drawing()
    _, high = EACH.get(writer) or PRODUCT[writer]
    unit = {"MUL": NARROW.scales[0] ** 2, "CONV_2D": NARROW.scales[0] * 0.5}.get(writer, NARROW.scales[0])
    fine = Quantization((unit / high * 0.99,), (0,))
    if writer == "CONV_2D":
        drawing.weighed("a", "b", NARROW)
    else:
        drawing.step(writer, ("i", "i"), "b", COARSE, options_of(writer.title()))
    drawing.step("QUANTIZE", ("b",), "q", fine)
    drawing.step("DEQUANTIZE", ("q",), "y", None)
    before, after = drawing.folded("y")
    assert before == after


@pytest.mark.parametrize("writer", sorted({*EACH, *PRODUCT} - {"MEAN", "SUM"}))
def test_the_installed_runtime_takes_the_ratios_of_the_table(writer: str) -> None:
    """It takes any for MEAN and SUM, and refuses to load a file with a convolution beyond its own."""
    low, high = EACH.get(writer) or PRODUCT[writer]
    for ratio in (low, high * 0.99):
        assert outside(of_ratio(writer, ratio)) == []
    if writer in BIASED:
        with pytest.raises(RuntimeError, match="failed to prepare"):
            outside(of_ratio(writer, high))
    else:
        assert outside(of_ratio(writer, high * 1.01)) == outside(of_ratio(writer, low * 0.99)) == [writer]


# Operators with a bias → the shape of their weights, and their options.
BIASED = {
    "CONV_2D": ((8, 1, 1, 8), "Conv2D"),
    "DEPTHWISE_CONV_2D": ((1, 1, 1, 8), "DepthwiseConv2D"),
    "FULLY_CONNECTED": ((8, 8), "FullyConnected"),
    "TRANSPOSE_CONV": ((8, 1, 1, 8), "TransposeConv"),
}


def of_ratio(writer: str, ratio: float) -> bytes:
    """One operator from a scale of 1, or from a product of 1, to a scale of 1 / ratio."""
    drawing, one = Drawing(), Quantization((1.0,), (0,))
    draft = drawing.draft
    draft.temporary("i", SHAPE, "int8", one)
    draft.emit("QUANTIZE", ("x",), ("i",))
    inputs: tuple[str, ...] = ("i",) if writer == "QUANTIZE" else ("i", "i")
    options = options_of(writer.title()) if writer not in BIASED else None
    if writer in BIASED:
        shape, table = BIASED[writer]
        weight = draft.constant("w", np.ones(shape, np.int8), one)
        bias = draft.constant("b", np.zeros(8, np.int32), one)
        inputs = ("i", weight, bias)
        if writer == "TRANSPOSE_CONV":
            inputs = (draft.constant("shape", np.array(SHAPE, np.int32)), weight, "i", bias)
        fields: dict[str, object] = {"strideW": 1, "strideH": 1}
        kinds: dict[str, dict[str, object]] = {
            "FULLY_CONNECTED": {"keepNumDims": True},
            "DEPTHWISE_CONV_2D": {**fields, "depthMultiplier": 1},
        }
        options = options_of(table, **kinds.get(writer, fields))
    draft.temporary("o", SHAPE, "int8", Quantization((1 / ratio,), (0,)))
    draft.emit(writer, inputs, ("o",), options)
    draft.emit("DEQUANTIZE", ("o",), (draft.temporary("y", SHAPE),))
    return drawing.file("y")


def test_a_bias_that_others_store_too_changes_for_one_reader_only() -> None:
    drawing = Int8Drawing()
    drawing.weighed("a", "b", NARROW)
    drawing.weighed("i", "c", NARROW)
    drawing.step("QUANTIZE", ("a",), "q", COARSE)
    for source in ("b", "c", "q"):
        drawing.step("DEQUANTIZE", (source,), f"y_{source}", None)
    before, after = drawing.folded("y_b", "y_c", "y_q")
    assert (requantising(before), requantising(after)) == (1, 0)
    assert biases(after)["c"].tolist() == biases(before)["c"].tolist()
    assert biases(after)["b"] == pytest.approx(biases(before)["b"], abs=COARSE.scales[0] / 4)
    fed = samples()[0]["x"]
    np.testing.assert_array_equal(run(after, fed)["y_c"], run(before, fed)["y_c"])


def test_the_detector_has_a_fifth_of_its_requantisations(unfolded: Quantise) -> None:
    model = NETWORKS["YOLO-style detector"]()
    lowered = lower(model, int8=True)
    feeds = [
        {spec.name: stored(inputs_of(model, seed)[spec.name], spec) for spec in lowered.inputs} for seed in range(8)
    ]
    before, after = unfolded(lowered.content, feeds), quantize_tflite.quantize(lowered.content, feeds)
    assert (requantising(before), requantising(after)) == (15, 3)
    assert len(after) < len(before)
    assert outside(after) == outside_xnnpack(after)
