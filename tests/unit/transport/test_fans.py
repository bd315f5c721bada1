"""A replica's ends of its hops: whose frame is next, how streams end, what is refused."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import product

import pytest

from vaultline.channel.messages import StreamAbortedError
from vaultline.channel.records import RecordMiswiredError
from vaultline.core.replicas import neighbours
from vaultline.transport.sockets import ConnectionLostError
from vaultline.transport.streams import FanIn, FanOut, Hop, MiswiredError, UnevenEndError

SIZE = 8


def hop(sources: int, targets: int, **changes: object) -> Hop:
    parts: dict[str, object] = {"number": 3, "epoch": 9, "secret": b"s" * 32, "message_bytes": SIZE}
    return Hop(**(parts | changes), sources=sources, targets=targets)  # type: ignore[arg-type]


class Mesh:
    """Both sides of a hop, every pair that shares frames joined by a socket pair."""

    def __init__(self, sources: int, targets: int) -> None:
        self.stack = ExitStack()
        pairs = [
            (i, k)
            for i, k in product(range(sources), range(targets))
            if k in neighbours(i, sources, targets)
        ]
        self.ends = ends = {pair: socket.socketpair() for pair in pairs}
        for out, into in ends.values():
            self.stack.enter_context(out)
            self.stack.enter_context(into)
            into.settimeout(5.0)
        self.hop = hop(sources, targets)
        self.out = [
            FanOut(self.hop, i, [ends[i, k][0] for k in neighbours(i, sources, targets)])
            for i in range(sources)
        ]
        self.into = [
            FanIn(
                self.hop,
                k,
                [lambda sock=ends[i, k][1]: sock for i in neighbours(k, targets, sources)],  # type: ignore[misc]
            )
            for k in range(targets)
        ]

    def send(self, count: int) -> None:
        """Frames 0, 1, 2, ... each from the replica that has it."""
        for number in range(count):
            sender = self.out[number % len(self.out)]
            sender.send(memoryview(number.to_bytes(SIZE, "big")))


@pytest.fixture
def meshes() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def mesh(meshes: ExitStack, sources: int, targets: int) -> Mesh:
    made = Mesh(sources, targets)
    meshes.enter_context(made.stack)
    return made


def received(fan: FanIn) -> int | None:
    """The next frame's number, None at the end."""
    target = memoryview(bytearray(SIZE))
    return int.from_bytes(target, "big") if fan.receive(target) else None


@pytest.mark.parametrize(("sources", "targets"), list(product((1, 2, 3, 4), repeat=2)))
@pytest.mark.parametrize("frames", [0, 1, 2, 5, 24])
def test_every_frame_arrives_once_where_it_belongs_in_order(
    sources: int, targets: int, frames: int, meshes: ExitStack
) -> None:
    made = mesh(meshes, sources, targets)
    made.send(frames)
    for fan in made.out:
        fan.end()
    for target, fan in enumerate(made.into):
        for number in range(target, frames, targets):
            assert received(fan) == number
        assert received(fan) is None


def test_the_clock_is_that_of_the_last_frame(meshes: ExitStack) -> None:
    made = mesh(meshes, 2, 1)
    made.send(2)
    assert received(made.into[0]) == 0
    first = made.into[0].clock
    assert received(made.into[0]) == 1
    assert made.into[0].clock.done_ns > first.done_ns > made.out[0].clock.done_ns


def test_an_end_while_another_replica_still_has_frames_is_an_error(meshes: ExitStack) -> None:
    made = mesh(meshes, 2, 1)
    made.send(2)
    made.out[0].end()
    made.out[1].send(memoryview(bytes(SIZE)))
    fan = made.into[0]
    assert (received(fan), received(fan)) == (0, 1)
    with pytest.raises(UnevenEndError):
        received(fan)


def test_a_replica_that_ends_late_but_properly_is_waited_for(meshes: ExitStack) -> None:
    made = mesh(meshes, 3, 1)
    for fan in made.out:
        fan.end()
    assert received(made.into[0]) is None


def test_a_replica_that_is_gone_at_the_end_of_another_is_a_loss(meshes: ExitStack) -> None:
    made = mesh(meshes, 2, 1)
    made.out[0].end()
    made.out[1].close()
    with pytest.raises(ConnectionLostError):
        received(made.into[0])


def test_the_reason_of_a_replica_that_gives_up_comes_where_its_frame_is_awaited(
    meshes: ExitStack,
) -> None:
    made = mesh(meshes, 2, 1)
    made.out[0].send(memoryview(bytes(SIZE)))
    made.out[1].abort("no memory")
    assert received(made.into[0]) == 0
    with pytest.raises(StreamAbortedError) as caught:
        received(made.into[0])
    assert caught.value.got == "no memory"


def test_a_reason_that_comes_at_the_end_of_the_others_is_not_lost(meshes: ExitStack) -> None:
    made = mesh(meshes, 2, 1)
    made.out[0].end()
    made.out[1].abort("no memory")
    with pytest.raises(StreamAbortedError) as caught:
        received(made.into[0])
    assert caught.value.got == "no memory"


def test_an_abort_reaches_those_who_still_listen(meshes: ExitStack) -> None:
    made = mesh(meshes, 1, 3)
    made.ends[0, 0][1].close()
    made.out[0]._hops[1].end()
    made.out[0].abort("the reason")
    assert received(made.into[1]) is None
    with pytest.raises(StreamAbortedError) as caught:
        received(made.into[2])
    assert caught.value.got == "the reason"


#: Case -> (sources, targets, who is connected, whose place it gets).
WRONG_PLACES = {
    "another source": (2, 1, 1, 0),
    "another target": (1, 2, 0, 1),
    "both": (2, 2, 0, 1),
}


@pytest.mark.parametrize("case", WRONG_PLACES)
def test_a_connection_to_the_wrong_replica_is_refused_at_its_first_record(case: str) -> None:
    """And nobody waits for the right one: whoever it is was sent elsewhere."""
    sources, targets, source, target = WRONG_PLACES[case]
    out, into = socket.socketpair()
    with out, into:
        far, near = neighbours(source, sources, targets), neighbours(target, targets, sources)
        FanOut(hop(sources, targets), source, [out] * len(far)).send(memoryview(bytes(SIZE)))
        fan = FanIn(hop(sources, targets), target, [lambda: into] * len(near))
        with pytest.raises(RecordMiswiredError):
            fan.receive(memoryview(bytearray(SIZE)))


@pytest.mark.parametrize("given", [0, 1, 3])
def test_another_number_of_connections_is_refused(given: int) -> None:
    out, into = socket.socketpair()
    with out, into:
        with pytest.raises(MiswiredError) as caught:
            FanOut(hop(1, 2), 0, [out] * given)
        assert (caught.value.got, caught.value.expected) == (f"{given} connections", "2")
        with pytest.raises(MiswiredError):
            FanIn(hop(2, 1), 0, [lambda: into] * given)


def test_a_hop_does_not_show_its_secret() -> None:
    assert "sss" not in repr(hop(1, 1))
