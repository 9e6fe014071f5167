"""Shared delivery: one copy for all who wait, nobody drowned, nobody waiting for ever."""

from __future__ import annotations

from edgefleet.package.digest import BLOCK_BYTES
from edgefleet.protocol.messages import Request, RequestKind
from edgefleet.server.budget import TokenBucket
from edgefleet.server.hub import Hub
from edgefleet.server.hub_work import Piece
from edgefleet.server.shared_delivery import (
    AHEAD_BLOCKS,
    GONE_S,
    LOOK_AGAIN_S,
    PATIENCE_S,
    WORTH_SHARING_BYTES,
    SharedDelivery,
)

A = "sha256:" + "a" * 64
BLOCKS = 200
SIZE = BLOCKS * BLOCK_BYTES - 1000
THREE = ("nuc", "pi-1", "pi-2")


class Lab:
    """A hub with shared delivery, and a clock."""

    def __init__(self) -> None:
        self.shared = SharedDelivery()
        self.hub = Hub(TokenBucket(None, 0.0), shared=self.shared)
        self.now = 0.0
        self.number = 0

    def ask(self, device: str, first: int, count: int, *, shared: bool = True, fresh: bool = False) -> None:
        self.number += 1
        blocks = ((first, count),) if count else ()
        request = Request(
            req_id=str(self.number), kind=RequestKind.BLOCKS, digest=A, blocks=blocks,
            credit_bytes=count * BLOCK_BYTES, shared=shared, fresh=fresh,
        )  # fmt: skip
        assert self.hub.ask(device, request, SIZE) is None

    def drain(self) -> list[Piece]:
        found = []
        while (piece := self.hub.next_piece(self.now)) is not None:
            found.append(piece)
        return found

    def wait(self, seconds: float) -> list[Piece]:
        """Look again and again for so long; what was sent meanwhile."""
        found, ends = [], self.now + seconds
        while self.now < ends:
            self.now += LOOK_AGAIN_S
            found += self.drain()
        return found

    def news(self) -> dict[str, bool]:
        return {device: listen for device, _, listen in self.shared.take_news()}


def kinds(pieces: list[Piece]) -> list[tuple[int, bool]]:
    return [(piece.block, piece.shared) for piece in pieces]


def test_one_device_is_offered_nothing_and_the_second_makes_it_two() -> None:
    lab = Lab()
    lab.ask("nuc", 0, 2, shared=False)
    assert lab.news() == {}
    lab.ask("pi-1", 0, 2, shared=False)
    assert lab.news() == {"pi-1": True}
    lab.ask("nuc", 2, 2, shared=False)
    assert lab.news() == {"nuc": True}
    assert not any(piece.shared for piece in lab.drain())


def test_small_blobs_are_not_worth_it() -> None:
    shared = SharedDelivery()
    request = Request(req_id="1", kind=RequestKind.BLOCKS, digest=A, blocks=((0, 2),))
    for device in THREE:
        assert shared.asked(device, request, [0, 1], WORTH_SHARING_BYTES - 1) == [0, 1]
    assert shared.take_news() == []


def test_what_three_wait_for_is_sent_once_and_a_late_request_for_it_is_not_answered_again() -> None:
    lab = Lab()
    for device in THREE[:2]:
        lab.ask(device, 0, 10, fresh=True)
    lab.ask(THREE[2], 0, 4, fresh=True)
    assert kinds(lab.drain()) == [(block, True) for block in range(10)]
    # Blocks 4 to 9 are on their way to it, as it will see.
    lab.ask(THREE[2], 4, 8)
    for device in THREE[:2]:
        lab.ask(device, 10, 2)
    assert kinds(lab.drain()) == [(10, True), (11, True)]
    assert lab.hub.idle


def test_what_did_not_come_is_sent_again_to_the_one_that_lacks_it() -> None:
    lab = Lab()
    for device in THREE:
        lab.ask(device, 0, 10, fresh=True)
    lab.drain()
    lab.ask("nuc", 5, 2, fresh=True)
    assert kinds(lab.drain()) == [(5, False), (6, False)]


def test_pieces_of_one_block_go_the_same_way() -> None:
    lab = Lab()
    lab.hub.piece_bytes = BLOCK_BYTES // 4
    for device in THREE:
        lab.ask(device, 0, 3, fresh=True)
    pieces = lab.drain()
    assert all(piece.shared for piece in pieces)
    assert sorted(piece.offset for piece in pieces) == [place * BLOCK_BYTES // 4 for place in range(12)]


def test_no_more_than_a_mebibyte_goes_to_a_device_that_has_not_asked_for_it() -> None:
    lab = Lab()
    lab.ask("pi-1", 0, 60, fresh=True)
    lab.ask("pi-2", 0, 1, fresh=True)
    lab.ask("nuc", 0, 60, fresh=True)
    assert len(lab.drain()) == 1 + AHEAD_BLOCKS
    wait_s = lab.hub.wait_s(lab.now)
    assert wait_s is not None
    assert 0 < wait_s <= LOOK_AGAIN_S, "the loop must not spin"
    # It goes on once it has caught up.
    lab.ask("pi-2", 1 + AHEAD_BLOCKS, 10)
    assert len(lab.drain()) == 10 + AHEAD_BLOCKS


def test_a_slow_device_is_told_to_leave_and_is_served_alone_then() -> None:
    lab = Lab()
    lab.ask("pi-1", 0, 60, fresh=True)
    lab.ask("pi-2", 0, 1, fresh=True)
    lab.ask("nuc", 0, 60, fresh=True)
    lab.drain()
    assert lab.wait(PATIENCE_S - 2 * LOOK_AGAIN_S) == []
    assert lab.news() == {}
    lab.wait(4 * LOOK_AGAIN_S)
    assert lab.news() == {"pi-2": False}
    lab.ask("pi-2", 1, 5, shared=False)
    pieces = lab.drain()
    assert [piece.block for piece in pieces if not piece.shared and piece.device == "pi-2"] == [1, 2, 3, 4, 5]
    assert [piece.block for piece in pieces if piece.shared] == list(range(1 + AHEAD_BLOCKS, 60))
    lab.ask("pi-2", 6, 5, shared=False)
    assert lab.news() == {}, "once is enough"


def test_a_device_that_has_gone_holds_up_nobody_for_ever_not_even_when_most_have() -> None:
    lab = Lab()
    lab.ask("pi-1", 0, 60, fresh=True)
    for device in ("pi-2", "pi-3", "pi-4"):
        lab.ask(device, 0, 1, fresh=True)
    assert len(lab.drain()) == 1 + AHEAD_BLOCKS
    assert len(lab.wait(GONE_S + 4 * LOOK_AGAIN_S)) == 60 - 1 - AHEAD_BLOCKS


def test_two_that_are_behind_do_not_wait_for_each_other() -> None:
    lab = Lab()
    lab.ask("pi-1", 0, 1, fresh=True)
    lab.ask("pi-2", 0, 1, fresh=True)
    lab.ask("nuc", 0, 60, fresh=True)
    assert len(lab.drain()) == 1 + AHEAD_BLOCKS
    lab.ask("pi-1", 100, 5)
    lab.ask("pi-2", 150, 5)
    # Both have asked for what lies behind: they have caught up, and all goes on.
    assert {piece.block for piece in lab.drain()} >= {*range(100, 105), *range(150, 155)}


def test_one_that_is_done_or_forgotten_holds_up_nobody() -> None:
    lab = Lab()
    for device in THREE:
        lab.ask(device, 0, 1, fresh=True)
    lab.drain()
    lab.ask("nuc", 0, 0, shared=False, fresh=True)
    lab.hub.forget("pi-1")
    lab.ask("pi-2", 1, 60)
    assert kinds(lab.drain()) == [(block, False) for block in range(1, 61)]
