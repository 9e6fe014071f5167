"""The result cache: hits are byte for byte, what is damaged or changed is a miss, and it never outgrows its limit."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.packaged import Packaged
from edgefleet.errors import InputError, StorageError
from edgefleet.package.manifest import TensorSpec
from edgefleet_converters import cache_key, jobs
from edgefleet_converters.artefact import Artefact, Form
from edgefleet_converters.cache import Cache, Entry, user_cache
from edgefleet_converters.cache_key import conversion_key, inference_key, tool_versions
from edgefleet_converters.convert import ConvertJob
from edgefleet_converters.packaging import package
from edgefleet_converters.score.infer import InferJob
from edgefleet_converters.score.metrics import Measured
from edgefleet_converters.step import Ranges, Settings
from edgefleet_demo import digits
from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.profile import Precision, Runtime

SPEC = TensorSpec(name="x", dtype="float32", shape=(1, 8, 8))


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _entry(folder: Path, content: bytes = b"weights", name: str = "model.bin") -> Entry:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return Entry('{"kept": "facts"}', {name: folder / name})


def _stored(cache: Cache) -> list[Path]:
    return [path for path in cache.folder.rglob("*") if path.is_file()]


def test_what_was_put_comes_back_with_its_names_and_order(tmp_path: Path) -> None:
    cache, folder = Cache(tmp_path / "cache"), tmp_path / "made"
    files = {"z/model.xml": folder / "z/model.xml", "a/model.bin": folder / "a/model.bin"}
    for name, path in files.items():
        path.parent.mkdir(parents=True)
        path.write_bytes(name.encode() * 1000)
    cache.put(_key("a"), Entry("the facts", files))
    shutil.rmtree(folder)
    found = cache.get(_key("a"), tmp_path / "out")
    assert found is not None
    assert found.facts == "the facts"
    assert list(found.files) == list(files)
    for name, path in found.files.items():
        assert path == tmp_path / "out" / name
        assert path.read_bytes() == name.encode() * 1000


def test_a_miss_leaves_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    assert cache.get(_key("a"), tmp_path / "out") is None
    assert not (tmp_path / "out").exists()


@settings(max_examples=40)
@given(data=st.data())
def test_damage_anywhere_is_a_miss_and_the_entry_can_be_put_again(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    cache, entry = Cache(folder / "cache"), _entry(folder / "made")
    cache.put(_key("a"), entry)
    victim = data.draw(st.sampled_from(sorted(_stored(cache))))
    content = bytearray(victim.read_bytes())
    damage = data.draw(st.sampled_from(("flip", "cut", "lose", "empty")))
    if damage == "flip":
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        victim.write_bytes(content)
    elif damage == "cut":
        victim.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    elif damage == "lose":
        victim.unlink()
    else:
        victim.write_bytes(b"")
    assert cache.get(_key("a"), folder / "out") is None
    assert not (folder / "out").exists()
    cache.put(_key("a"), entry)
    again = cache.get(_key("a"), folder / "out")
    assert again is not None
    assert again.files["model.bin"].read_bytes() == b"weights"


def test_the_longest_unused_go_first_and_a_hit_counts_as_use(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", limit_bytes=4000)
    for place, name in enumerate("abc"):
        cache.put(_key(name), _entry(tmp_path / name, bytes(1000)))
        os.utime(cache.folder / _key(name)[:2] / _key(name), (place, place))
    assert cache.get(_key("a"), tmp_path / "hit") is not None
    cache.put(_key("d"), _entry(tmp_path / "d", bytes(1000)))
    found = {name: cache.get(_key(name), tmp_path / f"out-{name}") is not None for name in "abcd"}
    assert found == {"a": True, "b": False, "c": True, "d": True}


@settings(max_examples=20)
@given(sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=12))
def test_it_never_outgrows_its_limit(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    folder = tmp_path_factory.mktemp("limited")
    cache = Cache(folder / "cache", limit_bytes=5000)
    for place, size_bytes in enumerate(sizes):
        cache.put(_key(str(place)), _entry(folder / str(place), bytes(size_bytes)))
        assert sum(path.stat().st_size for path in _stored(cache)) <= 5000
    assert not list(cache.folder.glob("**/.*"))


def test_an_entry_above_the_limit_drives_nothing_out(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", limit_bytes=2000)
    cache.put(_key("small"), _entry(tmp_path / "small"))
    cache.put(_key("big"), _entry(tmp_path / "big", bytes(2001)))
    assert cache.get(_key("small"), tmp_path / "out") is not None
    assert cache.get(_key("big"), tmp_path / "big-out") is None


def test_what_killed_writers_left_goes_after_a_day(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    cache.put(_key("a"), _entry(tmp_path / "a"))
    old, new = cache.folder / ".new-old", cache.folder / ".new-new"
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (0, 0))
    cache.put(_key("b"), _entry(tmp_path / "b"))
    assert not old.exists()
    assert new.exists()


def test_a_cache_that_cannot_be_written_costs_only_the_hit(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    cache = Cache(tmp_path / "cache")
    cache.put(_key("a"), _entry(tmp_path / "a"))
    assert cache.get(_key("a"), tmp_path / "out") is None


def _hammer(cache: Cache, folder: Path, rounds: int) -> int:
    """Put and get the same few keys; gives the number of hits, every one of them whole."""
    hits = 0
    for place in range(rounds):
        name = str(place % 4)
        cache.put(_key(name), _entry(folder / f"made-{place}", name.encode() * 700))
        found = cache.get(_key(name), folder / f"out-{place}")
        if found is not None:
            assert found.files["model.bin"].read_bytes() == name.encode() * 700
            hits += 1
    return hits


def test_processes_share_one_while_it_gives_entries_up(tmp_path: Path) -> None:
    # Room for about two of the four: entries are given up while others read them.
    cache = Cache(tmp_path / "cache", limit_bytes=2200)
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_hammer, cache, tmp_path / str(number), 60) for number in range(3)]
        hits = [future.result() for future in futures]
    assert sum(hits) > 0
    assert sum(path.stat().st_size for path in _stored(cache)) <= 2200
    assert not list(cache.folder.glob("**/.*"))


def test_the_users_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFLEET_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("EDGEFLEET_CACHE_BYTES", "123")
    assert user_cache() == Cache(tmp_path / "mine" / "results", 123)
    monkeypatch.delenv("EDGEFLEET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert user_cache().folder == tmp_path / "xdg" / "edgefleet" / "results"


def test_a_limit_that_is_no_number_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFLEET_CACHE_BYTES", "5 GB")
    with pytest.raises(InputError, match="'5 GB' is not a whole number"):
        user_cache()


def test_a_cache_folder_that_cannot_be_made_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGEFLEET_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="--no-cache"):
        user_cache()


def _job(folder: Path, **changes: object) -> ConvertJob:
    """A conversion of a model file in a folder of its own, so that paths differ from call to call."""
    folder.mkdir(parents=True, exist_ok=True)
    model, calibration = folder / "model.onnx", folder / "calibration.npz"
    if not model.exists():
        model.write_bytes(b"a model")
        np.savez(calibration, x=np.zeros((2, 1, 8, 8), np.float32))
    return ConvertJob(
        runtime=Runtime.ONNXRUNTIME,
        precision=Precision.INT8,
        form=Form.ONNX,
        source=Artefact(files=(model,), inputs=(SPEC,), outputs=(SPEC,)),
        calibration=calibration,
        folder=folder / "work",
    ).model_copy(update=changes)


def test_the_same_job_elsewhere_has_the_same_key(tmp_path: Path) -> None:
    assert conversion_key(_job(tmp_path / "a")) == conversion_key(_job(tmp_path / "b"))


def test_every_part_of_a_conversion_is_in_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = _job(tmp_path / "a")
    other_model = _job(tmp_path / "b")
    other_model.source.files[0].write_bytes(b"b model")
    other_data = _job(tmp_path / "c")
    assert other_data.calibration is not None
    np.savez(other_data.calibration, x=np.ones((2, 1, 8, 8), np.float32))
    keys = {
        "plain": conversion_key(plain),
        "model": conversion_key(other_model),
        "calibration": conversion_key(other_data),
        "settings": conversion_key(_job(tmp_path / "a", settings=Settings(ranges=Ranges.MSE))),
        "precision": conversion_key(_job(tmp_path / "a", precision=Precision.FP16)),
        "runtime": conversion_key(_job(tmp_path / "a", runtime=Runtime.OPENVINO)),
        "outputs": conversion_key(_job(tmp_path / "a", source=plain.source.model_copy(update={"outputs": ()}))),
    }
    monkeypatch.setattr(cache_key, "code_digest", lambda: "other code")
    keys["code"] = conversion_key(plain)
    monkeypatch.undo()
    monkeypatch.setattr(cache_key, "tool_versions", lambda _extra: {"onnxruntime": "0"})
    keys["tools"] = conversion_key(plain)
    assert len(set(keys.values())) == len(keys), keys


def test_a_file_that_is_written_anew_has_another_key(tmp_path: Path) -> None:
    job = _job(tmp_path)
    before = conversion_key(job)
    job.source.files[0].write_bytes(b"c model")
    assert conversion_key(job) != before


def test_every_part_of_a_run_is_in_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = _job(tmp_path)
    assert job.calibration is not None
    run = InferJob(
        runtime=Runtime.ONNXRUNTIME,
        artefact=job.source,
        samples=job.calibration,
        repeats=8,
        outputs=tmp_path / "outputs.npz",
    )
    keys = {
        inference_key(run),
        inference_key(run.model_copy(update={"repeats": 4})),
        inference_key(run.model_copy(update={"runtime": Runtime.OPENVINO})),
        inference_key(run.model_copy(update={"samples": job.source.files[0]})),
    }
    assert inference_key(run.model_copy(update={"outputs": tmp_path / "other"})) in keys
    monkeypatch.setattr(cache_key, "installed_runtimes", lambda: {Runtime.ONNXRUNTIME: "0"})
    assert len({*keys, inference_key(run)}) == 5


def test_tools_are_those_of_the_extra_and_what_they_need() -> None:
    found = tool_versions("convert-openvino")
    assert {"openvino", "nncf", "onnx", "scipy"} <= set(found)
    assert "ai-edge-quantizer" not in found
    assert "ai-edge-quantizer" in tool_versions("convert")


def _digits_job(folder: Path) -> ConvertJob:
    folder.mkdir()
    model = folder / "model.onnx"
    shutil.copyfile(digits.model_path(), model)
    image = TensorSpec(name="image", dtype="float32", shape=(1, 1, 8, 8))
    logits = TensorSpec(name="logits", dtype="float32", shape=(1, 10))
    source = Artefact(files=(model,), inputs=(image,), outputs=(logits,))
    return ConvertJob(
        runtime=Runtime.OPENVINO, precision=Precision.FP16, source=source, calibration=None, folder=folder / "work"
    )


def _counting(counted: list[str], name: str, call: object) -> object:
    def counting(*arguments: object) -> object:
        counted.append(name)
        assert callable(call)
        return call(*arguments)

    return counting


def test_a_second_conversion_and_a_second_run_start_no_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("convert", "infer"):
        monkeypatch.setattr(jobs, name, _counting(calls, name, getattr(jobs, name)))
    cache = Cache(tmp_path / "cache")
    np.savez(tmp_path / "samples.npz", image=np.random.default_rng(0).random((9, 1, 1, 8, 8), np.float32))
    found: list[tuple[list[bytes], Measured]] = []
    for place in ("first", "second"):
        artefact = jobs.run_conversion(_digits_job(tmp_path / place), cache)
        assert isinstance(artefact, Artefact), artefact
        assert [path.suffix for path in artefact.files] == [".xml", ".bin"]
        assert len({path.parent for path in artefact.files}) == 1
        run = InferJob(
            runtime=Runtime.OPENVINO,
            artefact=artefact,
            samples=tmp_path / "samples.npz",
            repeats=2,
            outputs=tmp_path / f"{place}.npz",
        )
        measured = jobs.run_inference(run, cache)
        assert isinstance(measured, Measured), measured
        found.append(([path.read_bytes() for path in artefact.files], measured))
    assert calls == ["convert", "infer"]
    (files, first), (files_again, second) = found
    assert files == files_again
    assert first.runtime_version == second.runtime_version
    for name, outputs in first.outputs.items():
        np.testing.assert_array_equal(outputs, second.outputs[name])
        np.testing.assert_array_equal(first.repeated[name], second.repeated[name])


def test_a_failure_is_not_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    job = _digits_job(tmp_path / "made")
    job.source.files[0].write_bytes(b"no model")
    for place in ("a", "b"):
        found = jobs.run_conversion(job.model_copy(update={"folder": tmp_path / place}), cache)
        assert isinstance(found, str)
        assert "the conversion failed" in found
    assert not cache.folder.exists()


def test_a_warm_cache_makes_the_same_package(
    packaged: Packaged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path / "cache")
    board = catalogue.load("raspberry-pi-5")
    one = tuple(allowed for allowed in board.runtimes if allowed.name is Runtime.ONNXRUNTIME)
    profiles = (board.model_copy(update={"runtimes": one}),)
    cold = package(packaged.again(folder=tmp_path / "cold", profiles=profiles), cache=cache)
    for name in ("convert", "infer"):
        monkeypatch.setattr(jobs, name, partial(pytest.fail, f"{name} was called"))
    warm = package(packaged.again(folder=tmp_path / "warm", profiles=profiles), cache=cache)
    assert warm.digest == cold.digest
