"""Warnings before anything expires, and `edgefleet keys` as a person runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgefleet.cli.keys import app
from edgefleet.errors import EdgefleetError, InputError, StorageError
from edgefleet.trust.status import rows, warnings
from sdk.trust_lab import DAY_S, NOW, TrustLab

LONG = NOW + 400 * DAY_S


@pytest.mark.parametrize(
    ("left_days", "said"),
    [
        (61, None),
        (60, "root expires within 60 days (on 2020-11-12): run: edgefleet keys rotate dates"),
        (30.5, "root expires within 60 days"),
        (30, "root expires within 30 days"),
        (7, "root expires within 7 days"),
        (0.1, "root expires within 7 days"),
        (0, "root has expired (on 2020-09-13)"),
        (-900, "root has expired"),
    ],
)
def test_warnings_come_60_30_and_7_days_before(left_days: float, said: str | None) -> None:
    lines = warnings([("root", NOW + left_days * DAY_S)], NOW)
    assert lines == [] if said is None else lines[0].startswith(said)


@pytest.mark.parametrize(("role", "lasts"), [("timestamp", 7), ("snapshot", 30)])
def test_what_the_server_signs_daily_is_worth_a_line_after_two_days(role: str, lasts: int) -> None:
    assert warnings([(role, NOW + lasts * DAY_S)], NOW + DAY_S) == []
    day = {7: "2020-09-20", 30: "2020-10-13"}[lasts]
    line = f"{role} was not signed for two days and expires on {day}: start the server: it signs every day"
    assert warnings([(role, NOW + lasts * DAY_S)], NOW + 2.1 * DAY_S) == [line]
    assert "has expired" in warnings([(role, NOW - 1)], NOW)[0]


def test_the_soonest_comes_first_and_everything_has_a_line() -> None:
    lines = warnings([("b", NOW + 50 * DAY_S), ("a", NOW + DAY_S), ("c", LONG)], NOW)
    assert [line.split()[0] for line in lines] == ["a", "b"]
    for what, remedy in (("issuing authority", "keys rotate issuing"), ("certificate of broker", "start the server")):
        assert remedy in warnings([(what, NOW + DAY_S)], NOW)[0]


def test_rows_say_who_signs_and_where_the_keys_are(tmp_path: Path) -> None:
    lab = TrustLab(tmp_path)
    lab.keys.path("root-2").unlink()
    table = {row.role: row for row in rows(lab.data, lab.keys)}
    assert list(table) == ["root", "targets", "packages", "deployments", "snapshot", "timestamp"]
    root = table["root"]
    places = dict(zip(root.key_names, root.private_keys, strict=True))
    assert places["root-2"] == "not here"
    assert places["root-1"] == str(lab.keys.path("root-1"))
    assert (root.threshold, root.version, root.expires) == (2, 1, NOW + 365 * DAY_S)
    assert table["timestamp"].private_keys == (str(lab.data / "trust" / "online.pem"),)
    assert (table["deployments"].key_names, table["deployments"].version) == (("operator-anna", "operator-ben"), None)


# --- the command ---


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    return ["--keys", str(tmp_path / "keys"), "--data", str(tmp_path / "data")]


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, EdgefleetError):
        raise result.exception
    return result


def founded(folders: list[str]) -> list[str]:
    assert run("init", "--fleet", "home", "--operator", "anna", *folders).exit_code == 0
    return folders


def test_a_fleet_is_founded_changed_and_shown(folders: list[str]) -> None:
    founded(folders)
    for arguments in (
        ["add", "operator", "ben"], ["rotate", "operator", "anna"], ["revoke", "operator", "ben"],
        ["rotate", "root"], ["rotate", "targets"], ["rotate", "release"], ["rotate", "online"], ["rotate", "issuing"],
        ["rotate", "dates"],
    ):  # fmt: skip
        assert run(*arguments, *folders).exit_code == 0
    shown = run("status", *folders)
    assert shown.exit_code == 0
    assert [line.split()[0] for line in shown.stdout.splitlines() if line[:1].islower()][1:7] == [
        "root", "targets", "packages", "deployments", "snapshot", "timestamp",
    ]  # fmt: skip
    assert "operator-anna" in shown.stdout
    assert "operator-ben" not in shown.stdout


def test_status_as_json_holds_the_certificates_too(folders: list[str]) -> None:
    document = json.loads(run("status", "--json", *founded(folders)).stdout)
    assert document["fleet"] == "home"
    assert {row["role"] for row in document["roles"]} >= {"root", "timestamp"}
    assert len(document["expiries"]) > 6
    assert document["warnings"] == []


def test_status_fails_when_something_has_expired(tmp_path: Path) -> None:
    lab = TrustLab(tmp_path)
    shown = run("status", "--keys", str(lab.keys.folder), "--data", str(lab.data))
    assert shown.exit_code == 1
    assert "warning: timestamp has expired (on 2020-09-20): start the server" in shown.stderr
    assert "expired" in shown.stdout


def test_the_last_operator_can_be_revoked_and_that_is_said(folders: list[str]) -> None:
    shown = run("revoke", "operator", "anna", *founded(folders))
    assert "0 operator(s) left" in shown.stdout
    assert "nobody can deploy now" in shown.stderr


def test_a_revoked_release_key_names_what_it_dropped(tmp_path: Path) -> None:
    lab = TrustLab(tmp_path)
    lab.publish()
    lab.publish(version="2.0", release=2)
    folders = ["--keys", str(lab.keys.folder), "--data", str(lab.data)]
    shown = run("revoke", "release", "--keep", "digits@1.0", *folders)
    assert "kept digits@1.0; publish again what you trust of: digits@2.0" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["rotate", "operator"], "an operator has a name"),
        (["rotate", "root", "anna"], "root takes no name"),
        (["revoke", "release", "anna"], "release takes no name"),
        (["rotate", "operator", "ben"], "the fleet knows anna"),
    ],
)
def test_what_makes_no_sense_is_refused(folders: list[str], arguments: list[str], why: str) -> None:
    founded(folders)
    with pytest.raises(InputError, match=why):
        run(*arguments, *folders)


def test_the_keys_of_another_fleet_are_refused(tmp_path: Path) -> None:
    first = ["--keys", str(tmp_path / "k1"), "--data", str(tmp_path / "d1")]
    run("init", "--fleet", "home", *first)
    run("init", "--fleet", "barn", "--keys", str(tmp_path / "k2"), "--data", str(tmp_path / "d2"))
    with pytest.raises(InputError, match="k2 holds those of barn"):
        run("rotate", "dates", "--keys", str(tmp_path / "k2"), "--data", str(tmp_path / "d1"))
    with pytest.raises(InputError, match="there is no folder"):
        run("rotate", "dates", "--keys", str(tmp_path / "k3"), "--data", str(tmp_path / "d1"))


def test_init_encrypts_when_told(folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFLEET_KEYS_PASSPHRASE", "correct horse")
    run("init", "--fleet", "home", "--encrypt", *folders)
    assert b"ENCRYPTED" in (tmp_path / "keys" / "root-1.pem").read_bytes()
    run("rotate", "root", *folders)
    assert b"ENCRYPTED" in (tmp_path / "keys" / "root-1.pem").read_bytes()


def test_without_a_terminal_and_a_passphrase_nothing_is_encrypted(
    folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGEFLEET_KEYS_PASSPHRASE", raising=False)
    with pytest.raises(InputError, match="set EDGEFLEET_KEYS_PASSPHRASE or run it in a terminal"):
        run("init", "--fleet", "home", "--encrypt", *folders)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_leaves_the_other_unmade(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Not a directory"):
        run("init", "--fleet", "home", "--keys", str(tmp_path / "a" / "k"), "--data", str(tmp_path / "file" / "d"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_git_push_carries_the_servers_own_keys(folders: list[str], tmp_path: Path) -> None:
    founded(folders)
    private = [path for path in (tmp_path / "data").rglob("*") if path.suffix in (".pem", ".key")]
    assert {path.parent.name for path in private} == {"pki", "trust"}
    assert {(path.parent / ".gitignore").read_text() for path in private} == {"*\n"}


def test_what_to_keep_is_named_where_it_is_not_signed(folders: list[str]) -> None:
    founded(folders)
    with pytest.raises(InputError, match="no made@9 is signed; keep some of: nothing"):
        run("revoke", "release", "--keep", "made@9", *folders)
