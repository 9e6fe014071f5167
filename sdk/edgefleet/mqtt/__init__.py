"""The broker connection: MQTT 5 where the broker has it, else 3.1.1, driven by the caller's own loop.

It knows nothing of what the messages mean.
"""

from edgefleet.mqtt.address import BrokerAddress, Identity, Outgoing
from edgefleet.mqtt.attempts import RECONNECT_CAP_S, TAKEOVER_COUNT
from edgefleet.mqtt.connection import CONNECT_TIMEOUT_S, KEEPALIVE_S, Connection
from edgefleet.mqtt.tls import Tls

__all__ = [
    "CONNECT_TIMEOUT_S",
    "KEEPALIVE_S",
    "RECONNECT_CAP_S",
    "TAKEOVER_COUNT",
    "BrokerAddress",
    "Connection",
    "Identity",
    "Outgoing",
    "Tls",
]
