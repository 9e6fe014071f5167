"""The commands of a fleet's server and its operators, as a person gives them: one line says what is wrong."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from edgefleet.cli import SUBCOMMANDS, app
from edgefleet.errors import EdgefleetError, InputError, TransportError, TrustError
from edgefleet.log_lines import LogLine
from edgefleet.package.bundle import trust_files as packed_trust
from edgefleet.package.bundle import write_bundle
from edgefleet.package.layout import Package
from edgefleet.protocol.signed import Command, Deployment, Envelope
from edgefleet.server import deploy_cli, removal
from edgefleet.server.data_folder import lock_data, trust_files
from edgefleet.trust.repository import Repository
from sdk.fleet_made import LONG, MadeFleet, found
from sdk.packages_made import two_variants, write
from sdk.wire_examples import ESTIMATED_WINDOW, STATE, WINDOW, telemetry


@pytest.fixture(name="fleet")
def _fleet(tmp_path: Path) -> MadeFleet:
    return found(tmp_path / "fleet", time.time() // 3600 * 3600)


@pytest.fixture(name="served")
def _served(fleet: MadeFleet) -> Iterator[MadeFleet]:
    """A fleet whose server is running and connected, as far as a command can tell."""
    fleet.store.set_server("home", "127.0.0.1:8883", connected=True, failure=None)
    for name in ("nuc", "pi"):
        fleet.add(name)
    with lock_data(fleet.data):
        yield fleet


@pytest.fixture(name="package")
def _package(tmp_path: Path) -> Path:
    write(tmp_path / "package", two_variants(tmp_path / "inputs"))
    return tmp_path / "package"


def run(*arguments: object) -> Result:
    """Run `edgefleet …`; errors come out as themselves."""
    result = CliRunner().invoke(app, [str(one) for one in arguments], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result


def at(fleet: MadeFleet, *, keys: bool = True) -> list[str]:
    where = ["--data", str(fleet.data)]
    return [*where, "--keys", str(fleet.keys.folder)] if keys else where


def test_publish_then_deploy(served: MadeFleet, package: Path) -> None:
    assert "published made@1.2.0 (release 7)" in run("publish", package, *at(served)).output
    assert "published made@1.2.0 (release 7)" in run("publish", package, *at(served)).output
    with pytest.raises(EdgefleetError, match="not finished within 0 s"):
        run("deploy", "made@1.2.0", *at(served), "--timeout", 0)
    assert set(served.store.desired_generations()) == {"nuc", "pi"}
    row = served.store.desired("pi")
    assert row is not None
    target = row.desired.deployment.target
    assert (target.package, target.version, target.index_digest) == ("made", "1.2.0", Package(package).digest)
    for device in ("nuc", "pi"):
        changes = {"enrolment_id": f"e-{device}", "generation": row.generation, "state": "committed"}
        served.store.set_state(device, STATE.model_copy(update=changes), time.time())
    assert served.store.outcome("pi", row.generation) is not None


def test_who_stops_looking_is_told_that_it_goes_on(
    served: MadeFleet, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_arguments: object) -> dict[str, str]:
        raise KeyboardInterrupt

    run("publish", package, *at(served))
    monkeypatch.setattr(deploy_cli, "follow", interrupted)
    done = CliRunner().invoke(app, ["deploy", "made@1.2.0", *at(served)], standalone_mode=False)
    assert isinstance(done.exception, click.Abort)
    assert "no longer followed; the deployment goes on" in done.output
    assert set(served.store.desired_generations()) == {"nuc", "pi"}


def test_a_name_that_no_metadata_takes_is_said(served: MadeFleet, tmp_path: Path) -> None:
    write(tmp_path / "odd", two_variants(tmp_path / "inputs"), version="1.3 ü")
    with pytest.raises(InputError, match=r"as 'made' '1\.3 ü' \(its version\); package it again"):
        run("publish", tmp_path / "odd", *at(served))


def test_what_cannot_be_deployed_is_said_with_what_can(served: MadeFleet, package: Path) -> None:
    with pytest.raises(InputError, match="run: edgefleet publish"):
        run("deploy", "made@1.2.0", *at(served))
    with pytest.raises(InputError, match=f"run: edgefleet publish {package}, then: edgefleet deploy made@1.2.0"):
        run("deploy", package, *at(served))
    run("publish", package, *at(served))
    for name in ("made@9", "made", "other@1.2.0", "@"):
        with pytest.raises(InputError, match=r"there are: made@1\.2\.0"):
            run("deploy", name, *at(served))
    with pytest.raises(InputError, match="operator-nobody"):
        run("deploy", "made@1.2.0", *at(served), "--operator", "nobody")
    with pytest.raises(InputError, match=r"made@9 is|looking for made@9"):
        run("deploy", "made@1.2.0", *at(served), "--fallback", "made@9")
    with pytest.raises(InputError, match="there are: nuc, pi"):
        run("deploy", "made@1.2.0", *at(served), "--to", "cam")
    assert served.store.desired_generations() == {}


def test_without_a_server_nothing_is_deployed(fleet: MadeFleet) -> None:
    with pytest.raises(TransportError, match="no server is running"):
        run("deploy", "made@1.2.0", *at(fleet))
    with pytest.raises(InputError, match="not a server's folder"):
        run("deploy", "made@1.2.0", "--data", fleet.folder / "nothing")


def test_a_deployment_signed_elsewhere_travels_in_a_bundle_and_needs_no_key_here(
    served: MadeFleet, package: Path, tmp_path: Path
) -> None:
    run("publish", package, *at(served))
    letter, bundle = tmp_path / "deployment.json", tmp_path / "x.bundle"
    keys = ["--keys", str(served.keys.folder)]
    run("deploy", package, *keys, "--to", "pi", "--sign-only", "-o", letter)
    deployment = Deployment.decode(Envelope.decode(letter.read_bytes()).payload)
    assert (deployment.fleet, deployment.selector, deployment.target.version) == ("home", "pi", "1.2.0")
    write_bundle(bundle, Package(package), packed_trust(trust_files(served.data)), letter.read_bytes())
    nowhere = ["--keys", str(tmp_path / "no-keys")]
    for options in (["--to", "nuc"], ["--to", "all"], ["--fallback", "made@1.2.0"], ["--downgrade"]):
        with pytest.raises(InputError, match=f"signed already, and {options[0]} cannot change it"):
            run("deploy", bundle, *at(served), *options)
    assert served.store.desired_generations() == {}
    with pytest.raises(EdgefleetError, match="not finished within 0 s"):
        run("deploy", bundle, *at(served, keys=False), *nowhere, "--timeout", 0)
    assert set(served.store.desired_generations()) == {"pi"}
    assert "published made@1.2.0" in run("publish", bundle, *at(served, keys=False), *nowhere).output


def test_a_bundle_of_another_fleet_is_refused(served: MadeFleet, package: Path, tmp_path: Path) -> None:
    other = found(tmp_path / "other", 1_780_000_000.0)
    run("publish", package, *at(other))
    write_bundle(tmp_path / "x.bundle", Package(package), packed_trust(trust_files(other.data)))
    with pytest.raises(TrustError):
        run("publish", tmp_path / "x.bundle", *at(served, keys=False))
    assert Repository(trust_files(served.data)).versions() == []


@pytest.mark.parametrize("arguments", [["--sign-only"], ["-o", "x.json"]])
def test_sign_only_goes_with_a_file(fleet: MadeFleet, arguments: list[str]) -> None:
    with pytest.raises(click.UsageError, match="go together"):
        run("deploy", "x", *at(fleet), *arguments)


def test_a_deployment_signed_here_names_no_fallback_that_nobody_looked_up(fleet: MadeFleet, package: Path) -> None:
    letter = fleet.folder / "x.json"
    with pytest.raises(click.UsageError, match="no --fallback"):
        run("deploy", package, *at(fleet), "--sign-only", "-o", letter, "--fallback", "made@1.1.0")
    assert not letter.exists()


# The fleet --------------------------------------------------------------------------------------------


def test_a_flagged_device_is_shown_with_the_reason(served: MadeFleet) -> None:
    served.store.set_flag("pi", "two boards under one name")
    output = run("fleet", "list", *at(served, keys=False)).output
    assert "denied" in output
    assert "pi: no deployments: two boards under one name" in output


def test_the_list_shows_what_the_last_minutes_amount_to_and_a_dash_for_what_is_too_little(served: MadeFleet) -> None:
    """200 runs of 1.5 and 2.25 ms a window, 36.75 J measured in 10.25 s; 3 runs of an estimate."""
    for device, sent in (("pi", [WINDOW, WINDOW]), ("nuc", [ESTIMATED_WINDOW])):
        served.store.set_state(device, STATE.model_copy(update={"enrolment_id": f"e-{device}"}), 1.0)
        for seq, window in enumerate(sent, start=1):
            served.store.add_telemetry(device, telemetry(seq, window=window), 5000.0)
    output = run("fleet", "list", *at(served, keys=False)).output
    p50, p90 = (f"{WINDOW.latency.inference.sketch().quantile(q) * 1000:.3f}" for q in (0.5, 0.9))
    for told in ("400", "95.00%", p50, p90, "3.59 W", "184 mJ", "measured", "package"):
        assert told in output
    for told in ("4.49 W", "15.3 J", "estimated", "board_input"):
        assert told in output
    assert max(map(len, output.splitlines())) <= 80


def test_a_command_waits_for_the_server_to_send_it(served: MadeFleet) -> None:
    output = run("fleet", "command", "pi", "renew", *at(served, keys=False)).output
    ((device, envelope),) = served.store.take_commands(time.time())
    assert device == "pi"
    assert f"command {Command.decode(envelope.payload).command_id} is on its way to pi" in output
    with pytest.raises(InputError, match="not enrolled"):
        run("fleet", "command", "cam", "report", *at(served, keys=False))
    with pytest.raises(click.BadParameter):
        run("fleet", "command", "pi", "format-disk", *at(served, keys=False))


def test_a_removal_that_the_broker_does_not_know_of_is_no_success(
    served: MadeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "remove", lambda *_arguments, **_options: "no broker runs here: bring it the list")
    with pytest.raises(TransportError, match="no broker runs here: bring it the list; do that, and give the command"):
        run("fleet", "remove", "pi", *at(served, keys=False))


def test_who_was_enrolled_and_never_spoke_is_named(served: MadeFleet) -> None:
    for number in range(12):
        served.store.add_enrolment(f"new-{number:02}", "e1", LONG, "0a", 1.0)
    served.store.revoke_enrolment("new-00", 2.0)
    output = " ".join(run("fleet", "list", *at(served, keys=False)).output.split())
    assert "enrolled, never said hello: new-01, new-02," in output
    assert "new-10 and 1 more" in output


def test_removing_needs_a_broker_that_is_known(fleet: MadeFleet) -> None:
    fleet.store.add_enrolment("pi", "e1", LONG, "0a", 1.0)
    with pytest.raises(InputError, match="--broker"):
        run("fleet", "remove", "pi", *at(fleet, keys=False))


# The server and its hubs ------------------------------------------------------------------------------


def test_without_tls_only_this_machines_broker_is_used(fleet: MadeFleet) -> None:
    for command in (["server"], ["hub", "--name", "edgefleet-hub-1"]):
        with pytest.raises(InputError, match="leave out --no-tls"):
            run(*command, *at(fleet, keys=False), "--broker", "192.0.2.1:1883", "--no-tls")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--http", "0.0.0.0:8443"], "--blob-url"),
        (["--blob-url", "https://cdn/"], "no http address with"),
        (["--http", "nowhere"], "HOST:PORT"),
    ],
)
def test_an_address_that_helps_no_device_is_refused(fleet: MadeFleet, arguments: list[str], why: str) -> None:
    with pytest.raises(InputError, match=why):
        run("server", *at(fleet, keys=False), "--broker", "127.0.0.1:9", *arguments)


@pytest.mark.parametrize("rate", ["nan", "inf", "0"])
def test_a_rate_is_a_number(fleet: MadeFleet, rate: str) -> None:
    for option in ("--rate-limit", "--device-rate-limit"):
        with pytest.raises(click.BadParameter):
            run("server", *at(fleet, keys=False), "--broker", "127.0.0.1:9", option, rate)


def test_a_hub_away_from_its_server_signs_only_with_the_servers_key(fleet: MadeFleet) -> None:
    arguments = ["--broker", "127.0.0.1:9", "--name", "edgefleet-hub-1", "--blob-url", "https://x/{digest}"]
    with pytest.raises(InputError, match="copy it from the server"):
        run("hub", *at(fleet, keys=False), *arguments, "--sign-urls")


def test_the_server_makes_the_certificates_of_hubs_elsewhere(fleet: MadeFleet) -> None:
    arguments = [*at(fleet, keys=False), "--broker", "127.0.0.1:9", "--hubs", 2]
    for name, why in (("edgefleet-hub-2", r"no .*edgefleet-hub-2\.crt; run the server with"), ("x", "none of a hub")):
        with pytest.raises(InputError, match=why):
            run("hub", *arguments, "--name", name)
    with pytest.raises(TransportError, match="connecting to the MQTT broker"):
        run("server", *arguments, "--own-hubs", 0)
    assert (fleet.data / "pki" / "edgefleet-hub-2.key").exists()
    assert not (fleet.data / "pki" / "edgefleet-hub-3.key").exists()
    (fleet.data / "hub-group").unlink()
    with pytest.raises(InputError, match="hub-group: No such file"):
        run("hub", *arguments, "--name", "edgefleet-hub-2")


@pytest.mark.parametrize("name", ["server", "hub", "publish", "deploy", "fleet"])
def test_each_command_says_what_it_is_for(name: str) -> None:
    assert name in SUBCOMMANDS
    assert run(name, "--help").output.startswith("Usage: ")


HOSTILE = "[/red] [link=x]\x1b]0;owned\x07\x1b[2J\u202eevil\nsecond line"


def test_what_a_device_says_of_itself_is_shown_and_does_nothing_to_the_terminal(fleet: MadeFleet) -> None:
    fleet.add("pi")
    assert STATE.active is not None
    active = STATE.active.model_copy(update={"name": HOSTILE})
    fleet.store.set_state(
        "pi", STATE.model_copy(update={"enrolment_id": "e-pi", "reason": HOSTILE, "active": active}), 1.0
    )
    output = run("fleet", "list", *at(fleet, keys=False)).output
    assert "[/red] [link=x]" in output
    assert not [char for char in output if not char.isprintable() and char != "\n"]


def test_what_a_device_says_is_one_line_of_the_log() -> None:
    record = logging.LogRecord("edgefleet.server", logging.INFO, "", 0, "device %s: %s", ("pi", HOSTILE), None)
    line = LogLine("%(name)s: %(message)s").format(record)
    assert line.isprintable()
    assert line.startswith("edgefleet.server: device pi: [/red]")
