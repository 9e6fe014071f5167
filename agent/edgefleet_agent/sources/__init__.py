"""Where inputs come from, by the settings' `source.kind`; loaded in the worker process only.

A source never waits: where it has nothing now it says so, because requests are served between its samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Sample = tuple[dict[str, Array], int | None]
"""Inputs in the source model's layout, and the label where it is known."""

TABLE = {
    "camera": "edgefleet_agent.sources.camera",
    "folder": "edgefleet_agent.sources.folder",
    "mqtt": "edgefleet_agent.sources.topic",
    "replay": "edgefleet_agent.sources.replay",
}
"""Kind → module, whose `open_source` takes the section of the settings, as JSON has it, and the variant's own."""


def open_source(source: Mapping[str, Any], spec: Mapping[str, Any]) -> Iterator[Sample | None]:
    """Samples for ever, None where there is none now; `spec` is the variant's settings layer.

    Raises InputError where it cannot be used, and MissingExtraError; while it is read, whatever a driver raises.
    """
    found: Iterator[Sample | None] = import_module(TABLE[source["kind"]]).open_source(source, spec)
    return found
