"""Whether a renewed certificate may take the place of the old one. Runs in the trust process: it needs cryptography.

It asks for nothing and writes nothing. No date is compared with the clock, which a device may have lost.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edgefleet.errors import TrustError
from edgefleet.identity import DeviceIdentity
from edgefleet.trust.certificates import read_certificate

MOST_CERTIFICATES = 4


def check(own: DeviceIdentity, key_pem: bytes, chain_pem: bytes) -> float:
    """End of the chain's first certificate (Unix time), when it is this device's, for this key, by this fleet's
    authority, and outlives the old one. Raises TrustError.
    """
    try:
        chain = x509.load_pem_x509_certificates(chain_pem)
        root = x509.load_pem_x509_certificate(own.ca_file.read_bytes())
        key = serialization.load_pem_private_key(key_pem, None)
        facts = read_certificate(chain_pem)
        same_key = _bytes_of(chain[0].public_key()) == _bytes_of(key.public_key())
    except (ValueError, TypeError) as error:
        raise _refused(f"it is not readable ({error})") from error
    if not same_key:
        raise _refused("it is for another key")
    found = (facts.common_name, facts.fleet, facts.device, facts.enrolment_id)
    if found != (own.device, own.fleet, own.device, own.enrolment_id):
        raise _refused(f"it is for {found[0]} ({':'.join(map(str, found[1:]))})")
    _check_issuers(chain, root)
    if facts.not_after <= own.not_after:
        raise _refused("it does not last longer than the one that it is to replace")
    return facts.not_after


def _check_issuers(chain: list[x509.Certificate], root: x509.Certificate) -> None:
    """Each is signed by the next, the last by the pinned root, and all but the first may sign."""
    if len(chain) > MOST_CERTIFICATES:
        raise _refused(f"its chain has {len(chain)} certificates")
    try:
        for below, above in zip(chain, [*chain[1:], root], strict=True):
            below.verify_directly_issued_by(above)
            if not above.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
                raise _refused("it is signed by something that is no authority")
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as error:
        raise _refused("it is not issued by this fleet's authority") from error


def _bytes_of(key: object) -> bytes:
    if not hasattr(key, "public_bytes"):
        raise TypeError("a key without a public half")
    content: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return content


def _refused(found: str) -> TrustError:
    return TrustError("checking the renewed certificate", found, "the old one stays; look at the server's authority")
