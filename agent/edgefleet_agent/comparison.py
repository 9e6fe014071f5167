"""The comparison of a variant on probation with the committed one, while it lasts: a shadow, and live inputs for it.

What follows from the answers is the probation's business; without memory for two, or a shadow that works, there are
none, and that is said once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from edgefleet.package.manifest import VariantSpec
from edgefleet.protocol.messages import State
from edgefleet_agent import supervise
from edgefleet_agent.background import Work
from edgefleet_agent.inference_types import InferRequest, InferResult
from edgefleet_agent.journal import Entry
from edgefleet_agent.settings import Settings
from edgefleet_agent.shadow import Shadow
from edgefleet_agent.slots import SlotDamagedError, Slots

OnSample = Callable[[InferRequest, InferResult], None]


class Server(Protocol):
    """Who infers: `inference.Inference`."""

    @property
    def ready(self) -> bool:
        """Whether it infers."""
        ...

    @property
    def worker_bytes(self) -> int | None:
        """What the worker that serves takes of the memory."""
        ...

    def sample(self, on_sample: OnSample | None, on_refusal: Callable[[str], None]) -> None:
        """Have the next live inference passed on, once; None: not wanted any more."""
        ...


class Comparison:
    """At most one shadow, of the variant that a probation would go back to."""

    def __init__(
        self, settings: Settings, slots: Slots, server: Server,
        counted: Callable[[int, int], None], note: Callable[[str, str], None],
    ) -> None:  # fmt: skip
        """`counted` gets (answers that were the same, all of them) as they come."""
        self._settings = settings
        self._slots = slots
        self._server = server
        self._counted = counted
        self._note = note
        self._digest: str | None = None
        self._checking: Work[VariantSpec] | None = None
        self._shadow: Shadow | None = None
        self._is_asked = False
        self._now = 0.0

    def descriptors(self) -> list[int]:
        """File descriptors that become readable when `tick` has something to do."""
        checking = [] if self._checking is None else [self._checking.fileno()]
        return checking + ([] if self._shadow is None else self._shadow.descriptors())

    def tick(self, entry: Entry, now: float) -> None:
        """Follow the journal: compare while a probation lasts that has something to go back to."""
        self._now = now
        wanted = entry.previous.active.digest if entry.state is State.PROBATION and entry.previous else None
        if wanted != self._digest:
            self.close()
            self._digest = wanted
            if wanted is not None:
                self._checking = Work(self._slots.turn, lambda _: self._slots.check(wanted))
        # What the second one would take is known by the first.
        if self._checking is not None and self._checking.finished and self._server.ready and wanted is not None:
            checking, self._checking = self._checking, None
            self._begin(wanted, checking)
        if self._shadow is not None:
            self._advance(self._shadow, now)

    def close(self) -> None:
        """End it."""
        if self._checking is not None:
            self._checking.cancel()
            self._checking = None
        if self._is_asked:
            self._server.sample(None, self._refuse)
            self._is_asked = False
        if self._shadow is not None:
            self._shadow.close()
            self._shadow = None
        self._digest = None

    def _begin(self, digest: str, checking: Work[VariantSpec]) -> None:
        try:
            spec = checking.result()
        except SlotDamagedError as error:
            self._refuse(f"the committed variant is damaged: {error}")
            return
        slot, settings = self._slots.path(digest), self._settings
        self._shadow = Shadow(lambda: supervise.inference(slot, spec, digest, settings), self._server.worker_bytes)

    def _advance(self, shadow: Shadow, now: float) -> None:
        shadow.tick(now)
        agreed, compared = shadow.take()
        if compared:
            self._counted(agreed, compared)
        if shadow.refusal is not None:
            self._refuse(shadow.refusal)
        elif shadow.wants(now) and not self._is_asked:
            self._is_asked = True
            self._server.sample(self._offer, self._refuse)

    def _offer(self, request: InferRequest, result: InferResult) -> None:
        self._is_asked = False
        if self._shadow is not None:
            self._shadow.offer(request, result, self._now)

    def _refuse(self, reason: str) -> None:
        """Not in this probation any more."""
        self._note("not_compared", reason)
        self._is_asked = False
        if self._shadow is not None:
            self._shadow.close()
            self._shadow = None
