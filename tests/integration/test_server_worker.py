"""A serving worker as a process: attested, granted, locked down, driven over its sockets."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from server_cases import perceptron

from vaultline.attest.server_grant import ServerGrant
from vaultline.core.errors import PeerError
from vaultline.core.serving import EvictCommand, FailedReply, InstallCommand
from vaultline.graph.engine import run_plain
from vaultline.graph.model import load_model
from vaultline.graph.structure import Model
from vaultline.owner.server_release import release_server
from vaultline.testing.servermodels import (
    SealedModel,
    Trust,
    feeds_of,
    granted_bytes,
    make_grant,
    seal_groups,
)
from vaultline.testing.serverworker import Answer, ServerWorker
from vaultline.transport.sockets import Address, connect

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"
MIB = 1 << 20


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    return Trust.make(tmp_path_factory.mktemp("trust") / "root")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[SealedModel, SealedModel]:
    """Convolutions in three step groups, products in two."""
    folder = tmp_path_factory.mktemp("models")
    digits = load_model(DIGITS)
    ends = (0, digits.node_count // 3, 2 * digits.node_count // 3, digits.node_count)
    groups = [(ends[number], ends[number + 1]) for number in range(3)]
    other = perceptron(folder, "other", 300, 900, 20)
    return (
        seal_groups(digits, groups, folder, name="digits", frames=(1, 2, 4)),
        seal_groups(other, [(0, 2), (2, 4)], folder, name="other", frames=4),
    )


def check(model: Model, number: int, answer: Answer) -> None:
    for name, right in run_plain(model, feeds_of(model, number)).items():
        np.testing.assert_allclose(answer.outputs[name], right, rtol=1e-4, atol=1e-5)


def enter(worker: ServerWorker, model: int, numbers: list[int], core: int = 0) -> None:
    inputs = [feeds_of(worker.models[model].model, number) for number in numbers]
    worker.run(core, model, 0, numbers, inputs=inputs)


def test_two_models_on_two_cores_in_turns_compute_as_the_plain_engine(
    models: tuple[SealedModel, SealedModel], trust: Trust, tmp_path: Path
) -> None:
    grant = make_grant(models, memory_bytes=24 * MIB, cores=2)
    with ServerWorker(models, grant, trust, tmp_path) as worker:
        assert sum(worker.held.values()) == granted_bytes(grant)
        worker.install(0)
        worker.install(1, core=1)
        for turn, keep in enumerate([False, True, True, False]):
            first = [10 * turn + number for number in range(4)]
            for number in first:
                enter(worker, 0, [number], core=number % 2)
            enter(worker, 1, first, core=1)
            for pair in (first[:2], first[2:]):
                worker.run(0, 0, 1, pair, keep=keep)
            _, answers = worker.run(1, 1, 1, first, keep=not keep)
            for number, answer in zip(first, answers, strict=True):
                check(models[1].model, number, answer)
            worker.begin(0, 0, 2, first, keep=keep)
            worker.done()
            for number in first:
                check(models[0].model, number, worker.answer(0, number))
            for group in range(3) if turn == 2 else ():
                worker.evict(0, group)
        steps = {step.name: step.state for step in worker.ready.hardening}
        held = worker.metrics.held_bytes
        assert held["resident"] == models[1].kept_bytes(1)
        assert steps["landlock"] == steps["seccomp"] == "done"
        assert worker.close() == 0


def test_paged_models_share_one_page_cache(
    models: tuple[SealedModel, SealedModel], trust: Trust, tmp_path: Path
) -> None:
    paged = [
        seal_groups(
            each.model,
            [(0, each.model.node_count)],
            tmp_path,
            name=name,
            frames=2,
            mode="paged",
            budget_bytes=2 * MIB,
        )
        for name, each in zip(("first", "second"), models, strict=True)
    ]
    grant = make_grant(paged, memory_bytes=16 * MIB, cores=2, cache_bytes=2 * MIB)
    with ServerWorker(paged, grant, trust, tmp_path) as worker:
        for model in range(2):
            worker.install(model)
        for number in range(3):
            for model, sealed in enumerate(paged):
                inputs = [feeds_of(sealed.model, number)]
                _, (answer,) = worker.run(number % 2, model, 0, [number], inputs=inputs, keep=True)
                check(sealed.model, number, answer)
        assert worker.metrics.swapped_pages > 0
        assert worker.metrics.evicted_pages >= worker.metrics.swapped_pages
        assert worker.metrics.held_bytes["resident"] == 0
        worker.remove(0)
        worker.install(0)
        _, (answer,) = worker.run(1, 0, 0, [9], inputs=[feeds_of(paged[0].model, 9)])
        check(paged[0].model, 9, answer)


def test_strangers_and_wrong_grants_end_their_own_exchange_only(
    models: tuple[SealedModel, SealedModel], trust: Trust, tmp_path: Path
) -> None:
    grant = make_grant(models, memory_bytes=24 * MIB)

    class Disturbed(ServerWorker):
        """Others speak to it before its owner does."""

        def grant_to(self, control: Address) -> None:
            with connect(control, timeout_s=10) as stranger:
                stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
            with pytest.raises(PeerError):
                release_server(control, replace(grant, stage=1), _never)
            super().grant_to(control)

    def _never(*_: object) -> object:
        raise PeerError("an owner that does not believe the evidence")

    with Disturbed(models, grant, trust, tmp_path) as worker:
        worker.install(1)
        enter(worker, 1, [1])


def test_a_tampered_vault_fails_a_run_and_the_server_goes_on(
    models: tuple[SealedModel, SealedModel], trust: Trust, tmp_path: Path
) -> None:
    copies = []
    for model in models:
        copy = tmp_path / model.vault.name
        copy.write_bytes(model.vault.read_bytes())
        copies.append(dataclasses.replace(model, vault=copy))
    with ServerWorker(copies, make_grant(copies, memory_bytes=24 * MIB), trust, tmp_path) as worker:
        worker.install(0)
        worker.install(1)
        enter(worker, 0, [1])
        enter(worker, 1, [2])
        section = copies[0].keys.sealing_for(copies[0].plan_digest).sections[1]
        with copies[0].vault.open("r+b") as file:
            file.seek(section.offset + section.length - 20)
            file.write(os.urandom(4))
        worker.begin(0, 0, 1, [1])
        reply = worker.reply()
        assert isinstance(reply, FailedReply)
        assert reply.code == "VaultTamperedError"
        _, (answer,) = worker.run(0, 1, 1, [2])
        check(models[1].model, 2, answer)


def started(
    models: tuple[SealedModel, SealedModel], trust: Trust, folder: Path
) -> tuple[ServerWorker, ServerGrant]:
    grant = make_grant(models[1:], memory_bytes=8 * MIB)
    return ServerWorker(models[1:], grant, trust, folder), grant


def test_a_host_that_breaks_the_rules_hears_why_the_worker_ends(
    models: tuple[SealedModel, SealedModel], trust: Trust, tmp_path: Path
) -> None:
    worker, _ = started(models, trust, tmp_path)
    with worker:
        worker.tell(EvictCommand(model=0, group=0))
        failed = worker.last_line()
        assert failed is not None
        assert (failed.code, failed.refused) == ("CommandError", False)
        assert worker.close() == 4


def test_a_worker_ends_when_its_host_hangs_up(
    models: tuple[SealedModel, SealedModel], trust: Trust, tmp_path: Path
) -> None:
    worker, _ = started(models, trust, tmp_path)
    with worker:
        worker.tell(InstallCommand(core=0, model=0))
        worker.done()
        worker.sock.close()
        assert worker.last_line() is None
        assert worker.popen.returncode == 0


def test_a_worker_ends_when_its_standard_input_closes(
    models: tuple[SealedModel, SealedModel], trust: Trust, tmp_path: Path
) -> None:
    worker, _ = started(models, trust, tmp_path)
    with worker:
        assert worker.popen.stdin is not None
        worker.popen.stdin.close()
        assert worker.last_line() is None
        assert worker.popen.returncode == 0
