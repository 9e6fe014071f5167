"""One client of the broker that reconnects for ever, driven by the caller's own loop.

One thread; it never blocks but to look up a name. What it may not hand to the socket now, `publish` refuses.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Callable, Mapping, Sequence

from edgefleet.errors import TransportError
from edgefleet.mqtt import refusals
from edgefleet.mqtt.address import BrokerAddress, Identity, Outgoing
from edgefleet.mqtt.attempts import Attempts, Protocol
from edgefleet.mqtt.channel import Channel, Phase
from edgefleet.mqtt.client import Client
from edgefleet.mqtt.largest_publish import LargestPublish
from edgefleet.mqtt.tls import Tls

CONNECT_TIMEOUT_S = 5.0
# Up to the broker's CONNACK: a thousand handshakes at once take their time.
ANSWER_TIMEOUT_S = 30.0
# Some brokers without MQTT 5 wait for ever for the rest of a CONNECT that they cannot read.
SILENCE_S = 2.5
# Brokers wait for one and a half of it, and mosquitto looks every five seconds only: with 30 s a client whose cable is
# cut shows as offline after 50 s at worst, with 26 s after 44 s.
KEEPALIVE_S = 26
FLUSH_S = 1.0
# Beyond it `publish` refuses; whoever sends large messages looks at `writable` first.
MOST_WAITING_BYTES = 4 * 1024 * 1024

log = logging.getLogger("edgefleet.mqtt")


class Connection:
    """One client. Call `poll` again and again; the callbacks run inside it.

    In a loop of one's own: poll `fileno()` for reading, and for writing while `wants_write`; call `poll(0.0)` when it
    is ready, while `has_input`, and once a second in any case.
    """

    def __init__(
        self,
        address: BrokerAddress,
        identity: Identity,
        filters: Sequence[tuple[str, int]],
        *,
        on_message: Callable[[str, bytes, bool], None],
        on_connected: Callable[[], None],
        on_lost: Callable[[bool], None] = lambda _published: None,
        will: Callable[[], Outgoing | None] = lambda: None,
        tls: Tls | None = None,
        clean_session: bool = True,
        keepalive_s: int = KEEPALIVE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_message` gets topic, payload, and whether the broker had it retained; at QoS 1 the broker is told that
        it came once `on_message` has returned. `on_connected` runs once the filters are asked for. `on_lost` runs
        when a connection has ended; it is told whether that was within 2 s of the first PUBLISH of its size (above
        8 KiB) on this connection: the broker may limit packets. `will` is asked anew before each connect. Without
        `clean_session` the broker keeps what comes at QoS 1 while this client is away, for 7 days where it has MQTT 5.
        """
        self.address = address
        self.connected = False
        self.last_failure: str | None = None
        self.max_packet_bytes: int | None = None
        self.shared_subscriptions: bool | None = None
        self._identity = identity
        self._filters = list(filters)
        self._on_message = on_message
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._will = will
        self._tls = tls
        self._clean_session = clean_session
        self._keepalive_s = keepalive_s
        self._clock = clock
        self._client: Client | None = None
        self._attempts = Attempts()
        self._attempted_at = 0.0
        self._connected_at = 0.0
        self._largest = LargestPublish()
        self._closed = False

    @property
    def protocol(self) -> str:
        """The MQTT version spoken, or tried next: "5" or "3.1.1"."""
        return self._attempts.protocol.value

    @property
    def taken_over(self) -> bool:
        """True while connections end so soon after another that another client may be using the same name."""
        return self._attempts.taken_over

    @property
    def writable(self) -> bool:
        """True while nothing waits for the socket: the moment to publish one more large message."""
        return self.connected and self._client is not None and not self._client.channel.waiting_bytes

    @property
    def wants_write(self) -> bool:
        """True while there is something to do once the socket can be written to."""
        return self._client is not None and bool(self._client.channel.mask & select.POLLOUT)

    @property
    def has_input(self) -> bool:
        """True while there is more to do than the last `poll` did, although the socket may not show it."""
        client = self._client
        if client is None:
            return False
        channel = client.channel
        return not client.drained or channel.phase is Phase.BROKEN or channel.write_error is not None

    def fileno(self) -> int:
        """The socket's descriptor, or -1 while there is none; another one after each reconnect."""
        return -1 if self._client is None else self._client.channel.fileno()

    def publish(self, message: Outgoing) -> bool:
        """Hand a message to the socket; False, and nothing kept, when not connected or when too much waits already."""
        client = self._client
        if not self.connected or client is None or client.channel.waiting_bytes > MOST_WAITING_BYTES:
            return False
        self._largest.sent(len(message.payload), self._clock())
        return client.send(message)

    def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Ask for more (filter, QoS), for this connection only: for `on_connected` to choose by what the broker has."""
        if self._client is not None:
            self._client.subscribe_all(filters)

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Ask for these no more."""
        if self._client is not None and self.connected:
            self._client.unsubscribe(list(filters))

    def connect_now(self, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        """Connect once within `timeout_s`; raises TransportError. For commands that must not wait for ever."""
        deadline = self._clock() + timeout_s
        self._attempts.next_at = self._clock()
        while not self.connected and self._clock() < deadline and self._is_trying():
            self.poll(min(0.05, timeout_s))
        if not self.connected:
            self.close()
            raise TransportError(
                f"connecting to the MQTT broker {self.address}",
                self.last_failure or f"no answer within {timeout_s:g} s",
                "check that it runs and that the address is right",
            )

    def reconnect(self) -> None:
        """Disconnect in good order (no will is published) and connect again at the next `poll`."""
        was_connected = self.connected
        if self._client is not None:
            self._drop(self._client)
        self._attempts.next_at = self._clock()
        if was_connected:
            self._on_lost(False)

    def poll(self, timeout_s: float, readers: Mapping[int, Callable[[], None]] | None = None) -> None:
        """Wait at most `timeout_s` for the socket or one of `readers` (file descriptor → callback); serve them."""
        readers = readers or {}
        if self._client is None and not self._closed and self._clock() >= self._attempts.next_at:
            self._attempt()
        client = self._client
        descriptor = self.fileno()
        waiting = select.poll()
        for reader in readers:
            waiting.register(reader, select.POLLIN)
        if client is not None and descriptor >= 0:
            waiting.register(descriptor, client.channel.mask)
        ready = dict(waiting.poll(1000 * max(0.0, self._bounded(timeout_s))))
        for reader in ready.keys() & readers.keys():
            readers[reader]()
        if client is not None and client is self._client:
            self._serve(client, ready.get(descriptor, 0))

    def close(self) -> None:
        """Disconnect in good order (the broker publishes no will) and stay closed."""
        self._closed = True
        if self._client is not None:
            self._drop(self._client)

    def abandon(self) -> None:
        """Drop the socket as a crash would: the broker publishes the will."""
        client, self._client = self._client, None
        if client is not None:
            client.channel.close()
        self.connected = False

    def _is_trying(self) -> bool:
        return self._client is not None or self._attempts.next_at <= self._clock()

    def _attempt(self) -> None:
        self._attempted_at = self._clock()
        try:
            context = self._tls.context() if self._tls is not None else None
            channel = Channel(self.address.host, self.address.port, context)
        except (TransportError, OSError, UnicodeError) as error:
            self._lost(getattr(error, "strerror", None) or str(error))
            return
        self._client = Client(
            channel,
            self._identity,
            version_5=self._attempts.protocol is Protocol.V5,
            clean=self._clean_session,
            on_message=self._on_message,
        )
        self._client.start(self.address.host, self.address.port, self._keepalive_s, self._will())

    def _welcome(self, client: Client) -> None:
        self.connected = True
        self.last_failure = None
        self._connected_at = self._clock()
        self._attempts.accepted()
        self._largest = LargestPublish()
        self.max_packet_bytes = client.max_packet_bytes
        self.shared_subscriptions = client.shared_subscriptions
        client.subscribe_all(self._filters)
        log.info("connected to the broker %s with MQTT %s", self.address, self.protocol)
        self._on_connected()

    def _bounded(self, timeout_s: float) -> float:
        if self.has_input:
            return 0.0
        if self._client is None and not self._closed:
            return min(timeout_s, self._attempts.next_at - self._clock())
        return timeout_s

    def _serve(self, client: Client, events: int) -> None:
        channel = client.channel
        if events and channel.phase is not Phase.OPEN:
            channel.advance()
        elif events & ~select.POLLOUT or self.has_input:
            client.read()
        if client is not self._client:
            return
        if channel.phase is Phase.OPEN:
            channel.flush()
            client.loop_misc()
        if client.connack_code == 0 and not self.connected:
            self._welcome(client)
        if client is self._client:
            self._see_to(client)

    def _see_to(self, client: Client) -> None:
        """Notice what has ended, what takes too long, and what lasts."""
        now, channel = self._clock(), client.channel
        if channel.phase is Phase.BROKEN:
            self._end(client)
        elif self.connected:
            self._attempts.lasts(now - self._connected_at)
        elif now - self._attempted_at > ANSWER_TIMEOUT_S:
            self._lost(f"no answer within {ANSWER_TIMEOUT_S:g} s")
        elif self._attempts.doubts_5 and channel.open_for_s > SILENCE_S:
            self._try_311(client)
        elif channel.phase is Phase.CONNECTING and channel.tried_for_s > CONNECT_TIMEOUT_S:
            channel.try_next_address()

    def _drop(self, client: Client) -> None:
        self._client = None
        self.connected = False
        client.leave(FLUSH_S)

    def _end(self, client: Client) -> None:
        if refusals.says_no_to_5(client) or (self._attempts.doubts_5 and refusals.may_not_know_5(client)):
            self._try_311(client)
        else:
            self._lost(refusals.reason(client, self.address, with_tls=self._tls is not None))

    def _try_311(self, client: Client) -> None:
        self._client = None
        client.channel.close()
        self._attempts.refused_5(self._clock(), said_so=refusals.says_no_to_5(client))
        log.info("broker %s: it does not take MQTT 5; trying 3.1.1", self.address)

    def _lost(self, reason: str) -> None:
        """Forget the client and schedule the next attempt with full jitter (at most 60 s)."""
        now, was_connected = self._clock(), self.connected
        if self._client is not None:
            self._client.channel.close()
        self._client = None
        self.connected = False
        if was_connected:
            self._attempts.ended(now, now - self._connected_at)
        else:
            self._attempts.failed(now)
        if self.taken_over:
            times = self._attempts.short_lives
            reason += f"; {times} times in a row: another client may be using the same name"
        self.last_failure = reason
        if not self._closed:
            log.warning("broker %s: %s; trying again in %.1f s", self.address, reason, self._attempts.next_at - now)
        if was_connected:
            self._on_lost(self._largest.is_suspect(now))
