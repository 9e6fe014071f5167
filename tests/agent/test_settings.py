"""The agent's settings: valid, or one line about what is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgefleet.errors import InputError
from edgefleet_agent import facts
from edgefleet_agent.settings import load
from edgefleet_agent.source_settings import FolderSource, JsonlSink, MqttSink, ReplaySource

SHIPPED = Path(__file__).parents[2] / "agent" / "edgefleet-agent.toml"
GOOD = """
profile = "raspberry-pi-5"
state_folder = "state"
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
    assert shipped.identity == SHIPPED.parent / "identity"
    assert shipped.state_folder == Path("/var/lib/edgefleet")
    assert shipped.root == Path("/")
    shortest = load(write(tmp_path, GOOD))
    assert (shipped.broker, shipped.telemetry) == (shortest.broker, shortest.telemetry)
    assert shipped.download == shortest.download
    assert shortest.identity == tmp_path / "identity"
    assert isinstance(shipped.source, ReplaySource)
    assert isinstance(shortest.source, ReplaySource)
    assert shipped.source.rate_per_s == shortest.source.rate_per_s
    assert "# root" in SHIPPED.read_text()


def test_every_key_of_the_shipped_file_is_explained() -> None:
    lines = [line for line in SHIPPED.read_text().splitlines() if re.match(r"\w+ = ", line)]
    unexplained = [line for line in lines if "#" not in line]
    assert [line.split(" = ")[0] for line in unexplained] == ["rate_per_s"]


def test_relative_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    write(tmp_path / "etc", GOOD)
    monkeypatch.chdir(tmp_path)
    found = load(Path("etc/agent.toml"))
    assert found.state_folder == Path("etc/state")
    assert found.identity == Path("etc/identity")
    assert isinstance(found.source, ReplaySource)
    assert found.source.path == Path("etc/inputs.npz")
    absolute = GOOD.replace('"state"', '"/var/lib/x"').replace('"inputs.npz"', '"/srv/x.npz"')
    found = load(write(tmp_path / "etc", absolute))
    assert isinstance(found.source, ReplaySource)
    assert (found.state_folder, found.source.path) == (Path("/var/lib/x"), Path("/srv/x.npz"))


def test_a_source_is_optional_and_sinks_are_as_many_as_asked_for(tmp_path: Path) -> None:
    plain = load(write(tmp_path, GOOD.partition("[source]")[0]))
    assert (plain.source, plain.sinks) == (None, ())
    more = """[[sinks]]
kind = "jsonl"
path = "results.jsonl"
[[sinks]]
kind = "mqtt"
topic = "home/results"
broker = { user = "pi", password_file = "secret" }
"""
    found = load(write(tmp_path, GOOD.replace("replay", "folder") + more))
    assert isinstance(found.source, FolderSource)
    assert found.source.path == tmp_path / "inputs.npz"
    lines, topic = found.sinks
    assert isinstance(lines, JsonlSink)
    assert lines.path == tmp_path / "results.jsonl"
    assert isinstance(topic, MqttSink)
    assert topic.broker.password_file == tmp_path / "secret"
    assert (topic.broker.host, topic.broker.port) == ("127.0.0.1", 1883)


def test_a_relative_root_is_relative_to_the_file_too(tmp_path: Path) -> None:
    """The shipped file says `Relative paths are relative to this file` of all of them."""
    assert load(write(tmp_path, 'root = "tree"\n' + GOOD)).root == tmp_path / "tree"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('profile = "raspberry-pi-5"', "", "profile: Field required"),
        ('profile = "raspberry-pi-5"', "profile = 7", "profile"),
        ('state_folder = "state"', "", "state_folder: Field required"),
        ('state_folder = "state"', 'state_folder = "state"\nidentity = 7', "identity"),
        ('state_folder = "state"', 'state_folder = "state"\ndevice = "pi-kitchen"', "device: Extra inputs"),
        ("[source]", '[broker]\nhost = ""\n[source]', "broker.host"),
        ("[source]", "[broker]\nport = 0\n[source]", "broker.port"),
        ("[source]", "[broker]\nport = 65536\n[source]", "broker.port"),
        ("[source]", '[broker]\nport = "mqtt"\n[source]', "broker.port"),
        ("[source]", "[broker]\ntls = true\n[source]", "broker.tls"),
        ("[source]", '[download]\nhttp = "always"\n[source]', "download.http"),
        ("[source]", '[download]\nbase_url = "ftp://x"\n[source]', "download.base_url"),
        ("[source]", '[download]\nbase_url = "http://a b"\n[source]', "download.base_url"),
        ('"replay"', '"thermometer"', "source: Input tag 'thermometer'"),
        ('"replay"', '"camera"', "source.camera.path: Extra inputs"),
        ('"replay"', '"mqtt"', "source.mqtt.topic: Field required"),
        ('"replay"', '"folder"\nafter = "move"', "source.folder.after"),
        ('path = "inputs.npz"', "", "source.replay.path"),
        ('path = "inputs.npz"', 'path = "x"\nrate_per_s = 0', "source.replay.rate_per_s"),
        ('path = "inputs.npz"', 'path = "x"\nrate_per_s = inf', "source.replay.rate_per_s"),
        ('path = "inputs.npz"', 'path = "x"\nrate_per_s = nan', "source.replay.rate_per_s"),
        ("[source]", '[[sinks]]\nkind = "jsonl"\n[source]', "sinks.0.jsonl.path"),
        ("[source]", '[[sinks]]\nkind = "mqtt"\ntopic = "home/#"\n[source]', "sinks.0.mqtt.topic"),
        ('path = "inputs.npz"', 'path = "x"\n[telemetry]\nwindow_s = 0.1', "telemetry.window_s"),
        ('path = "inputs.npz"', 'path = "x"\n[runtime]\nthreads = 0', "runtime.threads"),
        ('path = "inputs.npz"', 'path = "x"\n[runtime]\nproviders = []', "runtime.providers"),
        ('path = "inputs.npz"', 'path = "x"\n[runtime]\ndevice = "gpu"', "runtime.device"),
        ('path = "inputs.npz"', 'path = "x"\n[runtime]\nprecision_hint = "int8"', "runtime.precision_hint"),
        ('path = "inputs.npz"', 'path = "x"\n[worker]\nmemory_mb = 1', "worker.memory_mb"),
        ('path = "inputs.npz"', 'path = "x"\n[worker]\nswap = "cold"', "worker.swap"),
        ('path = "inputs.npz"', 'path = "x"\n[telemetry]\nwindow_s = nan', "telemetry.window_s"),
        ('path = "inputs.npz"', 'path = "x"\n[telemetry]\nspool_mb = 1', "telemetry.spool_mb"),
        ('path = "inputs.npz"', 'path = "x"\n[telemetry]\nreplay_per_s = 0', "telemetry.replay_per_s"),
        ("[source]", "[colours]\nred = 1\n[source]", "colours"),
        ("[source]", "[source", "it is not TOML"),
        ("[source]", 'profile = "a"\n[source]', "it is not TOML"),
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


def test_a_broker_reached_by_another_way_overrides_host_or_port_or_both(tmp_path: Path) -> None:
    found = load(write(tmp_path, GOOD + "[broker]\nport = 8884\n")).broker
    assert (found.host, found.port) == (None, 8884)


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(write(tmp_path, GOOD)).profile = "other"  # type: ignore[misc]


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
