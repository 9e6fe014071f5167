"""The int8 file of a graph against its float reference, beside what fake quantisation of the ONNX itself loses.

A file that loses more than `WITHIN_DB` more than fake quantisation is wrong.

Both see the same calibration samples, by smallest and largest value, and are asked about others. Fake quantisation
rounds what the graph takes in, what every operator returns, and weights per channel: by itself ONNX Runtime rounds only
what it has int8 kernels for, which says nothing about the loss. Outputs that are the same whatever is asked hold no
signal, so they are left out; a graph that has no others is not compared.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from ai_edge_litert.interpreter import Interpreter
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from conformance.verdicts import Outcome, Verdict
from conformance_graphs.judge import Array, Graph, inputs_of, reference_session, run, stored
from edgefleet.errors import UnsupportedError
from edgefleet_converters.steps.quantize_tflite import quantize
from edgefleet_converters.tflite import lower

# Of outputs with one element, a ratio from 8 samples is off by 3 dB for no reason.
_CALIBRATION, _ASKED = range(32), range(100, 164)
WITHIN_DB = 1.0
# An output that moves by less than this part of its largest value is constant.
_STILL = 1e-5
_LEAST_RANGE = 1e-6

Range = tuple[float, float]


def judge_int8(graph: Graph) -> Outcome:
    """SQNR of both ways over all outputs; a file that cannot be made or run counts as crashed."""
    model = graph.make()
    try:
        found = signal_to_noise(model)
    except UnsupportedError as error:
        return Outcome(Verdict.REFUSED, error.found)
    except Exception as error:  # noqa: BLE001 - the quantiser's and the runtime's own errors are of several types
        return Outcome(Verdict.CRASHED, f"{type(error).__name__}: {error}")
    return Outcome(Verdict.PASSED) if found is None else verdict_of(*found)


def verdict_of(found_db: float, fake_db: float) -> Outcome:
    """Whether the int8 file keeps what fake quantisation keeps."""
    measured = {"sqnr_db": round(found_db, 2), "fake_db": round(fake_db, 2)}
    if found_db >= fake_db - WITHIN_DB:
        return Outcome(Verdict.PASSED, "", measured)
    return Outcome(Verdict.WRONG, f"int8 {found_db:.1f} dB, fake quantisation {fake_db:.1f} dB", measured)


def signal_to_noise(model: onnx.ModelProto) -> tuple[float, float] | None:
    """SQNR in dB of the int8 file and of the fake-quantised ONNX; None where every output is constant."""
    samples = [inputs_of(model, seed) for seed in _CALIBRATION]
    asked = [inputs_of(model, seed) for seed in _ASKED]
    session = reference_session(model)
    references = [session.run(None, feeds) for feeds in asked]
    found = _in_litert(model, samples, asked)
    moving = [at for at in range(len(references[0])) if _moves([outputs[at] for outputs in references])]
    if not moving:
        return None
    calibrated = [session.run(None, feeds) for feeds in samples]
    fake = _fake(model, samples, calibrated, asked)
    return _ratio(references, found, moving), _ratio(references, fake, moving)


def _moves(outputs: Sequence[Array]) -> bool:
    largest = max(float(np.abs(output).max(initial=0.0)) for output in outputs)
    return any(float(np.abs(output - outputs[0]).max(initial=0.0)) > _STILL * largest for output in outputs)


def _in_litert(
    model: onnx.ModelProto, samples: Sequence[Mapping[str, Array]], asked: Sequence[Mapping[str, Array]]
) -> list[list[Array]]:
    lowered = lower(model, int8=True)
    fed = [{spec.name: stored(feeds[spec.name], spec) for spec in lowered.inputs} for feeds in samples]
    interpreter = Interpreter(model_content=quantize(lowered.content, fed), num_threads=1)
    interpreter.allocate_tensors()
    return [run(interpreter, lowered, feeds) for feeds in asked]


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Samples, one after another."""

    def __init__(self, samples: Sequence[Mapping[str, Array]]) -> None:
        self._left: Iterator[Mapping[str, Array]] = iter(samples)

    def get_next(self) -> Mapping[str, Array] | None:
        """The next sample, or None after the last."""
        return next(self._left, None)


def _fake(
    model: onnx.ModelProto,
    samples: Sequence[Mapping[str, Array]],
    calibrated: Sequence[Sequence[Array]],
    asked: Sequence[Mapping[str, Array]],
) -> list[list[Array]]:
    """The answers of the fake-quantised model; `calibrated` holds the float model's for the samples."""
    taken = {name: _range([feeds[name] for feeds in samples]) for name in samples[0]}
    returned = [_range(outputs) for outputs in zip(*calibrated, strict=True)]
    session = _fake_session(model, samples)
    return [
        [
            _rounded(array, span)
            for array, span in zip(session.run(None, _all_rounded(feeds, taken)), returned, strict=True)
        ]
        for feeds in asked
    ]


def _fake_session(model: onnx.ModelProto, samples: Sequence[Mapping[str, Array]]) -> onnxruntime.InferenceSession:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        quantize_static(
            model,
            path,
            _Reader(samples),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=sorted({node.op_type for node in model.graph.node}),
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return reference_session(onnx.load(path))


def _range(arrays: Sequence[Array]) -> Range:
    """Smallest and largest element, and 0."""
    return min(0.0, *(float(array.min()) for array in arrays)), max(0.0, *(float(array.max()) for array in arrays))


def _all_rounded(feeds: Mapping[str, Array], spans: Mapping[str, Range]) -> dict[str, Array]:
    return {name: _rounded(array, spans[name]) for name, array in feeds.items()}


def _rounded(array: Array, span: Range) -> Array:
    """What int8 by a range leaves of floats; integers as they are."""
    if array.dtype.kind != "f":
        return array
    scale = max(span[1] - span[0], _LEAST_RANGE) / 255
    zero = np.round(-128 - span[0] / scale)
    steps = np.clip(np.round(array / scale) + zero, -128, 127)
    return np.asarray((steps - zero) * scale, np.float32)


def _ratio(references: Sequence[Sequence[Array]], found: Sequence[Sequence[Array]], outputs: Sequence[int]) -> float:
    """10 log10(signal / noise) of the worst of these outputs."""
    worst = np.inf
    for at in outputs:
        wanted = np.concatenate([sample[at].astype(np.float64).ravel() for sample in references])
        noise = np.concatenate([sample[at].astype(np.float64).ravel() for sample in found]) - wanted
        power = float((noise**2).sum())
        ratio = 10 * np.log10(float((wanted**2).sum()) / power) if power else 120.0
        worst = min(worst, ratio)
    return float(worst)
