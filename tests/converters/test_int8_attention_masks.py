"""Static int8 of masked attention: what a mask leaves of the scores, rows that are hidden whole, what stays int8."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from onnx import TensorProto, helper

from conformance_graphs.building import Building
from conformance_graphs.judge import inputs_of, reference_session, run, stored
from conformance_graphs.sequences import bert
from converters.attention_graphs import LOWEST, SWAPPED, Sizes, finished, heads_of, language, number, without_nan
from edgefleet_converters.conversion.quantizing import BorderType
from edgefleet_converters.steps.quantize_tflite import quantize
from edgefleet_converters.tflite import Lowered, lower
from edgefleet_converters.tflite.float_scores import float_scores
from edgefleet_converters.tflite.wiring import wirings
from edgefleet_converters.tflite.writer import unpack

Array = NDArray[Any]
Feed = Mapping[str, Array]
SIZES = Sizes(batch=2, length=20, heads=2, size=8, groups=2)
# Of blocks like these without a mask: 35 dB.
LEAST_DB = 30.0
KINDS = {"integer": TensorProto.INT64, "boolean": TensorProto.BOOL, "guarded": TensorProto.BOOL}


@dataclass(frozen=True)
class Masked:
    """Attention whose mask is an input: of 0 and 1, 'integer' or 'weighted' (float); 'given' to be added; or bool."""

    mask: str
    fill: float

    def model(self) -> onnx.ModelProto:
        b, s = Building(3), SIZES
        x = b.input(s.batch, s.length, s.width)
        seen = b.input(s.batch, 1, 1, s.length, kind=KINDS.get(self.mask, TensorProto.FLOAT))
        query, key, value = (heads_of(b, b.linear(x, s.width), s, s.heads) for _ in range(3))
        product = b.node("MatMul", query, b.node("Transpose", key, perm=SWAPPED))
        scores = self._hidden(b, seen, b.node("Div", product, number(b, s.size**0.5)))
        shares = b.node("Softmax", scores, axis=-1)
        return finished(b, x, without_nan(b, shares) if self.mask == "guarded" else shares, value, s)

    def _hidden(self, b: Building, seen: str, scores: str) -> str:
        if self.mask in ("boolean", "guarded"):
            return b.node("Where", seen, scores, number(b, self.fill))
        if self.mask == "given":
            return b.node("Add", scores, seen)
        shown = b.node("Cast", seen, to=TensorProto.FLOAT) if self.mask == "integer" else seen
        hidden = b.node("Mul", b.node("Sub", number(b, 1), shown), number(b, self.fill))
        return b.node("Add", scores, hidden)

    def feed(self, seed: int, counts: Sequence[int]) -> Feed:
        """Normal x; so many positions of each sequence are visible."""
        shown = np.arange(SIZES.length) < np.reshape(counts, (-1, 1, 1, 1))
        kind = helper.tensor_dtype_to_np_dtype(KINDS.get(self.mask, TensorProto.FLOAT))
        mask = np.where(shown, 0, self.fill) if self.mask == "given" else shown
        x = np.random.default_rng(seed).normal(size=(SIZES.batch, SIZES.length, SIZES.width))
        return {"x": x.astype(np.float32), "x1": mask.astype(kind)}

    def samples(self) -> list[Feed]:
        """Sequences of several lengths, none of them empty."""
        return [self.feed(seed, (20 - seed, 4 + seed)) for seed in range(12)]


def int8_file(model: onnx.ModelProto, samples: Sequence[Feed], border: BorderType = "float32") -> tuple[Lowered, bytes]:
    lowered = lower(model, int8=True)
    fed = [{spec.name: stored(feeds[spec.name], spec) for spec in lowered.inputs} for feeds in samples]
    return lowered, quantize(lowered.content, fed, border=border)


def both(
    model: onnx.ModelProto, lowered: Lowered, content: bytes, asked: Sequence[Feed]
) -> Iterator[tuple[Array, Array]]:
    """ONNX Runtime's first output and the int8 file's, for each feed."""
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    session = reference_session(model)
    for feeds in asked:
        yield session.run(None, feeds)[0], run(interpreter, lowered, feeds)[0]


def sqnr_db(pairs: Iterable[tuple[Array, Array]]) -> float:
    wanted, got = (np.stack(arrays).astype(np.float64) for arrays in zip(*pairs, strict=True))
    return float(10 * np.log10(np.sum(wanted**2) / np.sum((wanted - got) ** 2)))


def int8_db(model: onnx.ModelProto, samples: Sequence[Feed], asked: Sequence[Feed]) -> float:
    return sqnr_db(both(model, *int8_file(model, samples), asked))


@pytest.mark.parametrize("fill", [-1e4, -1e9, LOWEST])
@pytest.mark.parametrize("mask", ["integer", "weighted", "given", "boolean"])
def test_a_mask_at_run_time_costs_nothing(mask: str, fill: float) -> None:
    masked = Masked(mask, fill)
    asked = [masked.feed(100 + seed, (5 + seed, 20)) for seed in range(16)]
    assert int8_db(masked.model(), masked.samples(), asked) > LEAST_DB


@pytest.mark.parametrize("mask", ["boolean", "guarded"])
def test_minus_infinity_costs_nothing(mask: str) -> None:
    masked = Masked(mask, -np.inf)
    asked = [masked.feed(100 + seed, (5 + seed, 20)) for seed in range(16)]
    assert int8_db(masked.model(), masked.samples(), asked) > LEAST_DB


@pytest.mark.parametrize(
    ("mask", "fill"),
    [("integer", -1e4), ("given", LOWEST), ("weighted", LOWEST), ("boolean", -1e4), ("guarded", -np.inf)],
)
def test_a_row_that_is_hidden_whole_is_what_it_was(mask: str, fill: float) -> None:
    masked = Masked(mask, fill)
    model = masked.model()
    asked = [masked.feed(200 + seed, (0, 20 - seed)) for seed in range(4)]
    pairs = list(both(model, *int8_file(model, masked.samples()), asked))
    assert all(np.isfinite(wanted).all() for wanted, _ in pairs)
    assert sqnr_db((wanted[0], got[0]) for wanted, got in pairs) > LEAST_DB


def test_empty_sequences_among_the_samples_spoil_nothing() -> None:
    masked = Masked("guarded", -np.inf)
    samples = [masked.feed(seed, (seed % 3, 20)) for seed in range(12)]
    asked = [masked.feed(100 + seed, (5 + seed, 0)) for seed in range(8)]
    assert int8_db(masked.model(), samples, asked) > LEAST_DB


@pytest.mark.parametrize("mask", ["integer", "weighted", "given", "boolean"])
def test_scores_are_not_converted_between_product_and_softmax(mask: str) -> None:
    masked = Masked(mask, -1e4)
    _, content = int8_file(masked.model(), masked.samples())
    wiring = next(wirings(unpack(content)))
    (softmax,) = (operator for operator in wiring.table.operators if wiring.name(operator) == "SOFTMAX")
    hidden = wiring.writer[int(softmax.inputs[0])]
    assert wiring.name(hidden) == ("SELECT_V2" if mask == "boolean" else "ADD")
    writers = [wiring.writer[int(index)] for index in hidden.inputs if int(index) in wiring.writer]
    assert "BATCH_MATMUL" in map(wiring.name, writers)


def test_a_bert_encoder_with_padded_sequences() -> None:
    model = bert()

    def feed(seed: int) -> Feed:
        random = np.random.default_rng(seed)
        words = random.integers(0, 50, (1, 12))
        return {"x": words, "x1": (np.arange(12)[None] < random.integers(2, 13)).astype(np.int64)}

    assert int8_db(model, [feed(seed) for seed in range(32)], [feed(seed) for seed in range(100, 132)]) > 25


@pytest.mark.parametrize("mask", ["added", "filled", "expanded"])
def test_a_mask_by_a_threshold_of_an_input_is_that_of_the_input(mask: str) -> None:
    model = language(mask, Sizes(batch=1, length=20, heads=2, groups=2), fill=-1e4)
    samples, asked = ([inputs_of(model, seed) for seed in seeds] for seeds in (range(16), range(100, 132)))
    assert int8_db(model, samples, asked) > LEAST_DB


def choosing(operator: str) -> onnx.ModelProto:
    """Scores of a dense layer, of which an input hides some before the softmax."""
    b = Building(5)
    x, seen = b.input(4, 24), b.input(4, 20)
    scores = b.dense(x, 20)
    if operator == "Add":
        hidden = b.node("Add", scores, b.node("Mul", b.node("Sub", number(b, 1), seen), number(b, -1e9)))
    else:
        hidden = b.node("Where", b.node("Greater", seen, number(b, 0.5)), scores, number(b, -1e9))
    return b.model(b.node("Softmax", hidden, axis=-1))


@pytest.mark.parametrize("operator", ["Add", "Where"])
def test_hidden_choices_of_an_int8_layer(operator: str) -> None:
    model = choosing(operator)

    def feed(seed: int) -> Feed:
        random = np.random.default_rng(seed)
        seen = (random.random((4, 20)) < 0.6) | (np.arange(20) == 3)
        return {"x": random.normal(size=(4, 24)).astype(np.float32), "x1": seen.astype(np.float32)}

    assert int8_db(model, [feed(seed) for seed in range(16)], [feed(seed) for seed in range(100, 116)]) > LEAST_DB


def test_sums_of_int8_values_before_a_softmax_stay_int8() -> None:
    b = Building(6)
    x = b.input(4, 24)
    summed = b.node("Add", b.node("Relu", b.dense(x, 20)), b.node("Relu", b.dense(x, 20)))
    assert float_scores(lower(b.model(b.node("Softmax", summed, axis=-1)), int8=True).content) == []


def test_scores_that_an_int8_layer_reads_too_stay_int8() -> None:
    b = Building(7)
    x, bias = b.input(2, 6, 8), b.input(2, 6, 6)
    scores = b.node("Add", b.node("MatMul", x, b.node("Transpose", x, perm=[0, 2, 1])), bias)
    model = b.model(b.node("Softmax", scores, axis=-1), b.linear(scores, 5))
    assert float_scores(lower(model, int8=True).content) == []


def test_a_softmax_of_plain_scores_is_left_to_its_cost() -> None:
    assert float_scores(lower(language("", SIZES), int8=True).content) == []


def test_int8_borders_leave_nothing_in_float() -> None:
    model = language("causal", SIZES)
    _, content = int8_file(model, [inputs_of(model, seed) for seed in range(8)], border="int8")
    table = next(wirings(unpack(content))).table
    written = [int(index) for operator in table.operators for index in operator.outputs]
    assert {table.tensors[index].type for index in written} == {schema.TensorType.INT8}
