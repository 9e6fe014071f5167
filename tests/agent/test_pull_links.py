"""What a pull makes of a line: how much of it is used, how much comes twice, how much is in flight."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.pull_simulation import Network, Outcome, Pipe, Simulation
from edgefleet.package.digest import BLOCK_BYTES

RANDOMS = st.integers(0, 2**32).map(random.Random)
MIB = 1024 * 1024


@dataclass(frozen=True)
class Link:
    """One row of the table."""

    name: str
    rate_bytes_per_s: float
    round_trip_s: float
    loss: float
    blob_mib: int
    piece_bytes: int
    used: float
    """Least share of what one HTTP answer over the same connection makes."""
    received: float
    """Most bytes received, by the blob's."""
    in_flight_s: float = 2.01
    """Most seconds of the link's own speed that are asked for at once."""
    hub_away: tuple[float, float] | None = None


LINKS = [
    Link("loopback", 200e6, 0.0002, 0, 32, 61440, 0.90, 1.0),
    Link("local network", 12e6, 0.002, 0, 32, 61440, 0.95, 1.0),
    Link("long and fat", 5e6, 0.1, 0, 32, 61440, 0.93, 1.0),
    Link("long and fat, small pieces", 5e6, 0.1, 0, 32, 15360, 0.93, 1.0),
    Link("very long", 5e6, 0.6, 0, 32, 61440, 0.60, 1.0),
    Link("mobile, lossy", 125e3, 0.3, 0.02, 4, 61440, 0.80, 1.10),
    Link("mobile, lossy, small pieces", 125e3, 0.3, 0.02, 4, 15360, 0.80, 1.10),
    Link("mobile", 125e3, 0.3, 0, 4, 61440, 0.90, 1.0),
    Link("DSL", 750e3, 0.03, 0.001, 16, 61440, 0.93, 1.05),
    # A block is what is asked for at least: 7.7 s of this link.
    Link("GPRS", 8e3, 0.8, 0.01, 1, 15360, 0.80, 1.10, 7.7),
    Link("hub restarts", 5e6, 0.1, 0, 32, 61440, 0.50, 1.15, 2.01, (2.0, 3.0)),
    Link("mobile, hub restarts", 125e3, 0.3, 0.02, 4, 15360, 0.70, 1.15, 2.01, (10.0, 15.0)),
]


def pulled(link: Link, seed: int) -> tuple[Outcome, float]:
    """(what came of it, seconds that HTTP takes over a connection of the same kind)."""
    blocks = -(-link.blob_mib * MIB // BLOCK_BYTES)

    def pipe() -> Pipe:
        return Pipe(
            random.Random(seed),
            rate_bytes_per_s=link.rate_bytes_per_s,
            round_trip_s=link.round_trip_s,
            loss=link.loss,
        )

    run = Simulation(blocks, pipe(), piece_bytes=link.piece_bytes, hub_away=link.hub_away, seed=seed)
    return run.run(3600), pipe().http_s(blocks * BLOCK_BYTES)


@pytest.mark.parametrize("link", LINKS, ids=lambda link: str(link.name))
def test_the_table_of_links(link: Link) -> None:
    used, received = 0.0, 0.0
    for seed in range(5):
        outcome, http_s = pulled(link, seed)
        blob = len(outcome.verified) * BLOCK_BYTES
        used += http_s / outcome.seconds / 5
        received = max(received, outcome.received_bytes / blob)
        assert outcome.most_in_flight_s <= link.in_flight_s
    print(f"{link.name}: used {used:.2f}, received {received:.3f}, in flight {outcome.most_in_flight_s:.2f} s")
    assert used >= link.used
    assert received <= link.received


def test_a_hub_that_comes_back_is_asked_within_five_seconds_of_its_death() -> None:
    """And with what was in flight only."""
    for seed in range(10):
        net = Pipe(random.Random(seed), rate_bytes_per_s=5e6, round_trip_s=0.05)
        undisturbed = 20 * MIB / 5e6
        run = Simulation(20 * MIB // BLOCK_BYTES, net, hub_away=(1.0, 2.0), seed=seed)
        assert run.run(60).seconds < undisturbed + 5.0


# Networks that lose, repeat, reorder and damage --------------------------------------------------------


@settings(max_examples=40)
@given(RANDOMS, st.integers(1, 150), st.floats(0, 1), st.floats(0, 1.5), st.sampled_from([15360, 30720, 61440]))
def test_repeated_and_reordered_messages_cost_nothing(
    rnd: random.Random, blocks: int, repeat: float, delay_s: float, piece_bytes: int
) -> None:
    net = Network(rnd, repeat=repeat, delay_s=delay_s / 2)
    outcome = Simulation(blocks, net, piece_bytes=piece_bytes).run(600)
    assert outcome.verified == set(range(blocks))
    assert outcome.sent_bytes == blocks * BLOCK_BYTES


@settings(max_examples=40)
@given(RANDOMS, st.integers(1, 120), st.floats(0, 0.3), st.floats(0, 0.3))
def test_a_lossy_network_loses_no_block_and_costs_little_more_than_it_loses(
    rnd: random.Random, blocks: int, loss: float, repeat: float
) -> None:
    outcome = Simulation(blocks, Network(rnd, loss=loss, repeat=repeat)).run(4 * 3600)
    assert outcome.verified == set(range(blocks))
    assert outcome.sent_bytes <= (1.5 * blocks / (1 - loss) + 20) * BLOCK_BYTES


def test_silence_does_not_make_a_lossy_line_look_slower_for_ever() -> None:
    """The last block of ten, lost again and again: each silence lowered the measured rate and made the next longer."""
    for seed in range(2900, 2940):
        net = Network(random.Random(seed), loss=0.28125, repeat=0.25)
        assert Simulation(10, net, seed=seed).run(3600).verified == set(range(10))


@settings(max_examples=25)
@given(RANDOMS, st.lists(st.floats(0, 20), max_size=5))
def test_lost_connections_lose_no_block_and_repeat_one_window_each_at_most(
    rnd: random.Random, cuts: list[float]
) -> None:
    outcome = Simulation(120, Network(rnd), hub_rate=1e6, cuts=tuple(sorted(cuts))).run(600)
    assert outcome.verified == set(range(120))
    # 2 s at 1 MB/s, and the burst of what was sent already.
    assert outcome.sent_bytes <= (120 + len(cuts) * 40) * BLOCK_BYTES


@settings(max_examples=15)
@given(RANDOMS)
def test_a_few_damaged_blocks_are_replaced(rnd: random.Random) -> None:
    outcome = Simulation(60, Network(rnd, damage=0.01)).run(600)
    assert outcome.verified == set(range(60))


@pytest.mark.parametrize("link_bytes_per_s", [200_000.0, 30_000.0, 8_000.0, 1_000.0])
def test_a_slow_link_is_not_filled_with_repeats(link_bytes_per_s: float) -> None:
    """The broker keeps what a slow link cannot take: asking again for what is on its way costs the link twice."""
    net = Network(random.Random(1), link_bytes_per_s=link_bytes_per_s)
    outcome = Simulation(60, net).run(60 * BLOCK_BYTES / link_bytes_per_s * 4)
    assert outcome.verified == set(range(60))
    assert outcome.sent_bytes <= 1.2 * 60 * BLOCK_BYTES
