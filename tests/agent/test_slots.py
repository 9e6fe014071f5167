"""Slots: a folder that appears whole, a link that is switched at once, and files that are what they were."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgefleet import durable
from edgefleet.package.digest import digest_of
from edgefleet.package.layout import Package
from edgefleet.package.manifest import FILEPATH_ANNOTATION, Descriptor, Layer, Manifest, VariantSpec
from edgefleet_agent import slots
from edgefleet_agent.slots import SlotDamagedError, Slots, blocks_layer, file_name, layers_to_pull
from sdk.packages_made import spec, two_variants, write

BLOCKS = bytes(64)


class Made:
    """A package, and slots to put its variants in."""

    def __init__(self, folder: Path) -> None:
        write(folder / "package", two_variants(folder / "inputs"))
        self.package = Package(folder / "package")
        self.state = folder / "state"
        self.slots = Slots(self.state)
        self.digests = list(dict.fromkeys(entry.digest for entry in self.package.index.manifests))

    def manifest_bytes(self, digest: str) -> bytes:
        return self.package.blobs.read(digest, doing="testing")

    def finish(self, digest: str, manifest_bytes: bytes | None = None) -> VariantSpec:
        """What is listed beside the files does not matter for the slot itself."""
        content = self.manifest_bytes(digest) if manifest_bytes is None else manifest_bytes
        return self.slots.finish(digest, content, BLOCKS)

    def stage(self, digest: str) -> Path:
        """What a download leaves: a part file per layer."""
        staging, manifest = self.slots.staging(digest), self.package.manifest(digest)
        for layer in layers_to_pull(manifest):
            shutil.copyfile(self.package.blobs.path(layer.digest), self.slots.part(staging, layer))
        return staging

    def install(self, digest: str) -> Path:
        self.stage(digest)
        assert self.finish(digest) == self.slots.check(digest)
        return self.slots.path(digest)


@pytest.fixture(name="made")
def _made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def test_a_finished_slot_holds_exactly_the_variants_files(made: Made) -> None:
    slot = made.install(made.digests[0])
    assert slot == made.slots.path(made.digests[0])
    assert {path.name for path in slot.iterdir()} == {
        "manifest.json", "blocks.sha256", "small.bin", "small.1", "variant.json", "golden.npz",
    }  # fmt: skip
    assert made.slots.check(made.digests[0]).name == "small"
    assert list((made.state / "staging").iterdir()) == []


@pytest.mark.parametrize("name", ["small.bin", "small.1", "variant.json", "golden.npz", "manifest.json"])
@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
def test_damage_to_any_file_is_found(made: Made, name: str, how: str) -> None:
    path = made.install(made.digests[0]) / name
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if how == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(SlotDamagedError, match=name.replace(".", r"\.")):
        made.slots.check(made.digests[0])


def test_another_variants_slot_under_this_name_is_found(made: Made) -> None:
    first, second = (made.install(digest) for digest in made.digests)
    shutil.rmtree(first)
    second.rename(first)
    with pytest.raises(SlotDamagedError):
        made.slots.check(made.digests[0])


def test_a_slot_that_is_not_there_is_damaged(made: Made) -> None:
    with pytest.raises(SlotDamagedError):
        made.slots.check(made.digests[0])


def test_finishing_reads_no_file_again(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block matched when it was written; on a board with an SD card reading a model takes as long as pulling."""
    made.stage(made.digests[0])
    monkeypatch.setattr(slots, "digest_of_file", lambda path: pytest.fail(f"{path.name} was read"))
    made.finish(made.digests[0])


def test_settings_that_are_none_make_no_slot(made: Made) -> None:
    """A package of another tool: whole by its digests, and still nothing that could run."""
    manifest = made.package.manifest(made.digests[0])
    text = made.package.blobs.add(b"[]")
    layers = tuple(
        layer.model_copy(update={"digest": text, "size": 2}) if layer.media_type == Layer.SETTINGS else layer
        for layer in manifest.layers
    )
    content = manifest.model_copy(update={"layers": layers}).model_dump_json(by_alias=True, exclude_none=True).encode()
    digest = made.package.blobs.add(content)
    made.stage(digest)
    with pytest.raises(SlotDamagedError) as caught:
        made.finish(digest, content)
    assert len(str(caught.value).splitlines()) == 1
    assert not made.slots.path(digest).exists()


class _Killed(BaseException):
    """The process is gone; nothing after this line of it runs."""


def _killed_at(monkeypatch: pytest.MonkeyPatch, step: int) -> list[str]:
    """Let the n-th fsync, rename or replacement be the last thing that happens; returns the list of them."""
    seen: list[str] = []

    def wrap(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*values: Any, **options: Any) -> Any:
            if len(seen) == step:
                raise _Killed
            seen.append(name)
            return real(*values, **options)

        return call

    monkeypatch.setattr(os, "fsync", wrap(os.fsync, "fsync"))
    monkeypatch.setattr(Path, "rename", wrap(Path.rename, "rename"))
    monkeypatch.setattr(Path, "replace", wrap(Path.replace, "replace"))
    monkeypatch.setattr(shutil, "rmtree", wrap(shutil.rmtree, "rmtree"))
    return seen


@pytest.mark.parametrize("replacing", [False, True])
def test_a_kill_at_any_fsync_or_rename_leaves_a_whole_slot_or_all_that_was_pulled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replacing: bool
) -> None:
    for step in range(40):
        made = Made(tmp_path / f"{replacing}-{step}")
        digest, other = made.digests
        made.install(other)
        made.slots.activate(other)
        if replacing:
            (made.install(digest) / "small.bin").write_bytes(b"damaged")
        made.stage(digest)
        with monkeypatch.context() as patch:
            seen = _killed_at(patch, step)
            ended = False
            try:
                made.finish(digest)
                made.slots.activate(digest)
                ended = True
            except _Killed:
                pass
        again = Slots(made.state)
        # What ran before the kill still runs, or the new one does.
        running = (made.state / "current" / "manifest.json").read_bytes()
        assert again.check(digest_of(running)).name in {"small", "wide"}
        try:
            again.check(digest)
        except SlotDamagedError:
            again.finish(digest, made.manifest_bytes(digest), BLOCKS)
            again.check(digest)
        assert not list(again.path(digest).glob(".*"))
        again.activate(digest)
        again.collect(digest)
        assert [path.name for path in (made.state / "slots").iterdir()] == [again.path(digest).name]
        if ended:
            assert step == len(seen) >= 12
            return
    pytest.fail("it never ended")


def test_nothing_is_renamed_into_place_before_it_is_on_disk(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut a rename without the fsync before it is an empty file under the right name."""
    made.stage(made.digests[0])
    done: list[tuple[str, str]] = []
    real_fsync, real_rename, real_replace = os.fsync, Path.rename, Path.replace

    def fsync(descriptor: int) -> None:
        done.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        real_fsync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        done.append(("rename", self.name))
        return real_rename(self, target)

    def replace(self: Path, target: Path) -> Path:
        done.append(("replace", self.name))
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(Path, "replace", replace)
    made.finish(made.digests[0])
    folder = made.slots.path(made.digests[0]).name
    made.slots.activate(made.digests[0])
    parts = [("replace", f"{name}.part") for name in ("small.bin", "small.1", "variant.json", "golden.npz")]
    assert done == [
        *parts,
        ("fsync", ".blocks.sha256.tmp"), ("replace", ".blocks.sha256.tmp"), ("fsync", folder),
        ("fsync", ".manifest.json.tmp"), ("replace", ".manifest.json.tmp"), ("fsync", folder),
        ("rename", folder), ("fsync", "slots"), ("fsync", "staging"),
        ("replace", ".current.new"), ("fsync", "state"),
    ]  # fmt: skip


def test_finishing_again_after_a_power_cut_in_the_middle(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    made.stage(made.digests[0])

    def cut(_path: Path, _content: bytes) -> None:
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_file", cut)
        with pytest.raises(_Killed):
            made.finish(made.digests[0])
    assert not made.slots.path(made.digests[0]).exists()
    again = Slots(made.state)
    again.finish(made.digests[0], made.manifest_bytes(made.digests[0]), BLOCKS)
    assert again.check(made.digests[0]).name == "small"


def test_a_damaged_slot_is_replaced_whole(made: Made) -> None:
    slot = made.install(made.digests[0])
    (slot / "small.bin").write_bytes(b"")
    (slot / "rubbish").write_bytes(b"")
    made.install(made.digests[0])
    made.slots.check(made.digests[0])
    assert not (slot / "rubbish").exists()


# The link ---------------------------------------------------------------------------------------------


def test_current_is_switched_by_one_rename(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (made.install(digest) for digest in made.digests)
    current = made.state / "current"
    made.slots.activate(made.digests[0])
    assert current.resolve() == first.resolve()
    seen: list[Path] = []
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        seen.append(current.resolve())
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    made.slots.activate(made.digests[1])
    assert seen == [first.resolve()]
    assert current.resolve() == second.resolve()
    assert sorted(path.name for path in made.state.iterdir()) == ["current", "slots", "staging"]


def test_the_link_still_holds_when_the_state_folder_is_moved(made: Made, tmp_path: Path) -> None:
    made.install(made.digests[0])
    made.slots.activate(made.digests[0])
    made.state.rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "current" / "manifest.json").read_bytes() == made.manifest_bytes(made.digests[0])


def test_a_link_left_from_a_power_cut_is_no_obstacle(made: Made) -> None:
    made.install(made.digests[0])
    (made.state / ".current.new").symlink_to("slots/nothing")
    made.slots.activate(made.digests[0])
    assert (made.state / "current" / "manifest.json").exists()
    assert not os.path.lexists(made.state / ".current.new")


@pytest.mark.parametrize("at", ["rename", "fsync"])
def test_an_activation_that_the_disk_refuses_leaves_the_link_on_what_runs(
    made: Made, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    runs, refused = made.digests
    made.install(runs)
    made.slots.activate(runs)
    made.install(refused)

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(Path if at == "rename" else durable, "replace" if at == "rename" else "sync_folder", refuse)
        with pytest.raises(OSError, match="Input/output"):
            made.slots.activate(refused)
    made.slots.collect(runs)
    assert (made.state / "current").resolve() == made.slots.path(runs).resolve()
    assert {path.name for path in made.state.iterdir()} == {"current", "slots", "staging"}


def test_collect_keeps_the_one_that_runs(made: Made) -> None:
    for digest in made.digests:
        made.install(digest)
    made.stage(made.digests[0])
    made.slots.collect(made.digests[1])
    assert list((made.state / "slots").iterdir()) == [made.slots.path(made.digests[1])]
    assert list((made.state / "staging").iterdir()) == []
    made.slots.check(made.digests[1])


def test_collect_keeps_what_is_being_assembled(made: Made) -> None:
    for digest in made.digests:
        made.stage(digest)
    made.slots.collect(None, made.digests[0])
    assert list((made.state / "staging").iterdir()) == [made.slots.staging(made.digests[0])]
    made.finish(made.digests[0])
    made.slots.collect(None)
    assert list((made.state / "slots").iterdir()) == []
    made.slots.collect(None)


def test_collect_is_by_variant_not_by_place(made: Made) -> None:
    """The variant that runs is assembled anew: its slot is kept, and what is half assembled is too when asked for."""
    made.install(made.digests[0])
    made.stage(made.digests[0])
    made.slots.collect(made.digests[0], made.digests[0])
    made.slots.check(made.digests[0])
    assert (made.slots.staging(made.digests[0]) / "small.bin.part").exists()
    made.slots.collect(made.digests[0])
    made.slots.check(made.digests[0])
    assert list((made.state / "staging").iterdir()) == []


# Names ------------------------------------------------------------------------------------------------

LAYER = Descriptor(media_type=Layer.MODEL, digest="sha256:" + "a" * 64, size=1)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/etc/passwd",
        "a/../../b",
        ".hidden",
        "x/",
        "slots/../current",
        "manifest.json",
        "blocks.sha256",
        "model.part",
    ],
)
def test_a_name_that_would_leave_the_slot_is_refused(tmp_path: Path, name: str) -> None:
    layer = LAYER.model_copy(update={"annotations": {FILEPATH_ANNOTATION: name}})
    with pytest.raises(ValueError, match="file name"):
        Slots.part(tmp_path, layer)


def test_a_layer_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="file name"):
        file_name(LAYER)


@pytest.mark.parametrize(
    "model_file", ["../../outside.bin", "/etc/passwd", "golden.npz", "variant.json", "none.bin", ""]
)
def test_a_model_file_that_is_no_model_layer_is_refused(made: Made, model_file: str) -> None:
    """What the runtime opens must be one of the files whose digests were checked."""
    manifest = made.package.manifest(made.digests[0])
    evil = spec("small").model_copy(update={"model_file": model_file}).model_dump_json().encode()
    text = made.package.blobs.add(evil)
    layers = tuple(
        layer.model_copy(update={"digest": text, "size": len(evil)}) if layer.media_type == Layer.SETTINGS else layer
        for layer in manifest.layers
    )
    content = manifest.model_copy(update={"layers": layers}).model_dump_json(by_alias=True, exclude_none=True).encode()
    digest = made.package.blobs.add(content)
    made.stage(digest)
    with pytest.raises(SlotDamagedError, match="model file"):
        made.finish(digest, content)
    assert not made.slots.path(digest).exists()
    # A slot of an older agent, finished without that check, does not run either.
    made.stage(digest).rename(made.slots.path(digest))
    slot = made.slots.path(digest)
    for part in slot.glob("*.part"):
        part.rename(part.with_suffix(""))
    (slot / "manifest.json").write_bytes(content)
    with pytest.raises(SlotDamagedError, match="model file"):
        made.slots.check(digest)


def test_two_layers_of_one_name_make_no_slot(made: Made) -> None:
    manifest = made.package.manifest(made.digests[0])
    twice = manifest.model_copy(update={"layers": (manifest.layers[1], manifest.layers[0].model_copy(
        update={"annotations": {FILEPATH_ANNOTATION: "small.1"}}), *manifest.layers[2:])})  # fmt: skip
    content = twice.model_dump_json(by_alias=True, exclude_none=True).encode()
    digest = made.package.blobs.add(content)
    made.stage(digest)
    with pytest.raises((SlotDamagedError, FileNotFoundError)):
        made.finish(digest, content)
    assert not made.slots.path(digest).exists()


def test_block_digests_are_one_layer_and_no_part_of_what_is_pulled(made: Made) -> None:
    manifest = made.package.manifest(made.digests[0])
    assert blocks_layer(manifest) not in layers_to_pull(manifest)
    assert len(layers_to_pull(manifest)) == len(manifest.layers) - 1
    for layers in ((), manifest.layers + manifest.layers):
        with pytest.raises(ValueError, match="block digest layers"):
            blocks_layer(Manifest(config=manifest.config, layers=layers))
