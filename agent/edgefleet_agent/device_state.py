"""The state message: what the journal and the installation under way say of a device, as the wire has it.

It publishes nothing.
"""

from __future__ import annotations

from edgefleet.protocol.messages import DeviceState, State
from edgefleet_agent.install import Install
from edgefleet_agent.journal import Entry
from edgefleet_agent.restoration import what_is_damaged


def told(entry: Entry, install: Install | None, state: State) -> DeviceState:
    """The message of a device in `state`."""
    watched = state in (State.PROBATION, State.ROLLING_BACK)
    return DeviceState(
        enrolment_id=entry.enrolment.enrolment_id,
        generation=entry.desired.generation if entry.desired else 0,
        state=state,
        reason=_reason(entry, install),
        active=entry.active,
        previous=entry.previous.active if entry.previous and watched else None,
        evidence=entry.evidence,
        progress=install.progress if install else entry.progress,
        **counters(install or entry),
    )


def _reason(entry: Entry, install: Install | None) -> str | None:
    if install is not None and install.waits_for:
        return install.waits_for
    if install is not None and entry.restored_to is not None:
        return f"{what_is_damaged(entry)} is damaged, and is pulled again"
    return entry.reason


def counters(source: Install | Entry) -> dict[str, int]:
    """What an installation has counted, as the journal and the state message name it."""
    return {name: getattr(source, name) for name in ("pulled_bytes", "reused_bytes", "bad_blocks")}
