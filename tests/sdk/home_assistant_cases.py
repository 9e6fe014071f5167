"""Devices as a server may know them, with all that is sent of each to Home Assistant. No test is here."""

from __future__ import annotations

from edgefleet.protocol.messages import State
from edgefleet.server import home_assistant
from edgefleet.server.home_assistant import Seen
from edgefleet.server.store import DeviceRow, DeviceTelemetry
from edgefleet.spans import merge
from sdk import wire_examples

FLEET, DEVICE = "home", "pi-kitchen"
ROW = DeviceRow(
    device=DEVICE, enrolment_id="e1", online=True, seen_at=1.0, profile="raspberry-pi-5", simulated=False,
    simulated_reason=None, state=State.COMMITTED, reason=None, generation=7, digest="sha256:" + "2" * 64,
    index_digest="sha256:" + "1" * 64, variant="litert-int8", runtime="litert", precision="int8", verified_bytes=10,
    total_bytes=10, pulled_bytes=10, bad_blocks=0, sent_bytes=10,
)  # fmt: skip
SPAN = merge([wire_examples.telemetry(seq).window for seq in range(1, 3)])
TELEMETRY = DeviceTelemetry(2, SPAN.count, SPAN.errors, 0, 0, SPAN)
SEEN = Seen(ROW, TELEMETRY, ("digits", "1.0"), ("digits", "1.1"))


def changed(seen: Seen = SEEN, **changes: object) -> Seen:
    """`seen` with another row."""
    fields = {name: getattr(seen.row, name) for name in DeviceRow.__slots__}
    return Seen(DeviceRow(**{**fields, **changes}), seen.telemetry, seen.installed, seen.wanted)


CASES = {
    "all is well": SEEN,
    "it never ran anything": Seen(
        changed(digest=None, index_digest=None, variant=None, state=None, profile=None).row, None, None, None
    ),
    "offline": changed(online=False),
    "simulated": changed(simulated=True, simulated_reason="the board says nothing"),
    "no model, and a page of reasons": changed(state=State.NO_MODEL, reason="it does not\x1b[31m verify " * 50),
    "in the middle of an update": changed(state=State.DOWNLOADING, verified_bytes=30, total_bytes=90),
    "before the first byte": changed(state=State.RESOLVING, verified_bytes=None, total_bytes=None),
    "a package of somebody else": Seen(ROW, TELEMETRY, None, ("digits", "1.1")),
    "another package than it shall run": Seen(ROW, TELEMETRY, ("faces", "3.0"), ("digits", "1.1")),
    "nothing wanted": Seen(ROW, TELEMETRY, ("digits", "1.0"), None),
}


def sent(seen: Seen) -> dict[str, bytes]:
    """Topic → payload of everything about one device."""
    return {message.topic: message.payload for message in home_assistant.messages(FLEET, seen)}
