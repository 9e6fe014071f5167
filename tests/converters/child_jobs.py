"""Functions that the tests of `child` call in child processes: each goes wrong in one way."""

from __future__ import annotations

import os
import signal
import sys
import time

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
