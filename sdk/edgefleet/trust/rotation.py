"""Changing keys: rotation of every role, revocation of operators and of the release key, and new dates.

New private keys are written first (NAME.next), then the metadata that they sign, and last the one file that names
them: that write is the moment of the change. What a power cut left over is settled by the next call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import Root, Targets

from edgefleet.errors import InputError, StorageError
from edgefleet.protocol.topics import check_name
from edgefleet.trust.deployments import package_version
from edgefleet.trust.keys import NEXT_SUFFIX, OPERATOR_PREFIX, KeyFolder, key_name
from edgefleet.trust.online import ONLINE, load_online, metadata_folder, online_keys
from edgefleet.trust.record import Record
from edgefleet.trust.repository import Repository
from edgefleet.trust.roles import DEPLOYMENTS, PACKAGES, ROOT, SNAPSHOT, TARGETS, TIMESTAMP

RELEASE: Final = "release"


@dataclass(frozen=True, slots=True)
class Ceremony:
    """The keys and the data of one fleet, and the time that signatures count from (Unix time)."""

    keys: KeyFolder
    data: Path
    now: float

    @property
    def repository(self) -> Repository:
        """The fleet's metadata."""
        return Repository(metadata_folder(self.data))


def rotate_root(ceremony: Ceremony) -> None:
    """New root keys for all; the old ones, as many as their threshold says, sign the change."""
    with _changing(ceremony) as repository:
        old = _root_signers(ceremony.keys, repository)
        root = repository.root()
        names = [key_name(root.signed.get_key(keyid)) for keyid in root.signed.roles[ROOT].keyids]
        new = [_next_key(ceremony.keys, name) for name in names]
        _replace_keys(root.signed, ROOT, new)
        repository.write_next(ROOT, root, [*old, *new], ceremony.now)
        for name in names:
            ceremony.keys.promote(name)


def rotate_targets(ceremony: Ceremony) -> None:
    """A new targets key; it signs the same targets."""
    with _changing(ceremony) as repository:
        signers = _root_signers(ceremony.keys, repository)
        root, targets = repository.root(), repository.targets()
        new = _next_key(ceremony.keys, TARGETS)
        _replace_keys(root.signed, TARGETS, [new])
        repository.write_next(TARGETS, targets, [new], ceremony.now)
        repository.write_next(ROOT, root, signers, ceremony.now)
        ceremony.keys.promote(TARGETS)


def rotate_online(ceremony: Ceremony) -> None:
    """A new online key for the server: what the old one signed counts for nothing from now on.

    This is also the way back after a thief signed versions far in the future: devices forget the versions of
    snapshot and timestamp that the old key signed.
    """
    with _changing(ceremony) as repository:
        signers = _root_signers(ceremony.keys, repository)
        root = repository.root()
        new = _next_key(online_keys(ceremony.data), ONLINE)
        for role in (SNAPSHOT, TIMESTAMP):
            _replace_keys(root.signed, role, [new])
        repository.write_next(ROOT, root, signers, ceremony.now)
        online_keys(ceremony.data).promote(ONLINE)


def rotate_release(ceremony: Ceremony) -> None:
    """A new release key that signs the same package versions. After a theft revoke it instead."""
    _change_release(ceremony, lambda _name: True)


def revoke_release(ceremony: Ceremony, keep: Sequence[str]) -> list[str]:
    """A new release key that signs only the package versions of `keep` (NAME@VERSION); returns those it dropped.

    What a thief of the old key may have signed must be looked at by a person: nothing is kept by itself.
    """
    return _change_release(ceremony, lambda name: name in keep, keep)


def add_operator(ceremony: Ceremony, operator: str) -> None:
    """A key for one more operator."""
    name = OPERATOR_PREFIX + check_name("operator", operator)
    with _changing(ceremony) as repository:
        targets = repository.targets()
        if name in _operators(targets.signed):
            raise InputError(f"adding the operator {operator}", "there is one of that name", "choose another name")
        signer = ceremony.keys.signer(TARGETS)
        targets.signed.add_key(_next_key(ceremony.keys, name).public_key, DEPLOYMENTS)
        repository.write_next(TARGETS, targets, [signer], ceremony.now)
        ceremony.keys.promote(name)


def rotate_operator(ceremony: Ceremony, operator: str) -> None:
    """A new key for an operator; deployments that the old one signed are begun no more."""
    name = OPERATOR_PREFIX + operator
    with _changing(ceremony) as repository:
        targets = repository.targets()
        keyid = _operator_keyid(targets.signed, operator)
        signer = ceremony.keys.signer(TARGETS)
        targets.signed.add_key(_next_key(ceremony.keys, name).public_key, DEPLOYMENTS)
        targets.signed.revoke_key(keyid, DEPLOYMENTS)
        repository.write_next(TARGETS, targets, [signer], ceremony.now)
        ceremony.keys.promote(name)


def revoke_operator(ceremony: Ceremony, operator: str) -> int:
    """No deployment of this operator is begun any more; returns how many operators are left, which may be none."""
    name = OPERATOR_PREFIX + operator
    with _changing(ceremony) as repository:
        targets = repository.targets()
        targets.signed.revoke_key(_operator_keyid(targets.signed, operator), DEPLOYMENTS)
        repository.write_next(TARGETS, targets, [ceremony.keys.signer(TARGETS)], ceremony.now)
        if ceremony.keys.path(name).exists():
            ceremony.keys.retire(name)
        return len(_operators(targets.signed))


def renew_dates(ceremony: Ceremony) -> None:
    """Sign root, targets and packages again as they are, with new expiries."""
    with _changing(ceremony) as repository:
        signers = _root_signers(ceremony.keys, repository)
        targets, release = ceremony.keys.signer(TARGETS), ceremony.keys.signer(RELEASE)
        repository.write_next(PACKAGES, repository.packages(), [release], ceremony.now)
        repository.write_next(TARGETS, repository.targets(), [targets], ceremony.now)
        repository.write_next(ROOT, repository.root(), signers, ceremony.now)


def settle(ceremony: Ceremony) -> None:
    """Check what the server has; finish or forget what an interrupted change left.

    A waiting key that the metadata name takes its place. Raises TrustError for metadata that are not ours.
    """
    Record(ceremony.keys).settle(ceremony.repository)
    root, targets = ceremony.repository.root().signed, ceremony.repository.targets().signed
    named = {*root.keys, *(targets.delegations.keys if targets.delegations else {})}
    for folder in (ceremony.keys, online_keys(ceremony.data)):
        for waiting in [name for name in folder.names() if name.endswith(NEXT_SUFFIX)]:
            if folder.signer(waiting).public_key.keyid in named:
                folder.promote(waiting.removesuffix(NEXT_SUFFIX))
            else:
                folder.retire(waiting)


def ceremony_now(keys: KeyFolder, data: Path) -> Ceremony:
    """A ceremony that signs with this machine's clock."""
    return Ceremony(keys, data, time.time())


@contextmanager
def _changing(ceremony: Ceremony) -> Iterator[Repository]:
    """Lock, settle, change, publish."""
    repository = ceremony.repository
    try:
        with repository.locked():
            settle(ceremony)
            yield repository
            repository.publish(load_online(ceremony.data), ceremony.now)
            Record(ceremony.keys).keep(repository)
    except OSError as error:
        remedy = "mend it, and run it again: nothing is lost"
        raise StorageError("changing the keys", f"{error.filename}: {error.strerror}", remedy) from error


def _change_release(ceremony: Ceremony, kept: Callable[[str], bool], must_be: Sequence[str] = ()) -> list[str]:
    with _changing(ceremony) as repository:
        targets, packages = repository.targets(), repository.packages()
        names = {path: "{0.package}@{0.version}".format(package_version(packages.signed.targets[path]))
                 for path in packages.signed.targets}  # fmt: skip
        if unknown := sorted(set(must_be) - set(names.values())):
            there = ", ".join(sorted(names.values())) or "nothing"
            raise InputError("revoking the release key", f"no {unknown[0]} is signed", f"keep some of: {there}")
        signer = ceremony.keys.signer(TARGETS)
        new = _next_key(ceremony.keys, RELEASE)
        packages.signed.targets = {
            path: target for path, target in packages.signed.targets.items() if kept(names[path])
        }
        for keyid in list(targets.signed.get_delegated_role(PACKAGES).keyids):
            targets.signed.revoke_key(keyid, PACKAGES)
        targets.signed.add_key(new.public_key, PACKAGES)
        repository.write_next(PACKAGES, packages, [new], ceremony.now)
        repository.write_next(TARGETS, targets, [signer], ceremony.now)
        ceremony.keys.promote(RELEASE)
        return sorted(name for path, name in names.items() if path not in packages.signed.targets)


def _next_key(keys: KeyFolder, name: str) -> CryptoSigner:
    return keys.create(name + NEXT_SUFFIX)


def _replace_keys(root: Root, role: str, new: Sequence[Signer]) -> None:
    for keyid in list(root.roles[role].keyids):
        root.revoke_key(keyid, role)
    for signer in new:
        root.add_key(signer.public_key, role)


def _root_signers(keys: KeyFolder, repository: Repository) -> list[CryptoSigner]:
    """The root keys that are here; raises InputError when they are fewer than the threshold."""
    root = repository.root().signed
    role = root.roles[ROOT]
    names = [key_name(root.get_key(keyid)) for keyid in role.keyids]
    here = [keys.signer(name) for name in names if keys.path(name).exists()]
    good = [signer for signer in here if signer.public_key.keyid in role.keyids]
    if len(good) < role.threshold:
        raise InputError(
            "signing the root metadata",
            f"{keys.folder} holds {len(good)} of the {role.threshold} root keys that must sign",
            f"put {role.threshold} of {', '.join(names)} there",
        )
    return good


def _operators(targets: Targets) -> dict[str, str]:
    """Key id by key name of the operators."""
    role = targets.get_delegated_role(DEPLOYMENTS)
    return {key_name(targets.get_key(keyid)): keyid for keyid in role.keyids}


def _operator_keyid(targets: Targets, operator: str) -> str:
    known = _operators(targets)
    try:
        return known[OPERATOR_PREFIX + operator]
    except KeyError:
        names = ", ".join(sorted(name.removeprefix(OPERATOR_PREFIX) for name in known)) or "nobody"
        raise InputError(
            f"looking for the operator {operator}", f"the fleet knows {names}", "name one of them"
        ) from None
