"""Upgrades with real virtual environments, pip and wheels: made here by hand, so that nothing is downloaded."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from agent.host_lab import FakeClock, FakeServices
from edgefleet.errors import InputError
from edgefleet_agent.host import upgrade, wheels
from edgefleet_agent.host.environments import CURRENT_LINK, PREVIOUS_LINK, Environments, Made, run_program
from edgefleet_agent.host.trial import Health
from edgefleet_agent.host.upgrade import Clock, Host

PROBE = """
import json, sys
print(json.dumps({{"version": "{version}", "runtimes": {{"litert": "2.3.0"}}}}))
"""
COMMAND = "def main():\n    print('edgefleet {version}')\n"


def write_wheel(folder: Path, version: str, probe: str = PROBE) -> Path:
    """A wheel named edgefleet that holds a command and the probe, and nothing else."""
    info = f"edgefleet-{version}.dist-info"
    files = {
        "edgefleet_agent/__init__.py": "",
        "edgefleet_agent/host/__init__.py": "",
        "edgefleet_agent/host/probe.py": probe.format(version=version),
        "edgefleet_agent/command.py": COMMAND.format(version=version),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: edgefleet\nVersion: {version}\nProvides-Extra: agent\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nedgefleet = edgefleet_agent.command:main\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"edgefleet-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return path


@pytest.mark.full
def test_from_one_real_environment_to_the_other_and_back(tmp_path: Path) -> None:
    environments, settings = Environments(tmp_path / "opt"), tmp_path / "agent.toml"
    clock, services = FakeClock(), FakeServices()
    write_wheel(tmp_path / "first", "1.0")
    asked = wheels.requirement("1.0", (), tmp_path / "first")
    made = environments.fill("A", asked, Made(version=""), settings)
    assert made == Made(version="1.0", runtimes={"litert": "2.3.0"})
    for link in (PREVIOUS_LINK, CURRENT_LINK):
        environments.switch(link, "A")
    assert said_by_current(environments) == "edgefleet 1.0"

    with tarfile.open(tmp_path / "second.tar.gz", "w:gz") as bundle:
        bundle.add(write_wheel(tmp_path / "second", "2.0"), "wheels/edgefleet-2.0-py3-none-any.whl")
    with wheels.folder_of(tmp_path / "second.tar.gz", tmp_path / "opt") as found:
        asked = wheels.requirement(None, (), found)
        name = upgrade.fill_other(environments, asked, upgrade.current_record(environments), settings)
    host = Host(
        environments, services, Clock(clock.now, clock.sleep), "boot", lambda _: Health(healthy=False, reason="silent")
    )
    upgrade.begin(host, name, tmp_path / "state")
    assert said_by_current(environments) == "edgefleet 2.0"
    outcome = upgrade.watch(host)
    assert outcome is not None
    assert not outcome.kept
    assert said_by_current(environments) == "edgefleet 1.0"
    assert sorted(path.name for path in (tmp_path / "opt").iterdir()) == [
        "A", "B", "current", "last-upgrade.json", "previous",
    ]  # fmt: skip


def said_by_current(environments: Environments) -> str:
    program = environments.folder / CURRENT_LINK / "bin" / "edgefleet"
    return run_program([str(program)], 30).stdout.strip()


@pytest.mark.full
def test_pips_own_words_say_why_an_environment_cannot_be_filled(tmp_path: Path) -> None:
    environments = Environments(tmp_path / "opt")
    write_wheel(tmp_path / "wheels", "1.0")
    asked = wheels.requirement("9.9", (), tmp_path / "wheels")
    with pytest.raises(InputError, match=r"No matching distribution found for edgefleet\[agent\]==9\.9"):
        environments.fill("A", asked, Made(version=""), tmp_path / "agent.toml")
    assert environments.made("A") is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((None, (), None), ["edgefleet[agent]"]),
        (("2.1", ("litert", "onnx"), None), ["edgefleet[agent,litert,onnx]==2.1"]),
        ((None, ("litert",), Path("/w")), ["--no-index", "--find-links", "/w", "edgefleet[agent,litert]"]),
    ],
)
def test_what_pip_is_told(given: tuple[str | None, tuple[str, ...], Path | None], expected: list[str]) -> None:
    assert wheels.requirement(*given) == expected


def tape(folder: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(folder / "bundle.tar", "w") as opened:
        for member in members:
            opened.addfile(member, io.BytesIO(bytes(member.size)))
    return folder / "bundle.tar"


def member(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, 0 if kind != tarfile.REGTYPE else 8, "/etc/passwd"
    return info


HOSTILE = {
    "a link": (member("edgefleet-1.0-py3-none-any.whl", tarfile.SYMTYPE),),
    "a device": (member("edgefleet-1.0-py3-none-any.whl", tarfile.CHRTYPE),),
    "no wheel": (member("README"),),
    "the same twice": (member("a/edgefleet.whl"), member("b/edgefleet.whl")),
    "nothing": (),
}


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE)
def test_a_bundle_holds_wheels_and_nothing_else(tmp_path: Path, members: tuple[tarfile.TarInfo, ...]) -> None:
    bundle = tape(tmp_path, *members)
    with pytest.raises(InputError, match=r"reading the bundle .*bundle\.tar"), wheels.folder_of(bundle, tmp_path / "o"):
        pytest.fail("it was unpacked")
    assert list((tmp_path / "o").iterdir()) == []


@pytest.mark.parametrize("name", ["bundle.tar", "bundle.tar.gz", "bundle.zip"])
def test_every_kind_of_bundle_gives_its_wheels(tmp_path: Path, name: str) -> None:
    """A plain tape that ends with a wheel looks like a zip file to whoever begins at its end."""
    packed = [write_wheel(tmp_path / "wheels", version) for version in ("1.0", "2.0")]
    if name.endswith("zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for wheel in packed:
                archive.write(wheel, wheel.name)
    else:
        with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as opened:
            for wheel in packed:
                opened.add(wheel, wheel.name)
    with wheels.folder_of(tmp_path / name, tmp_path / "opt") as found:
        assert found is not None
        assert {path.name: path.read_bytes() for path in found.iterdir()} == {
            wheel.name: wheel.read_bytes() for wheel in packed
        }


def test_a_wheel_that_would_leave_the_folder_stays_in_it(tmp_path: Path) -> None:
    bundle = tape(tmp_path, member("../../../edgefleet-1.0-py3-none-any.whl"))
    with wheels.folder_of(bundle, tmp_path / "opt") as found:
        assert found is not None
        assert [path.name for path in found.iterdir()] == ["edgefleet-1.0-py3-none-any.whl"]
    assert list((tmp_path / "opt").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no archive at all"])
def test_a_file_that_is_no_bundle_says_what_one_is(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bundle").write_bytes(content)
    with pytest.raises(InputError, match="give a folder of wheels"), wheels.folder_of(tmp_path / "bundle", tmp_path):
        pytest.fail("it was unpacked")


def test_a_bundle_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"), wheels.folder_of(tmp_path / "bundle.tar", tmp_path):
        pytest.fail("it was unpacked")


def test_the_probe_of_this_version_answers_as_the_one_before_asks(tmp_path: Path) -> None:
    """The real one, in this environment: its name and its line are a contract between versions."""
    settings = Path(__file__).parents[2] / "agent" / "edgefleet-agent.toml"
    arguments = [sys.executable, "-m", "edgefleet_agent.host.probe"]
    good = run_program([*arguments, str(settings)], 60)
    assert good.returncode == 0, good.stderr
    assert json.loads(good.stdout).keys() == {"version", "runtimes"}
    (tmp_path / "bad.toml").write_text('profile = "raspberry-pi-5"\nnew_option = 1\n')
    bad = run_program([*arguments, str(tmp_path / "bad.toml")], 60)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert "reading the agent's settings" in bad.stderr
