"""Clients of a gateway: over a private socket, and sealed over TCP; what each is told."""

from __future__ import annotations

import itertools
import os
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from vaultline.core.errors import InputError, PeerError, VaultlineError
from vaultline.core.frames import StageTimes
from vaultline.core.tensors import TensorSpec
from vaultline.owner.arrays import Array
from vaultline.owner.served import ServedModel
from vaultline.serve.answers import (
    Answer,
    DrainingError,
    RefusedByServerError,
    ServersLostError,
)
from vaultline.serve.client import Client
from vaultline.serve.clientwire import (
    CredentialModeError,
    CredentialRefusedError,
    create_credential,
    read_credential,
)
from vaultline.serve.front import Front
from vaultline.testing.deployment import wait_until
from vaultline.testing.serving import model
from vaultline.transport.sockets import (
    Address,
    ConnectionLostError,
    Listener,
    TransportTimeoutError,
    connect,
    hang_up,
)

SECRET = bytes(range(32))


def spec(name: str, dtype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


SERVED = ServedModel(
    name="sum",
    vault="sum.vault",
    keys="sum.keys",
    model_digest="00",
    plan_digest=b"\0" * 32,
    isa="portable",
    engine_version="0",
    inputs=(spec("a", "float32", 2, 3), spec("b", "int64", 3)),
    outputs=(spec("total", "float32", 1), spec("raw", "bfloat16", 2)),
    groups=((0, 1),),
    workspace_bytes=0,
    facts=model("sum"),
)
A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.array([1, 2, 3], dtype=np.int64)


@dataclass
class Summing:
    """A gateway without servers: answers at once, or when told to."""

    later: bool = False
    error: VaultlineError | None = None
    waiting: list[tuple[Future[Answer], Answer]] = field(default_factory=list)
    asked: list[tuple[float | None, int]] = field(default_factory=list)
    models: tuple[ServedModel, ...] = (SERVED,)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def submit(
        self,
        model: str,
        tensors: Sequence[Array],
        *,
        deadline_s: float | None = None,
        priority: int = 0,
    ) -> Future[Answer]:
        if model != "sum":
            raise InputError("no such model is served", got=model)
        self.asked.append((deadline_s, priority))
        total = sum(float(tensor.sum()) for tensor in tensors)
        future: Future[Answer] = Future()
        answer = Answer(
            outputs={
                "total": np.array([total], np.float32),
                "raw": np.array([7, 8], np.uint16),
            },
            number=next(self._numbers),
            model=model,
            server="s0",
            latency_s=0.25,
            times=(StageTimes(started_ns=3),),
            attempts=2,
        )
        if self.error is not None:
            future.set_exception(self.error)
        elif self.later:
            self.waiting.append((future, answer))
        else:
            future.set_result(answer)
        return future


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, since the path of a Unix socket may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="vlt") as name:
        yield Path(name)


@pytest.fixture
def gateway() -> Summing:
    return Summing()


@pytest.fixture(params=["unix", "tcp"])
def front(request: pytest.FixtureRequest, gateway: Summing, folder: Path) -> Iterator[Front]:
    if request.param == "unix":
        address, secret = Address("unix", str(folder / "own" / "clients")), None
    else:
        address, secret = Address("tcp", "127.0.0.1", 0), SECRET
    with Front(gateway, address, secret) as front:
        yield front


def client(front: Front) -> Client:
    return Client(str(front.address), SECRET if front.address.kind == "tcp" else None)


def test_outputs_and_their_story_come_back(front: Front, gateway: Summing) -> None:
    with client(front) as caller:
        (known,) = caller.models()
        assert (known.name, known.inputs, known.outputs) == ("sum", SERVED.inputs, SERVED.outputs)
        answer = caller.infer("sum", {"b": B, "a": A}, deadline_s=1.5, priority=3, timeout_s=10)
    np.testing.assert_array_equal(answer.outputs["total"], np.array([21], np.float32))
    np.testing.assert_array_equal(answer.outputs["raw"], np.array([7, 8], np.uint16))
    told = (answer.server, answer.latency_s, answer.attempts, answer.model, answer.times)
    assert told == ("s0", 0.25, 2, "sum", (StageTimes(started_ns=3),))
    assert gateway.asked == [(1.5, 3)]


def test_several_clients_at_once_get_their_own_answers(front: Front) -> None:
    with client(front) as one, client(front) as two:
        futures = [
            (number, (one, two)[number % 2].submit("sum", {"a": A * number, "b": B}))
            for number in range(20)
        ]
        for number, future in futures:
            total = future.result(10).outputs["total"]
            assert total == np.float32(15 * number + 6)


def test_answers_may_come_in_any_order(front: Front, gateway: Summing) -> None:
    gateway.later = True
    with client(front) as caller:
        futures = [caller.submit("sum", {"a": A + k, "b": B}) for k in range(5)]
        wait_until(lambda: len(gateway.waiting) == 5, timeout_s=10, what="requests")
        for future, answer in reversed(gateway.waiting):
            future.set_result(answer)
        for k, each in enumerate(futures):
            assert each.result(10).outputs["total"] == np.float32(21 + 6 * k)


def test_an_array_in_another_order_of_memory_is_the_same_tensor(front: Front) -> None:
    with client(front) as caller:
        answer = caller.infer("sum", {"a": np.asfortranarray(A), "b": B}, timeout_s=10)
    assert answer.outputs["total"] == np.float32(21)


@pytest.mark.parametrize(
    ("case", "name", "inputs"),
    [
        ("an unknown model", "product", {"a": A, "b": B}),
        ("a missing input", "sum", {"a": A}),
        ("another shape", "sum", {"a": A.T, "b": B}),
        ("another type", "sum", {"a": A.astype(np.float64), "b": B}),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_sent(
    case: str, name: str, inputs: dict[str, Array], front: Front, gateway: Summing
) -> None:
    with client(front) as caller:
        with pytest.raises(InputError):
            caller.submit(name, inputs)
        assert caller.infer("sum", {"a": A, "b": B}, timeout_s=10).server == "s0"
    assert len(gateway.asked) == 1


@pytest.mark.parametrize(
    "error",
    [
        RefusedByServerError("no", server="s1", reason="the deadline"),
        ServersLostError("nobody is left", got="x", remedy="start one"),
        DrainingError("closing"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_come_across_by_name(error: VaultlineError, front: Front, gateway: Summing) -> None:
    gateway.error = error
    with client(front) as caller, pytest.raises(type(error)) as caught:
        caller.infer("sum", {"a": A, "b": B}, timeout_s=10)
    assert caught.value.diagnostics() == error.diagnostics()
    if isinstance(error, RefusedByServerError):
        assert isinstance(caught.value, RefusedByServerError)
        assert (caught.value.server, caught.value.reason) == ("s1", "the deadline")


def test_requests_on_their_way_end_with_the_connection(front: Front, gateway: Summing) -> None:
    gateway.later = True
    with client(front) as caller:
        future = caller.submit("sum", {"a": A, "b": B})
        wait_until(lambda: bool(gateway.waiting), timeout_s=10, what="the request")
        front.close()
        with pytest.raises(PeerError):
            future.result(10)
        with pytest.raises(PeerError):
            caller.infer("sum", {"a": A, "b": B}, timeout_s=10)


def test_a_late_answer_does_not_keep_a_caller(front: Front, gateway: Summing) -> None:
    gateway.later = True
    with client(front) as caller, pytest.raises(TransportTimeoutError):
        caller.infer("sum", {"a": A, "b": B}, timeout_s=0.01)


def test_a_client_that_goes_harms_nobody(front: Front, gateway: Summing) -> None:
    gateway.later = True
    with client(front) as leaving, client(front) as staying:
        leaving.submit("sum", {"a": A, "b": B})
        wait_until(lambda: len(gateway.waiting) == 1, timeout_s=10, what="the request")
        leaving.close()
        left, answer = gateway.waiting[0]
        left.set_result(answer)
        gateway.later = False
        assert staying.infer("sum", {"a": A, "b": B}, timeout_s=10).server == "s0"


@pytest.fixture
def sealed(gateway: Summing) -> Iterator[Front]:
    with Front(gateway, Address("tcp", "127.0.0.1", 0), SECRET) as front:
        yield front


def test_another_credential_gets_nothing(sealed: Front, gateway: Summing) -> None:
    with pytest.raises(CredentialRefusedError):
        Client(str(sealed.address), bytes(32))
    assert gateway.asked == []


def test_tcp_needs_a_credential_on_both_sides(gateway: Summing, sealed: Front) -> None:
    with pytest.raises(InputError):
        Front(gateway, Address("tcp", "127.0.0.1", 0))
    with pytest.raises(InputError):
        Client(str(sealed.address))


def test_what_travels_over_tcp_is_sealed_and_altering_it_ends_the_connection(
    sealed: Front, gateway: Summing
) -> None:
    seen = bytearray()
    marked = np.full((2, 3), 1.25, np.float32)
    with (
        _Altering(sealed.address, seen, after=2) as proxy,
        Client(str(proxy), SECRET) as caller,
    ):
        assert caller.infer("sum", {"a": marked, "b": B}, timeout_s=10).server == "s0"
        with pytest.raises(ConnectionLostError):
            caller.infer("sum", {"a": marked, "b": B}, timeout_s=10)
    assert marked.tobytes() not in bytes(seen)
    assert b"sum" not in bytes(seen)
    assert len(gateway.asked) == 1


class _Altering:
    """A proxy that lets a client's first bodies through and flips a bit of the next one."""

    def __init__(self, target: Address, seen: bytearray, *, after: int) -> None:
        self._target, self._seen, self._after = target, seen, after

    def __enter__(self) -> Address:
        self._listener = Listener(Address("tcp", "127.0.0.1", 0))

        def forward() -> None:
            here = self._listener.accept()
            there = connect(self._target, timeout_s=10)
            back = threading.Thread(target=self._copy, args=(there, here), daemon=True)
            back.start()
            self._there(here, there)

        self._thread = threading.Thread(target=forward, daemon=True)
        self._thread.start()
        return self._listener.address

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        while data := source.recv(1 << 16):
            self._seen += data
            target.sendall(data)
        hang_up(target)

    def _there(self, here: socket.socket, there: socket.socket) -> None:
        with here.makefile("rb") as reader:
            there.sendall(reader.read(len(b"vaultline client v1\0") + 32))
            for body in itertools.count():
                length = reader.read(4)
                if len(length) < 4:
                    break
                data = bytearray(reader.read(int.from_bytes(length, "big")))
                self._seen += data
                if body == self._after:
                    data[-1] ^= 1
                there.sendall(length + data)
        there.close()


def test_a_stranger_can_t_make_the_gateway_allocate(sealed: Front) -> None:
    with socket.create_connection((sealed.address.host, sealed.address.port), 10) as stranger:
        stranger.sendall(b"vaultline client v1\0" + bytes(32) + b"\xff\xff\xff\xff")
        stranger.settimeout(10)
        while stranger.recv(1 << 16):
            pass


def test_a_folder_that_others_can_enter_is_refused(gateway: Summing, folder: Path) -> None:
    shared = folder / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    with pytest.raises(InputError, match="others can enter"):
        Front(gateway, Address("unix", str(shared / "clients")))
    with Front(gateway, Address("unix", str(folder / "new" / "clients"))):
        assert (folder / "new").stat().st_mode & 0o777 == 0o700


def test_a_credential_is_its_owner_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "credential"
    secret = create_credential(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_credential(path) == secret
    with pytest.raises(VaultlineError):
        create_credential(path)
    path.chmod(0o640)
    with pytest.raises(CredentialModeError):
        read_credential(path)


@pytest.mark.parametrize("text", ["", "zz" * 32, "00" * 31, "00" * 33])
def test_what_is_no_credential_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "credential"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        file.write(text)
    with pytest.raises(InputError):
        read_credential(path)
    with pytest.raises(InputError):
        read_credential(tmp_path / "none")
