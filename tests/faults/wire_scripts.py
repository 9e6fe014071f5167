"""What can go wrong with pieces and replies on the way, as changes to the messages of a scripted hub.

A fault is made for the n-th piece of the model with a random generator of its own. Nothing is asserted here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from edgefleet.protocol.messages import Reply, Request, RequestKind, Status
from edgefleet.protocol.topics import PIECE_UNIT_BYTES
from faults.scripted import Delivery, Meddle

Change = Callable[[Delivery, random.Random], list[Delivery]]
Fault = Callable[[int, random.Random], Meddle]


def nth(change: Change) -> Fault:
    """Change the n-th piece that is sent, once."""

    def make(at: int, rng: random.Random) -> Meddle:
        sent = 0

        def meddle(_request: Request, deliveries: list[Delivery]) -> list[Delivery]:
            nonlocal sent
            found: list[Delivery] = []
            for each in deliveries:
                hit = each.reply is None and sent == at
                sent += each.reply is None
                found += change(each, rng) if hit else [each]
            return found

        return meddle

    return make


def always(change: Change) -> Fault:
    """Change the piece of one place each time that it is sent."""

    def make(at: int, rng: random.Random) -> Meddle:
        places: list[tuple[str, int]] = []

        def meddle(_request: Request, deliveries: list[Delivery]) -> list[Delivery]:
            found: list[Delivery] = []
            for each in deliveries:
                place = (each.sha12, each.number)
                if each.reply is None and place not in places and len(places) <= at:
                    places.append(place)
                hit = each.reply is None and len(places) > at and place == places[at]
                found += change(each, rng) if hit else [each]
            return found

        return meddle

    return make


def whole(change: Callable[[list[Delivery], list[Delivery], random.Random], list[Delivery]]) -> Fault:
    """Change every answer that holds pieces; the change also gets all pieces that were sent before."""

    def make(_at: int, rng: random.Random) -> Meddle:
        past: list[Delivery] = []

        def meddle(_request: Request, deliveries: list[Delivery]) -> list[Delivery]:
            found = change(list(deliveries), past, rng)
            past.extend(each for each in deliveries if each.reply is None)
            return found

        return meddle

    return make


def says(status: Status, retry_after_s: float | None = None) -> Fault:
    """Answer with a refusal, once, where the n-th piece would have come."""

    def make(at: int, _rng: random.Random) -> Meddle:
        sent, refused = 0, False

        def meddle(request: Request, deliveries: list[Delivery]) -> list[Delivery]:
            nonlocal sent, refused
            sent += sum(each.reply is None for each in deliveries)
            if refused or request.kind is not RequestKind.BLOCKS or sent <= at:
                return deliveries
            refused = True
            reply = Reply(req_id=request.req_id, status=status, retry_after_s=retry_after_s, body=b"said by a script")
            return [Delivery(reply)]

        return meddle

    return make


def metadata(change: Callable[[Reply, random.Random], list[Reply]], *, times: int) -> Fault:
    """Change the first `times` replies that carry metadata, beginning with the n-th."""

    def make(at: int, rng: random.Random) -> Meddle:
        sent = 0

        def meddle(_request: Request, deliveries: list[Delivery]) -> list[Delivery]:
            nonlocal sent
            found: list[Delivery] = []
            for each in deliveries:
                if each.reply is None or not each.reply.body:
                    found.append(each)
                    continue
                hit = at <= sent < at + times
                sent += 1
                found += [Delivery(reply) for reply in change(each.reply, rng)] if hit else [each]
            return found

        return meddle

    return make


def _flip(each: Delivery, rng: random.Random) -> list[Delivery]:
    return [replace(each, content=_flipped(each.content, rng))]


def _flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(each: Delivery, rng: random.Random) -> list[Delivery]:
    return [replace(each, content=each.content[: rng.randrange(len(each.content))])]


def _extend(each: Delivery, rng: random.Random) -> list[Delivery]:
    return [replace(each, content=each.content + rng.randbytes(rng.randrange(1, 70_000)))]


def _misplaced(each: Delivery, rng: random.Random) -> list[Delivery]:
    return [replace(each, number=max(0, each.number + rng.choice([-4, -1, 1, 4, 10**8])))]


def _foreign(each: Delivery, rng: random.Random) -> list[Delivery]:
    """Before the right one: somebody else's content under our name, and ours under another's."""
    return [
        replace(each, sha12="0" * 12),
        Delivery(None, "f" * 12, 0, rng.randbytes(len(each.content))),
        replace(each, content=rng.randbytes(len(each.content))),
        each,
    ]


def _shuffled(deliveries: list[Delivery], _past: list[Delivery], rng: random.Random) -> list[Delivery]:
    mixed = list(deliveries)
    rng.shuffle(mixed)
    return mixed if mixed != deliveries else mixed[::-1]


def _stale(deliveries: list[Delivery], past: list[Delivery], _rng: random.Random) -> list[Delivery]:
    return [*past[-8:], *deliveries]


def _mixed_sizes(deliveries: list[Delivery], _past: list[Delivery], _rng: random.Random) -> list[Delivery]:
    """Another hub sends the beginning of every piece in units of 15 KiB, just before."""
    found: list[Delivery] = []
    for each in deliveries:
        if len(each.content) > PIECE_UNIT_BYTES:
            found.append(replace(each, content=each.content[:PIECE_UNIT_BYTES]))
        found.append(each)
    return found


def _odd_parts(reply: Reply, rng: random.Random) -> list[Reply]:
    """Parts of other answers, parts beyond the end, and more parts than anybody holds, before the right one."""
    return [
        reply.model_copy(update={"req_id": "r-stale"}),
        reply.model_copy(update={"part": 7, "parts": 3}),
        reply.model_copy(update={"parts": 2**40, "part": rng.randrange(2**39)}),
        reply,
    ]


def _flip_reply(reply: Reply, rng: random.Random) -> list[Reply]:
    return [reply.model_copy(update={"body": _flipped(reply.body, rng)})]


@dataclass(frozen=True, slots=True)
class Row:
    """One fault, and how an installation under it ends."""

    fault: Fault
    ends: str | None = None
    """Part of the reason with which it fails; None: it finishes."""
    again: int = 1
    """Blocks of the model, or metadata blobs, that may travel once more for it."""
    bad: bool = False
    """A block was rejected and counted."""


FAULTS: dict[str, Row] = {
    "flip": Row(nth(_flip), bad=True),
    "truncate": Row(nth(_truncate)),
    "extend": Row(nth(_extend), again=3),
    "lose": Row(nth(lambda _each, _rng: [])),
    "empty": Row(nth(lambda each, _rng: [replace(each, content=b"")])),
    "double": Row(nth(lambda each, _rng: [each, each])),
    "misplace": Row(nth(_misplaced), again=3),
    "foreign": Row(nth(_foreign), again=5),
    "shuffle": Row(whole(_shuffled)),
    "stale": Row(whole(_stale), again=60),
    "mixed sizes": Row(whole(_mixed_sizes), again=5),
    "flip each time": Row(always(_flip), ends="came damaged again and again", again=6, bad=True),
    "gone": Row(says(Status.GONE), ends="gone"),
    "denied": Row(says(Status.DENIED), ends="denied"),
    "bad": Row(says(Status.BAD), ends="bad"),
    "busy": Row(says(Status.BUSY, 2.0)),
    "flip metadata": Row(metadata(_flip_reply, times=1)),
    "flip metadata each time": Row(metadata(_flip_reply, times=100), ends="came damaged"),
    "odd parts": Row(metadata(_odd_parts, times=3), again=10),
}
