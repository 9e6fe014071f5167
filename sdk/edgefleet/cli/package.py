"""`edgefleet inspect|verify|push|pull|export|bundle`: what a person does with a package that is written.

Decides nothing: reads arguments, calls the room that does it, and prints.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from edgefleet.errors import InputError, TrustError
from edgefleet.package.bundle import Bundle, is_bundle, open_bundle, trust_files, write_bundle
from edgefleet.package.description import describe, in_words, table
from edgefleet.package.layout import Package
from edgefleet.package.oci import fetch_description
from edgefleet.package.oci import pull as pull_package
from edgefleet.package.oci import push as push_package
from edgefleet.package.reference import is_reference, parse

_Command = Callable[[Callable[..., None]], Callable[..., None]]
_plain_http: _Command = click.option(
    "--plain-http", is_flag=True, help="Talk to a registry elsewhere without TLS; one on this machine always is."
)
_folder: _Command = click.option(
    "-o", "--output", "folder", type=click.Path(path_type=Path), required=True, metavar="FOLDER", help="Where to."
)


@click.command("inspect")
@click.argument("what", metavar="PACKAGE|BUNDLE|oci://…")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_plain_http
def inspect(what: str, *, as_json: bool, plain_http: bool) -> None:
    """Show a package's version, its variants, their scores and layers; from a registry without the models."""
    with _opened(what, plain_http=plain_http) as (package, bundle):
        described = describe(package)
        if bundle is not None:
            described["bundle"] = {"trust": sorted(bundle.trust_files), "deployment": bundle.deployment is not None}
    if as_json:
        click.echo(json.dumps(described, indent=2))
        return
    click.echo(f"{described['name']} {described['version']}, release {described['release']}")
    click.echo(f"index {described['index_digest']}")
    if bundle is not None:
        deployment = "a deployment" if bundle.deployment is not None else "no deployment"
        click.echo(f"bundle with {len(bundle.trust_files)} files of signed metadata and {deployment}")
    click.echo()
    _print_columns(list(table(described)))


@click.command("verify")
@click.argument("path", metavar="PACKAGE|BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The fleet's root.json, as a device was given it: checks a bundle's signatures against it.",
)
def verify(path: Path, root: Path | None) -> None:
    """Hash every blob again; of a bundle check the signatures too. Needs no network."""
    if root is not None and not is_bundle(path):
        raise InputError(f"verifying {path}", "only a bundle carries signatures", "leave --root out, or name a bundle")
    with _opened(str(path)) as (package, bundle):
        if bundle is None:
            package.verify()
        names = package.digests()
        size_bytes = sum(package.blobs.path(name).stat().st_size for name in names)
        click.echo(
            f"{package.name} {package.version}: {len(names)} blobs, {in_words(size_bytes)}, all as their digests say"
        )
        if bundle is not None:
            _verify_signatures(bundle, root)


@click.command("push")
@click.argument("package", type=click.Path(path_type=Path))
@click.argument("target", metavar="oci://HOST/REPOSITORY:TAG")
@_plain_http
def push(package: Path, target: str, *, plain_http: bool) -> None:
    """Push a package under a tag; what the registry has already is not sent again."""
    opened, reference = Package(package), parse(target)
    sent_bytes = push_package(opened, reference, plain_http=plain_http)
    sent = in_words(sent_bytes) + " sent" if sent_bytes else "nothing to send"
    click.echo(f"{opened.name} {opened.version} is {reference}, {sent}")
    click.echo(f"index {opened.digest}")


@click.command("pull")
@click.argument("source", metavar="oci://HOST/REPOSITORY:TAG")
@_folder
@_plain_http
def pull(source: str, folder: Path, *, plain_http: bool) -> None:
    """Pull a package, whole and verified or not at all; a broken-off pull goes on where it was."""
    package = pull_package(parse(source), folder, plain_http=plain_http)
    click.echo(f"{package.name} {package.version} is in {folder}")
    click.echo(f"index {package.digest}")


@click.command("export")
@click.argument("package", type=click.Path(path_type=Path))
@click.option(
    "--profile", required=True, metavar="NAME", help="The phone or microcontroller: `edgefleet profiles list`."
)
@click.option(
    "--profiles", type=click.Path(path_type=Path), metavar="FOLDER", help="Your own profiles, before the built-in ones."
)
@_folder
def export(package: Path, profile: str, profiles: Path | None, folder: Path) -> None:
    """Write the variant for a phone or a microcontroller as files to build in, with a page that says how."""
    from edgefleet.export.writing import export as write_export  # noqa: PLC0415
    from edgefleet_device_profiles import catalogue  # noqa: PLC0415

    try:
        device = catalogue.load(profile, profiles)
    except (catalogue.UnknownProfileError, catalogue.InvalidProfileError) as error:
        remedy = "look at: edgefleet profiles list, edgefleet profiles validate FILE"
        raise InputError("reading the device profiles", str(error), remedy) from error
    written = write_export(Package(package), device, folder)
    click.echo(f"{written.variant} is in {folder}: {', '.join(written.files)}")


@click.command("bundle")
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="The server's folder, for its signed metadata.")
@click.option("--trust", type=click.Path(path_type=Path), help="A folder of signed metadata, instead of --data.")
@click.option("--deployment", type=click.Path(path_type=Path), help="A signed deployment to go with it.")
@click.option(
    "-o", "--output", "file", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The file to write."
)
def bundle(package: Path, data: Path | None, trust: Path | None, deployment: Path | None, file: Path) -> None:
    """Write a published package and all that vouches for it into one file, for a USB stick."""
    from edgefleet import offline  # noqa: PLC0415
    from edgefleet.trust.online import metadata_folder  # noqa: PLC0415

    folder = trust if data is None else metadata_folder(data)
    if folder is None or (data is not None and trust is not None):
        raise click.UsageError("Give --data or --trust, one of them.")
    metadata = trust_files(folder)
    try:
        letter = None if deployment is None else deployment.read_bytes()
    except OSError as error:
        raise InputError(f"reading {deployment}", f"{error.strerror}", "name a signed deployment") from error
    made = Bundle(Package(package), metadata, letter, ExitStack())
    # A stick with what every device refuses is found out here, not where it is carried to.
    offline.check(made, offline.first_root(made))
    write_bundle(file, made.package, metadata, letter)
    click.echo(f"{made.package.name} {made.package.version} is in {file}, {in_words(file.stat().st_size)}")


def _verify_signatures(bundle: Bundle, root: Path | None) -> None:
    from edgefleet import offline  # noqa: PLC0415

    vouched = offline.check(bundle, offline.first_root(bundle) if root is None else _root_of(root))
    click.echo(f"release {vouched.version.release} is signed by a release key")
    if vouched.deployment is not None:
        meant = f"fleet {vouched.deployment.fleet}, devices {vouched.deployment.selector}"
        click.echo(f"deployment {vouched.deployment.deployment_id} is signed by an operator's key: {meant}")
    if root is None:
        click.echo("The keys are the bundle's own word: give --root to check that they are your fleet's.")
    else:
        click.echo(f"The keys are those that {root} leads to.")


def _root_of(path: Path) -> bytes:
    """A root.json; raises InputError for what is none."""
    from tuf.api.metadata import Root  # noqa: PLC0415

    from edgefleet.trust.roles import parsed  # noqa: PLC0415

    try:
        content = path.read_bytes()
        parsed(Root, content, str(path))
    except (OSError, TrustError) as error:
        found = error.strerror if isinstance(error, OSError) else "it is no root metadata"
        raise InputError(f"reading {path}", str(found), "name the root.json of a device's identity") from error
    return content


@contextmanager
def _opened(what: str, *, plain_http: bool = False) -> Iterator[tuple[Package, Bundle | None]]:
    """A folder, a bundle's content, or what a registry tells without the models."""
    with ExitStack() as stack:
        if is_reference(what):
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="edgefleet-inspect-")))
            yield fetch_description(parse(what), folder, plain_http=plain_http), None
        elif is_bundle(Path(what)):
            bundle = stack.enter_context(open_bundle(Path(what)))
            yield bundle.package, bundle
        else:
            yield Package(Path(what)), None


def _print_columns(rows: Sequence[Iterable[Any]]) -> None:
    """Cells below each other, the last as long as it is."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[place]) for row in cells) for place in range(len(cells[0]) - 1)]
    for row in cells:
        click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]))
