"""Functions that the tests of `child` call in child processes: each goes wrong in one way."""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from pydantic import BaseModel

from edgefleet.errors import MissingExtraError, UnsupportedError


class Number(BaseModel):
    """A job and a result."""

    value: int


def double(text: str) -> Number:
    print("a chatty toolchain")
    return Number(value=2 * Number.model_validate_json(text).value)


def crash(_text: str) -> Number:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def leave(_text: str) -> Number:
    print("first\nthe library gave up", file=sys.stderr)
    os._exit(3)


def hang(_text: str) -> Number:
    time.sleep(600)
    raise AssertionError


def refuse(_text: str) -> Number:
    raise UnsupportedError("doing", "found", "remedy")


def miss(_text: str) -> Number:
    raise MissingExtraError("doing", "nncf", "convert-openvino")


def stumble(_text: str) -> Number:
    raise ValueError("first line\nsecond line")


def import_telemetry(_text: str) -> Number:
    import openvino_telemetry  # type: ignore[import-untyped] # noqa: F401, PLC0415

    return Number(value=1)


def leave_session(_text: str) -> Number:
    """How many session files ONNX Runtime leaves where it would report from."""
    import onnxruntime  # noqa: F401, PLC0415 - in this process

    return Number(value=len(list(Path(tempfile.gettempdir()).glob(".ses"))))


def fill(_text: str) -> Number:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def cut_off(_text: str) -> Number:
    def half(path: Path, text: str, **_options: object) -> int:
        path.write_bytes(text.encode()[:5])
        os.kill(os.getpid(), signal.SIGKILL)
        return 5

    Path.write_text = half  # type: ignore[assignment,method-assign] # in this process, which ends
    return Number(value=1)
