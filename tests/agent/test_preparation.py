"""Before the first byte: room on the disk, what an interrupted pull left, and the blocks that other variants have."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgefleet.package.digest import BLOCK_BYTES
from edgefleet.package.layout import Package
from edgefleet.package.manifest import VariantFiles
from edgefleet_agent import preparation
from edgefleet_agent.preparation import FLOOR_BYTES, NoRoomError, Prepared, prepare
from edgefleet_agent.slots import Slots, blocks_layer, layers_to_pull
from sdk.packages_made import content, spec, variant, write


class Device:
    """A state folder, and packages of one variant each with one model file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.slots = Slots(folder / "state")
        self.floor_mib = 0.0

    def package(self, name: str, model: bytes) -> Package:
        made = variant(self._folder / f"inputs-{name}", spec("net"), 1)
        made.model_files[0].write_bytes(model)
        write(self._folder / name, [VariantFiles(made.spec, made.model_files, made.golden_file)])
        return Package(self._folder / name)

    def parts_of(self, package: Package) -> tuple[str, bytes, bytes]:
        digest = package.index.manifests[0].digest
        blocks = blocks_layer(package.manifest(digest)).digest
        return digest, package.blobs.read(digest, doing="testing"), package.blobs.read(blocks, doing="testing")

    def prepare(self, package: Package, cancelled: Callable[[], bool] = lambda: False) -> Prepared:
        return prepare(self.slots, *self.parts_of(package), cancelled, floor_mib=self.floor_mib)

    def pull(self, package: Package, prepared: Prepared, most: int = 10**6) -> int:
        """Fill what is missing, at most so many blocks; returns how many that took."""
        taken = 0
        for file in prepared.files:
            blob = package.blobs.path(file.layer.digest).read_bytes()
            for block in file.part.missing[: most - taken]:
                assert file.part.add_block(block, blob[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])
                taken += 1
            file.part.close()
        return taken

    def install(self, package: Package, *, active: bool = False) -> int:
        """Returns how many blocks had to be pulled."""
        taken = self.pull(package, self.prepare(package))
        self.slots.finish(*self.parts_of(package))
        if active:
            self.slots.activate(self.parts_of(package)[0])
        return taken


MODEL = content(10 * BLOCK_BYTES + 500)


def changed(model: bytes, *blocks: int) -> bytes:
    """The same bytes but for one in each of these blocks."""
    new = bytearray(model)
    for block in blocks:
        new[block * BLOCK_BYTES + 100] ^= 1
    return bytes(new)


@pytest.fixture(name="device")
def _device(tmp_path: Path) -> Device:
    return Device(tmp_path)


# Blocks at hand ---------------------------------------------------------------------------------------


def test_only_the_blocks_that_changed_are_missing(device: Device) -> None:
    device.install(device.package("one", MODEL), active=True)
    prepared = device.prepare(device.package("two", changed(MODEL, 3, 10)))
    model, others = prepared.files[0], prepared.files[1:]
    assert model.part.missing == [3, 10]
    # The settings and the golden arrays are those of the earlier one.
    assert [file.part.missing for file in others] == [[], []]
    assert prepared.reused_bytes == prepared.verified_bytes == prepared.total_bytes - BLOCK_BYTES - 500


def test_a_block_is_found_wherever_it_lies(device: Device) -> None:
    """In another file, at another place, in a variant that is only half pulled."""
    device.install(device.package("one", MODEL[: 5 * BLOCK_BYTES]))
    half = device.package("two", MODEL[5 * BLOCK_BYTES :])
    device.pull(half, device.prepare(half), most=2)
    new = MODEL[6 * BLOCK_BYTES : 8 * BLOCK_BYTES] + MODEL[: 2 * BLOCK_BYTES] + b"new"
    prepared = device.prepare(device.package("three", new))
    assert prepared.files[0].part.missing == [1, 4]


def test_what_does_not_match_its_digest_any_more_is_pulled(device: Device) -> None:
    first = device.package("one", MODEL)
    device.install(first)
    model = device.slots.path(device.parts_of(first)[0]) / "net.bin"
    model.write_bytes(changed(MODEL, 2)[: 9 * BLOCK_BYTES])
    prepared = device.prepare(device.package("two", changed(MODEL, 5)))
    assert prepared.files[0].part.missing == [2, 5, 9, 10]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("blocks.sha256", b""),
        ("blocks.sha256", b"x"),
        ("manifest.json", b"{"),
        ("manifest.json", b""),
        ("net.bin", b""),
    ],
)
def test_a_variant_with_a_damaged_description_is_passed_over(device: Device, name: str, damage: bytes) -> None:
    first = device.package("one", MODEL)
    device.install(first)
    (device.slots.path(device.parts_of(first)[0]) / name).write_bytes(damage)
    second = device.package("two", changed(MODEL, 5))
    assert device.install(second) >= 11
    device.slots.check(device.parts_of(second)[0])


def test_a_list_of_digests_that_lies_costs_a_look_and_no_more(device: Device) -> None:
    first, second = device.package("one", MODEL), device.package("two", changed(MODEL, 5))
    device.install(first)
    _, _, digests = device.parts_of(second)
    (device.slots.path(device.parts_of(first)[0]) / "blocks.sha256").write_bytes(digests[64:] + digests[:64])
    assert device.install(second) == len(MODEL) // BLOCK_BYTES + 3
    device.slots.check(device.parts_of(second)[0])


# Interrupted ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pulled", range(14))
def test_a_kill_after_any_block_costs_nothing_of_what_was_pulled(device: Device, pulled: int) -> None:
    """13 blocks: 11 of the model, the settings and the golden arrays."""
    package = device.package("one", MODEL)
    first = device.prepare(package)
    assert device.pull(package, first, most=pulled) == min(pulled, 13)
    again = device.prepare(package)
    assert (again.verified_bytes, again.reused_bytes) == (first.verified_bytes, 0)
    assert again.files[0].part.missing == list(range(min(pulled, 11), 11))
    assert device.pull(package, again) == 13 - min(pulled, 13)
    device.slots.finish(*device.parts_of(package))
    device.slots.check(device.parts_of(package)[0])


def test_what_was_copied_before_a_restart_is_called_reused_again(device: Device) -> None:
    device.install(device.package("one", MODEL))
    package = device.package("two", changed(MODEL, 3, 10))
    first = device.prepare(package)
    device.pull(package, first, most=1)
    again = device.prepare(package)
    assert again.files[0].part.missing == [10]
    assert again.reused_bytes == first.reused_bytes == again.verified_bytes - BLOCK_BYTES


def test_a_preparation_that_is_not_wanted_any_more_stops(device: Device) -> None:
    device.install(device.package("one", MODEL))
    answers = iter([False] * 3)
    prepared = device.prepare(device.package("two", MODEL + b"x"), lambda: next(answers, True))
    assert prepared.verified_bytes == 3 * BLOCK_BYTES
    with pytest.raises(ValueError, match="closed file"):
        prepared.files[0].part.close()


# Room -------------------------------------------------------------------------------------------------


def with_free(monkeypatch: pytest.MonkeyPatch, free: Callable[[], int], total: int = 2**40) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free(), total=total))


def size_of(package: Package) -> int:
    """Bytes of disk that a package's variant takes, its description included."""
    entry = package.index.manifests[0]
    return entry.size + sum(layer.size for layer in package.manifest(entry.digest).layers)


def test_the_floor_stays_free(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    package = device.package("one", MODEL)
    need = size_of(package)
    with_free(monkeypatch, lambda: FLOOR_BYTES + need - 1)
    with pytest.raises(
        NoRoomError, match=f"{need} bytes are needed, {need - 1} are free beside the {FLOOR_BYTES} that stay free"
    ):
        device.prepare(package)
    with_free(monkeypatch, lambda: FLOOR_BYTES + need)
    assert device.prepare(package).total_bytes < need


def test_what_the_profile_wants_left_free_stays_free(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    package = device.package("one", MODEL)
    device.floor_mib, need = 256.0, size_of(package)
    with_free(monkeypatch, lambda: 256 * 2**20 + need - 1)
    with pytest.raises(NoRoomError, match=f"{need - 1} are free beside the {256 * 2**20} that stay free"):
        device.prepare(package)
    # Of an SD card of 4 GB no more than its part.
    with_free(monkeypatch, lambda: 2**27 + need, 2**32)
    device.prepare(package)


def test_of_a_small_disk_a_part_stays_free(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    package, total = device.package("one", MODEL), 8 * 1024 * 1024
    with_free(monkeypatch, lambda: size_of(package) + total // preparation.FLOOR_SHARE, total)
    device.prepare(package)


def test_what_is_reserved_already_is_not_needed_again(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    package = device.package("one", MODEL)
    device.pull(package, device.prepare(package), most=4)
    with_free(monkeypatch, lambda: FLOOR_BYTES + 10_000)
    assert device.prepare(package).verified_bytes == 4 * BLOCK_BYTES


def test_a_part_file_with_holes_is_no_reservation(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    package = device.package("one", MODEL)
    staging = device.slots.staging(device.parts_of(package)[0])
    layer = layers_to_pull(package.manifest(package.index.manifests[0].digest))[0]
    with device.slots.part(staging, layer).open("wb") as stream:
        stream.truncate(layer.size)
    with_free(monkeypatch, lambda: FLOOR_BYTES + 10_000)
    with pytest.raises(NoRoomError):
        device.prepare(package)


def test_what_nobody_runs_goes_when_it_must_and_only_then(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    active, old, new = (device.package(name, content(len(MODEL), seed)) for seed, name in enumerate(("a", "b", "c")))
    device.install(active, active=True)
    device.install(old)
    device.prepare(device.package("d", content(len(MODEL), 9)))
    with_free(monkeypatch, lambda: FLOOR_BYTES + 10**9)
    device.prepare(new)
    assert len(device.slots.folders()) == 4
    shutil.rmtree(device.slots.staging(device.parts_of(new)[0]))
    # Each folder that goes gives a megabyte back.
    with_free(monkeypatch, lambda: FLOOR_BYTES + 10**6 * (3 - len(device.slots.folders())))
    device.prepare(new)
    kept = [device.slots.path(device.parts_of(active)[0]), device.slots.staging(device.parts_of(new)[0])]
    assert device.slots.folders() == kept
    device.slots.check(device.parts_of(active)[0])
