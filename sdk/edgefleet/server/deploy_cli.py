"""`edgefleet publish` and `edgefleet deploy`: what a release key and an operator's key decide.

Both work on the server's data folder, on the machine that the server runs on; a deployment can be signed elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from click.core import ParameterSource

from edgefleet import durable
from edgefleet.cli import options
from edgefleet.errors import EdgefleetError, InputError, StorageError
from edgefleet.package.bundle import Bundle, is_bundle, open_bundle
from edgefleet.package.layout import Package
from edgefleet.protocol.record import MessageError
from edgefleet.protocol.signed import Deployment, Envelope, PackageVersion
from edgefleet.server import control, publishing
from edgefleet.server.data_folder import fleet_of, trust_files
from edgefleet.server.following import follow, open_store, reachable_fleet
from edgefleet.server.publishing import publish_signed, version_of
from edgefleet.server.store import Store
from edgefleet.trust.deployments import sign_deployment
from edgefleet.trust.keys import OPERATOR_PREFIX, KeyFolder, find_keys_folder
from edgefleet.trust.repository import Repository
from edgefleet.trust.setup import read_fleet

RELEASE_KEY = "release"


@click.command("publish")
@click.argument("package", type=click.Path(path_type=Path))
@options.data
@options.keys
def publish(package: Path, data: Path, keys: Path | None) -> None:
    """Sign a PACKAGE with the release key and have the server offer it; a bundle brings its own signatures."""
    fleet, now = fleet_of(data), time.time()
    with _opened(package) as (opened, bundle):
        if bundle is not None:
            version = publish_signed(data, opened, _packages_metadata(bundle), now)
        else:
            opened.verify()
            signer = KeyFolder(find_keys_folder(fleet, keys)).signer(RELEASE_KEY)
            version = publishing.publish(data, opened, signer, now)
    click.echo(f"published {version.package}@{version.version} (release {version.release})", err=True)


@click.command("deploy")
@click.argument("what", metavar="NAME@VERSION|BUNDLE")
@options.data
@options.keys
@click.option("--operator", default="default", show_default=True, metavar="NAME", help="Whose key signs.")
@click.option("--to", "selector", default="all", show_default=True, metavar="all|DEVICE,…", help="Which devices.")
@click.option("--fallback", metavar="NAME@VERSION", help="What devices may be told to run instead.")
@click.option("--downgrade", is_flag=True, help="Install it although a higher release runs.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    callback=options.finite,
    help="How long to follow the devices; a probation takes minutes.",
)
@click.option("--sign-only", is_flag=True, help="Sign a deployment of a package or bundle here; needs no server.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="With --sign-only: the file to write."
)
def deploy(
    what: str, data: Path, keys: Path | None, operator: str, selector: str, fallback: str | None, timeout_s: float,
    output: Path | None, *, downgrade: bool, sign_only: bool,
) -> None:  # fmt: skip
    """Deploy a published package, or a bundle, and follow the devices until each has ended.

    A bundle that carries a deployment needs no keys, and takes no word on what it says already.
    """
    if sign_only != (output is not None):
        raise click.UsageError("--sign-only and -o FILE go together")
    if output is not None:
        if fallback is not None:
            raise click.UsageError("--sign-only takes no --fallback: what is published, the server's folder says")
        _sign_only(Path(what), keys, operator, selector, output, downgrade=downgrade)
        return
    doing = f"deploying {what}"
    store = open_store(data, doing)
    fleet = reachable_fleet(store, data, doing)
    deployment, generations = _decide(what, store, data, fleet, keys, operator, selector, fallback, downgrade=downgrade)
    click.echo(f"deployment {deployment.deployment_id}: {len(generations)} device(s)", err=True)
    try:
        failed = follow(store, generations, timeout_s)
    except KeyboardInterrupt:
        click.echo("no longer followed; the deployment goes on: edgefleet fleet list", err=True)
        raise
    if failed:
        raise EdgefleetError(
            doing, "; ".join(f"{name}: {why}" for name, why in failed.items()),
            "mend the devices named and deploy again",
        )  # fmt: skip


def _decide(
    what: str, store: Store, data: Path, fleet: str, keys: Path | None, operator: str, selector: str,
    fallback: str | None, *, downgrade: bool,
) -> tuple[Deployment, dict[str, int]]:  # fmt: skip
    """Publish what a bundle brings, and record its deployment or a new one."""
    now, repository = time.time(), Repository(trust_files(data))
    instead = None if fallback is None else published(repository, fallback)
    if not Path(what).exists():
        target = published(repository, what)
    else:
        with _opened(Path(what)) as (package, bundle):
            if bundle is None:
                raise InputError(
                    f"deploying {what}", "it is a package",
                    f"run: edgefleet publish {what}, then: edgefleet deploy {package.name}@{package.version}",
                )  # fmt: skip
            if bundle.deployment is not None and (given := _given("operator", "selector", "fallback", "downgrade")):
                raise InputError(
                    f"deploying {what}", f"its deployment is signed already, and {', '.join(given)} cannot change it",
                    "leave that out, or take a bundle without a deployment",
                )  # fmt: skip
            target = publish_signed(data, package, _packages_metadata(bundle), now)
            if bundle.deployment is not None:
                envelope = _envelope(bundle.deployment)
                return control.record(store, data, envelope, now)
    signer = KeyFolder(find_keys_folder(fleet, keys)).signer(OPERATOR_PREFIX + operator)
    return control.deploy(store, data, target, selector, signer, now, instead, downgrade=downgrade)


def _given(*names: str) -> list[str]:
    """Those options of the running command that the person wrote out."""
    context = click.get_current_context()
    written = {name for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    return [option.opts[0] for option in context.command.params if option.name in written]


def published(repository: Repository, name: str) -> PackageVersion:
    """The signed package version that NAME@VERSION stands for; raises InputError."""
    package, at, version = name.partition("@")
    found = repository.target(package, version) if at else None
    if found is None:
        there = ", ".join(f"{one.package}@{one.version}" for one in repository.versions())
        raise InputError(
            f"looking for {name}", "it is not published here, and no such file exists",
            f"there are: {there}" if there else "run: edgefleet publish PACKAGE",
        )  # fmt: skip
    return found


def _sign_only(path: Path, keys: Path | None, operator: str, selector: str, output: Path, *, downgrade: bool) -> None:
    """Write a signed deployment, to be carried in a bundle (`edgefleet bundle --deployment`)."""
    if keys is None:
        raise click.UsageError("--sign-only needs --keys: which fleet it is for stands there")
    with _opened(path) as (package, _):
        target = version_of(package)
    deployment = control.decide(read_fleet(keys), target, selector, 0, time.time(), downgrade=downgrade)
    signer = KeyFolder(find_keys_folder(deployment.fleet, keys)).signer(OPERATOR_PREFIX + operator)
    try:
        durable.write_file(output, sign_deployment(deployment, signer).encode() + b"\n")
    except OSError as error:
        raise StorageError(f"writing {output}", error.strerror or str(error), "name another file") from error
    click.echo(f"deployment {deployment.deployment_id} for {selector}: {output}", err=True)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Package, Bundle | None]]:
    if is_bundle(path):
        with open_bundle(path) as bundle:
            yield bundle.package, bundle
    else:
        yield Package(path), None


def _packages_metadata(bundle: Bundle) -> bytes:
    """The newest metadata in which a release key signed package versions; raises InputError."""
    ending = ".packages.json"
    found = {int(name.removesuffix(ending)): name for name in bundle.trust_files if name.endswith(ending)}
    if not found:
        raise InputError("reading the bundle", "it carries no signed metadata", "make it again: edgefleet bundle")
    return bundle.trust_files[found[max(found)]]


def _envelope(content: bytes) -> Envelope:
    try:
        return Envelope.decode(content)
    except MessageError as error:
        raise InputError("reading the bundle's deployment", str(error), "make the bundle again") from error
