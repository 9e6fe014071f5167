"""Where inputs come from, by the settings' `source.kind`; loaded in the worker process only.

A source never waits: where it has nothing now it says so, because requests are served between its samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]

TABLE = {
    "camera": "edgefleet_agent.sources.camera",
    "folder": "edgefleet_agent.sources.folder",
    "mqtt": "edgefleet_agent.sources.topic",
    "replay": "edgefleet_agent.sources.replay",
}
"""Kind → module, whose `open_source` takes the section of the settings, as JSON has it, and the variant's own."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One input to infer on."""

    inputs: dict[str, Array]
    """In the source model's layout."""
    label: int | None = None
    """Where it is known."""
    preprocess_s: float = 0.0
    """From the picture or the message that came to `inputs`; nothing where they lay ready."""


def made_of(convert: Callable[[], dict[str, Array]]) -> Sample:
    """What `convert` makes of something that came, and how long that took; raises what it raises."""
    began_s = time.perf_counter()
    inputs = convert()
    return Sample(inputs, preprocess_s=time.perf_counter() - began_s)


def open_source(source: Mapping[str, Any], spec: Mapping[str, Any]) -> Iterator[Sample | None]:
    """Samples for ever, None where there is none now; `spec` is the variant's settings layer.

    Raises InputError where it cannot be used, and MissingExtraError; while it is read, whatever a driver raises.
    """
    found: Iterator[Sample | None] = import_module(TABLE[source["kind"]]).open_source(source, spec)
    return found
