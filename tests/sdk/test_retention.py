"""What the store forgets, and what it never does: nothing that is not settled, no total, and nothing twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgefleet.mqtt import BrokerAddress
from edgefleet.server import cli, retention
from edgefleet.server.retention import DAY_S, DEFAULT_DAYS, EVENT_DAYS, LOOK_EVERY_S, Retention
from edgefleet.server.service import Server, ServerSettings
from edgefleet.server.store import Store
from sdk.fleet_made import found
from sdk.wire_examples import MANIFEST, SPOOL, WINDOW, event, telemetry

PI, ANOTHER_SPOOL = "pi-1", "0b0b"
NOW = 1000 * DAY_S


@pytest.fixture(name="store")
def _store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store.sqlite")
    yield store
    store.close()


def fill(store: Store, ages_days: dict[int, float], device: str = PI, spool_id: str = SPOOL) -> int:
    """Windows by number, so many days old; returns what is acknowledged."""
    with store.transaction():
        for seq, age in ages_days.items():
            store.add_telemetry(device, telemetry(seq, spool_id=spool_id), NOW - age * DAY_S)
        return store.advance(device, spool_id, 1)


def held(store: Store, table: str = "telemetry") -> set[int]:
    return {seq for (seq,) in store._db.execute(f"SELECT seq FROM {table}")}  # noqa: S608 - our names


def turns(kept: Retention, now: float = NOW) -> int:
    """Turns until there is nothing left to look at."""
    kept.turn(now)
    count = 1
    while kept._spools:
        kept.turn(now)
        count += 1
    return count


def test_old_windows_go_with_their_statistics_and_their_totals_stay(store: Store) -> None:
    fill(store, {1: 31.0, 2: 30.1, 3: 29.9, 4: 0.0})
    fill(store, {1: 31.0, 2: 5.0}, "pi-2", ANOTHER_SPOOL)
    before = store.telemetry(PI, MANIFEST)
    turns(Retention(store, 30))
    assert held(store) == held(store, "tensors") == {2, 3, 4}
    assert [tuple(row) for row in store._db.execute("SELECT device, seq FROM telemetry ORDER BY device, seq")] == [
        (PI, 3), (PI, 4), ("pi-2", 2)
    ]  # fmt: skip
    after = store.telemetry(PI, MANIFEST)
    assert (after.windows, after.inferences, after.errors) == (before.windows, before.inferences, before.errors)
    assert (after.windows, after.span.windows) == (4, 2)


def test_events_are_kept_for_a_year(store: Store) -> None:
    with store.transaction():
        for seq, age in enumerate((EVENT_DAYS + 1, EVENT_DAYS - 1, 31), start=1):
            store.add_event(PI, event(seq), NOW - age * DAY_S)
        store.advance(PI, SPOOL, 1)
    turns(Retention(store, 30))
    assert held(store, "events") == {2, 3}
    turns(Retention(store, 2 * EVENT_DAYS))
    assert held(store, "events") == {2, 3}


def test_what_is_not_acknowledged_stays_and_is_acknowledged_when_the_gap_is_filled(store: Store) -> None:
    assert fill(store, {1: 90.0, 2: 90.0, 4: 90.0, 5: 90.0}) == 2
    turns(Retention(store, 30))
    assert held(store) == {4, 5}
    assert fill(store, {3: 0.0}) == 5
    turns(Retention(store, 30))
    # The third came last, and nothing above it goes before it.
    assert held(store) == {3, 4, 5}


def test_a_device_that_repeats_what_is_forgotten_is_counted_once_and_acknowledged(store: Store) -> None:
    with store.transaction():
        store.add_event(PI, event(3), NOW - (EVENT_DAYS + 1) * DAY_S)
    assert fill(store, {1: 90.0, 2: 90.0}) == 3
    turns(Retention(store, 30))
    assert held(store) == held(store, "events") == set()
    assert fill(store, {1: 0.0, 2: 0.0, 4: 0.0}) == 4
    with store.transaction():
        store.add_event(PI, event(3), NOW)
    assert (held(store), held(store, "events")) == ({4}, set())
    assert store.telemetry(PI, MANIFEST).inferences == 3 * WINDOW.count


def test_so_few_go_at_once_that_another_may_write_between(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "ROWS_AT_ONCE", 4)
    fill(store, dict.fromkeys(range(1, 11), 40.0))
    fill(store, dict.fromkeys(range(1, 4), 40.0), "pi-2")
    kept, other = Retention(store, 30), Store(tmp_path / "store.sqlite")
    old, left = "SELECT seq FROM telemetry WHERE received_at < ?", []
    for device in ("pi-3", "pi-4", "pi-5"):
        kept.turn(NOW)
        fill(other, {1: 0.0}, device)
        left.append(len(store._db.execute(old, (NOW - DAY_S,)).fetchall()))
    assert left == [9, 5, 1]
    kept.turn(NOW)
    assert held(store) == {1}
    other.close()


def test_many_spools_are_looked_at_by_turns(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "SPOOLS_AT_ONCE", 2)
    for number in range(5):
        fill(store, {1: 40.0}, f"pi-{number}")
    assert turns(Retention(store, 30)) == 3
    assert held(store) == set()


def test_it_looks_once_an_hour_whatever_the_clock_does(store: Store) -> None:
    kept = Retention(store, 30)
    kept.turn(NOW)
    fill(store, {1: 40.0})
    kept.turn(NOW + LOOK_EVERY_S - 1)
    assert held(store) == {1}
    kept.turn(NOW - 1)
    assert held(store) == set()
    fill(store, {2: 40.0})
    kept.turn(NOW - 1 + LOOK_EVERY_S)
    assert held(store) == set()


def test_a_server_forgets_by_its_option(tmp_path: Path) -> None:
    fleet = found(tmp_path / "fleet")
    for days, left in ((100_000, {1, 2}), (7, {2})):
        with fleet.store.transaction():
            fleet.store.add_telemetry(PI, telemetry(1), 8 * DAY_S)
            fleet.store.add_telemetry(PI, telemetry(2), 4e9)
            fleet.store.advance(PI, SPOOL, 1)
        server = Server(
            ServerSettings(fleet.data, BrokerAddress("127.0.0.1", 9), tls=False, own_hubs=0, telemetry_days=days)
        )
        server.turn()
        assert held(server.store) == left
        server.store.close()
    fleet.store.close()


def test_the_option_takes_whole_days_from_one_on() -> None:
    (option,) = [each for each in cli.server.params if each.name == "telemetry_days"]
    assert option.default == DEFAULT_DAYS
    refused = CliRunner().invoke(cli.server, ["--data", "x", "--broker", "b:1", "--telemetry-days", "0"])
    assert refused.exit_code == 2
    assert "telemetry-days" in refused.output
