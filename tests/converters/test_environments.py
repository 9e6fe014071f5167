"""Environments of their own: made once, complete or not at all, and never by two processes at a time.

The packages in them are wheels made here, so no index is asked.
"""

from __future__ import annotations

import fcntl
import subprocess
import sysconfig
import threading
import zipfile
from pathlib import Path

import pytest
from pydantic import BaseModel

from edgefleet.errors import StorageError, TransportError, UnsupportedError
from edgefleet_converters import environments
from edgefleet_converters.child import ChildFailedError
from edgefleet_converters.environments import ENVIRONMENTS, Environment, cache_folder, call, prepare
from edgefleet_converters.progress import Event, Stage
from patience import PATIENCE_S

ANY_PYTHON = (3, 99)


class Note(BaseModel):
    """What goes to the child and comes back."""

    text: str


def wheel(folder: Path, name: str) -> Path:
    """A pure-Python wheel with one module (the binary distribution format, PyPA)."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "def answer(job):\n    return {'text': job['text'] + ' and back'}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture(name="environment")
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    monkeypatch.setenv("EDGEFLEET_CACHE", str(tmp_path / "cache"))
    pins = tmp_path / "pins.txt"
    pins.write_text(f"{wheel(tmp_path, 'tool_one')}\n{wheel(tmp_path, 'tool_two')}\n", encoding="utf-8")
    return Environment("tool", pins, ANY_PYTHON)


@pytest.fixture(name="borrowed_pip")
def _borrowed_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments that see what is installed here, pip too: to unpack one of their own takes 5 s."""

    def make_empty(builder: str, folder: Path, _doing: str) -> None:
        subprocess.run([builder, "-m", "venv", "--without-pip", folder], check=True)
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "ours.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")

    monkeypatch.setattr(environments, "_make_empty", make_empty)


@pytest.fixture(name="bare")
def _bare(borrowed_pip: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001 - for what it sets
    """Environments without their packages: quick to make, and enough where only their place matters."""
    monkeypatch.setattr(environments, "_install", lambda *_arguments: None)


def quiet(_event: Event) -> None:
    """For those who do not watch."""


def test_it_is_made_once_and_runs_what_is_in_it(environment: Environment) -> None:
    events: list[Event] = []
    python = prepare(environment, events.append)
    assert [event.done for event in events] == [0, 0, 1, 2]
    assert {event.stage for event in events} == {Stage.ENVIRONMENT}
    assert events[1].text == "tool: tool_one-1.0-py3-none-any.whl"
    assert events[-1] == Event(Stage.ENVIRONMENT, "tool: ready", 2, 2)
    again: list[Event] = []
    assert prepare(environment, again.append) == python
    assert again == []
    note = call(environment, "tool_two:answer", Note(text="there"), Note, timeout_s=PATIENCE_S, progress=quiet)
    assert note.text == "there and back"
    with pytest.raises(ChildFailedError, match="No module named 'pydantic'"):
        call(environment, "pydantic:nothing", Note(text=""), Note, timeout_s=PATIENCE_S, progress=quiet)


@pytest.mark.usefixtures("bare")
def test_what_a_killed_build_left_is_not_taken_for_an_environment(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(environments, "_install", _killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(environment, quiet)
    folder = cache_folder() / "environments"
    assert [path.suffix for path in folder.iterdir()] == [".lock"]
    # As SIGKILL leaves it: nobody has cleaned up.
    partial = next(folder.iterdir()).with_suffix(".partial")
    (partial / "bin").mkdir(parents=True)
    (partial / "bin" / "python").touch()
    python = prepare(environment, quiet)
    assert not partial.exists()
    assert subprocess.run([python, "-c", "print(1)"], check=True, capture_output=True, text=True).stdout == "1\n"


def _killed(*_arguments: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("bare")
def test_the_second_process_waits_and_takes_what_the_first_has_made(environment: Environment) -> None:
    python = prepare(environment, quiet)
    made = python.parents[1]
    hidden = made.rename(made.with_name("hidden"))
    waiting = threading.Event()
    found: list[Path] = []

    def watch(event: Event) -> None:
        assert event.text == "tool: another process is making it"
        waiting.set()

    with made.with_name(f".{made.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        second = threading.Thread(target=lambda: found.append(prepare(environment, watch)))
        second.start()
        assert waiting.wait(timeout=PATIENCE_S)
        hidden.rename(made)
    second.join(timeout=PATIENCE_S)
    assert found == [python]


@pytest.mark.usefixtures("borrowed_pip")
def test_pip_that_fails_leaves_nothing(environment: Environment) -> None:
    environment.pins.write_text("/nowhere/gone-1.0-py3-none-any.whl\n", encoding="utf-8")
    with pytest.raises(TransportError, match=r"pip failed \(.*gone-1\.0.*\); check the network") as refused:
        prepare(environment, quiet)
    assert "\n" not in str(refused.value)
    assert [path.suffix for path in (cache_folder() / "environments").iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written(
    tmp_path: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGEFLEET_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="name another folder in EDGEFLEET_CACHE"):
        prepare(environment, quiet)


def test_a_python_that_is_too_new(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    old = Environment("old", environment.pins, (3, 8))
    with pytest.raises(
        UnsupportedError, match=r"it needs Python 3\.8 or older, and this is 3\.\d+; install python3\.8"
    ):
        prepare(old, quiet)


def test_the_cache_is_where_the_xdg_specification_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEFLEET_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "edgefleet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "edgefleet"


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_environment_lists_exact_versions(name: str) -> None:
    lines = ENVIRONMENTS[name].pins.read_text(encoding="utf-8").splitlines()
    assert lines
    assert all(line.count("==") == 1 and " " not in line for line in lines)
    assert lines == sorted(lines, key=str.lower)
