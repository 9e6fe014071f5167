"""One installation against a hub that answers at once: what a package may hold, it must not end the agent."""

from __future__ import annotations

import errno
import os
import select
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from edgefleet import selection
from edgefleet.package import digest as digests
from edgefleet.package.layout import Package
from edgefleet.package.manifest import FILEPATH_ANNOTATION, Layer, Manifest, VariantSpec
from edgefleet.protocol.messages import Reply, Request, RequestKind, State, Status
from edgefleet.protocol.signed import Action
from edgefleet.protocol.topics import short_digest
from edgefleet_agent import preparation, supervise
from edgefleet_agent.acquisition import Means
from edgefleet_agent.install import Install, InstallError
from edgefleet_agent.part_file import PartFile
from edgefleet_agent.slots import Slots
from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.profile import Runtime
from patience import PATIENCE_S
from sdk.packages_made import two_variants, write
from sdk.wire_examples import DESIRED

RUNTIMES = {Runtime.ONNXRUNTIME: "1.20.1"}


class FakeWorker:
    FILENO = 0

    def messages(self) -> tuple[list[dict[str, object]], bool]:
        return [{"kind": "self_test", "ok": True, "reason": None, "max_abs_difference": 0.0}], False

    def fileno(self) -> int:
        return self.FILENO

    def stop(self) -> None: ...


class Host:
    """A package behind a hub of one device; it answers when asked to."""

    def __init__(self, folder: Path) -> None:
        write(folder / "package", two_variants(folder / "inputs"))
        self.package = Package(folder / "package")
        self.slots = Slots(folder / "state")
        self.asked: list[Request] = []
        self.noted: list[str] = []
        self.number = 0
        self.now = 0.0
        self.floor_mib = 0.0

    def request(self, request: Request) -> bool:
        self.asked.append(request)
        return True

    def next_req_id(self) -> str:
        self.number += 1
        return f"1-{self.number}"

    def note(self, kind: str, _text: str) -> None:
        self.noted.append(kind)

    def listen(self, sha12: str, *, wanted: bool) -> None:
        raise AssertionError(f"nobody offered {sha12}: {wanted}")

    def install(self, *, resumed: bool = False) -> Install:
        target = DESIRED.deployment.target.model_copy(update={"index_digest": self.package.digest})
        deployment = DESIRED.deployment.model_copy(update={"target": target})
        desired = DESIRED.model_copy(update={"deployment": deployment})
        means = Means(self.slots, self, floor_mib=self.floor_mib)
        return Install(desired, catalogue.load("generic-x86-64"), RUNTIMES, means, resumed=resumed)

    def answer(self, install: Install) -> None:
        asked, self.asked = self.asked, []
        for request in asked:
            content = self.package.blobs.path(request.digest or "").read_bytes()
            if request.kind is RequestKind.METADATA:
                install.on_reply(Reply(req_id=request.req_id, status=Status.OK, body=content), self.now)
                continue
            for first, count in request.blocks:
                for block in range(first, first + count):
                    start = block * digests.BLOCK_BYTES
                    piece = content[start : start + digests.BLOCK_BYTES]
                    install.on_piece(short_digest(request.digest or ""), block * 4, piece, self.now)

    def tick(self, install: Install) -> None:
        """One turn of the loop; what runs beside it is waited for."""
        if waiting := [descriptor for descriptor in install.descriptors() if descriptor != FakeWorker.FILENO]:
            assert select.select(waiting, [], [], PATIENCE_S)[0]
        install.tick(self.now)

    def drive(self, install: Install, until: State, limit: int = 200) -> None:
        for _ in range(limit):
            if install.state is until:
                return
            self.now += 0.02
            self.tick(install)
            self.answer(install)
        pytest.fail(f"still {install.state}")

    def only_variant(self) -> tuple[str, Manifest]:
        entry = next(e for e in self.package.index.manifests if "small" in (e.annotations or {}).values())
        return entry.digest, self.package.manifest(entry.digest)

    def replace_manifest(self, manifest: Manifest) -> None:
        """Offer another manifest, with its right digest."""
        old, _ = self.only_variant()
        new = self.package.blobs.add(manifest.model_dump_json(by_alias=True, exclude_none=True).encode())
        entries = tuple(
            entry.model_copy(update={"digest": new}) for entry in self.package.index.manifests if entry.digest == old
        )
        index = self.package.index.model_copy(update={"manifests": entries})
        self.package.digest = self.package.blobs.add(index.model_dump_json(by_alias=True, exclude_none=True).encode())
        self.package.index = index


@pytest.fixture(name="host")
def _host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(supervise, "self_test", lambda *_: FakeWorker())
    return Host(tmp_path)


def test_the_whole_way(host: Host) -> None:
    install = host.install()
    host.drive(install, State.ACTIVATING)
    digest, manifest = host.only_variant()
    assert install.spec is not None
    assert install.spec == host.slots.check(digest)
    pulled = [layer for layer in manifest.layers if layer.media_type != Layer.BLOCKS]
    assert install.progress is not None
    assert install.progress.verified_bytes == install.progress.total_bytes == sum(layer.size for layer in pulled)
    assert host.noted == ["variant_selected", "download_planned", "self_test"]
    # Until its worker is warm the loop turns.
    install.tick(host.now + 1)
    assert install.state is State.ACTIVATING
    install.close()
    install.close()


def test_a_layer_that_is_not_what_its_blocks_say_gets_no_further_than_the_self_test(host: Host) -> None:
    """The publisher's mistake: every block matches the signed list, and the whole is another file."""
    _, manifest = host.only_variant()
    whole = host.package.blobs.path(manifest.layers[0].digest).read_bytes()
    other = digests.digest_of(b"another file")
    host.package.blobs.path(other).write_bytes(whole)
    first, *others = manifest.layers
    host.replace_manifest(manifest.model_copy(update={"layers": (first.model_copy(update={"digest": other}), *others)}))
    with pytest.raises(InstallError, match=r"verification: \S+ does not match its digest"):
        host.drive(host.install(), State.ACTIVATING)


def test_what_is_on_disk_is_not_pulled_again_but_tested_again(host: Host) -> None:
    host.drive(host.install(), State.ACTIVATING)
    install = host.install()
    host.asked.clear()
    host.drive(install, State.ACTIVATING)
    assert host.noted[-2:] == ["variant_selected", "self_test"]
    assert install.progress is None
    assert install.pulled_bytes == len(host.package.blobs.read(host.package.digest, doing="testing"))


def test_a_restart_takes_up_what_was_pulled(host: Host) -> None:
    first = host.install()
    host.drive(first, State.DOWNLOADING)
    while first.progress is None or first.progress.verified_bytes < 61_440:
        host.now += 0.02
        host.tick(first)
        host.answer(first)
    first.close()
    for resumed in (False, True):
        host.asked.clear()
        again = host.install(resumed=resumed)
        host.drive(again, State.DOWNLOADING)
        host.tick(again)
        assert again.progress is not None
        assert again.progress.verified_bytes >= 61_440
        assert (again.pulled_bytes >= 61_440) is resumed
        again.close()


def layers_without(manifest: Manifest, *kinds: Layer) -> Manifest:
    return manifest.model_copy(update={"layers": tuple(e for e in manifest.layers if e.media_type not in kinds)})


def twice_named(manifest: Manifest) -> Manifest:
    first, second, *others = manifest.layers
    same = second.model_copy(update={"annotations": first.annotations})
    return manifest.model_copy(update={"layers": (first, same, *others)})


def named(manifest: Manifest, name: str) -> Manifest:
    first, *others = manifest.layers
    evil = first.model_copy(update={"annotations": {FILEPATH_ANNOTATION: name}})
    return manifest.model_copy(update={"layers": (evil, *others)})


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("empty", "no layers"), ("no blocks", "block digest layers"), ("twice", "same file name"),
        ("outside", "file name"), ("fewer", "do not fit"),
    ],
)  # fmt: skip
def test_a_package_that_makes_no_sense_is_refused_before_a_block_is_asked_for(
    host: Host, which: str, said: str
) -> None:
    _, manifest = host.only_variant()
    made = {
        "empty": manifest.model_copy(update={"layers": manifest.layers[-1:]}),
        "no blocks": layers_without(manifest, Layer.BLOCKS),
        "twice": twice_named(manifest),
        "outside": named(manifest, "../current"),
        "fewer": layers_without(manifest, Layer.GOLDEN),
    }[which]
    host.replace_manifest(made)
    install = host.install()
    with pytest.raises(InstallError, match=said):
        host.drive(install, State.VERIFYING)
    assert not any(request.kind is RequestKind.BLOCKS for request in host.asked)
    install.close()


@pytest.mark.parametrize(("floor_mib", "floor"), [(0.0, preparation.FLOOR_BYTES), (256.0, 256 * 2**20)])
def test_a_disk_without_room_is_known_before_a_block_is_asked_for(
    host: Host, monkeypatch: pytest.MonkeyPatch, floor_mib: float, floor: int
) -> None:
    host.floor_mib = floor_mib
    usage = shutil.disk_usage("/")._replace(free=floor + 1000, total=2**40)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    said = rf"insufficient_storage: \d+ bytes are needed, 1000 are free beside the {floor} "
    with pytest.raises(InstallError, match=said):
        host.drive(host.install(), State.VERIFYING)
    assert not any(request.kind is RequestKind.BLOCKS for request in host.asked)


@pytest.mark.parametrize("error", [RuntimeError("odd"), KeyError("x"), RecursionError(), ZeroDivisionError("by 0")])
def test_whatever_is_raised_in_a_step_ends_the_installation_and_not_the_agent(
    host: Host, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(selection, "shortlist", fail)
    with pytest.raises(InstallError, match=f"internal: {type(error).__name__}"):
        host.drive(host.install(), State.ACTIVATING)


def test_a_self_test_that_cannot_be_started_ends_the_installation(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(supervise, "self_test", fail)
    with pytest.raises(InstallError, match="no process could be started"):
        host.drive(host.install(), State.ACTIVATING)


@pytest.mark.parametrize("status", [Status.GONE, Status.DENIED, Status.BAD])
def test_a_refusal_of_what_was_asked_ends_it_and_of_anything_else_does_not(host: Host, status: Status) -> None:
    install = host.install()
    install.tick(0.0)
    refusal = Reply(req_id="0-9", status=status, body=b"why")
    install.on_reply(refusal, 0.0)
    with pytest.raises(InstallError, match=f"the server says {status}: why"):
        install.on_reply(refusal.model_copy(update={"req_id": host.asked[0].req_id}), 0.0)


def test_what_an_earlier_variant_has_is_not_pulled_again_and_is_counted(host: Host, tmp_path: Path) -> None:
    host.drive(host.install(), State.ACTIVATING)
    _, before = host.only_variant()
    shutil.rmtree(tmp_path / "package")
    files = two_variants(tmp_path / "new")
    model = files[0].model_files[0]
    model.write_bytes(model.read_bytes()[:-1] + b"\xff")
    write(tmp_path / "package", files, "1.3.0")
    host.package = Package(tmp_path / "package")
    install = host.install()
    asked: list[Request] = []
    while install.state is not State.ACTIVATING:
        host.now += 0.02
        host.tick(install)
        asked += host.asked
        host.answer(install)
    digests_before = {layer.digest for layer in before.layers}
    wanted = [(request.digest, request.blocks) for request in asked if request.kind is RequestKind.BLOCKS]
    # The one model file that changed, and of it the last block only.
    assert [blocks for digest, blocks in wanted if digest not in digests_before] == [((1, 1),)]
    assert len(wanted) == 1
    assert install.progress is not None
    assert install.reused_bytes == install.progress.total_bytes - 1


def test_a_desired_state_that_names_nothing_ends_it(host: Host) -> None:
    install = host.install()
    install.desired = install.desired.model_copy(update={"action": Action.NONE})
    with pytest.raises(InstallError, match="names no package version for none"):
        install.tick(0.0)


def test_hashing_does_not_stop_the_loop(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large variant on a slow card takes minutes; the agent answers its broker meanwhile."""
    host.drive(host.install(), State.ACTIVATING)
    go_on = threading.Event()
    real = host.slots.check

    def slow(digest: str) -> VariantSpec:
        assert go_on.wait(PATIENCE_S)
        return real(digest)

    monkeypatch.setattr(host.slots, "check", slow)
    install = host.install()
    install.tick(1.0)
    host.answer(install)
    for tenth in range(100):
        install.tick(1.0 + tenth / 10)
    assert install.state is State.SELECTING
    go_on.set()
    assert select.select(install.descriptors(), [], [], PATIENCE_S)[0]
    install.tick(12.0)
    assert install.spec is not None


def test_an_installation_that_is_replaced_leaves_the_disk_to_the_next(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older one is still preparing when it is closed; the newer one waits for its turn and finds all of it."""
    go_on, real = threading.Event(), PartFile

    def slow(*values: Any) -> PartFile:
        assert go_on.wait(PATIENCE_S)
        return real(*values)

    monkeypatch.setattr(preparation, "PartFile", slow)
    first = host.install()
    while first.state is not State.DOWNLOADING:
        host.now += 0.02
        first.tick(host.now)
        host.answer(first)
    first.close()
    second = host.install()
    for _ in range(10):
        host.now += 0.02
        second.tick(host.now)
        host.answer(second)
    go_on.set()
    host.drive(second, State.ACTIVATING)
    host.slots.check(host.only_variant()[0])
    assert first.descriptors() == []


def test_metadata_that_never_comes_ends_it(host: Host) -> None:
    install = host.install()
    seconds = iter(range(4000))

    def wait() -> None:
        for second in seconds:
            install.tick(float(second))

    with pytest.raises(InstallError, match="no metadata came in answer to 30 requests in a row"):
        wait()


@pytest.mark.parametrize("where", ["first", "last"])
def test_an_error_at_fsync_is_reported_and_what_is_not_on_disk_is_pulled_again(
    host: Host, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    real, calls = os.fsync, []

    def fail(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == {"first": 1, "last": 10}[where]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        install = host.install()
        with pytest.raises(InstallError, match="storage_failed: Input/output error"):
            host.drive(install, State.ACTIVATING)
        install.close()
    host.drive(host.install(), State.ACTIVATING)
    host.slots.check(host.only_variant()[0])
