"""Why the broker refused or ended a connection, in words and on one line.

It decides nothing but whether MQTT 5 was the reason.
"""

from __future__ import annotations

from edgefleet.mqtt import tls_failures
from edgefleet.mqtt.address import BrokerAddress
from edgefleet.mqtt.channel import ClosedByPeerError
from edgefleet.mqtt.client import UNSUPPORTED_VERSION, Client

# paho gives the reason codes of MQTT 5 (sections 3.2.2.2, 3.14.2.1) for the return codes 1 to 5 of 3.1.1 too.
KEEPALIVE_TIMEOUT = 141
CONNECT_REFUSED = {
    UNSUPPORTED_VERSION: "it does not speak this MQTT version",
    133: "it refuses this client id",
    134: "it refuses the user name or password",
    135: "it does not allow this client",
    136: "it is not ready",
    137: "it is busy",
    138: "it has banned this client",
    149: "it finds the CONNECT packet too large",
    151: "its quota is used up",
    159: "too many clients connect at once",
}
ENDED = {
    130: "it found an error in the protocol",
    135: "it does not allow what this client did",
    137: "it is busy",
    139: "it is shutting down",
    142: "another client took over the same name",
    147: "more messages were sent at once than it takes",
    149: "it finds a packet too large",
    150: "messages came too fast",
    151: "its quota is used up",
    152: "an operator ended it",
}


def says_no_to_5(client: Client) -> bool:
    """Whether the broker said in words that it has no MQTT 5."""
    return client.version_5 and client.connack_code == UNSUPPORTED_VERSION


def may_not_know_5(client: Client) -> bool:
    """Whether the broker closed the connection on our CONNECT: so do some that do not know MQTT 5."""
    channel = client.channel
    return (
        client.version_5
        and client.connack_code is None
        and channel.was_open
        and isinstance(channel.failure, ConnectionError)
    )


def reason(client: Client, address: BrokerAddress, *, with_tls: bool) -> str:
    """Say why `client`, whose connection is over, ended."""
    failure = client.channel.failure
    if client.connack_code:
        return CONNECT_REFUSED.get(client.connack_code, f"it refuses with code {client.connack_code}")
    if client.protocol_error is not None:
        return f"what it sent cannot be read: {client.protocol_error}"
    if failure is None:
        return _by_code(client)
    if with_tls and client.channel.was_connected and not isinstance(failure, ClosedByPeerError):
        return tls_failures.reason(failure, address, opened=client.channel.was_open)
    if client.channel.was_open and client.connack_code is None and isinstance(failure, ConnectionError):
        return "the broker closed the connection before it answered" + ("" if with_tls else "; it may want TLS")
    return getattr(failure, "strerror", None) or str(failure)


def _by_code(client: Client) -> str:
    code = client.ended_code
    if code == KEEPALIVE_TIMEOUT and not client.ended_by_broker:
        return "the broker does not answer any more"
    if code == KEEPALIVE_TIMEOUT:
        return "the broker closed the connection: it heard nothing of this client for too long"
    return "the broker closed the connection" + (f": {ENDED[code]}" if code in ENDED else "")
