"""The layers of one variant on their way to disk: over HTTP where that is offered, and over MQTT else.

Each block is asked for in one way at a time and verified by its part file, whichever way it came. It plans nothing
and finishes nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import groupby
from typing import Protocol

from edgefleet.package.digest import BLOCK_BYTES, block_count
from edgefleet.protocol.messages import Reply, Request, RequestKind, Status
from edgefleet.protocol.topics import PIECE_UNIT_BYTES, short_digest
from edgefleet_agent.http_pull import HttpAccess, HttpPull, Span
from edgefleet_agent.preparation import LayerFile, Prepared
from edgefleet_agent.pull import MAX_SILENCES, Pull, ranges

# Below this a TLS handshake costs more than it saves.
HTTP_FROM_BLOCKS = 8
LOCATE_S = 2.0
HTTP_SILENCE_S = 10.0
REMEMBERED_REQUESTS = 64
# Of which blocks are in flight at once: a hub keeps a queue for each.
MAX_BLOBS = 16
_REFUSALS = (Status.GONE, Status.DENIED, Status.BAD)


class TransferError(Exception):
    """The transfer cannot go on; the text is the reason that the device reports."""


class Host(Protocol):
    """What a transfer needs of its agent."""

    def request(self, request: Request) -> bool:
        """Send a request to the hubs; False when not connected."""
        ...

    def next_req_id(self) -> str:
        """A request id never used before by this agent."""
        ...

    def note(self, kind: str, text: str) -> None:
        """Record an event."""
        ...

    def listen(self, sha12: str, *, wanted: bool) -> None:
        """Subscribe to a blob's shared topic, or leave it; a new connection listens to none."""
        ...


class Transfer:
    """One variant being pulled; `done` when every block is on disk."""

    def __init__(self, prepared: Prepared, host: Host, http: HttpAccess | None) -> None:
        """Nothing is asked for before `tick`; `http` None means never over HTTP."""
        self.held = False
        """While it is set, nothing more is asked for, nor read over HTTP; what is under way over MQTT comes in."""
        self._pulled_bytes = 0
        self._bad_blocks = 0
        self._files = prepared.files
        self._host = host
        self._access = http
        self._sizes = [f.part.block_size(b) for f in self._files for b in range(block_count(f.part.size_bytes))]
        self._pull = Pull(self._sizes, [])
        self._owners = [n for n, f in enumerate(self._files) for _ in range(block_count(f.part.size_bytes))]
        self._by_sha12: dict[str, list[LayerFile]] = {}
        for file in self._files:
            self._by_sha12.setdefault(short_digest(file.layer.digest), []).append(file)
        self._epochs: dict[str, int] = {}
        self._listening: set[str] = set()
        # A late refusal of an older request says nothing new.
        self._requests: OrderedDict[str, list[int]] = OrderedDict()
        self._large = [f for f in self._files if len(f.part.missing) >= HTTP_FROM_BLOCKS]
        self._urls: dict[str, str | None] = {}
        self._locating: dict[str, str] = {}
        self._locate_until: float | None = None
        self._begun = False
        self._http: HttpPull | None = None
        self._http_heard_at = 0.0

    @property
    def done(self) -> bool:
        """Every block is on disk."""
        return self._begun and all(f.part.verified_bytes == f.part.size_bytes for f in self._files)

    def descriptors(self) -> list[int]:
        """File descriptors that become readable when `tick` has something to do."""
        return [] if self._http is None or self.held else [self._http.fileno()]

    def tick(self, now: float) -> None:
        """Take what came over HTTP and ask for what is due; raises TransferError or OSError."""
        if self.held:
            self._http_heard_at = now
            return
        if not self._begun:
            self._begin(now)
        if self._http is not None:
            self._take_http(self._http, now)
        for digest in [digest for digest in self._listening if self._is_complete(digest)]:
            self._leave(digest)
        self._ask(now)

    def take_counts(self) -> tuple[int, int]:
        """(bytes that came, blocks that did not match their digests) since the last call."""
        counts = (self._pulled_bytes, self._bad_blocks)
        self._pulled_bytes = self._bad_blocks = 0
        return counts

    def close(self) -> None:
        """Stop both ways; what was verified stays on disk."""
        for digest in list(self._listening):
            self._leave(digest)
        for file, _ in self._by_file(self._pull.asked):
            # What the hub still holds would only be in the way of what comes next.
            self._host.request(Request(
                req_id=self._host.next_req_id(), kind=RequestKind.BLOCKS, digest=file.layer.digest, fresh=True
            ))  # fmt: skip
        if self._http is not None:
            self._http.close()
        for file in self._files:
            file.part.abandon()

    # Over MQTT ----------------------------------------------------------------------------------------

    def on_connected(self) -> None:
        """What was asked for before is lost."""
        self._pull.reconnected()
        self._listening.clear()
        self._locating.clear()
        self._locate_until = None

    def on_reply(self, reply: Reply, now: float) -> None:
        """Take a hub's reply to one of our requests; raises TransferError when it says that there is no way."""
        if (digest := self._locating.pop(reply.req_id, None)) is not None:
            found = reply.body.decode(errors="replace").strip() if reply.status is Status.OK else ""
            self._urls[digest] = found or None
        if reply.req_id not in self._requests:
            return
        if reply.status in _REFUSALS:
            raise TransferError(f"the server says {reply.status}: {reply.body.decode(errors='replace')[:200]}")
        if reply.status is Status.BUSY:
            self._pull.busy(self._requests[reply.req_id], reply.retry_after_s or 1.0, now)
        elif reply.shared is not None:
            self._hear(self._files[self._owners[self._requests[reply.req_id][0]]].layer.digest, wanted=reply.shared)

    def _hear(self, digest: str, *, wanted: bool) -> None:
        """Do as a hub says: get the blocks of a blob together with others, or alone."""
        if wanted == (digest in self._listening) or self._is_complete(digest):
            return
        self._host.listen(short_digest(digest), wanted=wanted)
        if wanted:
            self._listening.add(digest)
        else:
            self._listening.discard(digest)

    def _leave(self, digest: str) -> None:
        """Nothing of this blob is wanted any more: the others need not wait for this device."""
        self._listening.discard(digest)
        self._host.listen(short_digest(digest), wanted=False)
        self._host.request(Request(
            req_id=self._host.next_req_id(), kind=RequestKind.BLOCKS, digest=digest, fresh=True
        ))  # fmt: skip

    def _is_complete(self, digest: str) -> bool:
        parts = [file.part for file in self._by_sha12[short_digest(digest)]]
        return all(part.verified_bytes == part.size_bytes for part in parts)

    def on_piece(self, sha12: str, piece: int, content: bytes, now: float) -> None:
        """Take a raw piece; raises TransferError when a block is damaged again and again, OSError of the disk."""
        files = self._by_sha12.get(sha12, ())
        for file in files:
            self._take_piece(file, piece, content, now)
        if files:
            self._pulled_bytes += len(content)
            self._ask(now)

    def _take_piece(self, file: LayerFile, piece: int, content: bytes, now: float) -> None:
        block = file.first + piece * PIECE_UNIT_BYTES // BLOCK_BYTES
        if file.layer.digest in self._listening:
            self._pull.follow(block)
        self._pull.arrived(block, len(content), now)
        added = file.part.add(piece, content)
        if added is None:
            return
        if added.verified is None:
            self._pull.holds(block, added.held_bytes)
        elif added.verified:
            self._pull.verified(block)
        else:
            self._note_bad(block)
            if not self._pull.rejected(block):
                raise TransferError(f"block {added.block} of {file.part.path.stem} came damaged again and again")

    def _note_bad(self, block: int) -> None:
        file = self._files[self._owners[block]]
        self._bad_blocks += 1
        self._host.note(
            "block_rejected", f"block {block - file.first} of {file.part.path.stem} did not match its digest"
        )

    def _ask(self, now: float) -> None:
        if self.held or (wanted := self._pull.next_request(now)) is None:
            return
        if self._pull.gave_up:
            raise TransferError(f"nothing came in answer to {MAX_SILENCES} requests in a row")
        open_blobs = dict.fromkeys(self._owners[block] for block in self._pull.asked)
        later = list(open_blobs)[MAX_BLOBS:]
        self._pull.put_back([block for block in wanted if self._owners[block] in later])
        for file, blocks in self._by_file(block for block in wanted if self._owners[block] not in later):
            digest = file.layer.digest
            request = Request(
                req_id=self._host.next_req_id(),
                kind=RequestKind.BLOCKS,
                digest=digest,
                blocks=tuple(ranges(block - file.first for block in blocks)),
                credit_bytes=sum(self._sizes[block] for block in blocks),
                fresh=self._epochs.get(digest) != self._pull.epoch,
                shared=digest in self._listening,
            )
            self._epochs[digest] = self._pull.epoch
            if not self._host.request(request):
                self._pull.unsent()
                return
            self._requests[request.req_id] = blocks
            if len(self._requests) > REMEMBERED_REQUESTS:
                self._requests.popitem(last=False)

    def _by_file(self, blocks: Iterable[int]) -> list[tuple[LayerFile, list[int]]]:
        """Blocks by the layer that they belong to, in the order given."""
        return [(self._files[place], list(group)) for place, group in groupby(blocks, self._owners.__getitem__)]

    # Over HTTP ----------------------------------------------------------------------------------------

    def _begin(self, now: float) -> None:
        """Choose the way for each layer, once it is known where there is one over HTTP."""
        if self._access is not None and self._large and not self._locate(self._access, now):
            return
        self._begun = True
        over_http = [file for file in self._large if self._urls.get(file.layer.digest)]
        self._pull.want(block for f in self._files if f not in over_http for block in _missing(f))
        if self._access is not None and over_http:
            spans = [span for file in over_http for span in _spans(file, str(self._urls[file.layer.digest]))]
            self._http, self._http_heard_at = HttpPull(self._access, spans), now

    def _locate(self, access: HttpAccess, now: float) -> bool:
        """Whether it is known where the large layers are; hubs have 2 s to say so."""
        digests = [file.layer.digest for file in self._large]
        if access.base_url is not None:
            self._urls = {digest: access.url(digest) for digest in digests}
            return True
        if self._locate_until is None:
            for digest in digests:
                request = Request(req_id=self._host.next_req_id(), kind=RequestKind.LOCATE, digest=digest)
                if not self._host.request(request):
                    return False
                self._locating[request.req_id] = digest
            self._locate_until = now + LOCATE_S
        return not self._locating or now > self._locate_until

    def _take_http(self, http: HttpPull, now: float) -> None:
        blocks, ended, failure = http.take()
        for block, content in blocks:
            self._http_heard_at = now
            self._pulled_bytes += len(content)
            file = self._files[self._owners[block]]
            if not file.part.add_block(block - file.first, content):
                self._note_bad(block)
                failure = failure or f"block {block - file.first} of {file.part.path.stem} came damaged"
        if not ended and not failure and now - self._http_heard_at > HTTP_SILENCE_S:
            failure = f"nothing came for {HTTP_SILENCE_S:.0f} s"
        if ended or failure:
            http.close()
            self._http = None
            missing = [block for file in self._large if self._urls.get(file.layer.digest) for block in _missing(file)]
            if missing:
                self._host.note("http_failed", f"{failure}; {len(missing)} blocks are pulled over MQTT")
                self._pull.want(missing)


def _missing(file: LayerFile) -> list[int]:
    """Numbers of the missing blocks of a layer among those of the variant."""
    return [file.first + block for block in file.part.missing]


def _spans(file: LayerFile, url: str) -> list[Span]:
    part = file.part
    return [
        Span(
            url=url,
            first_block=file.first + first,
            offset=first * BLOCK_BYTES,
            size_bytes=sum(part.block_size(block) for block in range(first, first + count)),
        )
        for first, count in ranges(part.missing)
    ]
