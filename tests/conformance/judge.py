"""One case, judged: lowered with its layout kept, run in LiteRT as users get it, every output compared.

A wrong file may take the process down, so this runs in a worker.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from conformance.cases import Array, Case
from conformance.verdicts import Outcome, Verdict, outcome_of
from edgefleet_converters.tflite import Lowered, lower

_RTOL, _ATOL = 1e-3, 1e-4


def judge(case: Case) -> Outcome:
    """Lower and run a case; never raises."""
    return outcome_of(partial(lower, case.model, keep_layout=True), partial(_judged, case))


def _judged(case: Case, lowered: Lowered) -> Outcome:
    reasons = (compare(case, lowered, _run(lowered, given), wanted) for given, wanted in case.data)
    reason = next((found for found in reasons if found), "")
    return Outcome(Verdict.WRONG if reason else Verdict.PASSED, reason)


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
