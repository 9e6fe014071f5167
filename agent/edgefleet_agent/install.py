"""One installation, from a desired state to a verified and self-tested slot.

Driven by `tick` and by what comes in; it neither connects nor activates, and it ends by raising or by `slot`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from edgefleet import selection
from edgefleet.package.manifest import Index, Manifest, VariantSpec
from edgefleet.protocol.messages import Progress, Reply, Request, RequestKind, State, Status
from edgefleet.protocol.signed import Desired
from edgefleet_agent import lifecycle
from edgefleet_agent import slots as slot_files
from edgefleet_agent.background import Work
from edgefleet_agent.http_pull import HttpAccess
from edgefleet_agent.lifecycle import Trigger
from edgefleet_agent.metadata import MAX_BYTES, MAX_TRIES, Fetch
from edgefleet_agent.preparation import Prepared, finish, prepare
from edgefleet_agent.refusal import InstallError, translated
from edgefleet_agent.self_test import SelfTest
from edgefleet_agent.slots import SlotDamagedError, Slots
from edgefleet_agent.transfer import Host, Transfer
from edgefleet_device_profiles.profile import Profile, Runtime

__all__ = ["Install", "InstallError"]

log = logging.getLogger("edgefleet.agent")


class Install:
    """One installation in progress; `state` says where it is, `candidate` and `spec` what it installs."""

    def __init__(
        self,
        desired: Desired,
        profile: Profile,
        runtimes: Mapping[Runtime, str],
        slots: Slots,
        host: Host,
        *,
        resumed: bool,
        http: HttpAccess | None = None,
    ) -> None:
        """`resumed`: it was begun before a restart, so what lies on disk was pulled for it. `http` None: MQTT only."""
        self.desired = desired
        self.state = State.RESOLVING
        self.candidate: selection.Candidate | None = None
        self.spec: VariantSpec | None = None
        self.pulled_bytes = 0
        self.bad_blocks = 0
        self.reused_bytes = 0
        self._profile = profile
        self._runtimes = runtimes
        self._slots = slots
        self._host = host
        self._resumed = resumed
        self._http = http
        self._fetch = Fetch(desired.wanted.index_digest if desired.wanted is not None else "")
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
            State.RESOLVING: self._resolve,
            State.SELECTING: self._select,
            State.DOWNLOADING: self._download,
            State.VERIFYING: self._verify,
            State.SELF_TEST: self._self_test,
        }

    # What drives it ----------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Do what can be done now; raises InstallError with the reason when it cannot go on."""
        step = self._steps.get(self.state)
        if step is not None:
            with self._translated():
                step(now)

    def hold(self, *, held: bool) -> None:
        """Leave the line to something more urgent, or take it again."""
        if self._transfer is not None:
            self._transfer.held = held

    def on_connected(self) -> None:
        """What was asked for before is lost."""
        self._fetch.reconnected()
        if self._transfer is not None:
            self._transfer.on_connected()

    def on_reply(self, reply: Reply, now: float) -> None:
        """Take a reply from a hub; raises InstallError when it says that there is no way."""
        if self._transfer is not None:
            with self._translated():
                self._transfer.on_reply(reply, now)
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

    def on_piece(self, sha12: str, piece: int, content: bytes, now: float) -> None:
        """Take a raw piece; raises InstallError when the disk is full or a block is damaged again and again."""
        if self._transfer is not None and self.state is State.DOWNLOADING:
            with self._translated():
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

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Whatever happens is an InstallError, and what came in is counted."""
        try:
            with translated(self.desired.deployment.deployment_id):
                yield
        finally:
            self._take_counts()

    def _take_counts(self) -> None:
        if self._transfer is not None:
            pulled, bad = self._transfer.take_counts()
            self.pulled_bytes += pulled
            self.bad_blocks += bad

    # The steps ---------------------------------------------------------------------------------------

    def _metadata(self, now: float) -> bytes | None:
        if self._fetch.gave_up:
            raise InstallError(f"no metadata came in answer to {MAX_TRIES} requests in a row")
        if self._fetch.due(now):
            req_id = self._host.next_req_id()
            request = Request(req_id=req_id, kind=RequestKind.METADATA, digest=self._fetch.digest)
            if self._host.request(request):
                self._fetch.asked(req_id, now)
        return self._fetch.content

    def _resolve(self, now: float) -> None:
        if self.desired.wanted is None:
            raise InstallError(f"the deployment names no package version for {self.desired.action}")
        if (content := self._metadata(now)) is None:
            return
        offered = selection.candidates(Index.model_validate_json(content))
        verdicts = selection.shortlist(self._profile, self._runtimes, offered)
        for verdict in verdicts:
            log.info("variant %s: %s", verdict.candidate.name, verdict.reason)
        chosen = next((verdict for verdict in verdicts if verdict.rank == 0), None)
        if chosen is None:
            reasons = "; ".join(f"{v.candidate.name}: {v.reason}" for v in verdicts) or "the package is empty"
            raise InstallError(f"no variant fits this device: {reasons}")
        self.candidate = chosen.candidate
        self._host.note("variant_selected", f"{chosen.candidate.name}: {chosen.reason}")
        self._fetch = Fetch(chosen.candidate.digest)
        if self._slots.path(chosen.candidate.digest).exists():
            self._check()
        self._advance(Trigger.DONE)

    def _select(self, now: float) -> None:
        if self._checking is not None and self._on_disk(self._checking, now):
            return
        if (content := self._metadata(now)) is None:
            return
        if self._manifest is None:
            self._manifest_bytes = content
            self._manifest = Manifest.model_validate_json(content)
            blocks = slot_files.blocks_layer(self._manifest)
            if blocks.size > MAX_BYTES:
                raise InstallError(f"invalid package: {blocks.size} bytes of block digests")
            self._fetch = Fetch(blocks.digest)
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
        slots, digest, manifest_bytes = self._slots, self._chosen().digest, self._manifest_bytes
        self._digests = digests
        self._preparing = Work(slots.turn, lambda cancelled: prepare(slots, digest, manifest_bytes, digests, cancelled))

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
        self._transfer = Transfer(prepared, self._host, self._http)
        here, self.reused_bytes = prepared.verified_bytes, prepared.reused_bytes
        if self._resumed:
            # A kill leaves no time to journal what was pulled last; what lies here was.
            self.pulled_bytes = max(self.pulled_bytes, here - self.reused_bytes)
        to_pull = prepared.total_bytes - here
        self._host.note(
            "download_planned",
            f"{to_pull} of {prepared.total_bytes} bytes to pull; {self.reused_bytes} are here in other variants",
        )

    def _finish(self, prepared: Prepared) -> None:
        self._take_counts()
        # From here on the files are the job's.
        self._transfer = None
        slots, digest, manifest_bytes, digests = self._slots, self._chosen().digest, self._manifest_bytes, self._digests
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
        self._tester = SelfTest(self._slots.path(self._chosen().digest), spec, now)

    def _self_test(self, now: float) -> None:
        if self._checking is not None:
            if not self._checking.finished:
                return
            checking, self._checking = self._checking, None
            checking.result()
        if self._tester is not None and (difference := self._tester.max_difference(now)) is not None:
            self._host.note("self_test", f"passed, max difference {difference:.3g}")
            self._stop_tester()
            self._advance(Trigger.DONE)

    # Details -----------------------------------------------------------------------------------------

    def _advance(self, trigger: Trigger) -> None:
        self.state = lifecycle.after(self.state, trigger)

    def _check(self) -> None:
        """Hash the chosen variant's slot, beside the loop."""
        slots, digest = self._slots, self._chosen().digest
        self._checking = Work(slots.turn, lambda _: slots.check(digest))

    def _stop_tester(self) -> None:
        if self._tester is not None:
            self._tester.stop()
            self._tester = None

    def _chosen(self) -> selection.Candidate:
        if self.candidate is None:
            raise InstallError("internal: no variant was selected")
        return self.candidate
