"""Questions about the agent's place: settings, identity, disk, broker, sources and sinks, service.

Each takes the device and gives a finding; it raises EdgefleetError where something else has to be mended first.
"""

from __future__ import annotations

import os
import shutil
import socket
import ssl
from contextlib import suppress

from edgefleet import identity as identities
from edgefleet.mqtt import BrokerAddress, Tls
from edgefleet_agent.doctor.subject import Finding, Level, Subject, is_there
from edgefleet_agent.host.upgrade import last_outcome, pending
from edgefleet_agent.preparation import kept_free
from edgefleet_agent.source_settings import CameraSource, FolderSource, JsonlSink, LocalBroker, MqttSource, ReplaySource
from edgefleet_agent.status import Running

CONNECT_TIMEOUT_S = 5.0
REFUSAL_TIMEOUT_S = 0.5
# Driver → what is imported, and how it gets there.
CAMERA_DRIVERS = {
    "opencv": ("cv2", "run: pip install 'edgefleet[camera]'"),
    "picamera2": ("picamera2", "run: sudo apt install python3-picamera2; and install the agent with --system-packages"),
}
# The least that a journal and a spool need to go on.
LOW_DISK_MIB = 64


def settings(subject: Subject) -> Finding:
    """Whether the settings can be read."""
    return Finding(Level.OK, f"{subject.settings_file}, state in {subject.settings.state_folder}")


def identity(subject: Subject) -> Finding:
    """Who the device is, and for how long."""
    identity = subject.identity
    who = f"{identity.device} of the fleet {identity.fleet}"
    if not identity.tls:
        return Finding(Level.NOTE, f"{who}, without TLS")
    days = (identity.not_after - subject.now) / 86400
    if days <= 0:
        mend = "enrol it again (edgefleet enroll), if the clock is right"
        return Finding(Level.FAILED, f"{who}; its certificate ended {-days:.0f} days ago", mend)
    text = f"{who}, certificate good for {days:.0f} days"
    if identities.needs_renewal(identity.not_after, subject.now):
        return Finding(Level.WARNING, text, "connect it to its broker: the agent renews by itself")
    return Finding(Level.OK, text)


def state(subject: Subject) -> Finding:
    """Whether the state folder can be written, and has room."""
    folder, found = subject.settings.state_folder, subject.status
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK):
        # What is not there is made: whatever lies above it belongs to others.
        mend = f"run: sudo chown -R $USER {folder}" if there == folder else f"run: sudo install -d -o $USER {folder}"
        return Finding(Level.FAILED, f"{there} cannot be written by this user", mend)
    disk = shutil.disk_usage(there)
    free_mib, floor_mib = disk.free / 2**20, kept_free(disk.total, subject.profile.storage.free_floor_mib) / 2**20
    text = f"{free_mib:.0f} MiB free in {there}"
    if found.damaged:
        mend = "start the agent: it recovers what it can, and says so"
        return Finding(Level.WARNING, f"{text}; the journal in it is damaged", mend)
    if free_mib < max(floor_mib, LOW_DISK_MIB):
        return Finding(Level.WARNING, f"{text}; installs leave {floor_mib:.0f} MiB free", "free some space there")
    return Finding(Level.OK, text)


def broker(subject: Subject) -> Finding:
    """Whether the broker answers, and takes this device."""
    identity, settings = subject.identity, subject.settings
    address = BrokerAddress(settings.broker.host or identity.host, settings.broker.port or identity.port)
    try:
        with socket.create_connection((address.host, address.port), CONNECT_TIMEOUT_S) as plain:
            if not identity.tls:
                return Finding(Level.OK, f"{address} answers, without TLS")
            context = Tls(identity.ca_file, identity.certificate_file, identity.key_file).context()
            with context.wrap_socket(plain, server_hostname=address.host) as tls:
                _wait_for_refusal(tls)
                return Finding(Level.OK, f"{address} answers, {tls.version()}")
    except ssl.SSLError as error:
        mend = "compare the clock, and the fleet's authority (ca.crt) with the broker's certificate"
        return Finding(Level.FAILED, f"{address}: {error.reason or error}", mend)
    except OSError as error:
        mend = "start the broker, or name its address as [broker] in the settings"
        return Finding(Level.FAILED, f"{address}: {error.strerror or error}", mend)


def _wait_for_refusal(tls: ssl.SSLSocket) -> None:
    """With TLS 1.3 a broker that does not take our certificate says so only after the handshake; raises SSLError."""
    tls.settimeout(REFUSAL_TIMEOUT_S)
    with suppress(TimeoutError):
        tls.recv(1)


def source(subject: Subject) -> Finding:
    """Whether inputs can come."""
    source, is_served = subject.settings.source, subject.settings.serve.enabled
    match source:
        case None if not is_served:
            return Finding(Level.WARNING, "none, and no local API", "add [source], or [serve] with enabled = true")
        case None:
            return Finding(Level.OK, "the local API alone")
        case MqttSource():
            return _topic(subject, source.topic, source.broker)
        case CameraSource():
            return _camera(source)
        case ReplaySource() | FolderSource():
            return _files(subject, source)


def _files(subject: Subject, source: ReplaySource | FolderSource) -> Finding:
    if not subject.may(source.path, os.R_OK) or source.path.is_dir() is isinstance(source, ReplaySource):
        return Finding(Level.FAILED, f"{source.kind}: {source.path} cannot be read", "correct the path in [source]")
    if isinstance(source, FolderSource) and source.after == "delete" and not subject.may(source.path, os.W_OK):
        found = f"folder: what is in {source.path} cannot be removed by the agent's user"
        return Finding(Level.WARNING, found, "let that user write there; or set after = 'keep'")
    return Finding(Level.OK, f"{source.kind}: {source.path}")


def _topic(subject: Subject, topic: str, broker: LocalBroker) -> Finding:
    file = broker.password_file
    if file is not None and not subject.may(file, os.R_OK):
        return Finding(Level.FAILED, f"mqtt: {file} cannot be read", "correct password_file, or who may read it")
    return Finding(Level.OK, f"mqtt: {topic}")


def _camera(source: CameraSource) -> Finding:
    module, mend = CAMERA_DRIVERS[source.driver]
    if is_there(module):
        return Finding(Level.OK, f"camera {source.device}, {source.driver}")
    return Finding(Level.FAILED, f"the Python package {module} is not installed", mend)


def sinks(subject: Subject) -> Finding:
    """Whether results can go where they shall."""
    sinks = subject.settings.sinks
    for sink in sinks:
        if isinstance(sink, JsonlSink):
            place = sink.path if os.access(sink.path, os.F_OK) else sink.path.parent
            if not subject.may(place, os.W_OK) or sink.path.is_dir():
                found = f"jsonl: {place} cannot be written by the agent's user"
                return Finding(Level.WARNING, f"{found}; results are lost", "correct the path, or who may write there")
        elif (found_topic := _topic(subject, sink.topic, sink.broker)).level is not Level.OK:
            return found_topic
    named = ", ".join(str(sink.path) if isinstance(sink, JsonlSink) else f"mqtt: {sink.topic}" for sink in sinks)
    return Finding(Level.OK, named or "none")


def service(subject: Subject) -> Finding:
    """Whether an agent runs, as a service, and how its last upgrade ended."""
    environments, running = subject.environments, subject.status.running
    agent = "no agent is running" if running is None else _told(running)
    if (on_trial := pending(environments)) is not None:
        return Finding(Level.NOTE, f"{agent}; {on_trial.version} is on trial in {on_trial.tried}")
    if running is not None and not running.infers:
        mend = "look at: journalctl -u edgefleet-agent, or wherever its log goes"
        return Finding(Level.WARNING, f"{agent}; its model does not answer", mend)
    if environments.current() is None:
        mend = f"run: {subject.install_command()}"
        return Finding(Level.NOTE, f"{agent}; it is not installed as a service", mend)
    if running is None:
        return Finding(Level.WARNING, agent, "run: sudo systemctl start edgefleet-agent; journalctl -u edgefleet-agent")
    outcome = last_outcome(environments)
    if outcome is not None and not outcome.kept:
        text = f"{agent}; the upgrade to {outcome.version} was taken back: {outcome.reason}"
        return Finding(Level.NOTE, text, "look at: journalctl -u edgefleet-agent; then upgrade again")
    return Finding(Level.OK, agent)


def _told(running: Running) -> str:
    broker = "connected" if running.connected else "not connected"
    return f"an agent is running from {running.environment}, {broker}"


def updates(subject: Subject) -> Finding:
    """Whether something keeps updates waiting."""
    locked = subject.status.locked
    if locked is None:
        return Finding(Level.OK, "nothing keeps updates waiting")
    mend = f"rm {subject.settings.state_folder / subject.settings.update.lock_file}, when updates may go on"
    return Finding(Level.NOTE, f"updates wait: {locked}", mend)
