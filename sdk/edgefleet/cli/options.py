"""Options that several subcommands share, each written once."""

from __future__ import annotations

from pathlib import Path

import click

data = click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("edgefleet-data"),
    show_default=True,
    help="The server's folder: store, packages, its own keys.",
)
keys = click.option(
    "--keys",
    "keys",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Private keys. [default: $EDGEFLEET_KEYS, else ~/.config/edgefleet/keys/FLEET]",
)
tls = click.option("--tls/--no-tls", default=True, show_default=True, help="Without TLS on 127.0.0.1 only.")
