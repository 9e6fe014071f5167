"""Between the agent and its trust process: frames, questions to the hubs, and a process that misbehaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgefleet.protocol.messages import Reply, Request, RequestKind, Status
from edgefleet_agent.asking import MAX_ATTEMPTS, MAX_PARTS, Answer, Question
from edgefleet_agent.trust_frames import HEADER, MAX_BODY_BYTES, FrameError, Kind, pack, take
from edgefleet_agent.trust_session import TrustSession
from patience import PATIENCE_S


@pytest.mark.parametrize("body", [b"", b"x", bytes(100_000)])
def test_a_frame_comes_out_as_it_went_in_however_it_is_cut(body: bytes) -> None:
    wire = pack(Kind.BODY, body) + pack(Kind.NONE)
    for step in (1 if len(body) < 100 else 7777, len(wire)):
        buffer, found = bytearray(), []
        for at in range(0, len(wire), step):
            buffer += wire[at : at + step]
            while (frame := take(buffer)) is not None:
                found.append(frame)
        assert found == [(Kind.BODY, body), (Kind.NONE, b"")]


@pytest.mark.parametrize("header", [HEADER.pack(MAX_BODY_BYTES + 1, Kind.BODY), HEADER.pack(0, 0), HEADER.pack(0, 99)])
def test_what_is_no_frame_is_refused_before_it_is_read(header: bytes) -> None:
    with pytest.raises(FrameError):
        take(bytearray(header))


def question(max_bytes: int = 100) -> Question:
    return Question(RequestKind.TRUST, max_bytes, name="timestamp.json")


def ok(body: bytes, part: int = 0, parts: int = 1, req_id: str = "1-1") -> Reply:
    return Reply(req_id=req_id, status=Status.OK, part=part, parts=parts, body=body)


def asked(max_bytes: int = 100, now: float = 0.0) -> Question:
    made = question(max_bytes)
    assert made.due(now)
    assert made.request("1-1").name == "timestamp.json"
    made.asked("1-1", now)
    return made


def test_parts_are_put_together_in_any_order_and_stale_ones_are_nobodys() -> None:
    made = asked()
    assert not made.take(ok(b"old", req_id="0-9"), 0.1)
    for part, body in ((2, b"c"), (0, b"a"), (2, b"c"), (7, b"x"), (1, b"b")):
        assert made.answer is None
        assert made.take(ok(body, part, 3), 0.1)
    assert made.answer == Answer(body=b"abc")
    assert not made.take(ok(b"more"), 0.2)


@pytest.mark.parametrize(("body", "kept"), [(b"x" * 100, 100), (b"x" * 101, 101), (b"x" * 5000, 101)])
def test_what_is_too_long_is_cut_one_byte_behind_the_bound(body: bytes, kept: int) -> None:
    made = asked()
    made.take(ok(body), 0.1)
    assert made.answer is not None
    assert len(made.answer.body or b"") == kept


def test_an_endless_answer_ends_at_the_bound_and_holds_no_more() -> None:
    made = asked(max_bytes=1000)
    for part in range(11):
        made.take(ok(b"x" * 100, part, 10**6), 0.1)
    assert made.answer == Answer(body=b"x" * 1001)


def test_it_asks_again_after_silence_longer_and_longer_and_gives_up() -> None:
    made, now, waits = asked(), 0.0, []
    for number in range(2, MAX_ATTEMPTS + 1):
        before = now
        while not made.due(now):
            now += 0.25
        waits.append(now - before)
        made.asked(f"1-{number}", now)
    assert waits == sorted(waits)
    assert 3.0 <= waits[0] <= 4.0
    while made.answer is None:
        now += 1.0
        made.due(now)
    assert made.answer == Answer(failure="no answer to 6 requests")


def test_silence_is_counted_from_the_last_part_on_a_slow_line() -> None:
    made = asked()
    for second in range(30):
        made.take(ok(b"x", second, 40), float(second))
        assert not made.due(float(second))


def test_busy_waits_as_long_as_the_hub_says_and_is_no_failure() -> None:
    made, now = asked(), 0.0
    for number in range(2, 30):
        made.take(Reply(req_id=f"1-{number - 1}", status=Status.BUSY, retry_after_s=5.0), now)
        assert not made.due(now + 4.9)
        now += 7.6
        assert made.due(now)
        made.asked(f"1-{number}", now)
    assert made.answer is None


@pytest.mark.parametrize("status", [Status.DENIED, Status.BAD])
def test_a_refusal_is_one_line(status: Status) -> None:
    made = asked()
    made.take(Reply(req_id="1-1", status=status, body=b"not\nyou" + b"!" * 1000), 0.1)
    assert made.answer is not None
    assert (made.answer.failure or "").startswith(f"the server says {status}: not you!")
    assert len(made.answer.failure or "") < 300


def test_gone_is_an_answer_too() -> None:
    made = asked()
    made.take(Reply(req_id="1-1", status=Status.GONE), 0.1)
    assert made.answer == Answer()


class Nobody:
    """Hubs that never answer."""

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def request(self, request: Request) -> bool:
        self.asked.append(request)
        return True

    def next_req_id(self) -> str:
        return f"1-{len(self.asked) + 1}"


def outcome_of(session: TrustSession, clock: Callable[[], float] = time.monotonic) -> tuple[Kind, str, bool]:
    deadline = time.monotonic() + PATIENCE_S
    while (outcome := session.tick(clock())) is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    session.close()
    return outcome.kind, outcome.text, outcome.crashed


MISBEHAVING = {
    "print('hello, this is no frame')": "cannot be understood",
    "": "ended with exit code 0 before its verdict",
    "import os; os.kill(os.getpid(), 9)": "ended with signal 9 before its verdict",
    "import os; os.write(1, bytes([0, 0, 0, 2, 6]) + b'[]')": "",
    "import os; os.write(1, bytes([0, 0, 0, 2, 6]) + b'[1')": "cannot be understood",
    "import os; os.write(1, bytes([0, 0, 0, 1, 3]) + b'x')": "cannot be understood",
    "import os; os.write(1, bytes([0, 0, 0, 2, 2]) + b'{}')": "cannot be understood",
    """import os; os.write(1, bytes([0, 0, 0, 37, 2]) + b'{"name": "../../secret", "max_bytes": 9 }')""": "cannot be",
}


@pytest.mark.parametrize("code", MISBEHAVING)
def test_a_process_that_misbehaves_is_an_outcome_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    (tmp_path / "misbehaving.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("edgefleet_agent.trust_session.MODULE", "misbehaving")
    hubs = Nobody()
    kind, text, crashed = outcome_of(TrustSession({"kind": "check_desired"}, hubs, time.monotonic()))
    assert MISBEHAVING[code] in text
    assert (kind, crashed) == ((Kind.UNAVAILABLE, True) if text else (Kind.DONE, False))
    assert hubs.asked == []


def test_a_process_that_hangs_is_ended_at_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hanging.py").write_text("import time; time.sleep(1000)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("edgefleet_agent.trust_session.MODULE", "hanging")
    session = TrustSession({}, Nobody(), time.monotonic())
    later = time.monotonic() + 61
    said = "no verdict, and nothing new for it within 60 s"
    assert outcome_of(session, lambda: later) == (Kind.UNAVAILABLE, said, True)
    assert not Path(f"/proc/{session.pid}").exists()


def test_a_slow_line_has_its_time_and_an_endless_drip_has_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = b'{"name": "timestamp.json", "max_bytes": 1000000}'
    (tmp_path / "wanting.py").write_text(
        f"import os, time; os.write(1, bytes([0, 0, 0, {len(wanted)}, 2]) + {wanted!r}); time.sleep(1000)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("edgefleet_agent.trust_session.MODULE", "wanting")
    hubs, begin = Nobody(), time.monotonic()
    session = TrustSession({}, hubs, begin)
    while not hubs.asked:
        session.tick(begin)
    seconds = 0
    while session.tick(begin + seconds) is None:
        session.on_reply(ok(b"x", seconds, 10**6), begin + seconds)
        seconds += 2
    assert seconds == pytest.approx(1800, abs=5)
    session.close()


def test_a_job_that_there_is_not_is_a_refusal() -> None:
    kind, text, _ = outcome_of(TrustSession({"kind": "install"}, Nobody(), time.monotonic()))
    assert (kind, text) == (Kind.REFUSED, "the verifier failed: KeyError: 'install'")


def is_alive(pid: int) -> bool:
    """Running; a zombie is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_process_dies_with_its_agent() -> None:
    """SIGKILL leaves an agent no time to end its child."""
    agent = (
        "import time; from edgefleet_agent.trust_session import TrustSession\n"
        "session = TrustSession({}, None, 0.0); session._outgoing.clear()\n"
        "print(session.pid, flush=True); time.sleep(1000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", agent], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_alive(child)
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while is_alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_without_its_agent_ends_before_it_loads_anything() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgefleet_agent.trust_process", "1"], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL


def test_an_answer_of_endless_empty_parts_is_not_kept() -> None:
    """A hub's thief could otherwise fill the agent's memory with the numbers of parts that weigh nothing."""
    made = asked()
    for part in range(MAX_PARTS + 100):
        assert made.take(ok(b"", part, 2**50), 0.1)
    assert len(made._parts) == MAX_PARTS
