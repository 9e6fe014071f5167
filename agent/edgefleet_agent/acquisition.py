"""One candidate on its way from its digest to a slot that is verified and self-tested.

Driven by `tick` and by what comes in; it ends by raising or with `spec`. Which candidates there are is `install`'s
business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from edgefleet.package.manifest import Manifest, VariantSpec
from edgefleet.protocol.messages import Progress, Reply, Request, RequestKind, State, Status
from edgefleet.selection import Candidate
from edgefleet_agent import lifecycle
from edgefleet_agent import slots as slot_files
from edgefleet_agent.background import Work
from edgefleet_agent.http_pull import HttpAccess
from edgefleet_agent.lifecycle import Trigger
from edgefleet_agent.metadata import MAX_BYTES, MAX_TRIES, Fetch
from edgefleet_agent.preparation import Prepared, finish, prepare
from edgefleet_agent.refusal import InstallError
from edgefleet_agent.self_test import SelfTest
from edgefleet_agent.settings import RuntimeSettings, WorkerSettings
from edgefleet_agent.slots import SlotDamagedError, Slots
from edgefleet_agent.transfer import Host, Transfer


@dataclass(frozen=True, slots=True)
class Means:
    """With what a candidate is pulled and tested."""

    slots: Slots
    host: Host
    http: HttpAccess | None = None
    """None: MQTT only."""
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    worker: WorkerSettings = field(default_factory=WorkerSettings)
    floor_mib: float = 0.0
    """Of the disk, what the profile has left free."""


class Metadata:
    """Small blobs, asked for one after the other."""

    def __init__(self, host: Host, digest: str) -> None:
        """Nothing is asked for before `content`."""
        self.pulled_bytes = 0
        self._host = host
        self._fetch = Fetch(digest)

    def want(self, digest: str) -> None:
        """From now on another one."""
        self._fetch = Fetch(digest)

    def content(self, now: float) -> bytes | None:
        """The blob, verified; asks for it when that is due. Raises InstallError."""
        if self._fetch.gave_up:
            raise InstallError(f"no metadata came in answer to {MAX_TRIES} requests in a row")
        if self._fetch.due(now):
            req_id = self._host.next_req_id()
            request = Request(req_id=req_id, kind=RequestKind.METADATA, digest=self._fetch.digest, deflate=True)
            if self._host.request(request):
                self._fetch.asked(req_id, now)
        return self._fetch.content

    def reconnected(self) -> None:
        """What was asked for before is lost."""
        self._fetch.reconnected()

    def take(self, reply: Reply, now: float) -> None:
        """Take a reply; raises InstallError when it says that there is no way."""
        if not self._fetch.owns(reply):
            return
        if reply.status in (Status.GONE, Status.DENIED, Status.BAD):
            raise InstallError(f"the server says {reply.status}: {reply.body.decode(errors='replace')[:200]}")
        if reply.status is Status.BUSY:
            self._fetch.wait(reply.retry_after_s or 1.0, now)
        elif reply.status is Status.OK:
            self.pulled_bytes += len(reply.body)
            if not self._fetch.add(reply, now):
                raise InstallError(f"the metadata {self._fetch.digest[:19]}… came damaged {self._fetch.bad} times")


class Acquisition:
    """One candidate in progress; `state` says where it is, and `spec` what it is once its files are verified."""

    def __init__(self, candidate: Candidate, means: Means, metadata: Metadata, *, resumed: bool) -> None:
        """`resumed`: it was begun before a restart, so what lies on disk was pulled for it."""
        self.candidate = candidate
        self.state = State.SELECTING
        self.spec: VariantSpec | None = None
        self.passed = False
        """The self-test."""
        self.pulled_bytes = self.reused_bytes = self.bad_blocks = 0
        self.here_bytes: int | None = None
        """Of a resumed one: what was pulled before the restart."""
        self._means = means
        self._slots = means.slots
        self._metadata = metadata
        self._resumed = resumed
        self._manifest: Manifest | None = None
        self._manifest_bytes = b""
        self._digests = b""
        self._prepared: Prepared | None = None
        self._transfer: Transfer | None = None
        self._checking: Work[VariantSpec] | None = None
        self._preparing: Work[Prepared] | None = None
        self._finishing: Work[VariantSpec] | None = None
        self._tester: SelfTest | None = None
        self._steps: dict[State, Callable[[float], None]] = {
            State.SELECTING: self._select,
            State.DOWNLOADING: self._download,
            State.VERIFYING: self._verify,
            State.SELF_TEST: self._self_test,
        }
        metadata.want(candidate.digest)
        if self._slots.path(candidate.digest).exists():
            self._check()

    # What drives it ----------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Do what can be done now; raises whatever the disk, the package or the runtime does."""
        self._steps[self.state](now)

    def hold(self, *, held: bool) -> None:
        """Leave the line to something more urgent, or take it again."""
        if self._transfer is not None:
            self._transfer.held = held

    def on_connected(self) -> None:
        """What was asked for before is lost."""
        if self._transfer is not None:
            self._transfer.on_connected()

    def on_reply(self, reply: Reply, now: float) -> None:
        """Take a reply from a hub."""
        if self._transfer is not None:
            self._transfer.on_reply(reply, now)

    def on_piece(self, sha12: str, piece: int, content: bytes, now: float) -> None:
        """Take a raw piece."""
        if self._transfer is not None and self.state is State.DOWNLOADING:
            self._transfer.on_piece(sha12, piece, content, now)

    def close(self) -> None:
        """Stop what runs; what was pulled stays on disk."""
        self._stop_tester()
        for work in (self._checking, self._preparing, self._finishing):
            if work is not None:
                work.cancel()
        self._checking = self._preparing = self._finishing = None
        if self._transfer is not None:
            self._transfer.close()

    def descriptors(self) -> list[int]:
        """File descriptors that become readable when `tick` has something to do."""
        running = (self._tester, self._checking, self._preparing, self._finishing)
        found = [one.fileno() for one in running if one is not None]
        return found + ([] if self._transfer is None else self._transfer.descriptors())

    @property
    def progress(self) -> Progress | None:
        """Bytes verified and bytes wanted, once they are known."""
        if self._prepared is None:
            return None
        return Progress(verified_bytes=self._prepared.verified_bytes, total_bytes=self._prepared.total_bytes)

    def take_counts(self) -> None:
        """Count what came in."""
        if self._transfer is not None:
            pulled, bad = self._transfer.take_counts()
            self.pulled_bytes += pulled
            self.bad_blocks += bad

    # The steps ---------------------------------------------------------------------------------------

    def _select(self, now: float) -> None:
        if self._checking is not None and self._on_disk(self._checking, now):
            return
        if (content := self._metadata.content(now)) is None:
            return
        if self._manifest is None:
            self._manifest_bytes = content
            self._manifest = Manifest.model_validate_json(content)
            blocks = slot_files.blocks_layer(self._manifest)
            if blocks.size > MAX_BYTES:
                raise InstallError(f"invalid package: {blocks.size} bytes of block digests")
            self._metadata.want(blocks.digest)
            return
        self._prepare(content)
        self._advance(Trigger.DONE)

    def _on_disk(self, checking: Work[VariantSpec], now: float) -> bool:
        """Wait for the check of a slot: it runs now, or a restart came before its activation. False: it is damaged."""
        if not checking.finished:
            return True
        self._checking = None
        try:
            spec = checking.result()
        except SlotDamagedError:
            return False
        self._advance(Trigger.ALREADY_ON_DISK)
        self._start_self_test(spec, now)
        return True

    def _prepare(self, digests: bytes) -> None:
        """Reserve the disk for every layer, and look for what is here, before the first byte is asked for."""
        slots, digest, manifest_bytes = self._slots, self.candidate.digest, self._manifest_bytes
        self._digests = digests
        floor_mib = self._means.floor_mib
        self._preparing = Work(
            slots.turn,
            lambda cancelled: prepare(slots, digest, manifest_bytes, digests, cancelled, floor_mib=floor_mib),
        )

    def _download(self, now: float) -> None:
        if self._preparing is not None:
            if not self._preparing.finished:
                return
            preparing, self._preparing = self._preparing, None
            self._begin(preparing.result())
        if self._transfer is not None:
            self._transfer.tick(now)
            if self._transfer.done and self._prepared is not None:
                self._finish(self._prepared)
                self._advance(Trigger.DONE)

    def _begin(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._transfer = Transfer(prepared, self._means.host, self._means.http)
        here, self.reused_bytes = prepared.verified_bytes, prepared.reused_bytes
        if self._resumed:
            # A kill leaves no time to journal what was pulled last; what lies here was.
            self.here_bytes = here - self.reused_bytes
        to_pull = prepared.total_bytes - here
        self._means.host.note(
            "download_planned",
            f"{to_pull} of {prepared.total_bytes} bytes to pull; {self.reused_bytes} are here in other variants",
        )

    def _finish(self, prepared: Prepared) -> None:
        self.take_counts()
        # From here on the files are the job's.
        self._transfer = None
        slots, digest, manifest_bytes, digests = self._slots, self.candidate.digest, self._manifest_bytes, self._digests
        self._finishing = Work(slots.turn, lambda _: finish(slots, digest, manifest_bytes, digests, prepared))

    def _verify(self, now: float) -> None:
        if self._finishing is None or not self._finishing.finished:
            return
        finishing, self._finishing = self._finishing, None
        spec = finishing.result()
        self._advance(Trigger.DONE)
        # Every block matched; a publisher whose block list is not that of its files shall not get past the self-test.
        self._check()
        self._start_self_test(spec, now)

    def _start_self_test(self, spec: VariantSpec, now: float) -> None:
        self.spec = spec
        slot, means = self._slots.path(self.candidate.digest), self._means
        self._tester = SelfTest(slot, spec, now, runtime=means.runtime, worker=means.worker)

    def _self_test(self, now: float) -> None:
        if self._checking is not None:
            if not self._checking.finished:
                return
            checking, self._checking = self._checking, None
            checking.result()
        if self._tester is not None and (difference := self._tester.max_difference(now)) is not None:
            self._means.host.note("self_test", f"passed, max difference {difference:.3g}")
            self._stop_tester()
            self.passed = True

    # Details -----------------------------------------------------------------------------------------

    def _advance(self, trigger: Trigger) -> None:
        self.state = lifecycle.after(self.state, trigger)

    def _check(self) -> None:
        """Hash the candidate's slot, beside the loop."""
        slots, digest = self._slots, self.candidate.digest
        self._checking = Work(slots.turn, lambda _: slots.check(digest))

    def _stop_tester(self) -> None:
        if self._tester is not None:
            self._tester.stop()
            self._tester = None
