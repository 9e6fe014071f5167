"""Inputs replayed from a file: endless, in the model's shape, and a clear word about a file that does not fit."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from edgefleet.errors import InputError
from edgefleet_agent.sources.replay import open_replay

SHAPE = (1, 2, 3)
INPUTS = [{"name": "image", "dtype": "float32", "shape": list(SHAPE)}]
X = np.arange(18, dtype=np.float32).reshape(3, 2, 3)


def test_samples_go_round_with_their_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=np.array([5, 6, 7]))
    found = list(itertools.islice(open_replay(tmp_path / "a.npz", INPUTS), 7))
    assert [sample.label for sample in found] == [5, 6, 7, 5, 6, 7, 5]
    assert {type(sample.label) for sample in found} == {int}
    assert {sample.preprocess_s for sample in found} == {0.0}
    for place, sample in enumerate(found):
        np.testing.assert_array_equal(sample.inputs["image"], X[place % 3].reshape(SHAPE))


def test_without_labels_there_are_none(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=X)
    assert next(open_replay(tmp_path / "a.npz", INPUTS)).label is None


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"y": np.array([1])}, "x"),
        ({"x": X.astype(np.float64)}, "float64"),
        ({"x": X.astype(np.uint8)}, "uint8"),
        ({"x": X[0]}, r"\[2, 3\]"),
        ({"x": X[:0]}, r"\[0, 2, 3\]"),
        ({"x": X.reshape(3, 3, 2)}, r"\[N, 2, 3\]"),
        ({"x": np.float32(1.0)}, r"\[\]"),
        ({"x": X, "y": np.array([1, 2])}, r"\[2\]"),
        ({"x": X, "y": np.array([[1], [2], [3]])}, r"\[3, 1\]"),
        ({"x": X, "y": np.array(["cat", "dog", "cat"])}, "y"),
        ({"x": X, "y": np.array([0.5, 1.5, 2.5])}, "y"),
        ({"x": np.array([object()] * 3)}, "x"),
    ],
)
def test_a_file_that_does_not_fit_the_model_is_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], said: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=said) as caught:
        open_replay(tmp_path / "a.npz", INPUTS)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for content in (b"", b"text", b"PK\x03\x04", b"\x93NUMPY"):
        path.write_bytes(content)
        with pytest.raises(InputError):
            open_replay(path, INPUTS)


def test_a_plain_array_file_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X)
    with pytest.raises(InputError):
        open_replay(tmp_path / "a.npy", INPUTS)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_file_is_refused(tmp_path: Path, save: object) -> None:
    path = tmp_path / "a.npz"
    assert callable(save)
    save(path, x=np.random.default_rng(0).random((50, 2, 3), dtype=np.float32))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(InputError):
        open_replay(path, INPUTS)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        open_replay(tmp_path / "none.npz", INPUTS)


TEXT = [
    {"name": "ids", "dtype": "int64", "shape": [1, 4]},
    {"name": "mask", "dtype": "bool", "shape": [1, 4]},
]


def test_a_model_with_several_inputs_gets_each_by_its_name(tmp_path: Path) -> None:
    ids, mask = np.arange(12).reshape(3, 4), np.ones((3, 1, 4), np.bool_)
    np.savez(tmp_path / "a.npz", ids=ids, mask=mask)
    sample = next(open_replay(tmp_path / "a.npz", TEXT))
    assert sample.label is None
    assert {name: (array.dtype.name, array.shape) for name, array in sample.inputs.items()} == {
        "ids": ("int64", (1, 4)),
        "mask": ("bool", (1, 4)),
    }


@pytest.mark.parametrize(
    ("count", "said"), [(2, "unequal numbers of samples: ids 3, mask 2"), (0, r"mask is bool \[0")]
)
def test_inputs_that_do_not_belong_together_are_refused(tmp_path: Path, count: int, said: str) -> None:
    np.savez(tmp_path / "a.npz", ids=np.arange(12).reshape(3, 4), mask=np.ones((count, 4), np.bool_))
    with pytest.raises(InputError, match=said):
        open_replay(tmp_path / "a.npz", TEXT)
