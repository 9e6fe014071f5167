"""One installation, from a desired state to a verified and self-tested slot.

Driven by `tick` and by what comes in; it neither connects nor activates, and it ends by raising or by `slot`.
"""

from __future__ import annotations

import errno
import logging
import shutil
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from edgefleet import selection
from edgefleet.package.digest import DIGEST_BYTES, block_count
from edgefleet.package.manifest import Descriptor, Index, Manifest, VariantSpec
from edgefleet.protocol.messages import Desired, Progress, Reply, Request, RequestKind, State, Status
from edgefleet.protocol.topics import short_digest
from edgefleet_agent import lifecycle
from edgefleet_agent import slots as slot_files
from edgefleet_agent.download import PartFile, Pull
from edgefleet_agent.lifecycle import Trigger
from edgefleet_agent.metadata import Fetch
from edgefleet_agent.slots import SlotDamagedError, Slots
from edgefleet_agent.supervise import Worker
from edgefleet_agent.supervise import self_test as start_self_test
from edgefleet_device_profiles.profile import Profile, Runtime

SELF_TEST_TIMEOUT_S = 120.0
MAX_METADATA_BYTES = 4 * 1024 * 1024

log = logging.getLogger("edgefleet.agent")


class InstallError(Exception):
    """The installation cannot go on; the text is the reason that the device reports."""


class Host(Protocol):
    """What an installation needs of its agent."""

    def request(self, request: Request) -> bool:
        """Send a request to the hubs; False when not connected."""
        ...

    def next_req_id(self) -> str:
        """A request id never used before by this agent."""
        ...

    def note(self, kind: str, text: str) -> None:
        """Record an event."""
        ...


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
    ) -> None:
        """`resumed`: it was begun before a restart, so what lies on disk was pulled for it."""
        self.desired = desired
        self.state = State.RESOLVING
        self.candidate: selection.Candidate | None = None
        self.spec: VariantSpec | None = None
        self.pulled_bytes = 0
        self.bad_blocks = 0
        self._profile = profile
        self._runtimes = runtimes
        self._slots = slots
        self._host = host
        self._resumed = resumed
        self._fetch = Fetch(desired.deployment.index_digest)
        self._manifest: Manifest | None = None
        self._manifest_bytes = b""
        self._parts: dict[str, tuple[Descriptor, PartFile]] = {}
        self._queue: list[str] = []
        self._pull: Pull | None = None
        # A late refusal of an older request says nothing new.
        self._block_requests: deque[str] = deque(maxlen=16)
        self._tester: Worker | None = None
        self._tester_deadline = 0.0
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
        if step is None:
            return
        try:
            step(now)
        except InstallError:
            raise
        except OSError as error:
            raise _storage_failure(error) from error
        except ValueError as error:
            raise InstallError(f"invalid package: {str(error).splitlines()[0]}") from error
        except Exception as error:
            # Whatever a package holds, it must not end the agent: the running variant would end with it.
            log.exception("installing %s", self.desired.deployment.deployment_id)
            raise InstallError(f"internal: {type(error).__name__}: {error}") from error

    def on_connected(self) -> None:
        """What was asked for before is lost."""
        self._fetch.reconnected()
        if self._pull is not None:
            self._pull.reconnected()

    def on_reply(self, reply: Reply, now: float) -> None:
        """Take a reply from a hub; raises InstallError when it says that there is no way."""
        mine = self._fetch.owns(reply)
        if not mine and reply.req_id not in self._block_requests:
            return
        if reply.status in (Status.GONE, Status.DENIED, Status.BAD):
            raise InstallError(f"the server says {reply.status}: {reply.body.decode(errors='replace')[:200]}")
        if reply.status is Status.BUSY and mine:
            self._fetch.wait(reply.retry_after_s or 1.0, now)
        elif mine and reply.status is Status.OK:
            self.pulled_bytes += len(reply.body)
            if not self._fetch.add(reply):
                raise InstallError(f"the metadata {self._fetch.digest[:19]}… came damaged {self._fetch.bad} times")

    def on_piece(self, sha12: str, piece: int, content: bytes, now: float) -> None:
        """Take a raw piece; raises InstallError when the disk is full or a block is damaged again and again."""
        if self._pull is None or not self._queue:
            return
        name = self._queue[0]
        layer, part = self._parts[name]
        if short_digest(layer.digest) != sha12:
            return
        self.pulled_bytes += len(content)
        try:
            result = part.add(piece, content)
        except OSError as error:
            raise _storage_failure(error) from error
        if result is None:
            self._pull.alive(len(content), now)
            return
        block, verified = result
        if verified is False:
            self.bad_blocks += 1
            self._host.note("block_rejected", f"block {block} of {name} did not match its digest")
        if not self._pull.received(block, verified, len(content), now):
            raise InstallError(f"block {block} of {name} came damaged again and again")

    def close(self) -> None:
        """Stop what runs; what was pulled stays on disk."""
        self._stop_tester()
        for _, part in self._parts.values():
            part.abandon()

    def workers(self) -> list[Worker]:
        """Child processes to listen to."""
        return [self._tester] if self._tester is not None else []

    @property
    def progress(self) -> Progress | None:
        """Bytes verified and bytes wanted, once they are known."""
        parts = [part for _, part in self._parts.values()]
        if not parts:
            return None
        return Progress(
            verified_bytes=sum(part.verified_bytes for part in parts),
            total_bytes=sum(p.size_bytes for p in parts),
        )

    # The steps ---------------------------------------------------------------------------------------

    def _metadata(self, now: float) -> bytes | None:
        if self._fetch.due(now):
            req_id = self._host.next_req_id()
            request = Request(req_id=req_id, kind=RequestKind.METADATA, digest=self._fetch.digest)
            if self._host.request(request):
                self._fetch.asked(req_id, now)
        return self._fetch.content

    def _resolve(self, now: float) -> None:
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
        self._advance(Trigger.DONE)

    def _select(self, now: float) -> None:
        if self._manifest is None and (spec := self._on_disk()) is not None:
            self._advance(Trigger.ALREADY_ON_DISK)
            self._start_self_test(spec, now)
            return
        if (content := self._metadata(now)) is None:
            return
        if self._manifest is None:
            self._manifest_bytes = content
            self._manifest = Manifest.model_validate_json(content)
            blocks = slot_files.blocks_layer(self._manifest)
            if blocks.size > MAX_METADATA_BYTES:
                raise InstallError(f"invalid package: {blocks.size} bytes of block digests")
            self._fetch = Fetch(blocks.digest)
            return
        self._plan(content, now)
        self._advance(Trigger.DONE)

    def _on_disk(self) -> VariantSpec | None:
        """The variant's spec when it is verified on disk: it runs now, or a restart came before its activation."""
        try:
            return self._slots.check(self._chosen().digest)
        except SlotDamagedError:
            return None

    def _plan(self, digests: bytes, now: float) -> None:
        """Reserve the disk for every layer before the first byte is asked for."""
        candidate, manifest = self._chosen(), self._known_manifest()
        layers = slot_files.layers_to_pull(manifest)
        staging = self._slots.staging(candidate.digest)
        if not layers:
            raise InstallError("invalid package: the variant has no layers")
        if len({slot_files.file_name(layer) for layer in layers}) < len(layers):
            raise InstallError("invalid package: two layers have the same file name")
        if len(digests) != DIGEST_BYTES * sum(block_count(layer.size) for layer in layers):
            raise InstallError("invalid package: the block digests do not fit the layers")
        self._check_room(layers)
        start = 0
        for layer in layers:
            end = start + DIGEST_BYTES * block_count(layer.size)
            part = PartFile(self._slots.part(staging, layer), layer.size, digests[start:end])
            self._parts[slot_files.file_name(layer)] = (layer, part)
            start = end
        self._queue = list(self._parts)
        if self._resumed:
            # A kill leaves no time to journal what was pulled last; what lies here was.
            self.pulled_bytes = max(self.pulled_bytes, sum(part.verified_bytes for _, part in self._parts.values()))
        self._pull = Pull(self._parts[self._queue[0]][1].missing, now)

    def _check_room(self, layers: list[Descriptor]) -> None:
        staging = self._slots.staging(self._chosen().digest)
        present = sum(part.stat().st_size for layer in layers if (part := self._slots.part(staging, layer)).exists())
        need, have = sum(layer.size for layer in layers) - present, shutil.disk_usage(staging).free
        if need > have:
            raise InstallError(f"insufficient_storage: {need} bytes are needed, {have} are free")

    def _download(self, now: float) -> None:
        while self._queue and self._pull is not None:
            if not self._pull.done:
                self._ask(self._queue[0], now)
                return
            self._queue.pop(0)
            self._pull = Pull(self._parts[self._queue[0]][1].missing, now) if self._queue else None
        self._advance(Trigger.DONE)

    def _ask(self, name: str, now: float) -> None:
        if self._pull is None or (wanted := self._pull.next_request(now)) is None:
            return
        blocks, fresh = wanted
        layer, part = self._parts[name]
        credit = sum(part.block_size(first + step) for first, count in blocks for step in range(count))
        req_id = self._host.next_req_id()
        self._block_requests.append(req_id)
        self._host.request(Request(
            req_id=req_id,
            kind=RequestKind.BLOCKS,
            digest=layer.digest,
            blocks=tuple(blocks),
            credit_bytes=credit,
            fresh=fresh,
        ))  # fmt: skip

    def _verify(self, now: float) -> None:
        for _, part in self._parts.values():
            part.close()
        try:
            spec = self._slots.finish(self._chosen().digest, self._manifest_bytes)
        except SlotDamagedError as error:
            raise InstallError(f"verification: {error}") from error
        self._advance(Trigger.DONE)
        self._start_self_test(spec, now)

    def _start_self_test(self, spec: VariantSpec, now: float) -> None:
        self.spec = spec
        try:
            self._tester = start_self_test(self._slots.path(self._chosen().digest), spec)
        except OSError as error:
            raise InstallError(f"self-test: no process could be started ({error.strerror or error})") from error
        self._tester_deadline = now + SELF_TEST_TIMEOUT_S

    def _self_test(self, now: float) -> None:
        if self._tester is None:
            return
        said, ended = self._tester.messages()
        for message in said:
            if message["kind"] == "self_test" and message["ok"]:
                self._host.note("self_test", f"passed, max difference {message['max_abs_difference']:.3g}")
                self._stop_tester()
                self._advance(Trigger.DONE)
                return
            raise InstallError(f"self-test: {message['reason']}")
        if ended:
            raise InstallError(f"self-test: {self._tester.exit_reason()}")
        if now > self._tester_deadline:
            raise InstallError(f"self-test: no result within {SELF_TEST_TIMEOUT_S:.0f} s")

    # Details -----------------------------------------------------------------------------------------

    def _advance(self, trigger: Trigger) -> None:
        self.state = lifecycle.after(self.state, trigger)

    def _stop_tester(self) -> None:
        if self._tester is not None:
            self._tester.stop()
            self._tester = None

    def _chosen(self) -> selection.Candidate:
        if self.candidate is None:
            raise InstallError("internal: no variant was selected")
        return self.candidate

    def _known_manifest(self) -> Manifest:
        if self._manifest is None:
            raise InstallError("internal: no manifest was fetched")
        return self._manifest


def _storage_failure(error: OSError) -> InstallError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return InstallError(f"{'insufficient_storage' if full else 'storage'}: {error.strerror or error}")
