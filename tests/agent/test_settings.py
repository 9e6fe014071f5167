"""The agent's settings: valid, or one line about what is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgefleet.errors import InputError
from edgefleet_agent import facts
from edgefleet_agent.settings import load

SHIPPED = Path(__file__).parents[2] / "agent" / "edgefleet-agent.toml"
GOOD = """
fleet = "home"
device = "pi-kitchen"
profile = "raspberry-pi-5"
state_folder = "state"
[broker]
host = "127.0.0.1"
[source]
kind = "replay"
path = "inputs.npz"
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "agent.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_shipped_file_is_valid_and_shows_the_defaults(tmp_path: Path) -> None:
    shipped = load(SHIPPED)
    assert (shipped.fleet, shipped.device) == ("home", "pi-kitchen")
    assert shipped.state_folder == Path("/var/lib/edgefleet")
    assert shipped.root == Path("/")
    shortest = load(write(tmp_path, GOOD))
    assert (shipped.broker, shipped.telemetry) == (shortest.broker, shortest.telemetry)
    assert shipped.source.rate_per_s == shortest.source.rate_per_s
    assert "# root" in SHIPPED.read_text()


def test_every_key_of_the_shipped_file_is_explained() -> None:
    lines = [line for line in SHIPPED.read_text().splitlines() if re.match(r"\w+ = ", line)]
    unexplained = [line for line in lines if "#" not in line]
    assert [line.split(" = ")[0] for line in unexplained] == ["host", "port", "rate_per_s"]


def test_relative_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    write(tmp_path / "etc", GOOD)
    monkeypatch.chdir(tmp_path)
    found = load(Path("etc/agent.toml"))
    assert found.state_folder == Path("etc/state")
    assert found.source.path == Path("etc/inputs.npz")
    absolute = GOOD.replace('"state"', '"/var/lib/x"').replace('"inputs.npz"', '"/srv/x.npz"')
    found = load(write(tmp_path / "etc", absolute))
    assert (found.state_folder, found.source.path) == (Path("/var/lib/x"), Path("/srv/x.npz"))


def test_a_relative_root_is_relative_to_the_file_too(tmp_path: Path) -> None:
    """The shipped file says `Relative paths are relative to this file` of all of them."""
    assert load(write(tmp_path, 'root = "tree"\n' + GOOD)).root == tmp_path / "tree"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"home"', '"Home"', "fleet"),
        ('"home"', '"a/b"', "fleet"),
        ('"home"', '"home\\n"', "fleet"),
        ('"home"', "7", "fleet"),
        ('fleet = "home"', "", "fleet: Field required"),
        ('"pi-kitchen"', '"pi kitchen"', "device"),
        ('"pi-kitchen"', '""', "device"),
        ('"pi-kitchen"', f'"{"p" * 64}"', "device"),
        ('"pi-kitchen"', '"+"', "device"),
        ('host = "127.0.0.1"', "", "broker.host"),
        ('host = "127.0.0.1"', 'host = "x"\nport = 0', "broker.port"),
        ('host = "127.0.0.1"', 'host = "x"\nport = 65536', "broker.port"),
        ('host = "127.0.0.1"', 'host = "x"\nport = "mqtt"', "broker.port"),
        ('host = "127.0.0.1"', 'host = "x"\ntls = true', "broker.tls"),
        ('"replay"', '"camera"', "source.kind"),
        ('path = "inputs.npz"', "", "source.path"),
        ('path = "inputs.npz"', 'path = "x"\nrate_per_s = 0', "source.rate_per_s"),
        ('path = "inputs.npz"', 'path = "x"\nrate_per_s = inf', "source.rate_per_s"),
        ('path = "inputs.npz"', 'path = "x"\nrate_per_s = nan', "source.rate_per_s"),
        ('path = "inputs.npz"', 'path = "x"\n[telemetry]\nwindow_s = 0.1', "telemetry.window_s"),
        ('path = "inputs.npz"', 'path = "x"\n[telemetry]\nwindow_s = nan', "telemetry.window_s"),
        ('path = "inputs.npz"', 'path = "x"\n[telemetry]\nspool_messages = 9', "telemetry.spool_messages"),
        ('fleet = "home"', 'fleet = "home"\ncolour = "red"', "colour"),
        ("[broker]", "[broker", "it is not TOML"),
        ('fleet = "home"', 'fleet = "home"\nfleet = "home"', "it is not TOML"),
    ],
)
def test_a_bad_value_is_one_line_that_names_it(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(InputError) as caught:
        load(path)
    assert said in caught.value.found
    assert str(path) in caught.value.doing
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'fleet = "\xe4"', b"\0", b"[[fleet]]"])
def test_a_file_of_another_kind_is_one_line(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError) as caught:
        load(write(tmp_path, content))
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_missing_or_a_folder_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.toml", tmp_path / "none" / "x.toml"):
        with pytest.raises(InputError):
            load(path)


def test_the_servers_name_is_no_devices_name(tmp_path: Path) -> None:
    """With it an agent would take the server's place at the broker, rights and all."""
    with pytest.raises(InputError):
        load(write(tmp_path, GOOD.replace("pi-kitchen", "edgefleet-server")))
    assert load(write(tmp_path, GOOD.replace("pi-kitchen", "edgefleet-server-2"))).device == "edgefleet-server-2"


def test_the_servers_name_is_no_fleets_name_either(tmp_path: Path) -> None:
    """The server refuses it; an agent that took it would wait for ever."""
    with pytest.raises(InputError):
        load(write(tmp_path, GOOD.replace('"home"', '"edgefleet-server"')))


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(write(tmp_path, GOOD)).fleet = "other"  # type: ignore[misc]


def test_an_unknown_profile_is_one_line_with_those_there_are() -> None:
    with pytest.raises(InputError, match=r"'pi' is not a device profile; there are: .*raspberry-pi-5") as caught:
        facts.load_profile("pi")
    assert len(str(caught.value).splitlines()) == 1


def test_facts_say_simulated_on_another_board_and_without_a_boot_id_unknown(tmp_path: Path) -> None:
    profile = facts.load_profile("raspberry-pi-5")
    found = facts.gather(tmp_path, profile, "e1", 4)
    assert found.simulated
    assert found.simulated_reason
    assert (found.boot_id, found.connection, found.enrolment_id) == ("unknown", 4, "e1")
    (tmp_path / "proc/sys/kernel/random").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/random/boot_id").write_text("0f0f\n")
    assert facts.boot_id(tmp_path) == "0f0f"
