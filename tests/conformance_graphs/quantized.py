"""The int8 file of a graph against its float reference, beside what fake quantisation of the ONNX itself loses.

A file that loses more than `WITHIN_DB` more than fake quantisation is wrong.

Both see the same calibration samples, by smallest and largest value, and are asked about others.
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

_CALIBRATION, _ASKED = range(32), range(100, 108)
WITHIN_DB = 1.0


def judge_int8(graph: Graph) -> Outcome:
    """SQNR of both ways over all outputs; a file that cannot be made or run counts as crashed."""
    model = graph.make()
    try:
        found, fake = signal_to_noise(model)
    except UnsupportedError as error:
        return Outcome(Verdict.REFUSED, error.found)
    except Exception as error:  # noqa: BLE001 - the quantiser's and the runtime's own errors are of several types
        return Outcome(Verdict.CRASHED, f"{type(error).__name__}: {error}")
    return verdict_of(found, fake)


def verdict_of(found_db: float, fake_db: float) -> Outcome:
    """Whether the int8 file keeps what fake quantisation keeps."""
    measured = {"sqnr_db": round(found_db, 2), "fake_db": round(fake_db, 2)}
    if found_db >= fake_db - WITHIN_DB:
        return Outcome(Verdict.PASSED, "", measured)
    return Outcome(Verdict.WRONG, f"int8 {found_db:.1f} dB, fake quantisation {fake_db:.1f} dB", measured)


def signal_to_noise(model: onnx.ModelProto) -> tuple[float, float]:
    """SQNR in dB of the int8 file and of the fake-quantised ONNX."""
    samples = [inputs_of(model, seed) for seed in _CALIBRATION]
    asked = [inputs_of(model, seed) for seed in _ASKED]
    session = reference_session(model)
    references = [session.run(None, feeds) for feeds in asked]
    return _ratio(references, _in_litert(model, samples, asked)), _ratio(references, _fake(model, samples, asked))


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
    model: onnx.ModelProto, samples: Sequence[Mapping[str, Array]], asked: Sequence[Mapping[str, Array]]
) -> list[list[Array]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        quantize_static(
            model,
            path,
            _Reader(samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        session: onnxruntime.InferenceSession = reference_session(onnx.load(path))
        return [session.run(None, feeds) for feeds in asked]


def _ratio(references: Sequence[Sequence[Array]], found: Sequence[Sequence[Array]]) -> float:
    """10 log10(signal / noise) of the worst output."""
    worst = np.inf
    for at in range(len(references[0])):
        wanted = np.concatenate([sample[at].astype(np.float64).ravel() for sample in references])
        noise = np.concatenate([sample[at].astype(np.float64).ravel() for sample in found]) - wanted
        power = float((noise**2).sum())
        ratio = 10 * np.log10(float((wanted**2).sum()) / power) if power else 120.0
        worst = min(worst, ratio)
    return float(worst)
