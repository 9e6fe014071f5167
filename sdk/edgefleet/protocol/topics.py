"""The table of MQTT topics: who writes, who reads, quality of service, retained or not.

The broker's access rules, the subscriptions and the documentation are generated from it; no topic is spelled
anywhere else. All topics begin with `edgefleet/1/{fleet}/` and have at most 7 slashes (AWS IoT Core's limit).
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from enum import StrEnum

from edgefleet.errors import InputError

PREFIX = "edgefleet/1"
NAME_PATTERN = r"[a-z0-9][a-z0-9-]{0,62}"
PIECE_UNIT_BYTES = 15 * 1024
SHORT_DIGEST_CHARS = 12
SHARDS = 16
"""Request topics are spread over these, so that N hubs without shared subscriptions can divide them."""
RESERVED_PREFIX = "edgefleet-"
"""Names that begin so are the server's own processes."""
SERVER_USER = "edgefleet-server"
HUB_USERS = tuple(f"edgefleet-hub-{number}" for number in range(1, 9))


class Role(StrEnum):
    """A party on the wire."""

    DEVICE = "device"
    """The agent; it may touch its own topics only."""
    SERVER = "server"
    """Ingest and rollout control; it may do all that a hub may."""
    HUB = "hub"
    """Answers requests, sends blobs."""


class TopicName(StrEnum):
    """Every kind of topic there is."""

    DESIRED = "desired"
    """What one device shall run."""
    ONLINE = "online"
    """Whether the agent is connected; the only topic that a will touches."""
    STATE = "state"
    """Where the device is in its lifecycle, and what it runs."""
    FACTS = "facts"
    """Hardware, operating system, runtimes, agent version."""
    TELEMETRY = "telemetry"
    """Telemetry windows."""
    EVENTS = "events"
    """Things that happened on the device."""
    ACK = "ack"
    """Highest contiguous sequence number committed to the store."""
    COMMANDS = "commands"
    """A signed command, run at most once and answered as an event."""
    REQUEST = "request"
    """Metadata, certificate and block requests with byte credit."""
    REPLY = "reply"
    """Answers to requests: status, and metadata in parts."""
    BLOCKS = "blocks"
    """Raw pieces of blobs."""
    SHARED = "shared"
    """Raw pieces of a blob that several devices wait for, once for all who listen."""


@dataclass(frozen=True, slots=True)
class Topic:
    """One row of the table; `{device}`, `{shard}`, `{sha12}` and `{n}` are the fields of a pattern."""

    pattern: str
    writer: Role
    reader: Role
    qos: int
    retained: bool
    standing: bool = True
    """Its reader listens from the start, not on demand."""


TOPICS: dict[TopicName, Topic] = {
    TopicName.DESIRED: Topic("d/{device}/desired", Role.SERVER, Role.DEVICE, 1, True),
    # Facts before the rest: a server that starts anew is told of a device before it is told of its state.
    TopicName.FACTS: Topic("d/{device}/facts", Role.DEVICE, Role.SERVER, 1, True),
    TopicName.ONLINE: Topic("d/{device}/online", Role.DEVICE, Role.SERVER, 1, True),
    TopicName.STATE: Topic("d/{device}/state", Role.DEVICE, Role.SERVER, 1, True),
    TopicName.TELEMETRY: Topic("d/{device}/telemetry", Role.DEVICE, Role.SERVER, 1, False),
    TopicName.EVENTS: Topic("d/{device}/events", Role.DEVICE, Role.SERVER, 1, False),
    TopicName.ACK: Topic("d/{device}/ack", Role.SERVER, Role.DEVICE, 1, False),
    TopicName.COMMANDS: Topic("d/{device}/commands", Role.SERVER, Role.DEVICE, 1, False),
    TopicName.REQUEST: Topic("req/{shard}/{device}", Role.DEVICE, Role.HUB, 1, False),
    TopicName.REPLY: Topic("d/{device}/reply", Role.HUB, Role.DEVICE, 0, False),
    TopicName.BLOCKS: Topic("d/{device}/b/{sha12}/{n}", Role.HUB, Role.DEVICE, 0, False),
    TopicName.SHARED: Topic("s/{sha12}/{n}", Role.HUB, Role.DEVICE, 0, False, standing=False),
}


def _matcher(pattern: str) -> re.Pattern[str]:
    fields = {"device": NAME_PATTERN, "shard": r"\d{1,4}", "sha12": r"[0-9a-f]{12}", "n": r"\d{1,9}"}
    return re.compile(re.sub(r"\\{(\w+)\\}", lambda m: f"(?P<{m[1]}>{fields[m[1]]})", re.escape(pattern)))


_MATCHERS = {name: _matcher(topic.pattern) for name, topic in TOPICS.items()}


@dataclass(frozen=True, slots=True)
class Address:
    """A topic taken apart; `piece` and `sha12` are set for blocks only, `device` is empty for shared ones."""

    name: TopicName
    device: str
    sha12: str | None = None
    piece: int | None = None


def check_name(kind: str, name: str) -> str:
    """Return `name` when it may stand in a topic; raises InputError naming `kind` otherwise."""
    if name.startswith(RESERVED_PREFIX):
        raise InputError(
            f"reading the {kind} name {name!r}",
            f"names that begin with {RESERVED_PREFIX} are the server's own",
            f"choose another {kind} name",
        )
    if re.fullmatch(NAME_PATTERN, name) is None:
        raise InputError(
            f"reading the {kind} name {name!r}",
            "it is not 1 to 63 lower-case letters, digits and hyphens, beginning with a letter or digit",
            f"choose another {kind} name",
        )
    return name


def topic_for(fleet: str, name: TopicName, device: str, *, sha12: str = "", piece: int = 0) -> str:
    """The topic of one device, or of all when the pattern names none, ready to publish to."""
    body = TOPICS[name].pattern.format(device=device, shard=shard_of(device), sha12=sha12, n=piece)
    return f"{PREFIX}/{fleet}/{body}"


def shard_of(device: str) -> int:
    """Request shard of a device."""
    return zlib.crc32(device.encode()) % SHARDS


def filter_for(fleet: str, name: TopicName, device: str | None = None, *, sha12: str | None = None) -> str:
    """Subscription filter of one device's topic (or every device's) and of one blob (or every one)."""
    given = {"device": device, "sha12": sha12}
    body = re.sub(r"\{(\w+)\}", lambda m: given.get(m[1]) or "+", TOPICS[name].pattern)
    return f"{PREFIX}/{fleet}/{body}"


def filters_read_by(role: Role, fleet: str, device: str | None = None) -> list[tuple[str, int]]:
    """(filter, QoS) of everything that a role reads from the start, in the table's order."""
    rows = TOPICS.items()
    return [(filter_for(fleet, name, device), row.qos) for name, row in rows if row.reader is role and row.standing]


def parse(fleet: str, topic: str) -> Address | None:
    """Take a topic of this fleet apart; None when it is not in the table (such messages are ignored)."""
    body = topic.removeprefix(f"{PREFIX}/{fleet}/")
    if body == topic:
        return None
    for name, matcher in _MATCHERS.items():
        if match := matcher.fullmatch(body):
            fields = match.groupdict()
            piece = int(fields["n"]) if "n" in fields else None
            return Address(name, fields.get("device", ""), fields.get("sha12"), piece)
    return None


def short_digest(digest: str) -> str:
    """The `sha12` field of a blob's topic: the first 12 hex digits."""
    return digest.removeprefix("sha256:")[:SHORT_DIGEST_CHARS]
