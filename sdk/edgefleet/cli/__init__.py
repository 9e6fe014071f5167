"""The one command, `edgefleet`: a visible table of subcommands, each loaded when it is called.

It knows where a subcommand lives, never what it does; errors become one line on stderr and an exit code.
"""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable

import click

from edgefleet import __version__, log_lines
from edgefleet.errors import EdgefleetError, MissingExtraError, StorageError, one_line

# name → (module:attribute, one line of help, extra that installs what it needs)
SUBCOMMANDS: dict[str, tuple[str, str, str]] = {
    "package": ("edgefleet_converters.cli:app", "Turn a model into a package of variants.", "convert"),
    "convert": ("edgefleet_converters.convert_cli:app", "Convert a model for one runtime.", "convert-litert"),
    "analyze": ("edgefleet_converters.analyze_cli:app", "Say what a model costs on each profile.", "convert-litert"),
    "inspect": ("edgefleet.cli.package:inspect", "Show what a package, a bundle or a registry holds.", "server"),
    "verify": ("edgefleet.cli.package:verify", "Check a package's blobs, or a bundle's signatures too.", "server"),
    "push": ("edgefleet.cli.package:push", "Push a package to a container registry.", "oci"),
    "pull": ("edgefleet.cli.package:pull", "Pull a package from a container registry.", "oci"),
    "export": ("edgefleet.cli.package:export", "Write a variant's files for an app or a firmware.", "server"),
    "bundle": ("edgefleet.cli.package:bundle", "Write a package and its signatures into one file.", "server"),
    "profiles": ("edgefleet.cli.profiles:app", "Known devices, and which of them this machine is.", "agent"),
    "keys": ("edgefleet.cli.keys:app", "Make, change and look at the fleet's keys.", "server"),
    "enroll": ("edgefleet.server.enroll_cli:app", "Make devices part of the fleet.", "server"),
    "broker": ("edgefleet.cli.broker:app", "Configure the MQTT broker of a fleet.", "server"),
    "server": ("edgefleet.server.cli:server", "Serve a fleet over an MQTT broker.", "server"),
    "hub": ("edgefleet.server.cli:hub", "One more hub beside a server.", "server"),
    "publish": ("edgefleet.server.deploy_cli:publish", "Sign a package and have the server offer it.", "server"),
    "deploy": ("edgefleet.server.deploy_cli:deploy", "Deploy a published package and follow the devices.", "server"),
    "fleet": ("edgefleet.server.fleet_cli:fleet", "Look at the fleet, and speak to its devices.", "server"),
    "agent": ("edgefleet_agent.cli:app", "The agent on a device.", "agent"),
    "demo": ("edgefleet_demo.cli:app", "A whole fleet on this machine.", "demo"),
}


class _LazyGroup(click.Group):
    """Lists subcommands from the table without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in SUBCOMMANDS:
            return None
        path, _, extra = SUBCOMMANDS[cmd_name]
        module, _, attribute = path.partition(":")
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"running edgefleet {cmd_name}", str(error.name), extra) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line, _) in SUBCOMMANDS.items()])


@click.group(cls=_LazyGroup)
@click.version_option(__version__, package_name="edgefleet")
def app() -> None:
    """One trained model in; on every device the variant that is best there, running and reporting."""


def stop_on_signals() -> Callable[[], bool]:
    """Catch SIGTERM and SIGINT; the function returned says whether one has come."""
    caught: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: caught.append(received))
    return lambda: bool(caught)


def _unwind_on_signals() -> None:
    """A plain kill and a closed terminal clean up as Ctrl-C does: nothing stays half-written beside its place."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # nohup has it ignored, and so it stays.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda received, _frame: sys.exit(128 + received))


def _refused_by_disk(error: Exception) -> StorageError | None:
    """What no room below has words for: a full disk, a file that this user may not read. None: a fault of ours."""
    import socket  # noqa: PLC0415 - --help needs neither
    import sqlite3  # noqa: PLC0415

    of_network = isinstance(error, ConnectionError | TimeoutError | socket.gaierror)
    if of_network or not isinstance(error, OSError | sqlite3.Error):
        return None
    found = str(error)
    if isinstance(error, OSError) and error.strerror:
        found = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    doing = f"running edgefleet {' '.join(sys.argv[1:2])}".rstrip()
    return StorageError(doing, found, "free the disk, or let this user read and write there")


def main() -> None:
    """Entry point: one line on stderr for every error that a person can act on."""
    log_lines.to_stderr()
    _unwind_on_signals()
    try:
        app(standalone_mode=False)
    except EdgefleetError as error:
        click.echo(one_line(f"edgefleet: {error}"), err=True)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        extra = SUBCOMMANDS.get(sys.argv[1] if len(sys.argv) > 1 else "", ("", "", "dev"))[2]
        missing = MissingExtraError(f"running edgefleet {' '.join(sys.argv[1:2])}", str(error.name), extra)
        click.echo(f"edgefleet: {missing}", err=True)
        sys.exit(missing.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except Exception as error:
        if (refused := _refused_by_disk(error)) is None:
            raise
        click.echo(one_line(f"edgefleet: {refused}"), err=True)
        sys.exit(refused.exit_code)
