"""`edgefleet demo`: a whole fleet on this machine."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("demo")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build/demo"),
    show_default=True,
    help="Where everything is written; what an earlier demo left there is removed.",
)
@click.option("--keep", is_flag=True, help="Stay up afterwards until Ctrl-C.")
def app(folder: Path, keep: bool) -> None:
    """Package a model, start a broker, a server and three agents, deploy, and show what they report."""
    import contextlib
    import signal

    from edgefleet_demo.demo import run

    # SIGTERM ends it as Ctrl-C does: everything that was started is stopped on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt) if keep else contextlib.nullcontext():
        run(folder, keep=keep)
