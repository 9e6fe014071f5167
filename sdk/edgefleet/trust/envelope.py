"""DSSE envelopes: signing bytes of a stated type, and counting whose signatures hold.

Source: DSSE 1.0 protocol (github.com/secure-systems-lab/dsse, protocol.md). Which keys may sign which type is for the
caller to know.
"""

from __future__ import annotations

from collections.abc import Mapping

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signer
from securesystemslib.signer import Signature as KeySignature

from edgefleet.errors import TrustError
from edgefleet.protocol.signed import Envelope, Signature


def sign(payload: bytes, payload_type: str, *signers: Signer) -> Envelope:
    """An envelope with one signature for each signer, in their order."""
    signed = pre_authentication_encoding(payload, payload_type)
    made = [signer.sign(signed) for signer in signers]
    signatures = tuple(Signature(keyid=one.keyid, sig=bytes.fromhex(one.signature)) for one in made)
    return Envelope(payload=payload, payload_type=payload_type, signatures=signatures)


def verify(envelope: Envelope, keys: Mapping[str, Key], threshold: int) -> None:
    """Check that at least `threshold` different keys of `keys` (by key id) signed it; raises TrustError.

    Signatures of other keys count for nothing, and a key counts once, however often it signed and under whatever id.
    """
    signed = pre_authentication_encoding(envelope.payload, envelope.payload_type)
    good: set[str] = set()
    for signature in envelope.signatures:
        key = keys.get(signature.keyid)
        if key is not None and _holds(key, signature, signed):
            good.add(str(key.keyval.get("public")))
    if threshold < 1 or len(good) < threshold:
        # A peer chooses the type: one word of it, whatever it holds.
        what = "".join(char if char.isprintable() else "?" for char in envelope.payload_type)
        raise TrustError(
            f"verifying the signatures of a {what}",
            f"{len(good)} of {max(threshold, 1)} needed, out of {len(keys)} keys that may sign",
            "have it signed by a key that this fleet trusts",
        )


def pre_authentication_encoding(payload: bytes, payload_type: str) -> bytes:
    """The bytes that a signature covers (PAE): type and payload, each behind its length."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _holds(key: Key, signature: Signature, signed: bytes) -> bool:
    try:
        key.verify_signature(KeySignature(signature.keyid, signature.sig.hex()), signed)
    except UnverifiedSignatureError:
        return False
    return True
