"""The agent's one loop: broker, trust, installation, worker and spool, in a single thread.

It wires them together and turns the loop; each of them holds its own rules.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from edgefleet import identity as identities
from edgefleet.mqtt import Outgoing
from edgefleet.protocol import topics
from edgefleet.protocol.messages import Request, Window
from edgefleet.protocol.signed import CommandName, Desired
from edgefleet.protocol.topics import TOPICS, TopicName
from edgefleet_agent import broker_link, state_folder
from edgefleet_agent import facts as device_facts
from edgefleet_agent.acceptance import Own
from edgefleet_agent.benchmark import limits_of
from edgefleet_agent.clock import StampClock
from edgefleet_agent.commands import Commands
from edgefleet_agent.comparison import Comparison
from edgefleet_agent.desired_states import DesiredStates
from edgefleet_agent.incoming import Incoming
from edgefleet_agent.inference import Inference
from edgefleet_agent.installer import Installer
from edgefleet_agent.journal import Enrolment
from edgefleet_agent.making import Maker
from edgefleet_agent.outbox import Outbox, outgoing
from edgefleet_agent.power import open_meter
from edgefleet_agent.renewal import Renewal
from edgefleet_agent.serve.burst import Burst
from edgefleet_agent.serve.server import Server
from edgefleet_agent.settings import Settings
from edgefleet_agent.spool import Spool
from edgefleet_agent.succession import Parts
from edgefleet_agent.thermal import Thermal
from edgefleet_agent.trust_queue import TrustQueue
from edgefleet_agent.watch import Watch, rules_of
from edgefleet_agent.windows import Windows
from edgefleet_agent.worker_ahead import Ahead

POLL_S = 0.1
# While nothing is installed or verified, what is waited for wakes the loop by itself; meters are read once a second.
IDLE_POLL_S = 0.25
# A verdict takes a second or two; a hub that does not answer must not hold the download up for longer than this.
HOLD_DOWNLOADS_S = 10.0

log = logging.getLogger("edgefleet.agent")


class Agent:
    """One agent of one identity on one state folder."""

    def __init__(self, settings: Settings, ahead: Ahead | None = None) -> None:
        """Read identity and folder; `ahead` is for the first worker. Raises InputError, BusyError, StorageError."""
        self.settings = settings
        self.profile = device_facts.load_profile(settings.profile)
        self.identity = identities.load(settings.identity)
        self.own = Own(self.identity.fleet, self.identity.device, self.identity.enrolment_id)
        enrolment = Enrolment(fleet=self.own.fleet, device=self.own.device, enrolment_id=self.own.enrolment_id)
        self._folder = state_folder.open_folder(settings.state_folder, enrolment)
        self.journal = self._folder.journal
        self._facts = device_facts.gather(settings.root, self.profile, self.own.enrolment_id, 0)
        self._spool = Spool(
            self._folder.spool_file, self.own.enrolment_id, self._facts.boot_id,
            limit_bytes=settings.telemetry.spool_mb * 1_000_000, replay_per_s=settings.telemetry.replay_per_s,
        )  # fmt: skip
        meter = open_meter(settings.root, self.profile, simulated=self._facts.simulated)
        thermal = Thermal(settings.root, self.profile, simulated=self._facts.simulated)
        stamps = StampClock(self._facts.boot_id, lambda: state_folder.clock_floor(self._folder.trust_folder))
        self._inference = Inference(settings, self._folder.slots, Windows(meter, thermal, stamps), self, ahead=ahead)
        watch = Watch(self._folder.folder, rules_of(settings.probation, limits_of(self.profile)))
        self._comparison = Comparison(settings, self._folder.slots, self._inference, watch.compared, self.note)
        maker = Maker(
            settings, self.profile, self._facts, self._folder, self,
            lambda: broker_link.http_access(self.identity, settings),
        )  # fmt: skip
        self._installer = Installer(Parts(self.journal, self._folder.slots, self._inference, watch, self), maker.make)
        self._server = Server(settings.serve, self._inference, self.note)
        self.connection = broker_link.open_connection(
            self.identity, settings, on_message=self._receive, on_connected=self._hello, will=self._will
        )
        self._burst = Burst(
            self._served, self._children, lambda: self._server.has_clients, lambda: self._inference.busy,
            self.connection,
        )  # fmt: skip
        self._outbox = Outbox(self.connection, self.own, self.journal, self._spool, self._facts)
        self._trust = TrustQueue(self)
        self._desired_states = DesiredStates(self.own, self.journal, self._trust, self)
        self._renewal = Renewal(self.identity, self._trust, self)
        commands = Commands(self.own, self.journal, self._trust, self)
        self._incoming = Incoming(
            self.own, self._desired_states, commands, self._spool, self._trust, self._renewal, self._installer
        )
        self._requests = 0
        self._held_since: float | None = None
        self._is_taken_over = False

    # The loop ----------------------------------------------------------------------------------------

    def run(self, stop: Callable[[], bool]) -> None:
        """Serve until `stop` says so."""
        self._restore()
        try:
            while not stop():
                # First: the variant is checked while the broker is connected to.
                self.tick(time.monotonic())
                is_idle = self._installer.current is None and not self._trust.sessions()
                self.connection.poll(IDLE_POLL_S if is_idle else POLL_S, self._readers())
        finally:
            self._shut_down()

    def tick(self, now: float) -> None:
        """One turn of the loop."""
        self._trust.tick(now)
        self._renewal.tick(now)
        self._installer.advance(now, hold_downloads=self._holds_downloads(now))
        self._inference.tick(self.journal.entry.active, now)
        self._comparison.tick(self.journal.entry, now)
        self._server.tick(now)
        self._note_takeovers()
        self._outbox.send_spooled(now)
        self.journal.retry()
        self._outbox.send_state(self._installer.state(), now, hurried=self._installer.current is None)

    def _readers(self) -> dict[int, Callable[[], None]]:
        """What wakes the loop beside the broker, and what is done about it at once."""
        # An answer is on its way to who asked before anything else is done.
        return dict.fromkeys(self._children(), _nothing) | dict.fromkeys(self._served(), self._burst.serve)

    def _children(self) -> list[int]:
        children = self._installer.descriptors() + [child.fileno() for child in self._trust.sessions()]
        return children + self._comparison.descriptors() + self._inference.descriptors()

    def _served(self) -> dict[int, Callable[[], None]]:
        """What the local API and the worker that serves it are read by."""
        return dict.fromkeys(self._inference.answers(), self._inference.listen) | self._server.descriptors()

    def _holds_downloads(self, now: float) -> bool:
        """Whether the line is left to the verification of a newer decision, for a while."""
        if not self._desired_states.waiting:
            self._held_since = None
            return False
        self._held_since = self._held_since or now
        return now - self._held_since < HOLD_DOWNLOADS_S

    def _note_takeovers(self) -> None:
        """An event, once, when another client keeps taking this one's place at the broker."""
        taken_over = self.connection.taken_over
        if taken_over and not self._is_taken_over:
            self.note("taken_over", self.connection.last_failure or "another client uses the same name")
        self._is_taken_over = taken_over

    def _restore(self) -> None:
        """Say what happened at the opening, and take up an installation that was cut off."""
        for kind, text in self._folder.said:
            self.note(kind, text)
        self._installer.restore()

    def _shut_down(self) -> None:
        self._server.close()
        self._comparison.close()
        self._inference.stop()
        self._trust.close()
        self._installer.close()
        self._outbox.send(TopicName.ONLINE, self._outbox.presence(online=False))
        self.connection.close()
        self._spool.close()
        self._folder.lock.close()

    # Messages ----------------------------------------------------------------------------------------

    def _will(self) -> Outgoing:
        """Asked before each connect: the counter is on disk before the broker can know it."""
        self.journal.note(connection=self.journal.entry.connection + 1)
        return outgoing(self.own, TopicName.ONLINE, self._outbox.presence(online=False))

    def _hello(self) -> None:
        self._outbox.hello()
        self._trust.on_connected()
        self._renewal.on_connected()
        if self._installer.current is not None:
            self._installer.current.on_connected()

    def _receive(self, topic: str, payload: bytes, _retained: bool) -> None:
        self._incoming.receive(topic, payload)

    # What its parts ask of it ------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether the broker is connected."""
        return self.connection.connected

    @property
    def infers(self) -> bool:
        """Whether the variant that runs answers; true where there is none to run."""
        return self.journal.entry.active is None or self._inference.ready

    def request(self, request: Request) -> bool:
        """Send a request to the hubs; False when not connected."""
        return self._outbox.send(TopicName.REQUEST, request)

    def listen(self, sha12: str, *, wanted: bool) -> None:
        """Subscribe to a blob's shared topic, or leave it."""
        shared = topics.filter_for(self.own.fleet, TopicName.SHARED, sha12=sha12)
        if wanted:
            self.connection.subscribe([(shared, TOPICS[TopicName.SHARED].qos)])
        else:
            self.connection.unsubscribe([shared])

    def next_req_id(self) -> str:
        """Unique: the connection counter never goes back, not even over a restart."""
        self._requests += 1
        return f"{self.journal.entry.connection}-{self._requests}"

    def note(self, kind: str, text: str) -> None:
        """Record an event."""
        log.info("%s: %s", kind, text)
        self._spool.add_event(kind, text)

    def add_window(self, window: Window) -> None:
        """Keep a telemetry window, and judge the variant by it."""
        self._spool.add_window(window)
        self._installer.add_window(window)

    def slot_damaged(self, reason: str) -> None:
        """The files of the variant that runs do not match their digests any more."""
        self.note("slot_damaged", reason)
        self._installer.slot_damaged(reason)

    def variant_failed(self, digest: str, reason: str) -> None:
        """A variant's worker ended three times, one soon after the other."""
        self.note("struck_out", reason)
        self._installer.struck_out(digest, reason)

    def wall_clock(self) -> float:
        """Seconds since 1970, never before what was verified last."""
        return max(time.time(), state_folder.clock_floor(self._folder.trust_folder))

    def trust_job(self, kind: str, **content: Any) -> Mapping[str, Any]:
        """What the trust process is told."""
        where = {"folder": str(self._folder.trust_folder), "root_file": str(self.identity.root_file)}
        return {"kind": kind, **where, **content}

    def begin(self, desired: Desired) -> None:
        """Journal an accepted desired state and start its installation."""
        self._installer.begin(desired)

    def report_again(self) -> None:
        """Publish the state, changed or not."""
        self._outbox.report_again()

    def report_refused(self, generation: int, reason: str) -> None:
        """Publish that a generation is not acted on; what runs, runs on."""
        self._outbox.send_refused(generation, reason)

    def run_command(self, name: CommandName) -> str:
        """Do what a verified command says; what came of it, in words."""
        if name is CommandName.RENEW:
            return self._renewal.begin()
        self._outbox.hello()
        return "done"

    def renewed(self) -> None:
        """Connect anew: there is another certificate."""
        self._outbox.send(TopicName.ONLINE, self._outbox.presence(online=False))
        self.connection.reconnect()


def _nothing() -> None:
    """A child became readable: the loop turns, and `tick` reads it."""
