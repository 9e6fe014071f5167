"""Functions that the tests of `progress` run on executors of other processes, which find them by this module's name."""

from __future__ import annotations

import os

from converters.child_jobs import Number
from edgefleet_converters import child
from patience import PATIENCE_S


def square(value: int) -> int:
    return value * value


def process_of(_value: int) -> int:
    return os.getpid()


def refuse(value: int) -> int:
    raise ValueError(f"no {value}")


def crash_in_child(value: int) -> str:
    """A job whose child is killed: an answer, as a failed conversion is."""
    try:
        child.call("converters.child_jobs:crash", Number(value=value), Number, timeout_s=PATIENCE_S)
    except child.ChildFailedError as error:
        return str(error)
    return "it lived"
