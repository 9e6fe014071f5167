"""Which devices get a blob's blocks together, how far ahead of each others may run, who is better served alone. Pure.

It neither queues nor sends; that is `hub`'s business. What a device has is known by what it asks for: what lies before
the blocks that it names has come, and what it names although it went to all is still on its way.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from edgefleet.package.digest import BLOCK_BYTES, block_count
from edgefleet.protocol.messages import Request

WORTH_SHARING_BYTES = 2 * 1024 * 1024
"""Smaller blobs are gone before a subscription is made."""
AHEAD_BLOCKS = 1024 * 1024 // BLOCK_BYTES
"""So many blocks that it has not asked for may be on their way to a device: they wait in the broker's memory."""
PATIENCE_S = 3.0
"""So much longer than it lets them go on may a device hold up the others."""
FEW_OF = 4
"""A quarter of the devices are few: when more are behind, the others wait for them."""
GONE_S = 6.0
"""A device that holds up others for so long and asks for nothing is gone."""
LOOK_AGAIN_S = 0.02
"""When everything that waits is held up by devices that are behind."""
REMEMBERED_BLOBS = 32


class _Block(IntEnum):
    """What is known of one block at one device."""

    LACKING = 0
    SENT = 1
    PRESUMED = 2
    """It asked for what lies behind; it will name the block if it lacks it after all."""


@dataclass(slots=True)
class _Listener:
    """A device that listens."""

    blocks: bytearray
    """A `_Block` for each."""
    req_id: str = ""
    """Of its latest request."""
    ahead: set[int] = field(default_factory=set)
    """Sent to all, and not yet asked for by this one."""
    held_s: float = 0.0
    """Time for which it and few more held up the others, less the time for which it did not."""
    silent_s: float = 0.0
    """Time for which it has held up anyone since its latest request."""
    leaving: bool = False
    """It was told to leave. Until it has, what goes to all would only wait for it at the broker."""

    @property
    def is_behind(self) -> bool:
        """Nothing more that it has not asked for may go to it."""
        return len(self.ahead) >= AHEAD_BLOCKS


@dataclass(slots=True)
class _Group:
    """Everyone who waits for one blob."""

    listeners: dict[str, _Listener] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    """Those that asked and do not listen (yet)."""
    alone: set[str] = field(default_factory=set)
    """Those that were too slow for the others."""
    looked_at: float | None = None


class SharedDelivery:
    """The groups by blob."""

    def __init__(self, *, offers: bool = True) -> None:
        """Without `offers` every device is served alone."""
        self._offers = offers
        self._groups: OrderedDict[str, _Group] = OrderedDict()
        self._news: list[tuple[str, str, bool]] = []

    def take_news(self) -> list[tuple[str, str, bool]]:
        """(device, id of its request, whether to listen from now on) for those to be told."""
        news, self._news = self._news, []
        return news

    # Coming in ---------------------------------------------------------------------------------------

    def asked(self, device: str, request: Request, named: list[int], size_bytes: int) -> list[int]:
        """Note a request for the blocks `named`; returns those that are not on their way to this device already."""
        digest = request.digest
        if not self._offers or digest is None or size_bytes < WORTH_SHARING_BYTES:
            return named
        group = self._groups.setdefault(digest, _Group())
        if len(self._groups) > REMEMBERED_BLOBS:
            self._groups.popitem(last=False)
        if not named:
            self._leave(digest, group, device)
        elif device in group.alone:
            if request.shared:
                self._news.append((device, request.req_id, False))
        elif request.shared:
            return _follow(group, device, request, named, size_bytes)
        elif (listener := group.listeners.pop(device, None)) is not None and listener.leaving:
            group.alone.add(device)
        else:
            group.waiting.add(device)
            if len(group.waiting) + len(group.listeners) > 1:
                self._news.append((device, request.req_id, True))
        return named

    def _leave(self, digest: str, group: _Group, device: str) -> None:
        group.listeners.pop(device, None)
        group.waiting.discard(device)
        group.alone.discard(device)
        if not group.listeners and not group.waiting:
            del self._groups[digest]

    def forget(self, device: str) -> None:
        """A device has gone."""
        for digest, group in list(self._groups.items()):
            self._leave(digest, group, device)

    def clear(self) -> None:
        """The broker is gone, and every subscription with it."""
        self._groups.clear()
        self._news.clear()

    # Going out ---------------------------------------------------------------------------------------

    def receivers(
        self, device: str, digest: str, block: int, wants: Callable[[str], bool], now: float
    ) -> Sequence[str]:
        """Who gets a block whose turn it is at `device`: it alone, it and others together, or (empty) nobody yet.

        `wants` tells which others have asked for it. It counts as sent when the answer is not empty.
        """
        group = self._groups.get(digest)
        if group is None or device not in group.listeners:
            return (device,)
        lacking = [
            each for each, listener in group.listeners.items()
            if (state := listener.blocks[block]) == _Block.LACKING or (state == _Block.PRESUMED and wants(each))
        ]  # fmt: skip
        unasked = [each for each in lacking if each != device and not wants(each)]
        holding = [each for each in unasked if group.listeners[each].is_behind]
        self._look(group, holding, now)
        if not holding:
            for each in unasked:
                group.listeners[each].ahead.add(block)
        elif device in group.listeners and not group.listeners[device].is_behind:
            return ()
        else:
            # Two that are behind, each with what the other waits for, would wait for ever.
            lacking = []
        for each in (device, *lacking):
            if (listener := group.listeners.get(each)) is not None:
                listener.blocks[block] = _Block.SENT
        return (device, *(each for each in lacking if each != device))

    def _look(self, group: _Group, holding: list[str], now: float) -> None:
        """Tell those that hold up the others for too long to leave."""
        since, group.looked_at = group.looked_at, now
        passed_s = 0.0 if since is None else now - since
        # When many are behind, that is the pace.
        slow = holding if len(holding) <= max(1, len(group.listeners) // FEW_OF) else []
        for device, listener in list(group.listeners.items()):
            listener.held_s = max(0.0, listener.held_s + (passed_s if device in slow else -passed_s))
            listener.silent_s += passed_s if device in holding else 0.0
            if listener.held_s > PATIENCE_S and not listener.leaving:
                listener.leaving = True
                self._news.append((device, listener.req_id, False))
            if listener.silent_s > GONE_S:
                del group.listeners[device]
                group.alone.add(device)


def _follow(group: _Group, device: str, request: Request, named: list[int], size_bytes: int) -> list[int]:
    """Note what a request of a listener tells; returns the blocks to queue."""
    group.waiting.discard(device)
    if (listener := group.listeners.get(device)) is None:
        listener = group.listeners[device] = _Listener(bytearray())
    listener.req_id, listener.silent_s = request.req_id, 0.0
    if request.fresh or not listener.blocks:
        first = min(named)
        listener.ahead.clear()
        listener.blocks = bytearray([_Block.PRESUMED] * first + [_Block.LACKING] * (block_count(size_bytes) - first))
    # What lies behind the blocks that it names may still be under way.
    last = max(named)
    listener.ahead = {block for block in listener.ahead if block > last}
    to_send = [block for block in named if listener.blocks[block] != _Block.SENT]
    for block in to_send:
        listener.blocks[block] = _Block.LACKING
    return to_send
