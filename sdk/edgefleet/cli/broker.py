"""`edgefleet broker config|reload`: the configuration of the fleet's MQTT broker, made from the wire table.

It neither installs nor starts a broker; what the files say is decided in `protocol.access` and `trust.broker`.
"""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import click

from edgefleet.cli import options
from edgefleet.errors import TransportError


@click.group("broker")
def app() -> None:
    """Configure the MQTT broker of a fleet."""


@app.command("config")
@options.data
@click.option(
    "-o", "--output", "folder", type=click.Path(file_okay=False, path_type=Path), required=True,
    help="Folder for mosquitto.conf and the files that it names.",
)  # fmt: skip
@click.option(
    "--host", "hosts", multiple=True, metavar="HOST",
    help="A name or an address by which devices reach the broker; may be repeated. Default: localhost, 127.0.0.1.",
)  # fmt: skip
@click.option("--listen", metavar="ADDRESS", help="Listen on this address only. Default: on all.")
@click.option("--port", type=click.IntRange(1, 65535), help="Default: 8883, and 1883 with --no-tls.")
@click.option("--user", help="The account that mosquitto runs as. Default: mosquitto for root, else your own.")
@click.option("--reload-command", metavar="COMMAND", help="Reloads the broker. Default: SIGHUP by its pid file.")
@options.tls
def config(
    data: Path, folder: Path, hosts: tuple[str, ...], listen: str | None, port: int | None, user: str | None,
    reload_command: str | None, *, tls: bool,
) -> None:  # fmt: skip
    """Write mosquitto.conf, the access list and the broker's certificate."""
    from edgefleet.trust import broker, pki  # noqa: PLC0415
    from edgefleet.trust.setup import read_fleet  # noqa: PLC0415

    fleet, account = read_fleet(data), user or broker.default_user()
    if tls:
        path = broker.write(
            data, folder, fleet, hosts=hosts or pki.LOCAL_HOSTS, port=port or 8883, user=account, now=time.time(),
            listen=listen, reload_command=reload_command,
        )  # fmt: skip
    else:
        if hosts or listen or reload_command:
            raise click.UsageError("--no-tls listens on 127.0.0.1 and goes with --port and --user only")
        path = broker.write_open(folder, fleet, port=port or 1883, user=account)
    click.echo(f"wrote {path}; start the broker with: mosquitto -c {shlex.quote(str(path))}")


@app.command("reload")
@options.data
def reload(data: Path) -> None:
    """Bring the revocation list and a renewed certificate to the broker and make it read them."""
    from edgefleet.trust import broker  # noqa: PLC0415

    undone = broker.refresh(data, time.time())
    if undone is not None:
        raise TransportError("reloading the broker", undone.partition(": ")[0], undone.partition(": ")[2])
    click.echo("the broker's files are up to date")
