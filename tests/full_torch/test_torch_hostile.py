"""Saved programs that would run code when torch opens them: each is refused before torch sees it."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgefleet.errors import InputError
from edgefleet_converters.intake import torch_archive
from full_torch import torch_models
from full_torch.conftest import read

Change = Callable[[str, bytes], bytes]


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "net.pt2"
    module, example = torch_models.resnet()
    batch = torch.export.Dim("batch")
    program = torch.export.export(module.eval(), (example.repeat(2, 1, 1, 1),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    return path


def changed(saved: Path, folder: Path, change: Change, added: dict[str, bytes] | None = None) -> Path:
    """The archive with every member passed through `change`, by its name without the first folder."""
    path = folder / "changed.pt2"
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = change(name.partition("/")[2], old.read(name))
            new.writestr(name, content)
        for name, content in (added or {}).items():
            new.writestr(name, content)
    return path


def in_graph(place: Callable[[Any], None]) -> Change:
    """A change of the description of the graph."""

    def change(name: str, content: bytes) -> bytes:
        if name != "models/model.json":
            return content
        described = json.loads(content)
        place(described)
        return json.dumps(described).encode()

    return change


def set_target(described: Any) -> None:
    described["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"


def load_library(described: Any) -> None:
    described["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.load_library"


def set_guard(described: Any) -> None:
    described["guards_code"] = ["__import__('os').system('true')"]


def set_argument(described: Any) -> None:
    described["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = ["x=print('run')"]


def set_expression(described: Any) -> None:
    text = json.dumps(described["graph_module"])
    found = text.replace("Symbol('", "__import__('os').getpid() or Symbol('")
    assert found != text
    described["graph_module"] = json.loads(found)


CHANGES = {
    "call": (in_graph(set_target), "target 'torch.os.system'"),
    "library": (in_graph(load_library), "target 'torch.ops.load_library'"),
    "guard": (in_graph(set_guard), "guards_code"),
    "argument": (in_graph(set_argument), "forward_arg_names"),
    "expression": (in_graph(set_expression), "expr_str"),
    "weight": (
        lambda name, content: (
            content.replace(b'"use_pickle": false', b'"use_pickle": true')
            if name.endswith("weights_config.json")
            else content
        ),
        "a pickled tensor",
    ),
}


def same(_name: str, content: bytes) -> bytes:
    return content


def check(path: Path) -> None:
    torch_archive.check(path, lambda stream: torch.load(stream, weights_only=True), "reading it")


def test_an_unchanged_program_with_symbols_is_let_through(saved: Path, tmp_path: Path) -> None:
    check(saved)
    check(changed(saved, tmp_path, same))


@pytest.mark.parametrize("name", CHANGES)
def test_each_way_to_run_code_is_refused_and_named(name: str, saved: Path, tmp_path: Path) -> None:
    change, text = CHANGES[name]
    with pytest.raises(InputError, match=text):
        check(changed(saved, tmp_path, change))


@pytest.mark.parametrize(
    ("member", "text"),
    [
        ("net/data/aotinductor/model/code.so", "compiled code"),
        ("net/data/constants/custom_obj_0", "a pickled Python object"),
        ("net/data/constants/opaque_obj_0", "a pickled Python object"),
        ("net/models/model.json", "members that hide each other"),
        ("other/models/model.json", "members that hide each other"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_that_torch_would_run_are_refused(member: str, text: str, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=text):
        check(changed(saved, tmp_path, same, {member: b"{}"}))


def test_a_pickled_command_among_the_example_inputs_never_runs(saved: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    def change(name: str, content: bytes) -> bytes:
        return pickle.dumps(Command(mark)) if name.startswith("data/sample_inputs/") else content

    path = changed(saved, tmp_path, change)
    with pytest.raises(InputError, match="a pickled Python object, and opening it would run that; give --trust"):
        read(str(path), tmp_path)
    assert not mark.exists()


def test_a_pickled_command_as_a_module_never_runs(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save(Command(mark), tmp_path / "module.pt")
    with pytest.raises(InputError, match="runs whatever code it holds"):
        read(str(tmp_path / "module.pt"), tmp_path)
    assert not mark.exists()


def test_text_that_nearly_is_an_expression_is_judged_at_once(saved: Path, tmp_path: Path) -> None:
    text = " + ".join(["s12345678"] * 2000) + " + system"

    def place(described: Any) -> None:
        described["guards_code"] = ["1" * 20000 + "x"]
        described["range_constraints"] = {"s0": {"expr_str": text}}

    with pytest.raises(InputError, match="would run that"):
        check(changed(saved, tmp_path, in_graph(place)))
