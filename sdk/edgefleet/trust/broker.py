"""The broker's folder: configuration, access list, certificate and revocation list, and telling it to read them again.

The broker itself is a system service that others install and start. It gets copies, because it runs as a user of its
own; a broker on another machine gets the folder by hand, and again after each revocation.
"""

from __future__ import annotations

import getpass
import os
import pwd
import shlex
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from edgefleet.durable import write_file, write_private
from edgefleet.errors import InputError
from edgefleet.protocol.access import BrokerFiles, access_list, mosquitto_configuration, mosquitto_service
from edgefleet.protocol.topics import SERVER_USER
from edgefleet.trust import pki
from edgefleet.trust.certificates import host_name
from edgefleet.trust.issued import CRL_FILE
from edgefleet.trust.pki_folder import folder_of, locked, translated

CONTROL_FILE = "broker.json"
CONFIGURATION_FILE = "mosquitto.conf"
SERVICE_FILE = "service.conf"
ACCESS_FILE = "access.acl"
PID_FILE = "mosquitto.pid"
STATE_FOLDER = "state"
MOSQUITTO_USER = "mosquitto"
RELOAD_TIMEOUT_S = 20.0
_KEY_FILE = f"{pki.BROKER}.key"
_COPIES = (pki.CHAIN_FILE, f"{pki.BROKER}.crt", _KEY_FILE, CRL_FILE)


class BrokerControl(BaseModel):
    """How this server reaches the broker's files and process."""

    model_config = ConfigDict(frozen=True)

    folder: Path
    user: str
    reload_command: str | None = None
    """Instead of SIGHUP to the process of the pid file."""
    pid_file: Path


def default_user() -> str:
    """The account that mosquitto runs as: started by root it becomes `mosquitto`, else it stays who starts it."""
    if os.geteuid() != 0:
        return getpass.getuser()
    return MOSQUITTO_USER if _account(MOSQUITTO_USER) else "root"


def write_open(folder: Path, fleet: str, *, port: int, user: str) -> Path:
    """Write a configuration without certificates, on loopback only; returns mosquitto.conf."""
    with translated(folder):
        access = _make_folder(folder, fleet, user)
        text = mosquitto_configuration(port=port, access_list_file=access, user=user, pid_file=access.parent / PID_FILE)
        return _write_configuration(access.parent, text)


def write(
    data: Path, folder: Path, fleet: str, *, hosts: Sequence[str], port: int, user: str, now: float,
    listen: str | None = None, reload_command: str | None = None,
) -> Path:  # fmt: skip
    """Write the folder of a broker with certificates, and remember it in DATA/broker.json; returns mosquitto.conf.

    `hosts` are the names and addresses by which devices reach it; the server's own certificate gets the same. Raises
    InputError (a host or an account that is none), TrustError and StorageError.
    """
    if listen is not None:
        host_name(listen)
    for name in (pki.BROKER, SERVER_USER):
        pki.ensure_service(data, name, now, hosts)
    with translated(folder):
        return _write(data, folder, fleet, port, user, listen, reload_command)


def _write(
    data: Path, folder: Path, fleet: str, port: int, user: str, listen: str | None, reload_command: str | None
) -> Path:
    access = _make_folder(folder, fleet, user)
    folder = access.parent
    control = BrokerControl(folder=folder, user=user, reload_command=reload_command, pid_file=folder / PID_FILE)
    _copy(data, control)
    text = mosquitto_configuration(
        port=port,
        host=listen,
        access_list_file=access,
        user=user,
        tls=BrokerFiles(*(folder / name for name in _COPIES)),
        persistence_folder=folder / STATE_FOLDER,
        pid_file=control.pid_file,
    )
    write_file(data / CONTROL_FILE, control.model_dump_json(indent=2).encode() + b"\n")
    return _write_configuration(folder, text)


def _write_configuration(folder: Path, text: str) -> Path:
    configuration = folder / CONFIGURATION_FILE
    write_file(folder / SERVICE_FILE, mosquitto_service(configuration).encode())
    write_file(configuration, text.encode())
    return configuration


def refresh(data: Path, now: float) -> str | None:
    """Renew the broker's certificate when it is due and bring all files to the broker; None when it was told.

    Otherwise one line that says what a person must do. Call it after each revocation, and daily.
    """
    pki.ensure_service(data, pki.BROKER, now)
    control = _read_control(data)
    if control is None:
        return (
            f"no broker is set up in {data} (edgefleet broker config): bring {folder_of(data) / CRL_FILE} to the "
            "broker and reload it"
        )
    _copy(data, control)
    # Also when nothing is new: an earlier try may have failed after the files were there.
    return _run(control.reload_command) if control.reload_command else _signal(control)


def _make_folder(folder: Path, fleet: str, user: str) -> Path:
    """The folder with its access list, readable by the broker's user; returns the list's absolute path."""
    if _account(user) is None:
        raise InputError(f"writing the broker's configuration to {folder}", f"there is no user {user}", "give --user")
    folder = folder.resolve()
    if not str(folder).isprintable():
        # mosquitto.conf is lines.
        raise InputError(
            "writing the broker's configuration", f"{str(folder)!r} cannot be printed", "name another folder"
        )
    for made in (folder, folder / STATE_FOLDER):
        made.mkdir(parents=True, exist_ok=True, mode=0o700)
        _give(made, user)
    write_private(folder / ACCESS_FILE, access_list(fleet).encode())
    _give(folder / ACCESS_FILE, user)
    return folder / ACCESS_FILE


def _copy(data: Path, control: BrokerControl) -> None:
    source = folder_of(data)
    # The server may do the same at this moment.
    with locked(source):
        for name in _COPIES:
            content = (source / name).read_bytes()
            target = control.folder / name
            if not target.exists() or target.read_bytes() != content:
                (write_private if name == _KEY_FILE else write_file)(target, content)
                _give(target, control.user)


def _signal(control: BrokerControl) -> str | None:
    process = _running(control.pid_file)
    if process is None:
        return f"no broker runs by {control.pid_file}: if one runs elsewhere, bring it {control.folder} and reload it"
    try:
        os.kill(process, signal.SIGHUP)
    except PermissionError:
        return f"this user may not reload the broker: run kill -HUP {process}"
    return None


def _running(pid_file: Path) -> int | None:
    """Number of the broker's process. A file that a dead broker left may name anybody's by now: it is looked at."""
    try:
        process = int(pid_file.read_text())
        name = Path(f"/proc/{process}/comm").read_text().strip()
    except (OSError, ValueError):
        return None
    return process if name == MOSQUITTO_USER else None


def _run(command: str) -> str | None:
    try:
        done = subprocess.run(
            shlex.split(command), capture_output=True, text=True, timeout=RELOAD_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the broker was not reloaded ({error}): run {command}"
    if done.returncode == 0:
        return None
    return f"the broker was not reloaded ({' '.join(done.stderr.split())[-200:]}): run {command}"


def _read_control(data: Path) -> BrokerControl | None:
    path = data / CONTROL_FILE
    try:
        return BrokerControl.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise InputError(f"reading {path}", "it is damaged", "run edgefleet broker config again") from error


def _account(user: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        return None


def _give(path: Path, user: str) -> None:
    """Make the broker's user the owner; only root can, and only root has to."""
    account = _account(user)
    if account is not None and os.geteuid() == 0:
        os.chown(path, account.pw_uid, account.pw_gid)
