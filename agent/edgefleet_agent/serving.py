"""A worker's turn after turn: requests first, a source's samples when they are due, and a report for each window.

How the agent is reached and how the variant was opened is `worker`'s business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

import numpy as np

from edgefleet.errors import EdgefleetError, short_line
from edgefleet.retry import backoff_s
from edgefleet_agent import sampled
from edgefleet_agent.channel import INFERRED, Message
from edgefleet_agent.inference_types import FailureKind
from edgefleet_agent.shared_arrays import SharedArrays
from edgefleet_agent.sinks import Results
from edgefleet_agent.sources import Sample
from edgefleet_agent.standing_clients import Inferred, StandingClients
from edgefleet_agent.tally import Tally
from edgefleet_agent.variant import Array, Arrays, Variant

NOTHING_NEW_S = 0.02
"""After this a source that had nothing is asked again."""
SOURCE_FIRST_S = 1.0
SOURCE_CAP_S = 60.0
SOURCE_SAID_AFTER = 2
"""Failures in a row: a camera is not free before the worker that leaves has let it go."""


class Talk(Protocol):
    """`channel.Channel`, as far as it is used here."""

    def receive(self, wait_s: float | None) -> Message | None: ...  # noqa: D102
    def send(self, message: Message) -> None: ...  # noqa: D102
    def send_line(self, line: str) -> None: ...  # noqa: D102


class Samples:
    """A source that is opened when first asked, and again later and later when it fails."""

    def __init__(self, opens: Callable[[], Iterator[Sample | None]], rate_per_s: float) -> None:
        """`opens` gives an iterator that gives None where it has nothing now."""
        self._open = opens
        self._interval_s = 1 / rate_per_s
        self._iterator: Iterator[Sample | None] | None = None
        self.failures = 0
        """In a row."""
        self.due_s = time.monotonic()

    def next(self) -> Sample | None:
        """A sample, or None; raises whatever the source raises, which is then opened anew."""
        try:
            if self._iterator is None:
                self._iterator = self._open()
            sample = next(self._iterator)
        except BaseException:
            self._iterator = None
            self.failures += 1
            self.due_s = time.monotonic() + backoff_s(self.failures, SOURCE_FIRST_S, SOURCE_CAP_S)
            raise
        if sample is None:
            # No success yet: a camera that is not there says so only once its driver has tried.
            self.due_s = time.monotonic() + NOTHING_NEW_S
        else:
            self.failures = 0
        return sample

    def used(self) -> None:
        """The sample was inferred on. Late inferences are not caught up: the achieved rate is count ÷ duration."""
        self.due_s = max(self.due_s + self._interval_s, time.monotonic())


class Serving:
    """One variant, serving requests and a source."""

    def __init__(
        self, channel: Talk, variant: Variant, arrays: SharedArrays, samples: Callable[[], Samples] | None,
        window_s: float, results: Results | None = None, clients: StandingClients | None = None,
    ) -> None:  # fmt: skip
        """Nothing is counted, and no source opened, before the agent says `begin`. `results` gets the source's.

        `clients`: whom it answers by itself; `channel` wakes by them.
        """
        self._channel = channel
        self._variant = variant
        self._arrays = arrays
        self._make_samples = samples
        self._samples: Samples | None = None
        self._window_s = window_s
        self._results = results
        self._clients = clients
        self._tally: Tally | None = None
        self._is_sample_wanted = False
        self._obey: dict[str, Callable[[Message], None]] = {
            "infer": self._answer, "begin": self._begin, "sample": self._want_sample,
        }  # fmt: skip
        self._source_said: str | None = None

    def run(self) -> None:
        """Until the agent says `leave`; raises EOFError when it is gone."""
        while True:
            message = self._channel.receive(self._wait_s())
            if self._clients is not None and (self._clients.any or message is None):
                self._clients.turn(self._for_client)
            if message is None:
                if self._samples is not None and self._samples.due_s <= time.monotonic():
                    self._sample(self._samples)
            elif message["kind"] == "leave":
                if self._clients is not None:
                    self._clients.give_back()
                self._close_window()
                return
            else:
                self._obey[message["kind"]](message)
            if self._tally is not None and time.monotonic() - self._tally.started_s >= self._window_s:
                self._close_window()
                self._tally = Tally()

    def _wait_s(self) -> float | None:
        if self._tally is None:
            return None
        until_s = self._tally.started_s + self._window_s
        if self._samples is not None:
            until_s = min(until_s, self._samples.due_s)
        wait_s = max(0.0, until_s - time.monotonic())
        return wait_s if self._clients is None or not self._clients.any else min(wait_s, self._clients.wait_s())

    def _begin(self, _message: Message) -> None:
        self._tally = Tally()
        if self._make_samples is not None:
            self._samples = self._make_samples()

    def _want_sample(self, _message: Message) -> None:
        """The agent wants to know the next inference, tensors and all."""
        self._is_sample_wanted = True

    def _close_window(self) -> None:
        if self._tally is not None:
            self._channel.send({"kind": "window", **self._tally.report()})

    def _answer(self, message: Message) -> None:
        """A request: its inputs lie in the shared memory, and its outputs go there."""
        began_s = time.perf_counter()
        try:
            inputs = self._arrays.inputs(message)
        except ValueError as error:
            self._fail(FailureKind.REFUSED, str(error))
            return
        try:
            outputs, prepared_s, inferred_s = self._timed(inputs)
            places = self._arrays.put(outputs)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a runtime raises becomes one line for who asked
            self._count_error()
            self._fail(FailureKind.FAILED, one_line_of(error))
            return
        self._arrays.took(inferred_s - prepared_s)
        if places is None:
            self._channel.send_line(INFERRED)
        else:
            self._channel.send({"kind": "inferred", "outputs": places})
        self._count(inputs, outputs, (began_s, prepared_s, inferred_s))

    def _for_client(self, inputs: Arrays) -> Inferred | None:
        """A request of a client that is lent."""
        began_s = time.perf_counter()
        try:
            outputs, prepared_s, inferred_s = self._timed(inputs)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - the agent asks again, and is told what a runtime raises
            return None
        times = began_s, prepared_s, inferred_s
        return Inferred(outputs, inferred_s - prepared_s, partial(self._count, inputs, outputs, times))

    def _fail(self, kind: FailureKind, reason: str) -> None:
        self._channel.send({"kind": "not_inferred", "failure": kind, "reason": reason})

    def _sample(self, samples: Samples) -> None:
        if self._results is not None:
            self._results.turn()
        try:
            sample = samples.next()
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a camera's library raises: requests are served on
            self._source_failed(samples, one_line_of(error))
            return
        if sample is not None:
            self._source_said = None
            self._infer_sample(sample)
            samples.used()

    def _infer_sample(self, sample: Sample) -> None:
        # What the source made of the picture or message that came is preprocessing too.
        began_s = time.perf_counter() - sample.preprocess_s
        try:
            outputs, prepared_s, inferred_s = self._timed(sample.inputs)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - counted
            self._count_error()
            return
        self._count(sample.inputs, outputs, (began_s, prepared_s, inferred_s))
        if self._results is not None:
            self._results.write(outputs, inferred_s - prepared_s)
        if sample.label is not None and self._tally is not None:
            first = self._variant.spec["outputs"][0]["name"]
            self._tally.labelled(int(np.argmax(outputs[first])) == sample.label)

    def _source_failed(self, samples: Samples, reason: str) -> None:
        if samples.failures >= SOURCE_SAID_AFTER and reason != self._source_said:
            self._source_said = reason
            self._channel.send({"kind": "source_failed", "reason": reason})

    def _timed(self, inputs: Arrays) -> tuple[dict[str, Array], float, float]:
        """Outputs, and when the inputs were prepared and the inference done."""
        prepared = self._variant.prepared(inputs)
        prepared_s = time.perf_counter()
        raw = self._variant.infer_prepared(prepared)
        inferred_s = time.perf_counter()
        return self._variant.restored(raw), prepared_s, inferred_s

    def _count(self, inputs: Arrays, outputs: Arrays, times: tuple[float, float, float]) -> None:
        if self._tally is not None:
            began_s, prepared_s, inferred_s = times
            self._tally.add(inferred_s - prepared_s, time.perf_counter() - began_s, prepared_s - began_s)
            self._tally.observe(inputs, outputs)
        if self._is_sample_wanted:
            self._is_sample_wanted = False
            self._channel.send(sampled.encode(inputs, outputs, times[2] - times[1]))

    def _count_error(self) -> None:
        if self._tally is not None:
            self._tally.error()


def one_line_of(error: Exception) -> str:
    """An error in one line; our own say it all, others are named."""
    text = str(error) if isinstance(error, EdgefleetError) else f"{type(error).__name__}: {error}"
    return short_line(text.partition("\n")[0])
