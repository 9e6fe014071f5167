"""Small random graphs that Hypothesis draws from the operator table: lowered and run in LiteRT, held to ONNX Runtime.

Not about layouts, which have seeded graphs of their own: here operators, types and broadcasts meet in odd ways.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import onnx
import onnxruntime
from ai_edge_litert.interpreter import Interpreter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper

from conformance_graphs.building import Building
from converters.graph_drawing import KINDS, Drawing, Value, drawn_array
from converters.graph_steps import STEPS
from edgefleet.errors import UnsupportedError
from edgefleet_converters.tflite import lower

Array = NDArray[Any]
EXAMPLES, LEAST_LOWERED, TIMEOUT_S = 300, 0.6, 20.0
_PASSED, _REFUSED = "passed", "refused"
_FORK = multiprocessing.get_context("fork")


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    """5 to 8 nodes over one to three inputs; everything that nothing reads is an output."""
    b = Building(draw(st.integers(0, 2**16)))
    d = Drawing(draw, b)
    size = st.integers(1, 4)
    for _ in range(draw(st.integers(1, 3))):
        dtype, shape = d.one_of([*KINDS, "float32"]), tuple(draw(st.lists(size, min_size=1, max_size=4)))
        name = b.input(*shape, kind=KINDS[dtype])
        d.values.append(Value(name, dtype, shape, 8.0 if dtype != "float32" else 2.0, exact=True))
    count = draw(st.integers(5, 8))
    while len(b.nodes) < count:
        d.one_of(STEPS)(d)
    read = {name for node in b.nodes for name in node.input}
    return b.model(*[name for node in b.nodes for name in node.output if name not in read])


def judged(model: onnx.ModelProto) -> str:
    """`passed`, `refused`, or what is wrong."""
    random = np.random.default_rng(5)
    feeds = {
        item.name: drawn_array(
            random,
            np.dtype(helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type)).name,
            [axis.dim_value for axis in item.type.tensor_type.shape.dim],
        )
        for item in model.graph.input
    }
    try:
        lowered = lower(model)
    except UnsupportedError:
        return _REFUSED
    runner = Interpreter(model_content=lowered.content, num_threads=1).get_signature_runner()
    stored = {spec.name: _moved(feeds[spec.name], spec.permutation) for spec in lowered.inputs}
    found = runner(**{name: stored[name] for name in runner.get_input_details()})
    for spec in lowered.outputs:
        back = None if spec.permutation is None else tuple(np.argsort(spec.permutation).tolist())
        found[spec.name] = _moved(found[spec.name], back)
    return _difference(found, _expected(model, feeds)) or _PASSED


def _moved(array: Array, permutation: tuple[int, ...] | None) -> Array:
    return array if permutation is None else np.ascontiguousarray(array.transpose(permutation))


def _expected(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    # Its own rewrites are not what is judged.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def _difference(found: Mapping[str, Array], expected: Mapping[str, Array]) -> str:
    """What differs, in a line; empty if nothing does."""
    for name, wanted in expected.items():
        got = found[name]
        if (got.shape, got.dtype) != (wanted.shape, wanted.dtype):
            return f"{name} is {got.dtype}{list(got.shape)}, not {wanted.dtype}{list(wanted.shape)}"
        tolerance = (1e-3, 1e-4) if wanted.dtype.kind == "f" else (0.0, 0.0)
        near = np.isclose(got.astype(np.float64), wanted.astype(np.float64), *tolerance, equal_nan=True)
        if not near.all():
            return f"{name}: {got[~near][:4]} where ONNX Runtime has {wanted[~near][:4]}"
    return ""


class Judge:
    """A worker process that judges one model after another, and is replaced when it dies."""

    def __init__(self, judging: Callable[[onnx.ModelProto], str] = judged) -> None:
        self.judging = judging
        self._start()

    def __call__(self, model: onnx.ModelProto) -> str:
        """What `judged` says, or what became of the process."""
        self.pipe.send_bytes(model.SerializeToString())
        try:
            if self.pipe.poll(TIMEOUT_S):
                return str(self.pipe.recv())
            verdict = f"no result after {TIMEOUT_S:g} s"
        except EOFError:
            self.process.join()
            verdict = f"the process died with exit code {self.process.exitcode}"
        self.stop()
        self._start()
        return verdict

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def _start(self) -> None:
        self.pipe, theirs = _FORK.Pipe()
        self.process = _FORK.Process(target=_serve, args=(theirs, self.judging), daemon=True)
        self.process.start()
        theirs.close()


def _serve(pipe: Connection, judging: Callable[[onnx.ModelProto], str]) -> None:
    # The runtime tells of every delegate that it creates.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    while True:
        model = onnx.load_from_string(pipe.recv_bytes())
        try:
            verdict = judging(model)
        except Exception as error:  # noqa: BLE001 - of any type, and each is a failure
            verdict = f"{type(error).__name__}: {error}"
        pipe.send(verdict)


def _abort(_model: onnx.ModelProto) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_a_worker_that_dies_is_a_verdict_not_the_end_of_the_tests() -> None:
    judge = Judge(_abort)
    try:
        assert [judge(onnx.ModelProto()) for _ in range(2)] == ["the process died with exit code -9"] * 2
    finally:
        judge.stop()


def test_reshapes_in_a_row_leave_alone_what_is_still_read() -> None:
    """The runtime once subtracted in place of `parts`, which it took for free: Split in one part is a RESHAPE too."""
    b = Building(0)
    parts = b.node("Split", b.node("Neg", b.input(3, 4, kind=KINDS["int64"])), b.integers(3), axis=0)
    row = b.node("Reshape", parts, b.integers(12))
    changed = b.node("Neg", b.node("Sub", b.constant(np.array(1, np.int64)), row))
    assert judged(b.model(changed, b.node("CumSum", parts, b.integers(0)))) == _PASSED


def test_random_graphs_compute_what_onnx_runtime_computes() -> None:
    judge, verdicts = Judge(), Counter[str]()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    @given(models())
    def holds(model: onnx.ModelProto) -> None:
        verdict = judge(model)
        verdicts[verdict] += 1
        assert verdict in (_PASSED, _REFUSED), f"{verdict}\n{onnx.printer.to_text(model)}"

    try:
        holds()
    finally:
        judge.stop()
    assert verdicts.total() >= EXAMPLES
    assert verdicts[_PASSED] >= LEAST_LOWERED * verdicts.total(), verdicts
