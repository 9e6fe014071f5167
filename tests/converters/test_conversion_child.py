"""Child processes: results, our errors, and every way a toolchain may die."""

from __future__ import annotations

import pytest

from converters.child_jobs import Number
from edgefleet.errors import MissingExtraError, UnsupportedError
from edgefleet_converters.child import ChildFailedError, call


def run(name: str, timeout_s: float = 60.0) -> Number:
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


def test_the_toolchains_cannot_load_their_telemetry() -> None:
    with pytest.raises(ChildFailedError, match="openvino_telemetry"):
        run("import_telemetry")
