"""Envelopes: what a signature covers, and how often a key counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner, Key

from edgefleet.errors import TrustError
from edgefleet.protocol.signed import Envelope, Signature
from edgefleet.trust.envelope import pre_authentication_encoding, sign, verify

ANNA, BEN, CARL = (CryptoSigner.generate_ed25519() for _ in range(3))
KEYS: dict[str, Key] = {one.public_key.keyid: one.public_key for one in (ANNA, BEN)}


def test_the_bytes_that_are_signed_are_those_of_the_specification() -> None:
    assert pre_authentication_encoding(b"hello world", "http://example.com/HelloWorld") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_lengths_count_bytes_so_that_two_contents_never_look_alike() -> None:
    assert pre_authentication_encoding(b"", "é") == b"DSSEv1 2 \xc3\xa9 0 "
    assert pre_authentication_encoding(b"b 1 c", "a") != pre_authentication_encoding(b"c", "a 5 b")


def test_an_envelope_survives_the_wire() -> None:
    envelope = sign(b"\x00\xff", "t", ANNA, BEN)
    again = Envelope.decode(envelope.encode())
    assert again == envelope
    verify(again, KEYS, 2)


def test_the_threshold_counts_different_keys() -> None:
    verify(sign(b"x", "t", ANNA), KEYS, 1)
    verify(sign(b"x", "t", CARL, ANNA), KEYS, 1)
    with pytest.raises(TrustError, match="1 of 2 needed, out of 2 keys"):
        verify(sign(b"x", "t", ANNA), KEYS, 2)
    with pytest.raises(TrustError, match="1 of 2 needed"):
        verify(sign(b"x", "t", ANNA, ANNA, ANNA), KEYS, 2)
    with pytest.raises(TrustError, match="1 of 2 needed"):
        verify(sign(b"x", "t", ANNA, CARL), KEYS, 2)


def test_one_key_under_two_ids_counts_once() -> None:
    envelope = sign(b"x", "t", ANNA)
    alias = "ab" * 32
    public = Key.from_dict(alias, ANNA.public_key.to_dict())
    twice = envelope.model_copy(
        update={"signatures": (*envelope.signatures, Signature(keyid=alias, sig=envelope.signatures[0].sig))}
    )
    with pytest.raises(TrustError, match="1 of 2 needed"):
        verify(twice, {**KEYS, alias: public}, 2)


@pytest.mark.parametrize("threshold", [0, -1])
def test_a_threshold_below_one_is_never_met(threshold: int) -> None:
    with pytest.raises(TrustError):
        verify(sign(b"x", "t", ANNA), KEYS, threshold)


def test_without_keys_nothing_is_believed() -> None:
    with pytest.raises(TrustError, match="out of 0 keys"):
        verify(sign(b"x", "t", ANNA), {}, 1)


@given(payload=st.binary(max_size=64), kind=st.text(max_size=20), at=st.integers(0, 63), bit=st.integers(0, 7))
def test_no_flipped_bit_of_a_signature_passes(payload: bytes, kind: str, at: int, bit: int) -> None:
    envelope = sign(payload, kind, ANNA)
    sig = bytearray(envelope.signatures[0].sig)
    sig[at] ^= 1 << bit
    flipped = Signature(keyid=envelope.signatures[0].keyid, sig=bytes(sig))
    with pytest.raises(TrustError, match="0 of 1 needed"):
        verify(envelope.model_copy(update={"signatures": (flipped,)}), KEYS, 1)


@given(sig=st.binary(max_size=100), payload=st.binary(max_size=64))
def test_no_other_bytes_are_a_signature(sig: bytes, payload: bytes) -> None:
    made = Envelope(payload=payload, payload_type="t", signatures=(Signature(keyid=ANNA.public_key.keyid, sig=sig),))
    with pytest.raises(TrustError, match="0 of 1 needed"):
        verify(made, KEYS, 1)


def test_the_type_of_a_peer_is_said_on_one_line() -> None:
    with pytest.raises(TrustError, match=r"of a text\?injected: ") as caught:
        verify(sign(b"x", "text\ninjected", CARL), KEYS, 1)
    assert "\n" not in str(caught.value)
