"""A serving worker's inside: what a host may ask of it, and what becomes of hosts that lie."""

from __future__ import annotations

import dataclasses
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from server_cases import perceptron

from vaultline.attest.grant import GrantRefused
from vaultline.channel.keys import Direction
from vaultline.channel.requests import OVERHEAD_BYTES, RequestSealer
from vaultline.core.errors import MachineError
from vaultline.core.paged import PAGE_BYTES
from vaultline.core.serde import to_msgpack
from vaultline.core.serving import (
    COMMAND_BYTES_MAX,
    EvictCommand,
    FailedReply,
    InstallCommand,
    RemoveCommand,
    RunCommand,
)
from vaultline.enclave.gramine_quotes import GramineProvider
from vaultline.enclave.groups import Group
from vaultline.enclave.ledger import BudgetExceededError
from vaultline.enclave.simulated_quotes import SimulatedProvider
from vaultline.graph.engine import run_plain
from vaultline.graph.model import Model
from vaultline.testing.attestation import MEASUREMENT, devroot
from vaultline.testing.servermodels import (
    SealedModel,
    feeds_of,
    granted_bytes,
    make_grant,
    seal_groups,
)
from vaultline.testing.serverworker import Answer, ServerThread

FRAMES = 3
MIB = 1 << 20


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> tuple[SealedModel, SealedModel]:
    """Two models, of three step groups and of two."""
    folder = tmp_path_factory.mktemp("models")
    long = perceptron(folder, "long", 40, 60, 50, 30)
    short = perceptron(folder, "short", 24, 80, 10)
    return (
        seal_groups(long, [(0, 2), (2, 4), (4, 6)], folder, name="long", frames=FRAMES),
        seal_groups(short, [(0, 2), (2, 4)], folder, name="short", frames=(1, FRAMES)),
    )


@pytest.fixture(scope="module")
def provider() -> SimulatedProvider:
    return SimulatedProvider(devroot().platform, MEASUREMENT)


@pytest.fixture
def worker(
    sealed: tuple[SealedModel, SealedModel], provider: SimulatedProvider
) -> Iterator[ServerThread]:
    """Two cores, room enough, the first model installed."""
    grant = make_grant(sealed, memory_bytes=4 * MIB, cores=2)
    with ServerThread(sealed, grant, provider) as worker:
        worker.install(0)
        yield worker


def check(model: Model, number: int, answer: Answer) -> None:
    for name, right in run_plain(model, feeds_of(model, number)).items():
        np.testing.assert_allclose(answer.outputs[name], right, rtol=1e-4, atol=1e-5)
    starts = [times.started_ns for times in answer.times]
    assert starts == sorted(starts) and starts[0] > 0
    for times in answer.times:
        assert 0 < times.arrived_ns <= times.started_ns <= times.finished_ns


def enter(worker: ServerThread, model: int, numbers: list[int], core: int = 0) -> None:
    inputs = [feeds_of(worker.models[model].model, number) for number in numbers]
    worker.run(core, model, 0, numbers, inputs=inputs)


def at_rest(worker: ServerThread) -> bool:
    """Whether nothing but models is held: sessions, and weights that are kept."""
    held, fixed = worker.server.ledger.held, granted_bytes(worker.grant)
    return sum(held.values()) - held["engine"] - held["resident"] == fixed


def test_requests_go_through_their_groups_apart_and_together(worker: ServerThread) -> None:
    first, second = worker.models
    worker.install(1, core=1)
    enter(worker, 0, [1, 2])
    enter(worker, 1, [1], core=1)
    enter(worker, 0, [3])
    worker.run(1, 0, 1, [3, 1])
    worker.run(0, 0, 1, [2], keep=True)
    _, answers = worker.run(0, 0, 2, [2, 3, 1], keep=True)
    for number, answer in zip([2, 3, 1], answers, strict=True):
        check(first.model, number, answer)
    _, answers = worker.run(1, 1, 1, [1])
    check(second.model, 1, answers[0])
    assert worker.server.ledger.held["resident"] == first.kept_bytes(1) + first.kept_bytes(2)
    assert at_rest(worker)
    worker.evict(0, 2)
    worker.evict(0, 2)
    enter(worker, 0, [9])
    worker.remove(0)
    enter(worker, 1, [4])
    assert worker.server.ledger.held["resident"] == 0
    assert worker.end() is None
    assert worker.server.ledger.held["engine"] == 2 * second.engine_bytes


def test_two_cores_run_one_group_at_the_same_time(worker: ServerThread) -> None:
    model = worker.models[0].model
    enter(worker, 0, [1])
    enter(worker, 0, [2])
    for core, number in enumerate([1, 2]):
        worker.begin(core, 0, 1, [number], keep=True)
    assert {worker.done().core, worker.done().core} == {0, 1}
    for core, number in enumerate([1, 2]):
        _, (answer,) = worker.run(core, 0, 2, [number])
        check(model, number, answer)
    assert worker.server.ledger.held["resident"] == worker.models[0].kept_bytes(1)


def test_a_replayed_request_is_answered_again_and_nothing_breaks(worker: ServerThread) -> None:
    sealed = worker.seal(0, 7, feeds_of(worker.models[0].model, 7))
    nonces = set()
    for _ in range(2):
        worker.tell(RunCommand(core=0, model=0, group=0, requests=(7,)), sealed)
        worker.done()
        worker.run(0, 0, 1, [7])
        worker.tell(RunCommand(core=0, model=0, group=2, requests=(7,)))
        worker.done()
        layout = worker.models[0].output_layout
        answer = worker.receive(layout.message_bytes + OVERHEAD_BYTES)
        nonces.add(bytes(answer[:8]))
        message = memoryview(bytearray(layout.message_bytes))
        worker.opener.open_into(0, 7, memoryview(answer), message)
    assert len(nonces) == 2
    assert at_rest(worker)


def altered(sealed: bytearray, at: int) -> bytearray:
    return sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]


#: Case -> what takes the place of a request that the owner has sealed for model 0 and number 5.
TAMPERED: Mapping[str, Callable[[ServerThread, bytearray], bytes | bytearray]] = {
    "a flipped bit of its counter": lambda _, sealed: altered(sealed, 0),
    "a flipped bit of its text": lambda _, sealed: altered(sealed, 100),
    "a flipped bit of its tag": lambda _, sealed: altered(sealed, len(sealed) - 1),
    "zeros": lambda _, sealed: bytes(len(sealed)),
    "another request": lambda worker, _: worker.seal(0, 6, feeds_of(worker.models[0].model, 6)),
    "another model's": lambda worker, sealed: sealed_for(worker, 1, 5, len(sealed)),
    "another server's": lambda worker, sealed: sealed_for(worker, 0, 5, len(sealed), b"o" * 32),
    "an answer": lambda worker, sealed: reflected(worker, len(sealed)),
}


def sealed_for(
    worker: ServerThread, model: int, number: int, size: int, secret: bytes | None = None
) -> bytearray:
    sealed = bytearray(size)
    sealer = RequestSealer(secret or worker.grant.secret, epoch=0, direction=Direction.FORWARD)
    sealer.seal_into(model, number, memoryview(bytes(size - OVERHEAD_BYTES)), memoryview(sealed))
    return sealed


def reflected(worker: ServerThread, size: int) -> bytearray:
    sealed = bytearray(size)
    sealer = RequestSealer(worker.grant.secret, epoch=0, direction=Direction.BACKWARD)
    sealer.seal_into(0, 5, memoryview(bytes(size - OVERHEAD_BYTES)), memoryview(sealed))
    return sealed


@pytest.mark.parametrize("case", TAMPERED)
def test_a_tampered_request_fails_its_run_alone(case: str, worker: ServerThread) -> None:
    model = worker.models[0].model
    good = [worker.seal(0, number, feeds_of(model, number)) for number in (4, 5)]
    bad = TAMPERED[case](worker, good[1])
    worker.tell(RunCommand(core=1, model=0, group=0, requests=(4, 5)), good[0], bad)
    reply = worker.reply()
    assert isinstance(reply, FailedReply)
    assert (reply.core, reply.code) == (1, "RequestTamperedError")
    assert at_rest(worker)
    enter(worker, 0, [4, 5], core=1)
    worker.run(0, 0, 1, [4, 5])
    _, answers = worker.run(0, 0, 2, [4, 5])
    check(model, 5, answers[1])


def run(core: int, model: int, group: int, *requests: int) -> RunCommand:
    return RunCommand(core=core, model=model, group=group, requests=requests)


#: Case -> what the host says. Model 0 is installed, and request 1 waits for its group 1.
BROKEN: Mapping[str, Any] = {
    "an unknown model is installed": InstallCommand(core=0, model=2),
    "a model below the first is installed": InstallCommand(core=0, model=-1),
    "a model is installed twice": InstallCommand(core=0, model=0),
    "a model is installed on no core": InstallCommand(core=2, model=1),
    "an unknown model runs": run(0, 2, 0, 1),
    "a model below the first runs": run(0, -1, 0, 1),
    "a model that is not installed runs": run(0, 1, 0, 1),
    "an unknown group runs": run(0, 0, 3, 1),
    "a group below the first runs": run(0, 0, -1, 1),
    "a group is out of order": run(0, 0, 2, 1),
    "a group runs for a request that is not here": run(0, 0, 1, 2),
    "a request is twice in a run": run(0, 0, 1, 1, 1),
    "a request is twice in a first run": run(0, 0, 0, 2, 2),
    "a request that is here enters again": run(0, 0, 0, 1),
    "a request below zero enters": run(0, 0, 0, -1),
    "a run of no request": run(0, 0, 1),
    "a run of too many": run(0, 0, 0, *range(2, 3 + FRAMES)),
    "a core below the first": run(-1, 0, 1, 1),
    "a core beyond the last": run(2, 0, 1, 1),
    "an unknown model's weights are evicted": EvictCommand(model=2, group=0),
    "weights are evicted of a model that is not installed": EvictCommand(model=1, group=0),
    "an unknown group's weights are evicted": EvictCommand(model=0, group=3),
}


def framed(data: bytes) -> bytes:
    return struct.pack("!I", len(data)) + data


#: Case -> bytes that are no command.
GARBLED: Mapping[str, bytes] = {
    "a giant length": struct.pack("!I", 0xFFFFFFFF),
    "a length just beyond the limit": struct.pack("!I", COMMAND_BYTES_MAX + 1),
    "an empty message": struct.pack("!I", 0),
    "noise": struct.pack("!I", 64) + bytes(range(64)),
    "a command cut short": struct.pack("!I", 10) + to_msgpack(run(0, 0, 1, 1))[:10],
    "an unknown command": framed(to_msgpack({"type": "dump", "model": 0})),
    "a field too many": framed(to_msgpack({"type": "evict", "model": 0, "group": 0, "now": 1})),
    "a number where a list belongs": framed(
        to_msgpack({"type": "run", "core": 0, "model": 0, "group": 1, "requests": 1})
    ),
    "half a length": b"\0\0",
    "half a message": struct.pack("!I", 100) + b"x",
    "a first run without its requests": framed(to_msgpack(run(0, 0, 0, 2))) + b"a part",
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_host_that_asks_for_the_impossible_ends_the_worker(
    case: str, worker: ServerThread
) -> None:
    enter(worker, 0, [1])
    worker.tell(BROKEN[case])
    error = worker.end()
    assert error is not None
    assert (error.code, error.exit_code) == ("CommandError", 4)


@pytest.mark.parametrize("case", GARBLED)
def test_a_host_that_garbles_ends_the_worker(case: str, worker: ServerThread) -> None:
    worker.send(GARBLED[case])
    error = worker.end()
    assert error is not None
    assert error.code in ("CommandError", "RemoteProtocolError", "ConnectionLostError")
    assert error.exit_code == 4
    assert at_rest(worker)


#: Case -> what the host says while core 0 runs group 1 of model 0 for request 1.
BUSY: Mapping[str, Any] = {
    "a run": run(0, 0, 0, 2),
    "an installation": InstallCommand(core=0, model=1),
    "a run of the same request on another core": run(1, 0, 0, 1),
    "evicting the weights that it reads": EvictCommand(model=0, group=1),
    "removing the model that it runs": RemoveCommand(model=0),
}


@pytest.mark.parametrize("case", BUSY)
def test_what_runs_is_left_alone(
    case: str, worker: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, plain = threading.Event(), Group.run

    def gated(*args: Any) -> Any:
        assert gate.wait(60)
        return plain(*args)

    enter(worker, 0, [1])
    monkeypatch.setattr(Group, "run", gated)
    worker.begin(0, 0, 1, [1])
    worker.tell(BUSY[case])
    error = worker.end()
    assert error is not None
    assert error.code == "CommandError"
    gate.set()


def section_end(model: SealedModel, group: int) -> int:
    section = model.keys.sealing_for(model.plan_digest).sections[group]
    return section.offset + section.length


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


@pytest.fixture
def fragile(
    sealed: tuple[SealedModel, SealedModel], provider: SimulatedProvider, tmp_path: Path
) -> Iterator[ServerThread]:
    """With vaults that a test may alter, nothing installed."""
    models = []
    for model in sealed:
        copy = tmp_path / model.vault.name
        copy.write_bytes(model.vault.read_bytes())
        models.append(dataclasses.replace(model, vault=copy))
    with ServerThread(models, make_grant(models, memory_bytes=4 << 20), provider) as worker:
        yield worker


@pytest.mark.parametrize("keep", [False, True])
def test_an_altered_weight_fails_its_runs_and_the_server_goes_on(
    keep: bool, fragile: ServerThread
) -> None:
    first, second = fragile.models
    fragile.install(0)
    fragile.install(1)
    flip(first.vault, section_end(first, 1) - 30)
    enter(fragile, 0, [1, 2])
    enter(fragile, 1, [3])
    fragile.begin(0, 0, 1, [1], keep=keep)
    reply = fragile.reply()
    assert isinstance(reply, FailedReply)
    assert (reply.core, reply.code) == (0, "VaultTamperedError")
    assert fragile.server.ledger.held["resident"] == 0
    _, (answer,) = fragile.run(0, 1, 1, [3])
    check(second.model, 3, answer)
    flip(first.vault, section_end(first, 1) - 30)
    fragile.run(0, 0, 1, [2], keep=keep)
    _, (answer,) = fragile.run(0, 0, 2, [2])
    check(first.model, 2, answer)
    assert at_rest(fragile)
    fragile.begin(0, 0, 1, [1])
    error = fragile.end()
    assert error is not None, "request 1 was forgotten when its run failed"


def test_a_failing_run_takes_the_weights_that_were_kept_with_it(
    worker: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> Any:
        raise MachineError("the engine failed on a frame")

    enter(worker, 0, [1])
    enter(worker, 0, [2])
    worker.run(0, 0, 1, [1], keep=True)
    assert worker.server.ledger.held["resident"] > 0
    with monkeypatch.context() as patch:
        patch.setattr(Group, "run", fail)
        worker.begin(1, 0, 1, [2])
        assert isinstance(worker.reply(), FailedReply)
    assert worker.server.ledger.held["resident"] == 0
    _, (answer,) = worker.run(0, 0, 2, [1])
    check(worker.models[0].model, 1, answer)
    assert at_rest(worker)


def test_a_vault_that_does_not_open_is_not_installed(fragile: ServerThread) -> None:
    flip(fragile.models[0].vault, section_end(fragile.models[0], 2) - 1)
    fragile.tell(InstallCommand(core=0, model=0))
    reply = fragile.reply()
    assert isinstance(reply, FailedReply)
    assert reply.code == "VaultTamperedError"
    assert fragile.server.ledger.held["engine"] == 0
    flip(fragile.models[0].vault, section_end(fragile.models[0], 2) - 1)
    fragile.remove(0)  # a host that gives up, and tries once more
    fragile.install(0)
    assert fragile.server.ledger.held["engine"] == fragile.models[0].engine_bytes


@dataclass(frozen=True)
class Short:
    """A server that has too little memory for a command.

    Attributes:
        room: bytes beyond what is held when the command comes.
    """

    room: Callable[[SealedModel], int]
    begin: Callable[[ServerThread], None]


SHORT: Mapping[str, Short] = {
    "sessions": Short(
        lambda model: -1,
        lambda worker: worker.tell(InstallCommand(core=0, model=0)),
    ),
    "a request": Short(
        lambda model: model.layout(0).message_bytes - 1,
        lambda worker: worker.begin(0, 0, 0, [1], inputs=[feeds_of(worker.models[0].model, 1)]),
    ),
    "one of two requests": Short(
        lambda model: 2 * model.layout(0).message_bytes - 1,
        lambda worker: worker.begin(
            0, 0, 0, [1, 2], inputs=[feeds_of(worker.models[0].model, n) for n in (1, 2)]
        ),
    ),
    "what a request carries on": Short(
        lambda model: model.layout(0).message_bytes + model.layout(1).message_bytes - 1,
        lambda worker: worker.begin(0, 0, 0, [1], inputs=[feeds_of(worker.models[0].model, 1)]),
    ),
    "weights that are to stay": Short(
        lambda model: model.layout(0).message_bytes + model.layout(1).message_bytes,
        lambda worker: worker.begin(
            0, 0, 0, [1], keep=True, inputs=[feeds_of(worker.models[0].model, 1)]
        ),
    ),
}


@pytest.mark.parametrize("case", SHORT)
def test_too_little_memory_fails_a_command_alone(
    case: str, sealed: tuple[SealedModel, SealedModel], provider: SimulatedProvider
) -> None:
    models, short = sealed[:1], SHORT[case]
    grant = make_grant(models, memory_bytes=1)
    memory = granted_bytes(grant) + models[0].engine_bytes + short.room(models[0])
    with ServerThread(models, replace(grant, memory_bytes=memory), provider) as worker:
        if case != "sessions":
            worker.install(0)
        before = dict(worker.server.ledger.held)
        short.begin(worker)
        reply = worker.reply()
        assert isinstance(reply, FailedReply)
        assert reply.code == "BudgetExceededError"
        assert worker.server.ledger.held == before
        worker.tell(InstallCommand(core=0, model=0) if case == "sessions" else run(0, 0, 1, 1))
        if case == "sessions":
            assert isinstance(worker.reply(), FailedReply)
        else:
            error = worker.end()
            assert error is not None, "the request was forgotten"


def test_what_is_held_is_what_the_owner_computes(worker: ServerThread) -> None:
    worker.install(1)
    held = worker.server.ledger.held
    engines = 2 * sum(model.engine_bytes for model in worker.models)
    assert sum(held.values()) == granted_bytes(worker.grant) + engines
    assert held["engine"] == engines


def test_a_server_without_its_memory_is_refused(
    sealed: tuple[SealedModel, SealedModel], provider: SimulatedProvider
) -> None:
    grant = make_grant(sealed, memory_bytes=1)
    with pytest.raises(BudgetExceededError):
        ServerThread(sealed, replace(grant, memory_bytes=granted_bytes(grant) - 1), provider)
    with pytest.raises(GrantRefused):
        ServerThread(sealed[:1], replace(grant, memory_bytes=1 << 20), provider)


def test_messages_beyond_the_grant_are_refused(
    sealed: tuple[SealedModel, SealedModel], provider: SimulatedProvider
) -> None:
    grant = make_grant(sealed, memory_bytes=4 << 20)
    grant = replace(grant, message_bytes=sealed[0].message_bytes - 1)
    with ServerThread(sealed, grant, provider) as worker:
        worker.tell(InstallCommand(core=0, model=0))
        reply = worker.reply()
        assert isinstance(reply, FailedReply)
        assert reply.code == "GrantedMemoryError"
        assert worker.server.ledger.held["engine"] == 0


def test_a_pipelines_stage_is_no_step_group(tmp_path: Path, provider: SimulatedProvider) -> None:
    model = perceptron(tmp_path, "m", 8, 8)
    resident = seal_groups(model, [(0, 2)], tmp_path, name="r", mode="resident")
    with ServerThread([resident], make_grant([resident], memory_bytes=4 << 20), provider) as worker:
        worker.tell(InstallCommand(core=0, model=0))
        reply = worker.reply()
        assert isinstance(reply, FailedReply)
        assert reply.code == "ProgramRefusedError"


def paged(folder: Path, **how: Any) -> SealedModel:
    """A model of 150 KiB, in one step group."""
    model = perceptron(folder, "m", 64, 300, 64)
    return seal_groups(
        model, [(0, 4)], folder, name="p", mode="paged", budget_bytes=MIB, frames=2, **how
    )


def test_cores_share_the_pages_of_a_paged_model_and_removing_it_frees_them(
    tmp_path: Path, provider: SimulatedProvider
) -> None:
    model = paged(tmp_path)
    grant = make_grant([model], memory_bytes=4 * MIB, cores=2, cache_bytes=250_000)
    with ServerThread([model], grant, provider) as worker:
        for _ in range(2):
            worker.install(0)
            cache = worker.server._shared.cache
            assert cache is not None
            weights = -(-model.stages[0].program.resident_bytes // PAGE_BYTES)
            assert cache.capacity_pages - cache._free == weights, "read for one core"
            for core, number in enumerate([5, 6]):
                inputs = [feeds_of(model.model, number)]
                _, (answer,) = worker.run(core, 0, 0, [number], inputs=inputs, keep=True)
                check(model.model, number, answer)
            assert at_rest(worker)
            worker.remove(0)
            worker.wait_obeyed()
            assert cache._free == cache.capacity_pages
            assert not cache._queue
        assert worker.server.ledger.held["engine"] == 0


#: Case -> how the model is sealed, the size of the page cache, and the error's name.
UNPAGEABLE: Mapping[str, tuple[dict[str, Any], int, str]] = {
    "no page cache": ({}, 0, "WorkingSetError"),
    "a page cache that is too small": ({}, 8192, "WorkingSetError"),
    "pages of another cost": ({"page_mode": "sgx1"}, 250_000, "MachineError"),
}


@pytest.mark.parametrize("case", UNPAGEABLE)
def test_a_paged_model_that_cannot_be_is_not_installed(
    case: str, tmp_path: Path, provider: SimulatedProvider
) -> None:
    how, cache_bytes, error = UNPAGEABLE[case]
    (tmp_path / "other").mkdir()
    models = [paged(tmp_path), paged(tmp_path / "other", **how)]
    grant = make_grant(models, memory_bytes=4 * MIB, cores=2, cache_bytes=cache_bytes)
    with ServerThread(models, grant, provider) as worker:
        if cache_bytes > 8192:
            worker.install(0)
        engine = worker.server.ledger.held["engine"]
        worker.tell(InstallCommand(core=1, model=1))
        reply = worker.reply()
        assert isinstance(reply, FailedReply)
        assert reply.code == error
        assert worker.server.ledger.held["engine"] == engine


def test_real_enclaves_refuse_paged_models(tmp_path: Path) -> None:
    model = paged(tmp_path)
    grant = make_grant([model], memory_bytes=4 * MIB, cache_bytes=250_000)
    with ServerThread([model], grant, GramineProvider()) as worker:
        worker.tell(InstallCommand(core=0, model=0))
        reply = worker.reply()
        assert isinstance(reply, FailedReply)
        assert reply.code == "PagedRefusedError"


def test_an_altered_vault_leaves_no_page_of_its_model(fragile_paged: ServerThread) -> None:
    flip(fragile_paged.models[0].vault, section_end(fragile_paged.models[0], 0) - 20)
    fragile_paged.tell(InstallCommand(core=0, model=0))
    reply = fragile_paged.reply()
    assert isinstance(reply, FailedReply)
    assert reply.code == "VaultTamperedError"
    cache = fragile_paged.server._shared.cache
    assert cache is not None
    assert cache._free == cache.capacity_pages
    assert at_rest(fragile_paged)


@pytest.fixture
def fragile_paged(tmp_path: Path, provider: SimulatedProvider) -> Iterator[ServerThread]:
    model = paged(tmp_path)
    grant = make_grant([model], memory_bytes=4 * MIB, cores=2, cache_bytes=250_000)
    with ServerThread([model], grant, provider) as worker:
        yield worker


def test_metrics_count_runs_and_decrypted_bytes(worker: ServerThread) -> None:
    weights = [
        sum(weight.spec.nbytes for weight in stage.program.weights)
        for stage in worker.models[0].stages
    ]
    enter(worker, 0, [1, 2])
    assert (worker.metrics.passes, worker.metrics.streamed_bytes) == (1, weights[0])
    done, _ = worker.run(0, 0, 1, [1, 2])
    assert 0 < done.load_s < done.seconds
    assert worker.metrics.streamed_bytes == sum(weights[:2])
    done, _ = worker.run(0, 0, 2, [1, 2], keep=True)
    assert 0 < done.load_s < done.seconds
    assert (worker.metrics.passes, worker.metrics.streamed_bytes) == (3, sum(weights[:2]))
    beat = worker.server.beat()
    assert (beat.frames, beat.busy_s) == (6, 0.0)
    assert beat.metrics.budget_bytes == worker.grant.memory_bytes
