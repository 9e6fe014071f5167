"""The device's side of trust: refreshes the fleet's metadata and says whether an envelope may be acted on.

It runs in the short-lived trust process, has no network of its own (`Fetch` brings files) and decides nothing that
needs the device's memory: generations, serials and downgrades are the agent's acceptance. TUF specification 1.0,
section 5, by python-tuf.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    RepositoryError,
)
from tuf.api.metadata import Root, Targets
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet

from edgefleet import durable
from edgefleet.errors import EdgefleetError, StorageError, TrustError
from edgefleet.protocol.record import MessageError
from edgefleet.protocol.signed import (
    COMMAND_TYPE,
    DEPLOYMENT_TYPE,
    DESIRED_TYPE,
    Action,
    Command,
    Deployment,
    Desired,
    Envelope,
    PackageVersion,
    SignedDesired,
)
from edgefleet.trust.deployments import check_number, package_version, path_of
from edgefleet.trust.envelope import verify
from edgefleet.trust.roles import DEPLOYMENTS, TIMESTAMP

Fetch = Callable[[str, int], bytes | None]
"""(name, max_bytes) → the file, or None where there is none; raises TransportError. More than max_bytes is refused."""

CLOCK_FLOOR: Final = "clock-floor"
METADATA: Final = "metadata"
LIMITS: Final = UpdaterConfig(
    max_root_rotations=256,
    max_delegations=4,
    root_max_length=64 * 1024,
    timestamp_max_length=16 * 1024,
    snapshot_max_length=64 * 1024,
    targets_max_length=2 * 1024 * 1024,
)
"""Bytes that a file may have where no signed file says its length. 2 MiB, about 12,000 package versions, is the most
that any file may have, whatever is signed."""

_END_OF_CALENDAR: Final = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
_BASE: Final = "edgefleet:/"
_NO_TARGETS: Final = "have the operator publish it, or deploy another version"
_RESEND: Final = "deploy it again from the operator's machine"


class Client:
    """Verified metadata of one fleet in `folder`, which this device keeps between calls.

    `bootstrap_root` is the root that the device was enrolled with. Time is the later of the clock (`now`, else the
    system's) and of the last successful refresh, so that a clock that starts in the past cannot bring back what had
    expired. One client at a time may use a folder.
    """

    def __init__(self, folder: Path, bootstrap_root: bytes, fetch: Fetch, now: float | None = None) -> None:
        self._folder = folder
        self._bootstrap_root = bootstrap_root
        self._fetcher = _Fetcher(fetch)
        self._updater: Updater | None = None
        self.reference_time = max(time.time() if now is None else now, self._read_floor())

    def refresh(self) -> None:
        """Follow the root chain, then timestamp, snapshot and targets; without a change that is two requests.

        Raises TrustError (which file, and why), TransportError (from the fetch), StorageError.
        """
        self._refreshed()

    def check_desired(self, envelope: Envelope, *, fleet: str, device: str, enrolment_id: str) -> Desired:
        """The desired state in the envelope, when everything in it is signed and meant for this device.

        The server's signature, the operator's, names, selector, dates, and the package version as a signed target;
        raises TrustError with the one reason, and what refresh raises.
        """
        trusted = _trusted(self._fresh())
        doing = "checking a desired state"
        _check(envelope.payload_type == DESIRED_TYPE, doing, "the envelope holds something else", _RESEND)
        verify(envelope, *_keys(trusted.root, TIMESTAMP))
        with _decoding(doing):
            signed = SignedDesired.decode(envelope.payload)
        for found, own, what in (
            (signed.fleet, fleet, "fleet"),
            (signed.device, device, "device"),
            (signed.enrolment_id, enrolment_id, "enrolment"),
        ):
            _check(found == own, doing, f"it is for {what} {_word(found)}, this is {what} {own}", _RESEND)
        deployment = self.check_deployment(signed.deployment, fleet=fleet, device=device)
        # The server's clock, for a board whose own is years behind.
        latest = max(self.reference_time, trusted.timestamp.version)
        check_number("generation", signed.generation, latest, doing)
        check_number("serial", deployment.serial, latest, "checking a deployment")
        desired = Desired(**signed.model_dump(exclude={"deployment"}), deployment=deployment)
        if desired.action is not Action.NONE:
            self._check_wanted(desired)
        return desired

    def check_deployment(self, envelope: Envelope, *, fleet: str, device: str | None = None) -> Deployment:
        """The deployment in the envelope, when an operator of this fleet signed it, for `device` among others.

        Its date and its target are for whoever begins something with it. Raises TrustError, and what refresh raises.
        """
        trusted = _trusted(self._fresh())
        doing = "checking a deployment"
        _check(envelope.payload_type == DEPLOYMENT_TYPE, doing, "the envelope holds something else", _RESEND)
        verify(envelope, *_keys(trusted.targets, DEPLOYMENTS))
        with _decoding(doing):
            deployment = Deployment.decode(envelope.payload)
        _check(deployment.fleet == fleet, doing, f"it is for fleet {deployment.fleet}, this is {fleet}", _RESEND)
        if device is not None:
            _check(deployment.selects(device), doing, f"it is not meant for device {device}", _RESEND)
        return deployment

    def check_command(self, envelope: Envelope) -> Command:
        """The command in the envelope, when the server signed it and it has not expired.

        Whose it is and whether it ran already is for the caller to know. Raises TrustError, and what refresh raises.
        """
        trusted = _trusted(self._fresh())
        doing = "checking a command"
        remedy = "send the command again"
        _check(envelope.payload_type == COMMAND_TYPE, doing, "the envelope holds something else", remedy)
        verify(envelope, *_keys(trusted.root, TIMESTAMP))
        with _decoding(doing):
            command = Command.decode(envelope.payload)
        _check(command.expires >= self.reference_time, doing, f"it expired {_when(command.expires)}", remedy)
        return command

    def target(self, package: str, version: str) -> PackageVersion | None:
        """The signed package version of that name; None where there is none. Raises what refresh raises."""
        updater = self._fresh()
        with self._translated("reading the signed packages"):
            info = updater.get_targetinfo(path_of(package, version))
            return None if info is None else package_version(info)

    def _check_wanted(self, desired: Desired) -> None:
        wanted, deployment = desired.wanted, desired.deployment
        if wanted is None:
            raise TrustError("checking a desired state", "its deployment has no fallback", _RESEND)
        for expires, what in ((desired.valid_until, "desired state"), (deployment.expires, "deployment")):
            _check(expires >= self.reference_time, f"checking a {what}", f"it expired {_when(expires)}", _RESEND)
        name = f"{wanted.package}@{wanted.version}"
        signed = self.target(wanted.package, wanted.version)
        _check(signed is not None, "checking a desired state", f"no release key signed {name}", _NO_TARGETS)
        _check(signed == wanted, "checking a desired state", f"the signed {name} is another one", _NO_TARGETS)

    def _refreshed(self) -> Updater:
        with self._translated("refreshing the trust metadata"):
            metadata = self._folder / METADATA
            metadata.mkdir(parents=True, exist_ok=True)
            updater = Updater(
                str(metadata), _BASE, fetcher=self._fetcher, config=LIMITS, bootstrap=self._bootstrap_root
            )
            # The only handle that there is: Updater takes no time (tuf 7.0).
            _trusted(updater).reference_time = datetime.fromtimestamp(self.reference_time, UTC)
            updater.refresh()
            self._updater = updater
            self._raise_floor()
        return updater

    def _fresh(self) -> Updater:
        return self._updater or self._refreshed()

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except EdgefleetError:
            raise
        except (RepositoryError, DownloadError) as error:
            raise TrustError(doing, *self._finding(error)) from error
        except OSError as error:
            remedy = "free the disk or mend it"
            raise StorageError(doing, f"{error.filename or self._folder}: {error.strerror}", remedy) from error
        except Exception as error:  # whatever hostile metadata makes tuf raise is a refusal
            found = f"{self._fetcher.last}: {type(error).__name__} {_line(error)}"
            raise TrustError(doing, found, "look at the server") from error

    def _finding(self, error: Exception) -> tuple[str, str]:
        """What was found, and what to do, in one line each."""
        name = self._fetcher.last
        if isinstance(error, ExpiredMetadataError):
            clock = f"the clock says {_when(self.reference_time)}"
            return f"{_line(error)} ({clock})", "let the server sign again, and check this clock"
        if isinstance(error, DownloadHTTPError):
            return f"the server has no {name}", "look at the server"
        if isinstance(error, DownloadLengthMismatchError):
            return f"{name}: {_line(error)}", "look at the server and at who is between"
        return f"{name}: {_line(error)}", "look at the server; what runs goes on"

    def _read_floor(self) -> float:
        try:
            floor = float((self._folder / CLOCK_FLOOR).read_text())
        except (OSError, ValueError):
            return 0.0
        return floor if 0.0 <= floor < _END_OF_CALENDAR else 0.0

    def _raise_floor(self) -> None:
        if self.reference_time > self._read_floor():
            durable.write_file(self._folder / CLOCK_FLOOR, f"{self.reference_time:.0f}\n".encode())


class _Fetcher(FetcherInterface):
    """Brings files by name; `last` is the one that was asked for last."""

    def __init__(self, fetch: Fetch) -> None:
        self._bring = fetch
        self.last = "root.json"

    def download_bytes(self, url: str, max_length: int) -> bytes:
        # Who holds the online key says how long targets may be: as much as he likes.
        max_length = min(max_length, LIMITS.targets_max_length)
        self.last = url.removeprefix(_BASE)
        content = self._bring(self.last, max_length)
        if content is None:
            raise DownloadHTTPError(f"no {self.last}", 404)
        if len(content) > max_length:
            raise DownloadLengthMismatchError(f"more than the {max_length} bytes that it may have")
        return content

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise NotImplementedError(url)


def _trusted(updater: Updater) -> TrustedMetadataSet:
    return updater._trusted_set  # noqa: SLF001 - tuf has no public name for it


def _keys(delegator: Root | Targets, role: str) -> tuple[dict[str, Any], int]:
    """(keys by id, threshold) of a role."""
    try:
        found = delegator.get_delegated_role(role)
        return {keyid: delegator.get_key(keyid) for keyid in found.keyids}, found.threshold
    except ValueError as error:
        remedy = "look at the fleet's metadata"
        raise TrustError("reading the trust metadata", f"nobody may sign {role}", remedy) from error


def _check(holds: bool, doing: str, found: str, remedy: str) -> None:
    if not holds:
        raise TrustError(doing, found, remedy)


@contextmanager
def _decoding(doing: str) -> Iterator[None]:
    try:
        yield
    except MessageError as error:
        raise TrustError(doing, f"it is not well formed ({error})", _RESEND) from error


def _when(at: float) -> str:
    try:
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, ValueError, OSError):
        return "outside the calendar"


def _word(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)[:80]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
