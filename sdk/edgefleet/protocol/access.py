"""mosquitto's configuration and access list, generated from the topic table.

It makes no certificate and starts no broker. Identity is the certificate's common name, which becomes user name and
client id; without TLS it is the user name that a client gives itself, on loopback only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgefleet.protocol.topics import HUB_USERS, PREFIX, SERVER_USER, SHARDS, TOPICS, Role

REMOVAL_USER = "edgefleet-removal"
"""Clears the retained topics of a device that leaves the fleet, and reads them to see that it is done; it holds a
certificate for an hour only.
"""
MAX_PACKET_BYTES = 65536
"""A block of 60 KiB and its topic fit; so does every message of the wire."""

_WILDCARDS = {"device": "+", "shard": "+", "sha12": "+", "n": "+"}
# The server may do all that a hub may.
_ROLES_OF = {SERVER_USER: (Role.SERVER, Role.HUB), **dict.fromkeys(HUB_USERS, (Role.HUB,))}

_COMMON = f"""\
# Without it a request and its answer take 88 ms instead of 0.35 ms.
set_tcp_nodelay true
max_inflight_messages 100
# What a server that stands still for a while may miss; beyond it even QoS 1 is dropped.
max_queued_messages 10000
max_queued_bytes 67108864
max_packet_size {MAX_PACKET_BYTES}
# Blocks are asked for again by a device that comes back; a queue of them would only grow.
queue_qos0_messages false
# Agents and hubs keep no session; this is for the server's own, which waits for what devices report.
persistent_client_expiration 8d
log_type error
log_type warning
log_type notice
"""

# mosquitto takes memory for each packet and gives it back; by default glibc hands 60 KiB to the kernel and gets them
# anew each time. With some at hand a block over TLS takes the broker a third less time.
SERVICE_ENVIRONMENT = {"MALLOC_TOP_PAD_": 1024 * 1024, "MALLOC_TRIM_THRESHOLD_": 4 * 1024 * 1024}
# Each connection takes a file descriptor.
_SERVICE_FILES = 16384


@dataclass(frozen=True, slots=True)
class BrokerFiles:
    """The broker's TLS files, PEM, as its own user can read them."""

    ca_file: Path
    """The authorities that sign clients: the issuing one and the root."""
    certificate_file: Path
    key_file: Path
    crl_file: Path


def access_list(fleet: str) -> str:
    """acl_file for one fleet: the server's own users by name, every device by pattern (`%u` is its own user name).

    Enrolling a device changes nothing here.
    """
    sections = [[f"user {user}", *_service_lines(fleet, roles)] for user, roles in _ROLES_OF.items()]
    retained = [row.pattern.format(**_WILDCARDS) for row in TOPICS.values() if row.retained]
    sections.append([f"user {REMOVAL_USER}", *(f"topic readwrite {PREFIX}/{fleet}/{pattern}" for pattern in retained)])
    sections.append(list(_device_lines(fleet)))
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _service_lines(fleet: str, roles: tuple[Role, ...]) -> Iterator[str]:
    for row in TOPICS.values():
        verb = "write" if row.writer in roles else "read"
        if row.writer in roles or row.reader in roles:
            yield f"topic {verb} {PREFIX}/{fleet}/{row.pattern.format(**_WILDCARDS)}"


def _device_lines(fleet: str) -> Iterator[str]:
    for row in TOPICS.values():
        verb = "write" if row.writer is Role.DEVICE else "read"
        # Where a device may write, every level is spelled out: a wildcard would let it have any number of topics, and
        # the broker keep a retained message for each.
        for shard in range(SHARDS) if "{shard}" in row.pattern else ("",):
            pattern = row.pattern.format(**_WILDCARDS | {"device": "%u", "shard": shard})
            yield f"pattern {verb} {PREFIX}/{fleet}/{pattern}"


def mosquitto_configuration(
    *, port: int, access_list_file: Path, user: str, tls: BrokerFiles | None = None, host: str | None = None,
    persistence_folder: Path | None = None, pid_file: Path | None = None,
) -> str:  # fmt: skip
    """mosquitto.conf (2.0 and later) for one machine; `user` is the system's account that it runs as.

    With `tls` it listens on `host` (None: on every interface) and takes nobody without a certificate of this fleet
    that is not revoked. Without, it listens on 127.0.0.1 only and believes the user name. `persistence_folder` keeps
    what waits for the server across a restart of the broker; retained messages are a cache and need no keeping.
    """
    listener = _open_listener(port) if tls is None else _tls_listener(port, host, tls)
    persistence = ["persistence false"]
    if persistence_folder is not None:
        # A killed broker forgets at most a minute; what the store has not acknowledged comes again.
        persistence = ["persistence true", f"persistence_location {persistence_folder}/", "autosave_interval 60"]
    lines = [
        "# Made by edgefleet from its topic table: make it anew instead of editing it.",
        "per_listener_settings false",
        *listener,
        f"acl_file {access_list_file}",
        *_COMMON.splitlines(),
        *persistence,
        *([] if pid_file is None else [f"pid_file {pid_file}"]),
        f"user {user}",
        "log_dest stderr",
    ]
    return "\n".join(lines) + "\n"


def mosquitto_service(configuration_file: Path) -> str:
    """What systemd's unit of mosquitto needs beside its own lines, as a drop-in file."""
    return "\n".join([
        "[Service]",
        "ExecStart=",
        f"ExecStart=/usr/sbin/mosquitto -c {configuration_file}",
        f"LimitNOFILE={_SERVICE_FILES}",
        *(f"Environment={name}={value}" for name, value in SERVICE_ENVIRONMENT.items()),
        "",
    ])  # fmt: skip


def _open_listener(port: int) -> list[str]:
    return [f"listener {port} 127.0.0.1", "allow_anonymous true", "use_username_as_clientid true"]


def _tls_listener(port: int, host: str | None, tls: BrokerFiles) -> list[str]:
    return [
        f"listener {port}" if host is None else f"listener {port} {host}",
        "allow_anonymous false",
        "tls_version tlsv1.2",
        f"cafile {tls.ca_file}",
        f"certfile {tls.certificate_file}",
        f"keyfile {tls.key_file}",
        # Read again on SIGHUP; a broker that finds it expired refuses everybody.
        f"crlfile {tls.crl_file}",
        "require_certificate true",
        "use_identity_as_username true",
        # The identity alone does not bind the client id: without this one device could evict another.
        "use_username_as_clientid true",
    ]
