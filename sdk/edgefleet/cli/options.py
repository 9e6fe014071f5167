"""Options that several subcommands share, each written once."""

from __future__ import annotations

import math
from pathlib import Path

import click


def finite(_context: click.Context, _parameter: click.Parameter, value: float | None) -> float | None:
    """Refuse `nan` and `inf`, which click takes for numbers and lets through any range."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is no finite number")
    return value


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
