"""What went wrong with TLS, in a person's words and on one line.

It decides nothing: whatever is said here, the connection was refused before.
"""

from __future__ import annotations

import ssl
import time
from datetime import UTC, datetime

from edgefleet.mqtt.address import BrokerAddress

PROBE_TIMEOUT_S = 3.0
# X509_V_ERR_… of OpenSSL's x509_vfy.h.
NOT_YET_VALID, EXPIRED = 9, 10
UNTRUSTED = {
    2: "the certificate of its issuer is missing",
    18: "it is signed by itself",
    19: "its root is not the certificate authority that this side knows",
    20: "it is not signed by the certificate authority that this side knows",
    21: "its chain is not complete",
    23: "it was revoked",
    62: "it is not made out to {host}",
    64: "it is not made out to the address {host}",
}
# Alerts of the broker (RFC 8446, section 6.2) on our certificate, as OpenSSL ends their names.
REFUSED = {
    "CERTIFICATE_EXPIRED": "by the broker's clock it, or the broker's revocation list, has expired",
    "CERTIFICATE_REVOKED": "it was revoked",
    "CERTIFICATE_UNKNOWN": "the broker cannot use it",
    "UNSUPPORTED_CERTIFICATE": "the broker does not take its kind",
    "BAD_CERTIFICATE": "the broker cannot use it, or by its clock it is not valid yet",
    "UNKNOWN_CA": "the broker does not know who signed it",
    "CERTIFICATE_REQUIRED": "none was sent",
    "ACCESS_DENIED": "it gives no access",
}
OTHER = {
    "WRONG_VERSION_NUMBER": "this port does not speak TLS",
    "PACKET_LENGTH_TOO_LONG": "this port does not speak TLS",
    "HTTP_REQUEST": "this port does not speak TLS",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the broker speaks no TLS from 1.2 on",
    "UNSUPPORTED_PROTOCOL": "the broker speaks no TLS from 1.2 on",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "the broker ended the handshake: it wants a certificate, or other ciphers",
}
UTC_TIME, GENERALIZED_TIME = 0x17, 0x18


def reason(error: Exception, address: BrokerAddress, *, opened: bool) -> str:
    """Say what `error` means; `opened` tells whether our side had finished the handshake."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _untrusted(error, address)
    name = str(getattr(error, "reason", None) or "")
    if "ALERT_" in name and (refused := REFUSED.get(name.partition("ALERT_")[2])):
        return f"the broker refused this side's certificate: {refused}"
    if name in OTHER:
        return OTHER[name]
    if not opened and (isinstance(error, (ssl.SSLEOFError, ConnectionError))):
        return "the broker closed the connection in the TLS handshake: this port may not speak TLS"
    if not isinstance(error, ssl.SSLError):
        return getattr(error, "strerror", None) or str(error)
    return f"TLS: {name.replace('_', ' ').lower() or getattr(error, 'strerror', None) or error}"


def _untrusted(error: ssl.SSLCertVerificationError, address: BrokerAddress) -> str:
    code = error.verify_code
    if code in (NOT_YET_VALID, EXPIRED):
        return _out_of_time(address, expired=code == EXPIRED)
    why = UNTRUSTED.get(code, error.verify_message).format(host=address.host)
    return f"the broker's certificate is not to be trusted: {why}"


def _out_of_time(address: BrokerAddress, *, expired: bool) -> str:
    clock = datetime.fromtimestamp(time.time(), UTC)
    limits = _broker_validity(address)
    verb = "has expired" if expired else "is not valid yet"
    when = ""
    if limits is not None and expired and limits[1] < clock:
        when = f" ({limits[1]:%Y-%m-%d})"
    elif limits is not None and not expired and limits[0] > clock:
        when = f" (from {limits[0]:%Y-%m-%d})"
    remedy = "set the clock, or renew that certificate" if expired else "set the clock"
    return f"by this side's clock of {clock:%Y-%m-%d} the broker's certificate {verb}{when}: {remedy}"


def _broker_validity(address: BrokerAddress) -> tuple[datetime, datetime] | None:
    """Ask the broker for its certificate once more, trusting nothing of it; None where it does not show it."""
    try:
        text = ssl.get_server_certificate((address.host, address.port), timeout=PROBE_TIMEOUT_S)
        return validity(ssl.PEM_cert_to_DER_cert(text))
    except (OSError, ValueError, IndexError):
        return None


def validity(certificate: bytes) -> tuple[datetime, datetime]:
    """(not before, not after) of a certificate in DER (RFC 5280, section 4.1); raises ValueError or IndexError."""
    _, outer, _ = _element(certificate, 0)
    _, position, _ = _element(certificate, outer)
    skipped = 4 if certificate[position] == 0xA0 else 3
    for _ in range(skipped):
        _, _, position = _element(certificate, position)
    _, position, _ = _element(certificate, position)
    kind, start, after = _element(certificate, position)
    last_kind, last_start, last_end = _element(certificate, after)
    return _moment(kind, certificate[start:after]), _moment(last_kind, certificate[last_start:last_end])


def _element(data: bytes, position: int) -> tuple[int, int, int]:
    """Tag, start of the content and end of the DER element at `position`."""
    tag, length, start = data[position], data[position + 1], position + 2
    if length & 0x80:
        count = length & 0x7F
        length = int.from_bytes(data[start : start + count], "big")
        start += count
    return tag, start, start + length


def _moment(tag: int, content: bytes) -> datetime:
    text = content.decode("ascii")
    if tag == UTC_TIME:
        # RFC 5280: two digits from 50 on are of the last century.
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    elif tag != GENERALIZED_TIME:
        raise ValueError(f"tag {tag} is no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
