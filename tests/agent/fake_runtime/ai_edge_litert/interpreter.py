"""A runtime that multiplies by the number in its model file, or breaks as the first input value asks it to."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEGFAULT, HANG, EAT, REFUSE, SLEEP = -1.0, -2.0, -3.0, -4.0, -5.0


def _segfault() -> None:
    ctypes.string_at(0)


def _hang() -> None:
    while True:
        time.sleep(3600)


def _eat() -> None:
    kept = []
    while True:
        kept.append(np.ones(1 << 20))


def _refuse() -> None:
    raise RuntimeError("the runtime refused")


def _sleep() -> None:
    time.sleep(0.3)


BREAKS: dict[float, Callable[[], None]] = {SEGFAULT: _segfault, HANG: _hang, EAT: _eat, REFUSE: _refuse, SLEEP: _sleep}


class _Runner:
    def get_input_details(self) -> dict[str, dict[str, int]]:
        return {"x": {"index": 0}}

    def get_output_details(self) -> dict[str, dict[str, int]]:
        return {"y": {"index": 1}}


class Interpreter:
    """The part of LiteRT's interpreter that the agent uses."""

    def __init__(self, model_path: str, num_threads: int) -> None:
        self._factor = float(Path(model_path).read_text())
        self._threads = num_threads
        self._tensors: dict[int, NDArray[np.float32]] = {}

    def allocate_tensors(self) -> None:
        if self._factor == SEGFAULT:
            _segfault()

    def get_signature_runner(self, _name: str) -> _Runner:
        return _Runner()

    def set_tensor(self, index: int, value: Any) -> None:
        self._tensors[index] = value

    def invoke(self) -> None:
        given = self._tensors[0]
        BREAKS.get(float(given.flat[0]), lambda: None)()
        # The second value of an input asks for the number of threads.
        self._tensors[1] = given * np.float32(self._threads if given.flat[1] == HANG else self._factor)

    def get_tensor(self, index: int) -> NDArray[np.float32]:
        return self._tensors[index]
