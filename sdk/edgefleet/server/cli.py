"""`edgefleet server` and `edgefleet hub`: the processes that serve a fleet.

What an operator decides is in `deploy_cli`; what the fleet looks like, in `fleet_cli`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgefleet.cli import options
from edgefleet.errors import InputError

if TYPE_CHECKING:
    from edgefleet.server.home_link import HomeSettings

_broker = click.option("--broker", required=True, metavar="HOST:PORT", help="MQTT broker.")
_rate = click.option(
    "--rate-limit",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MB/S",
    callback=options.finite,
    help="At most this many megabytes a second from each hub, all devices together.",
)
_device_rate = click.option(
    "--device-rate-limit",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MB/S",
    callback=options.finite,
    help="At most this many megabytes a second to each device.",
)
_hubs = click.option(
    "--hubs", type=click.IntRange(1, 8), default=1, show_default=True, metavar="N", help="Number of hubs in all."
)
_sharing = click.option(
    "--shared/--sharded",
    "shared",
    default=None,
    help="How several hubs divide the requests: by the broker ($share), or by shard. "
    "By default by the broker where it speaks MQTT 5 and says that it can.",
)
_blob_url = click.option(
    "--blob-url", metavar="TEMPLATE", help="Where devices get blobs over HTTP: https://HOST/…/{digest}."
)
_shared_delivery = click.option(
    "--shared-delivery",
    is_flag=True,
    help="Send blocks that several devices wait for once, to all of them: for a thin line between hub and broker. "
    "Needs --rate-limit and a single hub.",
)


@click.command("server")
@options.data
@_broker
@options.tls
@_rate
@_device_rate
@_hubs
@_shared_delivery
@click.option(
    "--own-hubs", type=click.IntRange(0, 8), metavar="N", help="How many of the hubs this server starts. [default: all]"
)
@_sharing
@click.option("--http", "http", metavar="HOST:PORT", help="Serve blobs over HTTP(S) here, beside MQTT.")
@_blob_url
@click.option(
    "--home-assistant", "home", metavar="HOST:PORT", help="Show the fleet in the Home Assistant of this broker."
)
@click.option(
    "--home-assistant-login",
    "login",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="One line, USER:PASSWORD, for that broker.",
)
@click.option(
    "--telemetry-days",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    metavar="DAYS",
    help="How long telemetry windows are kept one by one; totals stay.",
)
def server(
    data: Path, broker: str, rate_limit: float | None, device_rate_limit: float | None, hubs: int,
    own_hubs: int | None, http: str | None, blob_url: str | None, *, home: str | None, login: Path | None, tls: bool,
    shared: bool | None, shared_delivery: bool, telemetry_days: int,
) -> None:  # fmt: skip
    """Serve a fleet: packages, telemetry and desired states over the MQTT broker."""
    from edgefleet.cli import stop_on_signals
    from edgefleet.mqtt import BrokerAddress
    from edgefleet.server.data_folder import fleet_of, lock_data
    from edgefleet.server.http_blobs import serving
    from edgefleet.server.locate import check_template, public_template
    from edgefleet.server.service import Server, ServerSettings

    stop = stop_on_signals()
    _check_shared_delivery(rate_limit, device_rate_limit, hubs, wanted=shared_delivery)
    # Before the folder is locked: a wrong name must not leave one behind.
    fleet_of(data)
    address = BrokerAddress.parse(broker)
    listen = None if http is None else BrokerAddress.parse(http)
    template = None if blob_url is None else check_template(blob_url)
    if listen is not None and template is None:
        template = public_template(listen.host, listen.port, tls=tls)
    _check_loopback(address.host, tls=tls)
    arguments = ["--data", str(data), "--broker", broker, "--hubs", str(hubs), "--tls" if tls else "--no-tls"]
    arguments += [] if rate_limit is None else ["--rate-limit", str(rate_limit)]
    arguments += [] if device_rate_limit is None else ["--device-rate-limit", str(device_rate_limit)]
    arguments += [] if shared is None else ["--shared" if shared else "--sharded"]
    arguments += ["--shared-delivery"] if shared_delivery else []
    arguments += [] if template is None else ["--blob-url", template]
    arguments += [] if listen is None else ["--sign-urls"]
    own = hubs if own_hubs is None else min(own_hubs, hubs)
    settings = ServerSettings(data, address, tls, own, arguments, _home_settings(home, login), telemetry_days, hubs)
    with lock_data(data), serving(data, listen, tls=tls):
        Server(settings).run(stop)


@click.command("hub")
@options.data
@_broker
@options.tls
@click.option("--name", required=True, metavar="NAME", help="edgefleet-hub-1 to edgefleet-hub-8.")
@_rate
@_device_rate
@_hubs
@_sharing
@_shared_delivery
@_blob_url
@click.option("--sign-urls", is_flag=True, help="Sign the addresses: they are a server's own (`server --http`).")
@click.option("--parent", type=int, hidden=True, help="Process id of the server that starts this hub.")
def hub(
    data: Path, broker: str, name: str, rate_limit: float | None, device_rate_limit: float | None, hubs: int,
    blob_url: str | None, parent: int | None, *, tls: bool, shared: bool | None, sign_urls: bool, shared_delivery: bool,
) -> None:  # fmt: skip
    """Answer devices' requests beside a server, or elsewhere from a copy of its folder.

    That server runs with --hubs and --own-hubs, and so makes this hub's certificate. A copy needs blobs, priors,
    trust/metadata, fleet.json, hub-group, http.key for --sign-urls, and of pki ca-chain.crt and the hub's own
    certificate and key. Such a hub renews no certificates: where the broker shares the requests, devices come to one
    of the server's own in the end; those of its shards (--sharded) must be enrolled --again before theirs end.
    """
    from edgefleet.cli import stop_on_signals
    from edgefleet.mqtt import BrokerAddress
    from edgefleet.server.hub_link import Pipe
    from edgefleet.server.hub_process import HubProcess, HubSettings, Sharing, die_with_parent
    from edgefleet.server.locate import Locator, check_template, load_key

    _check_shared_delivery(rate_limit, device_rate_limit, hubs, wanted=shared_delivery)
    if parent is not None:
        die_with_parent(parent)
    stop = stop_on_signals()
    address = BrokerAddress.parse(broker)
    _check_loopback(address.host, tls=tls)
    if tls and parent is None:
        _check_certificate(data, name)
    locator = None
    if blob_url is not None:
        locator = Locator(check_template(blob_url), load_key(data) if sign_urls else None)
    sharing = {None: Sharing.AUTO, True: Sharing.SHARED, False: Sharing.SHARDED}[shared]
    settings = HubSettings(
        data, address, name, hubs, tls, sharing, _bytes(rate_limit), _bytes(device_rate_limit), locator,
        shared_delivery,
    )  # fmt: skip
    HubProcess(settings, None if parent is None else Pipe(0, 1)).run(stop)


def _home_settings(home: str | None, login: Path | None) -> HomeSettings | None:
    """Where Home Assistant's broker is; None where none is named."""
    from edgefleet.mqtt import BrokerAddress
    from edgefleet.server.home_link import HomeSettings, read_login

    if home is None:
        return None
    user, password = ("", None) if login is None else read_login(login)
    return HomeSettings(BrokerAddress.parse(home), user, password)


def _check_shared_delivery(rate: float | None, device_rate: float | None, hubs: int, *, wanted: bool) -> None:
    """All get it at the same pace, and each hub would send it once more."""
    if not wanted:
        return
    found = None
    if rate is None:
        found = "without --rate-limit nothing says how much the line to the broker carries"
    elif device_rate is not None:
        found = "--device-rate-limit asks for a pace of each device's own"
    elif hubs > 1:
        found = f"{hubs} hubs would send everything {hubs} times"
    if found is not None:
        raise InputError("reading --shared-delivery", found, "give --rate-limit, and leave out the others")


def _check_certificate(data: Path, name: str) -> None:
    """No hub makes its own: the server that knows of all of them does."""
    from edgefleet.protocol.topics import HUB_USERS
    from edgefleet.server.data_folder import fleet_of, tls_of

    fleet_of(data)
    missing = [file for file in (tls_of(data, name).certificate_file, tls_of(data, name).key_file) if not file.exists()]
    if name in HUB_USERS and missing:
        raise InputError(
            f"starting {name}", f"there is no {missing[0]}",
            "run the server with --hubs N and --own-hubs fewer: it makes them in its folder",
        )  # fmt: skip


def _bytes(megabytes: float | None) -> float | None:
    return None if megabytes is None else megabytes * 1e6


def _check_loopback(host: str, *, tls: bool) -> None:
    """Without TLS whoever listens in may speak for anyone: this machine only."""
    if not tls and host not in ("localhost", "::1") and not host.startswith("127."):
        raise InputError(f"connecting to {host} without TLS", "it is another machine", "leave out --no-tls")
