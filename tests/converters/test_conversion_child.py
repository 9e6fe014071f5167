"""Child processes: results, our errors, and every way a toolchain may die."""

from __future__ import annotations

from pathlib import Path

import pytest

from converters.child_jobs import Number
from edgefleet.errors import MissingExtraError, StorageError, UnsupportedError
from edgefleet_converters.child import ChildFailedError, call, own_interpreter
from patience import PATIENCE_S


def run(name: str, timeout_s: float = PATIENCE_S) -> Number:
    return call(f"converters.child_jobs:{name}", Number(value=21), Number, timeout_s=timeout_s)


def test_a_result_comes_back_whatever_the_child_prints() -> None:
    assert run("double") == Number(value=42)


def test_our_errors_come_back_as_they_were() -> None:
    with pytest.raises(UnsupportedError) as refused:
        run("refuse")
    assert str(refused.value) == "doing: found; remedy"
    with pytest.raises(MissingExtraError) as missing:
        run("miss")
    assert "pip install 'edgefleet[convert-openvino]'" in str(missing.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("crash", "it was killed by SIGKILL"),
        ("leave", r"it exited with 3 \(the library gave up\)"),
        ("stumble", "^ValueError: first line$"),
    ],
)
def test_a_failure_is_one_line(name: str, text: str) -> None:
    with pytest.raises(ChildFailedError, match=text):
        run(name)


def test_a_child_that_hangs_is_ended() -> None:
    with pytest.raises(ChildFailedError, match=r"did not finish in 1 s"):
        run("hang", timeout_s=1.0)


def test_onnx_runtime_is_told_not_to_report_and_temporary_files_go_with_the_job(tmp_path: Path) -> None:
    variables = own_interpreter("json").variables(tmp_path)
    assert variables["ORT_DISABLE_TELEMETRY"] == "1"
    assert variables["TMPDIR"] == str(tmp_path)
    assert run("leave_session") == Number(value=0)


def test_a_full_disk_is_no_finding_about_the_model() -> None:
    with pytest.raises(StorageError, match="No space left on device; free some space"):
        run("fill")


def test_an_answer_that_was_cut_off_is_none() -> None:
    with pytest.raises(ChildFailedError, match="it was killed by SIGKILL"):
        run("cut_off")


def test_the_toolchains_cannot_load_their_telemetry() -> None:
    with pytest.raises(ChildFailedError, match="openvino_telemetry"):
        run("import_telemetry")
