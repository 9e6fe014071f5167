"""Files scored on tflite-runtime 2.14 too, the last there was: what it misreads in silence does not ship to it."""

from __future__ import annotations

from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edgefleet_converters import gate
from edgefleet_converters.artefact import Artefact, Form
from edgefleet_converters.child import ChildFailedError
from edgefleet_converters.convert import ConvertJob, convert
from edgefleet_converters.intake.onnx_file import read_onnx
from edgefleet_converters.progress import Event
from edgefleet_converters.score.infer import InferJob, infer
from edgefleet_converters.score.metrics import Measured, assess
from edgefleet_converters.score.runtime_environments import OTHER_VERSIONS, infer_on, versions_carried
from edgefleet_converters.tflite.runtime_versions import litert_range
from edgefleet_demo import digits
from edgefleet_device_profiles.profile import Precision, Runtime

# What the profile of a 32-bit board says.
DEVICES = (">=0.2.14,<1",)
(LAST,) = OTHER_VERSIONS[Runtime.LITERT]


class Bench:
    """The digits model, its data, and runs of files made from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = digits.load()
        work = folder / "source"
        work.mkdir()
        self.source = read_onnx(digits.model_path(), work, shapes={}, dims={})
        np.savez(folder / "calibration.npz", image=self.data.train_x[:100, np.newaxis])
        np.savez(folder / "samples.npz", image=self.data.heldout_x[:, np.newaxis])
        self.reference = infer(self.job(Runtime.ONNXRUNTIME, self.source.forms[Form.ONNX]))

    def job(self, runtime: Runtime, artefact: Artefact) -> InferJob:
        return InferJob(
            runtime=runtime,
            artefact=artefact,
            samples=self.folder / "samples.npz",
            repeats=4,
            outputs=self.folder / "outputs.npz",
        )

    def make(self, precision: Precision) -> Artefact:
        return convert(
            ConvertJob(
                runtime=Runtime.LITERT,
                precision=precision,
                source=self.source.forms[Form.ONNX],
                calibration=self.folder / "calibration.npz",
                folder=self.folder / str(precision),
            )
        )

    def on_last(self, artefact: Artefact) -> Measured:
        return infer_on(LAST, self.job(Runtime.LITERT, artefact), lambda _event: None)

    def judge(self, found: Measured) -> gate.Verdict:
        return gate.judge(assess(found, self.reference, self.data.heldout_y), gate.Limits())


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("last"))


@pytest.fixture(scope="module")
def dynamic(bench: Bench) -> Artefact:
    return bench.make(Precision.INT8_DYNAMIC)


def carried(artefact: Artefact) -> tuple[str, ...]:
    file_range = litert_range(artefact.files[0].read_bytes(), "2.3")
    return tuple(other.version for other in versions_carried(Runtime.LITERT, DEVICES, file_range))


def with_versions_of_1(artefact: Artefact, folder: Path) -> Artefact:
    """The file as ai-edge-quantizer leaves it: every operator marked as of version 1."""
    model = schema.ModelT.InitFromPackedBuf(artefact.files[0].read_bytes(), 0)
    for code in model.operatorCodes:
        code.version = 1
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    path = folder / "version1.tflite"
    path.write_bytes(bytes(builder.Output()))
    return artefact.model_copy(update={"files": (path,)})


def test_a_static_int8_file_is_as_good_there(bench: Bench) -> None:
    static = bench.make(Precision.INT8)
    assert carried(static) == ("0.2.14.0",)
    events: list[Event] = []
    there = infer_on(LAST, bench.job(Runtime.LITERT, static), events.append)
    here = infer(bench.job(Runtime.LITERT, static))
    assert there.runtime_version == "0.2.14.0"
    assert there.outputs["logits"].shape == here.outputs["logits"].shape
    assert there.repeated["logits"].shape == (2, 4, *here.outputs["logits"].shape[1:])
    assert 5e6 < there.peak_rss_bytes < 500e6
    verdict = gate.worst({"2.3.0": bench.judge(here), "0.2.14.0": bench.judge(there)})
    assert verdict.status is gate.Status.PASSED


def test_a_dynamic_int8_file_says_that_it_is_not_for_that_runtime_which_refuses_it(
    bench: Bench, dynamic: Artefact
) -> None:
    assert carried(dynamic) == ()
    with pytest.raises(ChildFailedError, match=r"Didn't find op for builtin opcode|version"):
        bench.on_last(dynamic)


def test_what_that_runtime_misreads_without_a_word_fails_the_gate(
    bench: Bench, dynamic: Artefact, tmp_path: Path
) -> None:
    """The same file with versions of 1: LiteRT runs it well, the other runs it too, and most answers are wrong."""
    old = with_versions_of_1(dynamic, tmp_path)
    assert carried(old) == ("0.2.14.0",)
    here, there = infer(bench.job(Runtime.LITERT, old)), bench.on_last(old)
    assert bench.judge(here).accepted
    assert assess(there, bench.reference, bench.data.heldout_y).score.value < 0.5
    verdict = gate.worst({here.runtime_version: bench.judge(here), there.runtime_version: bench.judge(there)})
    assert verdict.status is gate.Status.FAILED
    assert verdict.reason.startswith("on 0.2.14.0: ")
