"""A variant's layers by two ways at once: each block by one of them, whatever fails, and verified either way."""

from __future__ import annotations

import hashlib
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.range_server import RangeServer
from edgefleet.package.digest import BLOCK_BYTES, block_count, digest_of
from edgefleet.package.manifest import Descriptor, Layer
from edgefleet.protocol.messages import Reply, Request, RequestKind, Status
from edgefleet.protocol.topics import PIECE_UNIT_BYTES, short_digest
from edgefleet_agent import http_pull
from edgefleet_agent.http_pull import HttpAccess
from edgefleet_agent.part_file import PartFile
from edgefleet_agent.preparation import LayerFile, Prepared
from edgefleet_agent.transfer import HTTP_SILENCE_S, LOCATE_S, MAX_BLOBS, Transfer, TransferError
from patience import PATIENCE_S


def content(size: int, seed: int) -> bytes:
    return bytes((place * 31 + place // 997 + seed) % 256 for place in range(size))


MODEL, SMALL, EMPTY = content(20 * BLOCK_BYTES + 99, 1), content(3000, 2), b""
BLOBS = {digest_of(blob): blob for blob in (MODEL, SMALL, EMPTY)}


class Lab:
    """A transfer, and a hub that answers when told to."""

    def __init__(self, folder: Path, blobs: tuple[bytes, ...] = (MODEL, SMALL, EMPTY)) -> None:
        self.asked: list[Request] = []
        self.noted: list[tuple[str, str]] = []
        self.heard: list[tuple[str, bool]] = []
        self.online = True
        self.number = 0
        files, first = [], 0
        for number, blob in enumerate(blobs):
            digests = b"".join(
                hashlib.sha256(blob[start : start + BLOCK_BYTES]).digest() for start in range(0, len(blob), BLOCK_BYTES)
            )
            layer = Descriptor(media_type=Layer.MODEL, digest=digest_of(blob), size=len(blob))
            files.append(LayerFile(layer, PartFile(folder / f"{number}.part", len(blob), digests), first))
            first += block_count(len(blob))
        self.prepared = Prepared(tuple(files), 0)

    def request(self, request: Request) -> bool:
        if self.online:
            self.asked.append(request)
        return self.online

    def next_req_id(self) -> str:
        self.number += 1
        return str(self.number)

    def note(self, kind: str, text: str) -> None:
        self.noted.append((kind, text))

    def listen(self, sha12: str, *, wanted: bool) -> None:
        self.heard.append((sha12, wanted))

    def taken(self, kind: RequestKind) -> list[Request]:
        """Requests of a kind since the last call."""
        found = [request for request in self.asked if request.kind is kind]
        self.asked = [request for request in self.asked if request.kind is not kind]
        return found

    def serve(self, transfer: Transfer, now: float, units: int = 4) -> list[tuple[str, int]]:
        """Answer all requests for blocks; returns (digest, block) of what was asked for."""
        served = []
        while requests := self.taken(RequestKind.BLOCKS):
            for request in requests:
                digest = request.digest or ""
                for first, count in request.blocks:
                    for block in range(first, first + count):
                        served.append((digest, block))
                        self.send(transfer, digest, block, now, units)
        return served

    def send(self, transfer: Transfer, digest: str, block: int, now: float, units: int = 4) -> None:
        whole = BLOBS[digest][block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
        for start in range(0, len(whole), units * PIECE_UNIT_BYTES):
            piece = whole[start : start + units * PIECE_UNIT_BYTES]
            transfer.on_piece(short_digest(digest), block * 4 + start // PIECE_UNIT_BYTES, piece, now)

    def whole(self) -> bool:
        return all(
            file.part.path.read_bytes() == BLOBS[file.layer.digest] and not file.part.missing
            for file in self.prepared.files
        )


@pytest.fixture(name="lab")
def _lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@pytest.fixture(name="http")
def _http() -> Iterator[RangeServer]:
    server = RangeServer({f"/blobs/{digest}": blob for digest, blob in BLOBS.items()})
    yield server
    server.close()


def finish_http(transfer: Transfer, now: float = 1.0) -> None:
    """Turn the loop until nothing more comes over HTTP."""
    while waiting := transfer.descriptors():
        assert select.select(waiting, [], [], PATIENCE_S)[0]
        transfer.tick(now)


def all_blocks() -> list[tuple[str, int]]:
    return [(digest, block) for digest, blob in BLOBS.items() for block in range(block_count(len(blob)))]


# Over MQTT --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [1, 2, 4])
def test_every_block_of_every_layer_once(lab: Lab, units: int) -> None:
    transfer, served, now = Transfer(lab.prepared, lab, None), [], 0.0
    while not transfer.done:
        now += 0.02
        transfer.tick(now)
        served += lab.serve(transfer, now, units)
    assert sorted(served) == sorted(all_blocks())
    assert lab.whole()
    assert transfer.take_counts() == (len(MODEL) + len(SMALL), 0)
    assert transfer.take_counts() == (0, 0)
    assert lab.noted == []


def test_a_variant_that_is_all_here_asks_for_nothing(lab: Lab) -> None:
    for file in lab.prepared.files:
        blob = BLOBS[file.layer.digest]
        for block in file.part.missing:
            file.part.add_block(block, blob[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])
    transfer = Transfer(lab.prepared, lab, HttpAccess("http://localhost:1"))
    transfer.tick(0.0)
    assert transfer.done
    assert lab.asked == []


def test_two_layers_with_the_same_content_are_both_filled(tmp_path: Path) -> None:
    lab = Lab(tmp_path, (SMALL, SMALL))
    transfer = Transfer(lab.prepared, lab, None)
    transfer.tick(0.0)
    lab.serve(transfer, 0.1)
    assert transfer.done
    assert lab.whole()


def test_of_many_small_layers_a_few_are_in_flight_at_once(tmp_path: Path) -> None:
    """A hub refuses a device that keeps too many queues."""
    blobs = tuple(content(100 + number, number) for number in range(60))
    BLOBS.update({digest_of(blob): blob for blob in blobs})
    lab = Lab(tmp_path, blobs)
    transfer, now, most = Transfer(lab.prepared, lab, None), 0.0, 0
    while not transfer.done:
        now += 0.02
        transfer.tick(now)
        open_now = {request.digest for request in lab.asked}
        most = max(most, len(open_now))
        lab.serve(transfer, now)
    assert most == MAX_BLOBS
    assert lab.whole()
    assert lab.number == 60
    for blob in blobs:
        del BLOBS[digest_of(blob)]


def test_the_first_request_for_a_blob_is_fresh_and_the_first_after_a_loss(lab: Lab) -> None:
    transfer = Transfer(lab.prepared, lab, None)
    transfer.tick(0.0)
    lab.send(transfer, digest_of(MODEL), 0, 0.1)
    transfer.tick(0.1)
    assert [request.fresh for request in lab.taken(RequestKind.BLOCKS)] == [True, False, True]
    transfer.on_connected()
    transfer.tick(0.2)
    assert [request.fresh for request in lab.taken(RequestKind.BLOCKS)] == [True]


def test_offline_nothing_counts_as_asked_for(lab: Lab) -> None:
    transfer = Transfer(lab.prepared, lab, None)
    lab.online = False
    for second in range(5000):
        transfer.tick(float(second))
    lab.online = True
    transfer.on_connected()
    transfer.tick(5000.0)
    assert [request.blocks for request in lab.taken(RequestKind.BLOCKS)] == [((0, 1),)]


def test_hubs_that_never_answer_end_it(lab: Lab) -> None:
    transfer = Transfer(lab.prepared, lab, None)
    seconds = iter(range(4000))

    def wait() -> None:
        for second in seconds:
            transfer.tick(float(second))

    with pytest.raises(TransferError, match="nothing came in answer to 30 requests in a row"):
        wait()


@pytest.mark.parametrize("status", [Status.GONE, Status.DENIED, Status.BAD])
def test_a_refusal_ends_it_at_once_with_the_reason(lab: Lab, status: Status) -> None:
    """A blob that was withdrawn in mid-pull: said for the latest request, however much of it came."""
    transfer = Transfer(lab.prepared, lab, None)
    transfer.tick(0.0)
    lab.send(transfer, digest_of(MODEL), 0, 0.1)
    request = lab.taken(RequestKind.BLOCKS)[-1]
    transfer.on_reply(Reply(req_id="another", status=status, body=b"why"), 0.2)
    with pytest.raises(TransferError, match=f"the server says {status}: why"):
        transfer.on_reply(Reply(req_id=request.req_id, status=status, body=b"why"), 0.2)


def test_a_busy_hub_is_asked_later_for_what_it_refused(lab: Lab) -> None:
    transfer = Transfer(lab.prepared, lab, None)
    transfer.tick(0.0)
    request = lab.taken(RequestKind.BLOCKS)[0]
    transfer.on_reply(Reply(req_id=request.req_id, status=Status.BUSY, retry_after_s=10.0), 1.0)
    for tenth in range(10, 110):
        transfer.tick(tenth / 10)
    assert lab.asked == []
    transfer.tick(16.1)
    assert lab.taken(RequestKind.BLOCKS)[0].blocks == request.blocks


def test_stale_foreign_repeated_and_cut_pieces_are_not_kept(lab: Lab) -> None:
    transfer = Transfer(lab.prepared, lab, None)
    transfer.tick(0.0)
    digest = digest_of(MODEL)
    transfer.on_piece("0" * 12, 0, MODEL[:BLOCK_BYTES], 0.1)
    transfer.on_piece(short_digest(digest), 4 * 999, MODEL[:BLOCK_BYTES], 0.1)
    transfer.on_piece(short_digest(digest), 0, MODEL[: BLOCK_BYTES - 1], 0.1)
    transfer.on_piece(short_digest(digest), 0, MODEL[:PIECE_UNIT_BYTES], 0.1)
    transfer.on_piece(short_digest(digest), 0, MODEL[:PIECE_UNIT_BYTES], 0.1)
    assert lab.prepared.verified_bytes == 0
    assert transfer._pull._asked[0] == BLOCK_BYTES - PIECE_UNIT_BYTES
    lab.send(transfer, digest, 0, 0.2)
    lab.send(transfer, digest, 0, 0.2)
    assert lab.prepared.verified_bytes == BLOCK_BYTES
    # A foreign piece is no traffic of ours; all else came over the line.
    assert transfer.take_counts()[0] == 4 * BLOCK_BYTES - 1 + 2 * PIECE_UNIT_BYTES


def test_a_block_that_is_always_damaged_ends_it(lab: Lab) -> None:
    transfer = Transfer(lab.prepared, lab, None)
    transfer.tick(0.0)
    piece = (short_digest(digest_of(MODEL)), 0, bytes(BLOCK_BYTES), 0.1)
    for _ in range(4):
        transfer.on_piece(*piece)
    with pytest.raises(TransferError, match=r"block 0 of 0 came damaged again and again"):
        transfer.on_piece(*piece)
    assert transfer.take_counts()[1] == 5
    assert [kind for kind, _ in lab.noted] == ["block_rejected"] * 5


def test_while_it_is_held_what_comes_in_asks_for_nothing_more(lab: Lab) -> None:
    transfer = Transfer(lab.prepared, lab, None)
    transfer.tick(0.0)
    (first,) = lab.taken(RequestKind.BLOCKS)
    transfer.held = True
    lab.send(transfer, first.digest or "", first.blocks[0][0], 0.1)
    transfer.tick(5.0)
    assert lab.asked == []
    transfer.held = False
    transfer.tick(5.1)
    lab.serve(transfer, 5.2)
    assert lab.whole()


def test_while_it_is_held_nothing_is_read_over_http_and_its_silence_is_no_failure(lab: Lab, http: RangeServer) -> None:
    transfer = Transfer(lab.prepared, lab, HttpAccess(f"{http.url}/blobs"))
    transfer.tick(0.0)
    transfer.held = True
    transfer.tick(HTTP_SILENCE_S + 1)
    assert (transfer.descriptors(), transfer.take_counts()[0]) == ([], 0)
    transfer.held = False
    finish_http(transfer, HTTP_SILENCE_S + 2)
    lab.serve(transfer, HTTP_SILENCE_S + 3)
    assert lab.whole()
    assert lab.noted == []


def test_closing_withdraws_what_is_in_flight(lab: Lab) -> None:
    transfer = Transfer(lab.prepared, lab, None)
    transfer.tick(0.0)
    lab.taken(RequestKind.BLOCKS)
    transfer.close()
    withdrawn = lab.taken(RequestKind.BLOCKS)
    assert [(request.digest, request.blocks, request.fresh) for request in withdrawn] == [(digest_of(MODEL), (), True)]


# Over HTTP --------------------------------------------------------------------------------------------


def test_large_layers_come_over_http_and_small_ones_over_mqtt(lab: Lab, http: RangeServer) -> None:
    transfer = Transfer(lab.prepared, lab, HttpAccess(f"{http.url}/blobs"))
    transfer.tick(0.0)
    assert lab.serve(transfer, 0.1) == [(digest_of(SMALL), 0)]
    finish_http(transfer)
    assert transfer.done
    assert lab.whole()
    assert [path for path, _ in http.ranges] == [f"/blobs/{digest_of(MODEL)}"]
    assert (lab.asked, lab.noted) == ([], [])
    assert transfer.take_counts() == (len(MODEL) + len(SMALL), 0)


def test_only_what_is_missing_comes_over_http(lab: Lab, http: RangeServer) -> None:
    part = lab.prepared.files[0].part
    for block in (0, 1, 7, 20):
        part.add_block(block, MODEL[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])
    transfer = Transfer(lab.prepared, lab, HttpAccess(f"{http.url}/blobs"))
    transfer.tick(0.0)
    lab.serve(transfer, 0.1)
    finish_http(transfer)
    assert [wanted for _, wanted in http.ranges] == [
        f"bytes={2 * BLOCK_BYTES}-{7 * BLOCK_BYTES - 1}",
        f"bytes={8 * BLOCK_BYTES}-{20 * BLOCK_BYTES - 1}",
    ]
    assert transfer.done
    assert lab.whole()


def test_a_hub_says_where_and_nothing_is_asked_for_before(lab: Lab, http: RangeServer) -> None:
    transfer = Transfer(lab.prepared, lab, HttpAccess(None))
    transfer.tick(0.0)
    transfer.tick(LOCATE_S - 0.1)
    (request,) = lab.taken(RequestKind.LOCATE)
    assert (request.digest, lab.asked) == (digest_of(MODEL), [])
    url = f"{http.url}/blobs/{request.digest}?expires=1&signature=2"
    transfer.on_reply(Reply(req_id=request.req_id, status=Status.OK, body=url.encode()), 0.5)
    transfer.tick(0.5)
    assert lab.serve(transfer, 0.6) == [(digest_of(SMALL), 0)]
    finish_http(transfer)
    assert transfer.done
    assert http.ranges[0][0].endswith("?expires=1&signature=2")


@pytest.mark.parametrize("answer", [Status.GONE, Status.BUSY, Status.BAD, None])
def test_where_no_hub_knows_a_place_it_is_mqtt(lab: Lab, answer: Status | None) -> None:
    transfer, served, now = Transfer(lab.prepared, lab, HttpAccess(None)), [], 0.0
    transfer.tick(now)
    (request,) = lab.taken(RequestKind.LOCATE)
    if answer is None:
        now = LOCATE_S + 0.1
    else:
        transfer.on_reply(Reply(req_id=request.req_id, status=answer, body=b"http://localhost:1/x"), now)
    while not transfer.done:
        now += 0.02
        transfer.tick(now)
        assert transfer.descriptors() == []
        served += lab.serve(transfer, now)
    assert sorted(served) == sorted(all_blocks())
    assert lab.noted == []


@pytest.mark.parametrize(
    ("fault", "said", "came"),
    [("refuses", "403", 0), ("breaks off", "early", 1), ("damages", "block 1 of 0 came damaged", 20)],
)
def test_when_http_fails_what_is_missing_comes_over_mqtt_at_once_and_nothing_twice(
    lab: Lab, http: RangeServer, fault: str, said: str, came: int
) -> None:
    http.fault = fault
    transfer, now = Transfer(lab.prepared, lab, HttpAccess(f"{http.url}/blobs")), 1.0
    transfer.tick(now)
    finish_http(transfer, now)
    served: list[tuple[str, int]] = []
    over_http = {block for block in range(21) if block not in lab.prepared.files[0].part.missing}
    assert len(over_http) <= came
    assert [kind for kind, _ in lab.noted if kind != "block_rejected"] == ["http_failed"]
    assert said in dict(lab.noted)["http_failed"]
    while not transfer.done:
        served += lab.serve(transfer, now)
        now += 0.02
        transfer.tick(now)
    assert sorted(served) == sorted(
        (digest, block) for digest, block in all_blocks() if digest != digest_of(MODEL) or block not in over_http
    )
    assert lab.whole()


def test_http_that_hangs_is_left_after_ten_seconds(
    lab: Lab, http: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The connection's own patience is in real time, which this test's clock is not.
    monkeypatch.setattr(http_pull, "TIMEOUT_S", 600.0)
    http.fault = "hangs"
    transfer = Transfer(lab.prepared, lab, HttpAccess(f"{http.url}/blobs"))
    transfer.tick(5.0)
    lab.serve(transfer, 5.0)
    # The first block may have come within that turn already.
    while not lab.prepared.files[0].part.verified:
        assert select.select(transfer.descriptors(), [], [], PATIENCE_S)[0]
        transfer.tick(5.0)
    transfer.tick(5.0 + HTTP_SILENCE_S)
    assert lab.noted == []
    transfer.tick(5.1 + HTTP_SILENCE_S)
    assert lab.noted == [("http_failed", "nothing came for 10 s; 20 blocks are pulled over MQTT")]
    assert lab.taken(RequestKind.BLOCKS)[0].blocks[0][0] == 1


def test_closing_ends_the_transfer_over_http(lab: Lab, http: RangeServer) -> None:
    http.fault = "hangs"
    transfer = Transfer(lab.prepared, lab, HttpAccess(f"{http.url}/blobs"))
    transfer.tick(0.0)
    pull = transfer._http
    assert pull is not None
    transfer.close()
    assert pull._ended.wait(PATIENCE_S)


def offered(lab: Lab, transfer: Transfer) -> Request:
    """Ask, be offered what others get, and ask again; returns that request."""
    transfer.tick(0.0)
    (first,) = lab.taken(RequestKind.BLOCKS)
    assert not first.shared
    transfer.on_reply(Reply(req_id=first.req_id, status=Status.OK, shared=True), 0.1)
    lab.send(transfer, digest_of(MODEL), 0, 0.2)
    (second,) = lab.taken(RequestKind.BLOCKS)
    return second


def test_a_hub_offers_shared_delivery_and_the_device_listens_until_it_is_done(tmp_path: Path) -> None:
    lab = Lab(tmp_path, (MODEL,))
    transfer = Transfer(lab.prepared, lab, None)
    assert offered(lab, transfer).shared
    assert lab.heard == [(short_digest(digest_of(MODEL)), True)]
    for block in reversed(range(1, 21)):
        lab.send(transfer, digest_of(MODEL), block, 0.3)
    assert transfer.done
    lab.asked.clear()
    transfer.tick(0.4)
    assert lab.heard[1:] == [(short_digest(digest_of(MODEL)), False)]
    (left,) = lab.taken(RequestKind.BLOCKS)
    assert (left.blocks, left.shared) == ((), False)
    transfer.close()
    assert lab.whole()


def test_a_device_asks_behind_what_the_others_get_and_for_the_beginning_last(tmp_path: Path) -> None:
    lab = Lab(tmp_path, (MODEL,))
    transfer = Transfer(lab.prepared, lab, None)
    second = offered(lab, transfer)
    lab.asked.append(second)
    lab.send(transfer, digest_of(MODEL), 12, 0.3)
    order = [block for _, block in lab.serve(transfer, 0.4)]
    assert sorted(order) == [*range(1, 12), *range(13, 21)]
    before = [block for first, count in second.blocks for block in range(first, first + count)]
    assert order[len(before)] == 13, "what comes behind"
    assert order[-1] == 11
    assert transfer.done


def test_a_device_told_to_leave_asks_for_itself_and_a_new_connection_listens_to_nothing(tmp_path: Path) -> None:
    lab = Lab(tmp_path, (MODEL,))
    transfer = Transfer(lab.prepared, lab, None)
    second = offered(lab, transfer)
    transfer.on_reply(Reply(req_id=second.req_id, status=Status.OK, shared=False), 0.3)
    assert [wanted for _, wanted in lab.heard] == [True, False]
    transfer.on_reply(Reply(req_id=second.req_id, status=Status.OK, shared=True), 0.4)
    transfer.on_connected()
    transfer.tick(0.5)
    assert not any(request.shared for request in lab.taken(RequestKind.BLOCKS))
