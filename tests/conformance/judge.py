"""One case, judged: lowered with its layout kept, run in LiteRT as users get it, every output compared.

A wrong file may take the process down, so this runs in a worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from conformance.cases import Array, Case
from edgefleet.errors import UnsupportedError
from edgefleet_converters.tflite import Lowered, lower

_RTOL, _ATOL = 1e-3, 1e-4


class Verdict(StrEnum):
    """What became of a case."""

    PASSED = "passed"
    """Every output of every data set is right."""
    REFUSED = "refused"
    """The lowering said by name what it cannot express."""
    WRONG = "wrong"
    """A file was written and computes something else."""
    CRASHED = "crashed"
    """The lowering or the runtime failed in any other way, or took too long."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verdict with its reason, which is empty for a case that passed."""

    verdict: Verdict
    reason: str = ""


def judge(case: Case) -> Outcome:
    """Lower and run a case; never raises."""
    try:
        lowered = lower(case.model, keep_layout=True)
    except UnsupportedError as error:
        return Outcome(Verdict.REFUSED, error.found)
    except Exception as error:  # noqa: BLE001 - anything else is what is looked for
        return Outcome(Verdict.CRASHED, f"lowering: {type(error).__name__}: {error}")
    try:
        for given, wanted in case.data:
            reason = compare(case, lowered, _run(lowered, given), wanted)
            if reason:
                return Outcome(Verdict.WRONG, reason)
    except Exception as error:  # noqa: BLE001 - the runtime's own errors are of several types
        return Outcome(Verdict.CRASHED, f"runtime: {type(error).__name__}: {error}")
    return Outcome(Verdict.PASSED)


def _run(lowered: Lowered, given: tuple[Array, ...]) -> list[Array]:
    interpreter = Interpreter(model_content=lowered.content, num_threads=1)
    interpreter.allocate_tensors()
    for detail, array in zip(interpreter.get_input_details(), given, strict=True):
        interpreter.set_tensor(detail["index"], np.ascontiguousarray(array) if array.ndim else array)
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


def compare(case: Case, lowered: Lowered, found: list[Array], wanted: tuple[Array, ...]) -> str:
    """What differs first, or nothing."""
    names = [item.name for item in case.model.graph.output]
    if [item.name for item in lowered.outputs] != names or len(found) != len(wanted):
        return f"outputs {[item.name for item in lowered.outputs]}, not {names}"
    for name, got, want in zip(names, found, wanted, strict=True):
        if (got.shape, got.dtype) != (want.shape, want.dtype):
            return f"{name} is {got.dtype}{list(got.shape)}, not {want.dtype}{list(want.shape)}"
        if not _same(got, want):
            return f"{name} differs by {_distance(got, want):.3g}"
    return ""


def _same(got: Array, want: Array) -> bool:
    if want.dtype.kind == "f":
        return bool(np.allclose(_real(got), _real(want), _RTOL, _ATOL, equal_nan=True))
    return bool(np.array_equal(got, want))


def _distance(got: Array, want: Array) -> float:
    with np.errstate(all="ignore"):
        return float(np.nanmax(np.abs(_real(got) - _real(want)), initial=0.0))


def _real(array: Array) -> NDArray[np.float64]:
    return array.astype(np.float64)
