"""The hub's rules: which piece goes to which device next. Pure: no socket, no file, the clock is an argument.

Devices are served in turn, replies before blobs; a device gets the blocks that it named and no byte more.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterable

from edgefleet.package.digest import BLOCK_BYTES, block_count
from edgefleet.protocol.messages import MAX_CREDIT_BYTES, REPLY_PART_BYTES, Request
from edgefleet.server.budget import REMEMBERED_DEVICES, TokenBucket
from edgefleet.server.hub_work import Answer, Outstanding, Part, Piece, Work, block_size
from edgefleet.server.shared_delivery import LOOK_AGAIN_S, SharedDelivery

REMEMBERED_REQUESTS = 32
BLOBS_AT_ONCE = 32
ANSWERS_AT_ONCE = 40
PARTS_IN_A_ROW = 8
"""So many parts of replies go before a block that waits: a flood of small questions must not stop the blobs."""
MAX_ANSWER_BYTES = 32 * 1024 * 1024
MAX_DEVICE_ANSWER_BYTES = 8 * 1024 * 1024
"""Of which so many may be for one device: all are told `busy` when the whole is too much."""
MAX_QUEUE_BYTES = 512 * 1024 * 1024
MAX_QUEUE_S = 20.0


class Hub:
    """Queues by device; `next_part` and `next_piece` pick, round-robin between devices."""

    def __init__(
        self, bucket: TokenBucket, device_rate_bytes_per_s: float | None = None, shared: SharedDelivery | None = None
    ) -> None:
        """`bucket` limits all devices together, the rate each of them; `shared` None sends each its own."""
        self.shared = shared or SharedDelivery(offers=False)
        self.piece_bytes = BLOCK_BYTES
        self.part_bytes = REPLY_PART_BYTES
        self._bucket = bucket
        self._device_rate = device_rate_bytes_per_s
        self._work: dict[str, Work] = {}
        # Whose turn is next: of those with replies, of those with blobs; who has had too much rests.
        self._asking: OrderedDict[str, None] = OrderedDict()
        self._pulling: OrderedDict[str, None] = OrderedDict()
        self._resting: list[tuple[float, str]] = []
        self._rests: set[str] = set()
        self._seen: OrderedDict[str, deque[str]] = OrderedDict()
        self._sent_bytes: dict[str, int] = {}
        self._parts_in_a_row = 0
        self._answer_bytes = 0
        self._queued_blocks = 0
        self._held_until = 0.0

    @property
    def idle(self) -> bool:
        """Nothing is waiting to be sent."""
        return not any(work.answers or work.blobs for work in self._work.values())

    # Coming in ---------------------------------------------------------------------------------------

    def busy_s(self) -> float | None:
        """How long a device had better wait when more is queued than leaves in reasonable time; else None."""
        queued = self._queued_blocks * BLOCK_BYTES + self._answer_bytes
        bound = MAX_QUEUE_BYTES if self._bucket.rate is None else max(MAX_CREDIT_BYTES, self._bucket.rate * MAX_QUEUE_S)
        if queued <= bound and self._answer_bytes <= MAX_ANSWER_BYTES:
            return None
        return 5.0 if self._bucket.rate is None else min(60.0, queued / self._bucket.rate)

    def ask(self, device: str, request: Request, size_bytes: int) -> str | None:
        """Queue the blocks that a request names of a blob of `size_bytes`; returns why it is bad, or None.

        A repeated request (QoS 1 may deliver twice) is ignored.
        """
        if request.digest is None or self.repeated(device, request.req_id):
            return None
        last, credit = block_count(size_bytes), request.credit_bytes
        blocks: list[int] = []
        for first, count in request.blocks:
            if first + count > last:
                return f"blocks {first} to {first + count - 1} of a blob with {last}"
            # Checked before the list is built: a few bytes of request must not cost megabytes here.
            credit -= (count - 1) * BLOCK_BYTES + block_size(size_bytes, first + count - 1)
            if credit < 0:
                return f"the blocks named are more than the credit of {request.credit_bytes} bytes"
            blocks += range(first, first + count)
        work = self._work_of(device)
        if request.digest not in work.blobs and len(work.blobs) >= BLOBS_AT_ONCE:
            return f"blocks of more than {BLOBS_AT_ONCE} blobs at once"
        self._remember(device, request.req_id)
        self._held_until = 0.0
        blocks = self.shared.asked(device, request, blocks, size_bytes)
        self._add(work, request, request.digest, size_bytes, blocks)
        self._take_place(device, work)
        return None

    def reply(self, device: str, req_id: str, content: bytes) -> bool:
        """Queue a reply in parts; False when the device has too many of them waiting."""
        if self.repeated(device, req_id):
            return True
        work = self._work_of(device)
        waiting_bytes = sum(len(answer.content) for answer in work.answers)
        if len(work.answers) >= ANSWERS_AT_ONCE or waiting_bytes + len(content) > MAX_DEVICE_ANSWER_BYTES:
            self._take_place(device, work)
            return False
        self._remember(device, req_id)
        work.answers.append(Answer(req_id, content, self.part_bytes))
        self._answer_bytes += len(content)
        self._take_place(device, work)
        return True

    def repeated(self, device: str, req_id: str) -> bool:
        """Whether this request was taken up before."""
        return req_id in self._seen.get(device, ())

    def _remember(self, device: str, req_id: str) -> None:
        seen = self._seen.pop(device, None)
        self._seen[device] = seen = deque(maxlen=REMEMBERED_REQUESTS) if seen is None else seen
        seen.append(req_id)
        if len(self._seen) > REMEMBERED_DEVICES:
            self._seen.popitem(last=False)

    def _work_of(self, device: str) -> Work:
        return self._work.setdefault(device, Work())

    def _add(self, work: Work, request: Request, digest: str, size_bytes: int, blocks: Iterable[int]) -> None:
        queue = work.blobs.setdefault(digest, Outstanding(size_bytes, request.req_id))
        self._queued_blocks -= len(queue.blocks)
        queue.req_id = request.req_id
        if request.fresh:
            queue.blocks.clear()
            queue.sent_of_first, queue.first_shared = 0, False
        queue.blocks.extend(blocks)
        # A device that asks without waiting gets what fits one credit for all its blobs, the newest last and first to
        # be dropped, but for one block of each: it shall not fill the queue that all have to share.
        others = sum(len(other.blocks) for other in work.blobs.values()) - len(queue.blocks)
        most = max(1, MAX_CREDIT_BYTES // BLOCK_BYTES + 1 - others)
        while len(queue.blocks) > most:
            queue.blocks.pop()
        self._queued_blocks += len(queue.blocks)
        if not queue.blocks:
            del work.blobs[digest]

    def _take_place(self, device: str, work: Work) -> None:
        """Give a device its turns; one that rests gets them when it has rested."""
        if device in self._rests:
            return
        for turns, waiting in ((self._asking, work.answers), (self._pulling, work.blobs)):
            if waiting:
                turns.setdefault(device, None)
            else:
                turns.pop(device, None)
        idle = not work.answers and not work.blobs
        # A bucket is worth keeping, but not for everyone who ever asked.
        if idle and (work.bucket is None or len(self._work) > REMEMBERED_DEVICES):
            self._work.pop(device, None)

    # What is no longer wanted ------------------------------------------------------------------------

    def clear(self) -> None:
        """Drop everything that waits: the broker is gone, and every device will ask anew."""
        for device in list(self._work):
            self._drop(device)
        self.shared.clear()

    def forget(self, device: str) -> None:
        """Drop what waits for a device that has gone."""
        self._drop(device)
        self.shared.forget(device)
        self._seen.pop(device, None)

    def withdraw(self, digest: str) -> list[tuple[str, str]]:
        """Drop a blob that is no longer there; returns (device, req_id) of everyone who waits for it."""
        waiting = []
        for device, work in list(self._work.items()):
            if (queue := work.blobs.pop(digest, None)) is not None:
                self._queued_blocks -= len(queue.blocks)
                waiting.append((device, queue.req_id))
                self._take_place(device, work)
        return waiting

    def _drop(self, device: str) -> None:
        if (work := self._work.get(device)) is None:
            return
        self._answer_bytes -= sum(len(answer.content) for answer in work.answers)
        self._queued_blocks -= sum(len(queue.blocks) for queue in work.blobs.values())
        work.answers.clear()
        work.blobs.clear()
        self._take_place(device, work)

    # Going out ---------------------------------------------------------------------------------------

    def count_sent(self, piece: Piece) -> None:
        """A piece was handed to the broker."""
        self._sent_bytes[piece.device] = self._sent_bytes.get(piece.device, 0) + piece.size

    def take_sent(self) -> dict[str, int]:
        """Bytes handed to the broker since the last call, by device."""
        sent, self._sent_bytes = self._sent_bytes, {}
        return sent

    def wait_s(self, now: float) -> float | None:
        """Seconds until there is something to send, or None when nothing is queued."""
        self._wake(now)
        if self._asking:
            return self._bucket.wait_s(now)
        if self._pulling:
            return max(self._bucket.wait_s(now), self._held_until - now)
        if self._resting:
            return max(self._resting[0][0] - now, self._bucket.wait_s(now))
        return None

    def next_part(self, now: float) -> Part | None:
        """The next part of a reply to send, or None when it is the blobs' turn or nothing is due yet."""
        self._wake(now)
        if not self._asking or self._bucket.wait_s(now) > 0:
            return None
        if self._pulling and self._parts_in_a_row >= PARTS_IN_A_ROW:
            return None
        self._parts_in_a_row += 1
        device, _ = self._asking.popitem(last=False)
        work = self._work[device]
        answer = work.answers[0]
        start = answer.part * answer.step
        body = answer.content[start : start + answer.step]
        part = Part(device, answer.req_id, answer.part, answer.parts, body)
        answer.part += 1
        if answer.part == answer.parts:
            work.answers.popleft()
            self._answer_bytes -= len(answer.content)
        self._account(device, work, len(body), now)
        return part

    def next_piece(self, now: float) -> Piece | None:
        """The next piece of a blob to send, or None when nothing is due yet."""
        self._wake(now)
        if not self._pulling or now < self._held_until or self._bucket.wait_s(now) > 0:
            return None
        self._parts_in_a_row = 0
        for _ in range(len(self._pulling)):
            device, _ = self._pulling.popitem(last=False)
            digest, queue = next(iter(self._work[device].blobs.items()))
            if queue.sent_of_first or self._may_go(device, digest, queue, now):
                return self._cut(device, digest, queue, now)
            self._pulling[device] = None
        self._held_until = now + LOOK_AGAIN_S
        return None

    def _may_go(self, device: str, digest: str, queue: Outstanding, now: float) -> bool:
        """Whether the first block may go now, to its device or to everyone who lacks it."""
        block = queue.blocks[0]
        receivers = self.shared.receivers(
            device, digest, block, lambda each: (q := self._queue(each, digest)) is not None and block in q.blocks, now
        )
        queue.first_shared = len(receivers) > 1
        for each in receivers:
            if each != device and (theirs := self._queue(each, digest)) is not None and theirs.drop(block):
                self._queued_blocks -= 1
                if not theirs.blocks:
                    del self._work[each].blobs[digest]
                self._take_place(each, self._work[each])
        return bool(receivers)

    def _queue(self, device: str, digest: str) -> Outstanding | None:
        work = self._work.get(device)
        return None if work is None else work.blobs.get(digest)

    def _cut(self, device: str, digest: str, queue: Outstanding, now: float) -> Piece:
        work = self._work[device]
        block, skipped, shared = queue.blocks[0], queue.sent_of_first, queue.first_shared
        whole = block_size(queue.size, block)
        size = min(self.piece_bytes, whole - skipped)
        queue.sent_of_first += size
        if queue.sent_of_first >= whole:
            queue.blocks.popleft()
            queue.sent_of_first, queue.first_shared = 0, False
            self._queued_blocks -= 1
        if not queue.blocks:
            del work.blobs[digest]
        self._account(device, work, size, now)
        return Piece(device, digest, block * BLOCK_BYTES + skipped, size, queue.req_id, shared)

    def _account(self, device: str, work: Work, size: int, now: float) -> None:
        """Take bytes from the buckets; the device goes to the end of its turns, or rests."""
        self._bucket.take(size)
        if self._device_rate is not None:
            work.bucket = work.bucket or TokenBucket(self._device_rate, now)
            work.bucket.wait_s(now)
            work.bucket.take(size)
            if (rest_s := work.bucket.wait_s(now)) > 0:
                self._asking.pop(device, None)
                self._pulling.pop(device, None)
                self._rests.add(device)
                heapq.heappush(self._resting, (now + rest_s, device))
                return
        self._take_place(device, work)

    def _wake(self, now: float) -> None:
        while self._resting and self._resting[0][0] <= now:
            _, device = heapq.heappop(self._resting)
            self._rests.discard(device)
            if (work := self._work.get(device)) is not None:
                self._take_place(device, work)
                if not work.answers and not work.blobs:
                    del self._work[device]
