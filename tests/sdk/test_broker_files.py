"""The broker's folder: what is written, for whom, and how a broker is told; a process of ours stands in for it.

On a real broker: tests/fleet/test_broker_access.py.
"""

from __future__ import annotations

import configparser
import getpass
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509

from edgefleet.cli.broker import app
from edgefleet.errors import InputError, TransportError
from edgefleet.protocol.topics import SERVER_USER
from edgefleet.trust import broker, pki
from edgefleet.trust.certificates import hosts_of, make_key_and_csr

NOW = datetime(2026, 11, 21, tzinfo=UTC).timestamp()
HOSTS = ["broker.lan", "192.168.1.7"]
# It answers each reload on its output, and writes its pid file when it is ready.
STAND_IN = """
import os, pathlib, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
pathlib.Path("/proc/self/comm").write_text(sys.argv[2])
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
print("ready", flush=True)
while True:
    signal.sigwait([signal.SIGHUP])
    print("reloaded", flush=True)
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    pki.create_fleet_pki(tmp_path / "keys", tmp_path / "data", "home", now=NOW)
    (tmp_path / "data" / "fleet.json").write_text('{"fleet": "home"}')
    return tmp_path / "data"


@pytest.fixture
def folder(data: Path, tmp_path: Path) -> Path:
    made = tmp_path / "broker"
    broker.write(data, made, "home", hosts=HOSTS, port=8883, user=getpass.getuser(), now=NOW)
    return made


@pytest.fixture
def stand_in(folder: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    name = getattr(request, "param", "mosquitto")
    command = [sys.executable, "-c", STAND_IN, str(folder / broker.PID_FILE), name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_the_folder_holds_all_that_the_configuration_names(data: Path, folder: Path) -> None:
    lines = dict(
        line.split(" ", 1) for line in (folder / "mosquitto.conf").read_text().splitlines() if not line.startswith("#")
    )
    for option in ("cafile", "certfile", "keyfile", "crlfile", "acl_file", "persistence_location"):
        assert Path(lines[option]).exists(), option
        assert Path(lines[option]).is_absolute()
        assert Path(lines[option]).is_relative_to(folder)
    for private in (lines["keyfile"], lines["acl_file"]):
        assert stat.S_IMODE(Path(private).stat().st_mode) == 0o600
    for name in ("broker.crt", f"{SERVER_USER}.crt"):
        certificate = x509.load_pem_x509_certificate((data / "pki" / name).read_bytes())
        assert hosts_of(certificate) == HOSTS


def test_the_service_starts_what_was_written(folder: Path) -> None:
    service = configparser.ConfigParser(strict=False, interpolation=None)
    service.read(folder / "service.conf")
    assert service["Service"]["ExecStart"] == f"/usr/sbin/mosquitto -c {folder / 'mosquitto.conf'}"
    lines = (folder / "service.conf").read_text().splitlines()
    # systemd adds to the unit's own command unless it is emptied first.
    assert lines[:2] == ["[Service]", "ExecStart="]


def test_the_folder_is_the_brokers_users(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--user"):
        broker.write(data, tmp_path / "x", "home", hosts=HOSTS, port=8883, user="no-such-user", now=NOW)
    assert not (tmp_path / "x").exists()


def test_a_revocation_comes_to_the_broker_and_reloads_it(
    data: Path, folder: Path, stand_in: subprocess.Popen[str]
) -> None:
    pki.issue_device(data, make_key_and_csr("pi")[1], "home", "pi", "0" * 16, NOW)
    pki.revoke(data, "pi", NOW)
    assert (folder / "crl.pem").read_bytes() != (data / "pki" / "crl.pem").read_bytes()
    for _ in range(2):
        assert broker.refresh(data, NOW) is None
        assert stand_in.stdout is not None
        assert stand_in.stdout.readline() == "reloaded\n"
    assert (folder / "crl.pem").read_bytes() == (data / "pki" / "crl.pem").read_bytes()


@pytest.mark.parametrize("stand_in", ["postgres"], indirect=True)
def test_a_stale_pid_file_signals_nobody_else(data: Path, stand_in: subprocess.Popen[str]) -> None:
    undone = broker.refresh(data, NOW)
    assert undone is not None
    assert "no broker runs" in undone
    stand_in.send_signal(signal.SIGKILL)
    assert stand_in.stdout is not None
    assert stand_in.stdout.read() == ""


def test_the_brokers_certificate_is_renewed_before_its_end(data: Path, folder: Path) -> None:
    before = (folder / "broker.crt").read_bytes()
    broker.refresh(data, NOW + 669 * 86400)
    assert (folder / "broker.crt").read_bytes() == before
    broker.refresh(data, NOW + 670 * 86400)
    renewed = x509.load_pem_x509_certificate((folder / "broker.crt").read_bytes())
    assert renewed.not_valid_after_utc.timestamp() == NOW + (670 + 730) * 86400
    assert hosts_of(renewed) == HOSTS


def test_a_reload_command_says_what_went_wrong(data: Path, tmp_path: Path) -> None:
    mark = tmp_path / "a mark"
    for command, said in (
        (f"touch '{mark}'", None),
        ("ls /no/such/folder", "/no/such/folder"),
        ("/no/such/program --now", "No such file"),
    ):
        broker.write(
            data, tmp_path / "b", "home", hosts=HOSTS, port=8883, user=getpass.getuser(), now=NOW,
            reload_command=command,
        )  # fmt: skip
        undone = broker.refresh(data, NOW)
        assert (undone is None) == (said is None)
        assert said is None or (said in str(undone) and str(undone).endswith(command))
    assert mark.exists()


def test_without_a_broker_the_way_of_the_list_is_told(data: Path) -> None:
    undone = broker.refresh(data, NOW)
    assert undone is not None
    assert str(data / "pki" / "crl.pem") in undone
    done = CliRunner().invoke(app, ["reload", "--data", str(data)])
    assert isinstance(done.exception, TransportError)


def test_a_damaged_memory_of_the_broker_is_one_line(data: Path, folder: Path) -> None:
    shutil.rmtree(folder)
    (data / broker.CONTROL_FILE).write_text("{")
    with pytest.raises(InputError, match="broker config again"):
        broker.refresh(data, NOW)


def test_the_command_writes_the_same(data: Path, tmp_path: Path) -> None:
    common = ["config", "--data", str(data), "-o", str(tmp_path / "c"), "--user", getpass.getuser()]
    done = CliRunner().invoke(app, [*common, "--host", "broker.lan", "--port", "1234", "--listen", "10.0.0.1"])
    assert done.exception is None
    assert "listener 1234 10.0.0.1" in (tmp_path / "c" / "mosquitto.conf").read_text()
    assert str(tmp_path / "c" / "mosquitto.conf") in done.output


def test_an_address_that_is_none_changes_nothing(data: Path, tmp_path: Path) -> None:
    common = ["config", "--data", str(data), "-o", str(tmp_path / "c"), "--user", getpass.getuser()]
    done = CliRunner().invoke(app, [*common, "--listen", "10.0.0.1\nallow_anonymous true"])
    assert isinstance(done.exception, InputError)
    assert not (tmp_path / "c").exists()
    common[4] = str(tmp_path / "c\nallow_anonymous true")
    assert isinstance(CliRunner().invoke(app, common).exception, InputError)
    assert not (data / broker.CONTROL_FILE).exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("c")]


def test_without_tls_there_is_no_host_but_this_one(data: Path, tmp_path: Path) -> None:
    common = ["config", "--data", str(data), "-o", str(tmp_path / "c"), "--user", getpass.getuser(), "--no-tls"]
    assert CliRunner().invoke(app, [*common, "--host", "broker.lan"]).exit_code == 2
    done = CliRunner().invoke(app, common)
    assert done.exception is None
    assert "listener 1883 127.0.0.1" in (tmp_path / "c" / "mosquitto.conf").read_text()
    assert not (data / broker.CONTROL_FILE).exists()
