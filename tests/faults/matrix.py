"""Fault matrices: every case in `make test-full`, a seeded sample of them in `make test`.

`EDGEFLEET_FAULT_SEED` draws another sample. A case that is not drawn carries the mark `full`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any

import pytest

SEED_VARIABLE = "EDGEFLEET_FAULT_SEED"
SAMPLES = {
    "wire": 6, "syscalls": 5, "disk": 4, "mended": 1, "processes": 2, "way back": 2,
    "journal": 1, "slot": 2, "full disk": 2, "clock": 1, "workers": 1, "sensors": 1, "spool": 1,
}  # fmt: skip
"""How many cases of each matrix run in `make test`: with the faults that are no matrix they are 40 at most."""


def seed() -> int:
    """The seed of this run."""
    return int(os.environ.get(SEED_VARIABLE, "20261121"))


def sampled(matrix: str, cases: Sequence[Any]) -> list[Any]:
    """The cases as pytest parameters, in order; `str(case)` names each."""
    # A string seeds the same draw in every process; a hash of it would not.
    drawn = set(random.Random(f"{matrix} {seed()}").sample(range(len(cases)), min(SAMPLES[matrix], len(cases))))
    return [
        pytest.param(case, id=str(case), marks=[] if number in drawn else [pytest.mark.full])
        for number, case in enumerate(cases)
    ]
