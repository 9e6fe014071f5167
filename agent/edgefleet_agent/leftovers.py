"""What nobody needs any more on a device's disk: it goes once the journal says so, and once nobody is at work there.

It knows nothing of why something is no longer needed.
"""

from __future__ import annotations

import logging

from edgefleet_agent.journal import Journal
from edgefleet_agent.slots import Slots

log = logging.getLogger("edgefleet.agent")


class Leftovers:
    """Slots that the journal does not name, and what is half assembled."""

    def __init__(self, journal: Journal, slots: Slots) -> None:
        """Nothing is removed here."""
        self._journal = journal
        self._slots = slots
        self._are_expected = False

    def expect(self, *, expected: bool = True) -> None:
        """There may be some from now on, or as soon as who is at work on the disk is done."""
        self._are_expected = expected

    def tidy(self) -> None:
        """Remove what is expected, if that may be: at no power cut may the journal name a slot that is gone."""
        if self._are_expected and self._journal.is_written and not self._slots.turn.locked():
            self._are_expected = False
            self.remove()

    def remove(self) -> None:
        """Remove all that the journal, as the memory has it, does not name; a disk that refuses keeps it."""
        entry = self._journal.entry
        keep = None if entry.active is None else entry.active.digest
        previous = None if entry.previous is None else entry.previous.active.digest
        try:
            self._slots.collect(keep, previous=previous)
        except OSError as error:
            log.warning("what is no longer needed stays on the disk: %s", error.strerror or error)
