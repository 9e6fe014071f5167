"""Where results go beside the telemetry, by the settings' `[[sinks]]`; loaded in the worker process only.

Nothing goes anywhere unless it was asked for. A sink that fails is said and tried again later; no inference waits for
it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgefleet.errors import EdgefleetError

Array = NDArray[np.generic]

TABLE = {"jsonl": "edgefleet_agent.sinks.jsonl", "mqtt": "edgefleet_agent.sinks.topic"}
"""Kind → module, whose `open_sink` takes the section of the settings, as JSON has it."""
MOST_VALUES = 4096
"""Of an output with more only type and shape are told."""
AGAIN_AFTER_S = 10.0

log = logging.getLogger("edgefleet.agent")


class Sink(Protocol):
    """Takes results, one line of JSON each; may raise OSError or EdgefleetError."""

    def write(self, line: str) -> None:
        """Take a result."""
        ...

    def turn(self) -> None:
        """Called some times a second."""
        ...

    def close(self) -> None:
        """No more will come."""
        ...


@dataclass(slots=True)
class _Place:
    """A sink by its settings, and whether it is open."""

    settings: Mapping[str, Any]
    sink: Sink | None = None
    retry_at: float = 0.0
    said: str = ""


class Results:
    """All sinks of one worker."""

    def __init__(self, sinks: Sequence[Mapping[str, Any]], spec: Mapping[str, Any], digest: str) -> None:
        """Nothing is opened before the first turn."""
        self._places = [_Place(sink) for sink in sinks]
        self._labels: Sequence[str] = spec["labels"]
        self._digest = digest

    def write(self, outputs: Mapping[str, Array], inference_s: float) -> None:
        """Tell all sinks of an inference."""
        if self._places:
            line = json.dumps(record(outputs, inference_s, self._digest, self._labels), allow_nan=False)
            for place in self._places:
                self._use(place, line)

    def turn(self) -> None:
        """Open what is not open, before there is something to lose; keep open what is."""
        for place in self._places:
            self._use(place, None)

    def close(self) -> None:
        """Give back what is open."""
        for place in self._places:
            if place.sink is not None:
                place.sink.close()
                place.sink = None

    def _use(self, place: _Place, line: str | None) -> None:
        if place.sink is None and time.monotonic() < place.retry_at:
            return
        try:
            if place.sink is None:
                place.sink = import_module(TABLE[place.settings["kind"]]).open_sink(place.settings)
            if line is None:
                place.sink.turn()
            else:
                place.sink.write(line)
                # It works: when it fails again, that is another time.
                place.said = ""
        except (OSError, EdgefleetError) as error:
            self._failed(place, str(error))

    def _failed(self, place: _Place, reason: str) -> None:
        if reason != place.said:
            place.said = reason
            where = place.settings.get("path") or place.settings.get("topic")
            log.warning("sink %s %s: %s; results are lost until it works", place.settings["kind"], where, reason)
        if place.sink is not None:
            place.sink.close()
        place.sink, place.retry_at = None, time.monotonic() + AGAIN_AFTER_S


def record(outputs: Mapping[str, Array], inference_s: float, digest: str, labels: Sequence[str]) -> dict[str, Any]:
    """What is told of an inference, for JSON: `at` in seconds since 1970; a value that is not finite is null.

    `label` is the name of the first output's largest value, where the variant has as many names as that has values.
    """
    found: dict[str, Any] = {"at": time.time(), "digest": digest, "inference_s": inference_s}
    first = next(iter(outputs.values()))
    if labels and first.size == len(labels):
        found["label"] = labels[int(np.argmax(first))]
    return {**found, "outputs": {name: _told(array) for name, array in outputs.items()}}


def _told(array: Array) -> dict[str, Any]:
    told: dict[str, Any] = {"dtype": array.dtype.name, "shape": list(array.shape)}
    if array.size <= MOST_VALUES:
        finite = np.isfinite(array)
        shown: NDArray[Any] = array
        if not finite.all():
            shown = array.astype(object)
            shown[~finite] = None
        told["values"] = shown.tolist()
    return told
