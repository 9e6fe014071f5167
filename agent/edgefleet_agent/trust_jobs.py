"""What the trust process can do, one function for each job: verify what was signed, make a key, take a certificate.

It is the only module of the agent, with `renewed_certificate`, that loads tuf and cryptography. It installs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgefleet import identity
from edgefleet.durable import write_private
from edgefleet.protocol.signed import Envelope
from edgefleet.trust import certificates
from edgefleet.trust.client import Client, Fetch
from edgefleet_agent import renewed_certificate

PENDING_KEY_FILE = "renewing.key"

Content = dict[str, Any]
Result = dict[str, str]


def check_desired(job: Content, fetch: Fetch) -> Result:
    """Verify a desired state and everything below it; its content."""
    own = {name: job[name] for name in ("fleet", "device", "enrolment_id")}
    desired = _client(job, fetch).check_desired(Envelope.decode(job["envelope"].encode()), **own)
    return {"desired": desired.model_dump_json()}


def check_command(job: Content, fetch: Fetch) -> Result:
    """Verify a command's signature; its content."""
    command = _client(job, fetch).check_command(Envelope.decode(job["envelope"].encode()))
    return {"command": command.model_dump_json()}


def make_signing_request(job: Content, _fetch: Fetch) -> Result:
    """Make a key, keep it beside the identity, and say what is to be signed."""
    own = identity.load(Path(job["identity"]))
    key_pem, csr_pem = certificates.make_key_and_csr(own.device)
    write_private(own.folder / PENDING_KEY_FILE, key_pem)
    return {"csr": csr_pem.decode("ascii")}


def take_certificate(job: Content, _fetch: Fetch) -> Result:
    """Check the chain that came for the key kept by `make_signing_request`, and put both in the place of the old."""
    own = identity.load(Path(job["identity"]))
    pending = own.folder / PENDING_KEY_FILE
    key_pem, chain_pem = pending.read_bytes(), str(job["chain"]).encode()
    not_after = renewed_certificate.check(own, key_pem, chain_pem)
    identity.write_renewed(own, key_pem, chain_pem)
    pending.unlink()
    return {"not_after": f"{not_after:.0f}"}


JOBS: dict[str, Callable[[Content, Fetch], Result]] = {
    "check_desired": check_desired,
    "check_command": check_command,
    "make_signing_request": make_signing_request,
    "take_certificate": take_certificate,
}


def _client(job: Content, fetch: Fetch) -> Client:
    folder = Path(job["folder"])
    # tuf's temporary files, of a process that was ended while it wrote: there is one process at a time.
    for stray in folder.glob("metadata/tmp*"):
        stray.unlink()
    return Client(folder, Path(job["root_file"]).read_bytes(), fetch)
