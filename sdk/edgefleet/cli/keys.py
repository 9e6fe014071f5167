"""`edgefleet keys init|add|rotate|revoke|status`: the fleet's keys, on the operator's machine.

It asks, calls and prints; what a change means and how it survives a power cut is `edgefleet.trust.rotation`'s.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click

from edgefleet.cli import options
from edgefleet.errors import InputError
from edgefleet.trust import pki, rotation
from edgefleet.trust.keys import PASSPHRASE_VARIABLE, KeyFolder, check_keys_folder, find_keys_folder
from edgefleet.trust.online import metadata_folder
from edgefleet.trust.repository import Repository
from edgefleet.trust.rotation import Ceremony
from edgefleet.trust.setup import init, read_fleet
from edgefleet.trust.status import RoleRow, rows, warnings


def _rotate_issuing(ceremony: Ceremony) -> None:
    fleet = read_fleet(ceremony.data)
    passphrase = ceremony.keys.unlock()
    pki.replace_issuing(ceremony.keys.folder, ceremony.data, fleet, now=ceremony.now, passphrase=passphrase)


ROTATIONS: Final[dict[str, tuple[Callable[[Ceremony], None], str]]] = {
    "root": (rotation.rotate_root, "new root keys: put them where the old ones were kept"),
    "targets": (rotation.rotate_targets, "a new targets key"),
    "release": (rotation.rotate_release, "a new release key; what was signed stays signed"),
    "online": (rotation.rotate_online, "a new online key; the server uses it from its next signature on"),
    "issuing": (_rotate_issuing, "new certificates; run: edgefleet broker reload, then enrol each device --again"),
    "dates": (rotation.renew_dates, "root, targets and packages hold for another year"),
}
COLUMNS: Final = ("ROLE", "KEYS", "KEY IDS", "NEEDED", "PRIVATE KEYS", "VERSION", "EXPIRES", "DAYS")


@click.group("keys")
def app() -> None:
    """Make, change and look at the fleet's keys."""


@app.command("init")
@click.option("--fleet", required=True, help="Name of the new fleet.")
@options.keys
@options.data
@click.option("--root-keys", default=3, show_default=True, help="How many root keys.")
@click.option("--root-threshold", default=2, show_default=True, help="How many of them must sign.")
@click.option("--operator", "operators", multiple=True, default=("default",), show_default=True, help="Repeatable.")
@click.option("--encrypt", is_flag=True, help=f"Encrypt the keys; passphrase from ${PASSPHRASE_VARIABLE} or asked.")
def init_(
    fleet: str,
    keys: Path | None,
    data: Path,
    root_keys: int,
    root_threshold: int,
    operators: tuple[str, ...],
    *,
    encrypt: bool,
) -> None:
    """Found a fleet: every key, the first metadata and the certificates."""
    made = KeyFolder(find_keys_folder(fleet, keys), _new_passphrase() if encrypt else None)
    init(fleet, made, data, root_keys=root_keys, root_threshold=root_threshold, operators=operators)
    click.echo(f"fleet {fleet}: private keys in {made.folder}, the server's folder in {data}")
    click.echo(
        f"Keep {made.folder} off the server, and move root-1.pem to root-{root_keys}.pem, targets.pem and root-ca.key"
        f" to a disk that is not connected: once a year they are needed back in {made.folder}."
    )


@app.command("add")
@click.argument("what", type=click.Choice(["operator"]))
@click.argument("name")
@options.keys
@options.data
def add(what: str, name: str, keys: Path | None, data: Path) -> None:  # noqa: ARG001 - one kind so far
    """Make a key for one more operator (needs targets)."""
    ceremony = _ceremony(data, keys)
    rotation.add_operator(ceremony, name)
    click.echo(f"operator {name}: {ceremony.keys.path('operator-' + name)}; devices know it from now on")


@app.command("rotate")
@click.argument("what", type=click.Choice([*ROTATIONS, "operator"]))
@click.argument("name", required=False)
@options.keys
@options.data
def rotate(what: str, name: str | None, keys: Path | None, data: Path) -> None:
    """Replace keys by new ones, or sign everything again with new dates."""
    ceremony = _ceremony(data, keys)
    _need_name(what, name)
    if what == "operator" and name:
        rotation.rotate_operator(ceremony, name)
        click.echo(f"operator {name}: a new key; deployments of the old one are begun no more")
        return
    change, text = ROTATIONS[what]
    change(ceremony)
    click.echo(f"{what}: {text}")


@app.command("revoke")
@click.argument("what", type=click.Choice(["operator", "release"]))
@click.argument("name", required=False)
@click.option("--keep", multiple=True, metavar="NAME@VERSION", help="Of release: sign this one anew. Repeatable.")
@options.keys
@options.data
def revoke(what: str, name: str | None, keep: tuple[str, ...], keys: Path | None, data: Path) -> None:
    """Distrust a key from now on: an operator's, or the release key, which is made anew."""
    ceremony = _ceremony(data, keys)
    _need_name(what, name)
    if what == "release":
        dropped = rotation.revoke_release(ceremony, keep)
        click.echo(f"release: a new key; kept {', '.join(keep) or 'nothing'}; publish again what you trust of: "
                   f"{', '.join(dropped) or 'nothing was dropped'}")  # fmt: skip
    elif name:
        left = rotation.revoke_operator(ceremony, name)
        click.echo(f"operator {name}: revoked; {left} operator(s) left")
        if not left:
            click.echo("nobody can deploy now: run edgefleet keys add operator NAME", err=True)


@app.command("status")
@options.keys
@options.data
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(keys: Path | None, data: Path, *, as_json: bool) -> None:
    """Show who signs what until when; exit status 1 when something has expired."""
    now = time.time()
    fleet = read_fleet(data)
    table = rows(data, KeyFolder(find_keys_folder(fleet, keys)))
    expiries = [*Repository(metadata_folder(data)).expiries(), *pki.expiries(data)]
    lines = warnings(expiries, now)
    if as_json:
        click.echo(json.dumps(_document(fleet, table, expiries, lines), indent=2))
    else:
        click.echo(f"fleet {fleet}\n")
        click.echo(_text([COLUMNS, *(_cells(row, now) for row in table)]))
        click.echo()
        certificates = [(what, _day(at), _days(at, now)) for what, at in pki.expiries(data)]
        click.echo(_text([("CERTIFICATES", "EXPIRES", "DAYS"), *certificates]))
        for line in lines:
            click.echo(f"warning: {line}", err=True)
    if any(at <= now for _, at in expiries):
        raise SystemExit(1)


def _ceremony(data: Path, keys: Path | None) -> Ceremony:
    fleet = read_fleet(data)
    folder = find_keys_folder(fleet, keys)
    check_keys_folder(folder, data)
    if not folder.is_dir():
        raise InputError(f"opening the keys of fleet {fleet}", f"there is no folder {folder}", "name it with --keys")
    if (other := read_fleet(folder)) != fleet:
        raise InputError(
            f"opening the keys of fleet {fleet}", f"{folder} holds those of {other}", "name its folder with --keys"
        )
    return rotation.ceremony_now(KeyFolder(folder), data)


def _new_passphrase() -> bytes:
    given = os.environ.get(PASSPHRASE_VARIABLE)
    if not given and not sys.stdin.isatty():
        raise InputError(
            "encrypting the new keys", "no passphrase was given",
            f"set {PASSPHRASE_VARIABLE} or run it in a terminal",
        )  # fmt: skip
    text = given or click.prompt("Passphrase for the new keys", hide_input=True, confirmation_prompt=True, err=True)
    return str(text).encode()


def _need_name(what: str, name: str | None) -> None:
    if (what == "operator") != (name is not None):
        found = "an operator has a name" if name is None else f"{what} takes no name"
        raise InputError(f"reading `edgefleet keys … {what}`", found, "run: edgefleet keys --help")


def _cells(row: RoleRow, now: float) -> tuple[str, ...]:
    places = sorted({"not here" if place == "not here" else str(Path(place).parent) for place in row.private_keys})
    return (
        row.role,
        " ".join(row.key_names) or "none",
        " ".join(keyid[:8] for keyid in row.keyids) or "none",
        f"{row.threshold} of {len(row.keyids)}",
        ", ".join(places) or "none",
        "–" if row.version is None else str(row.version),
        "–" if row.expires is None else _day(row.expires),
        "–" if row.expires is None else _days(row.expires, now),
    )


def _document(
    fleet: str, table: list[RoleRow], expiries: list[tuple[str, float]], lines: list[str]
) -> dict[str, object]:
    return {
        "fleet": fleet,
        "roles": [asdict(row) for row in table],
        "expiries": [{"what": what, "expires": at} for what, at in expiries],
        "warnings": lines,
    }


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


def _days(at: float, now: float) -> str:
    return "expired" if at <= now else str(int((at - now) // 86_400))


def _text(table: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table)
    return "\n".join(lines)
