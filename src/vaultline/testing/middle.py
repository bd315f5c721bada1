"""A host that has turned against its owner: it sits in the middle of every connection of a run.

The host may do so: it places the workers and tells everybody where to connect. Workers are real
processes; the host runs in a thread of the test, which says what happens to the records of a hop.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeAlias

import msgspec

from vaultline.channel.records import HEADER, HEADER_BYTES, OVERHEAD_BYTES
from vaultline.core.control import ReadyLine
from vaultline.core.errors import PeerError
from vaultline.core.hostline import HostLine, LaunchRequest
from vaultline.host.engine import LocalEngine
from vaultline.host.supervisor import Supervisor
from vaultline.owner.hostlink import HostLink
from vaultline.transport.sockets import Address, Listener, connect, hang_up

_PIECE_BYTES = 1 << 16
_CONNECT_S = 10.0
_LENGTH_FIELD = 6

Attack: TypeAlias = Callable[[Iterator[bytes]], Iterable[bytes]]


def records(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Cut a hop's byte stream where its records begin, as any observer can."""
    data = b""
    for piece in pieces:
        data += piece
        while len(data) >= HEADER_BYTES:
            size = HEADER.unpack_from(data)[_LENGTH_FIELD] + OVERHEAD_BYTES
            if len(data) < size:
                break
            yield data[:size]
            data = data[size:]
    if data:
        yield data


class Wire:
    """A proxy before one address.

    Attributes:
        there, back: all bytes that were passed on, towards the address and from it.
        hung_up_on: how many connections that only brought the ``prologue`` the target has ended.
    """

    def __init__(
        self, listen: Address, target: str, attack: Attack | None = None, prologue: bytes = b""
    ) -> None:
        self._listener = Listener(listen)
        self._target = Address.parse(target)
        self._attack = attack
        self._prologue = prologue
        self._sockets: list[socket.socket] = []
        self.there, self.back = bytearray(), bytearray()
        self.hung_up_on = 0
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()

    @property
    def address(self) -> str:
        """Where it listens."""
        return str(self._listener.address)

    def close(self) -> None:
        """Cut everything."""
        self._listener.close()
        for sock in self._sockets:
            hang_up(sock)
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        while True:
            try:
                near = self._listener.accept()
                self._sockets.append(near)
                self._play_prologue()
                far = connect(self._target, timeout_s=_CONNECT_S)
            except PeerError:
                return
            self._sockets.append(far)
            for source, target, note, attack in (
                (near, far, self.there, self._attack),
                (far, near, self.back, None),
            ):
                thread = threading.Thread(target=_pump, args=(source, target, note, attack))
                self._threads.append(thread)
                thread.start()

    def _play_prologue(self) -> None:
        """Before the first connection, one that says what was heard at another time."""
        if not self._prologue:
            return
        said, self._prologue = self._prologue, b""
        sock = connect(self._target, timeout_s=_CONNECT_S)
        with sock, contextlib.suppress(ConnectionError):
            sock.sendall(said)
            if sock.recv(1) == b"":
                self.hung_up_on += 1
            return
        self.hung_up_on += 1


def _pump(
    source: socket.socket, target: socket.socket, note: bytearray, attack: Attack | None
) -> None:
    pieces = _pieces(source)
    try:
        for piece in pieces if attack is None else attack(records(pieces)):
            note += piece
            target.sendall(piece)
    except OSError:  # the target hung up: so does the wire
        hang_up(source)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _pieces(sock: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            piece = sock.recv(_PIECE_BYTES)
        except OSError:
            return
        if not piece:
            return
        yield piece


class Middle:
    """What the host does to a run, and all that it has seen of it.

    Args:
        attacks: what happens on the wires of a hop, by the hop's number.
        prologue: what is said first to the first stage's first replica.
        rewire: changes where workers are said to listen, after wires were put there.

    Attributes:
        hops: the wires of each connection by hop, target and source; hop 0 comes from the owner,
            the last one goes back to it. Without replicas one for each hop.
        controls: the wire of each worker's control connection.
    """

    def __init__(
        self,
        attacks: Mapping[int, Attack] | None = None,
        prologue: bytes = b"",
        rewire: Callable[[list[ReadyLine]], list[ReadyLine]] = list,
    ) -> None:
        self.attacks = attacks or {}
        self.prologue = prologue
        self.rewire = rewire
        self.hops: list[Wire] = []
        self.controls: list[Wire] = []

    def results(self, request: LaunchRequest) -> tuple[str, ...]:
        """Put a wire before every address of the owner."""
        attack = self.attacks.get(len(request.replicas))
        self.hops = [Wire(_near(text), text, attack) for text in request.results]
        return tuple(wire.address for wire in self.hops)

    def wires(self, request: LaunchRequest, ready: tuple[ReadyLine, ...]) -> tuple[ReadyLine, ...]:
        """Put a wire before every address of the workers."""
        lines: list[ReadyLine] = []
        hops: list[Wire] = []
        for worker, line in zip(request.workers, ready, strict=True):
            self.controls.append(Wire(_near(line.control), line.control))
            wires = [
                Wire(
                    _near(text),
                    text,
                    self.attacks.get(worker.stage),
                    b"" if hops else self.prologue,
                )
                for text in line.data
            ]
            hops += wires
            data = tuple(wire.address for wire in wires)
            lines.append(
                msgspec.structs.replace(line, control=self.controls[-1].address, data=data)
            )
        self.hops = hops + self.hops
        return tuple(self.rewire(lines))

    def close(self) -> None:
        """Cut every wire."""
        for wire in (*self.hops, *self.controls):
            wire.close()


def _near(address: str) -> Address:
    """A free address of the same kind, beside the one given."""
    parsed = Address.parse(address)
    if parsed.kind == "tcp":
        return Address("tcp", parsed.host, 0)
    return Address("unix", f"{parsed.host}.middle")


class _MiddleSupervisor(Supervisor):
    """Knows the workers under the addresses of the wires before them."""

    def __init__(self, request: LaunchRequest, now_s: float, middle: Middle) -> None:
        super().__init__(request.workers, now_s)
        self._request, self._middle = request, middle
        self._wired: tuple[ReadyLine, ...] | None = None

    @property
    def ready(self) -> tuple[ReadyLine, ...] | None:
        """Every worker's wires once all listen."""
        lines = super().ready
        if lines is not None and self._wired is None:
            self._wired = self._middle.wires(self._request, lines)
        return self._wired


class MiddleLink(HostLink):
    """The owner's line to such a host. Stands in for ``vaultline.owner.deployment.HostLink``."""

    def __init__(self, request: LaunchRequest, middle: Middle) -> None:
        self._middle = middle
        request = msgspec.structs.replace(request, results=middle.results(request))
        owner_in, host_out = os.pipe()
        host_in, owner_out = os.pipe()
        self._stdin, self._stdout = os.fdopen(owner_out, "wb"), os.fdopen(owner_in, "rb")
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._stdout, selectors.EVENT_READ)
        self._rest = b""
        self._lines = HostLine  # type: ignore[assignment]
        self._thread = threading.Thread(target=self._run, args=(request, host_in, host_out))
        self._thread.start()

    def _run(self, request: LaunchRequest, host_in: int, host_out: int) -> None:
        engine = LocalEngine(request, owner_in=host_in, owner_out=host_out)
        started_s = engine._supervisor._watches[0].started_s
        engine._supervisor = _MiddleSupervisor(request, started_s, self._middle)
        try:
            engine.run()
        finally:
            os.close(host_out)
            os.close(host_in)

    @property
    def pid(self) -> int:
        """The test's own process."""
        return os.getpid()

    def stop(self) -> None:
        """Stop the workers and cut every wire."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        self._thread.join()
        self._middle.close()
