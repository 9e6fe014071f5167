"""Functions that the tests of scoring call in child processes: each wants something of the machine."""

from __future__ import annotations

import os

import numpy as np
from pydantic import BaseModel

from edgefleet_converters.score.infer import peak_rss_bytes


class Bytes(BaseModel):
    """How much of something."""

    value: int


def allocate(text: str) -> Bytes:
    """Touch so many bytes of memory."""
    wanted = Bytes.model_validate_json(text).value
    return Bytes(value=int(np.ones(wanted, np.uint8).nbytes))


def map_file(text: str) -> Bytes:
    """Map a file of so many bytes, as runtimes map models."""
    wanted = Bytes.model_validate_json(text).value
    with open("model", "wb") as stream:  # noqa: PTH123 - os-level truncation below
        os.truncate(stream.fileno(), wanted)
    return Bytes(value=int(np.memmap("model", np.uint8, "r").size))


def peak(text: str) -> Bytes:
    """Peak memory of this program after touching so many bytes."""
    kept = np.ones(Bytes.model_validate_json(text).value, np.uint8)
    return Bytes(value=peak_rss_bytes() + 0 * kept.size)
