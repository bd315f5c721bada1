"""A host that kept everything of an earlier deployment, and shows it again: to the owner, or to
fresh enclaves. Each attempt is refused by name, and nothing is computed or released."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from lone_workers import (
    DIGITS,
    Exchange,
    Host,
    Kind,
    both_kinds,
    new_deployment,
    record,
    workers,
)

from vaultline.attest.refusals import EvidenceForAnotherDeployment, ReportDataMismatch
from vaultline.bench.cutting import cut_plan
from vaultline.bench.rig import Rig, make_rig
from vaultline.channel.requests import OVERHEAD_BYTES, RequestTamperedError
from vaultline.core.errors import VaultlineError
from vaultline.core.hostline import EndpointsLine, HostLine
from vaultline.core.serving import FailedReply, RunCommand
from vaultline.graph.model import load_model
from vaultline.owner.frames import OwnerFrame
from vaultline.owner.hostlink import HostLink
from vaultline.owner.release import RefusedByPeerError
from vaultline.owner.session import SessionSettings
from vaultline.testing.middle import Middle, MiddleLink, records
from vaultline.testing.servermodels import Trust, feeds_of, make_grant, seal_groups
from vaultline.testing.serverworker import ServerWorker

KINDS = ("stage", "server")
FRAMES = 4


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    return both_kinds(tmp_path_factory.mktemp("kinds"))


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Short: the path of a Unix socket may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="vlt") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


# --- Admissions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_an_admission_of_an_earlier_deployment_is_refused_by_owner_and_enclave(
    name: str, kinds: dict[str, Kind], place: Path
) -> None:
    kind = kinds[name]
    with workers(kind, place, "earlier", "fresh") as (earlier, fresh):
        recording = record(kind, earlier, place, new_deployment())
        with (
            Host(place, recording.play) as host,
            pytest.raises(EvidenceForAnotherDeployment),
        ):
            kind.grant(host.address, new_deployment())
        assert len(recording.asked) == 1, "nothing but a challenge was heard"
        again = Exchange.to(fresh)
        assert again.ask(recording.challenge) != recording.evidence
        with pytest.raises(RefusedByPeerError) as caught:
            again.give(recording.sealed)
        assert caught.value.got == "GrantForAnotherEnclave"
        granted = kind.grant(fresh, new_deployment())  # its owner may still come
        granted.wait_loaded()
        granted.close()


# --- A pipeline ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return make_rig(
        load_model(DIGITS), cut_plan(load_model(DIGITS), [23]), tmp_path_factory.mktemp("r")
    )


def frames() -> list[OwnerFrame]:
    return [
        OwnerFrame(number, float(number), [*feeds_of(load_model(DIGITS), number).values()])
        for number in range(FRAMES)
    ]


def seen_in_a_run(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Middle:
    """An honest run, and all that its host saw."""
    middle = Middle()
    monkeypatch.setattr(
        "vaultline.owner.deployment.HostLink", lambda request: MiddleLink(request, middle)
    )
    with rig.session() as session:
        assert len(list(session.stream(frames()))) == FRAMES
    return middle


class ReplayingLink(HostLink):
    """A host without any enclave: where workers should be, recordings are played."""

    def __init__(self, hosts: list[Host]) -> None:
        self._hosts = hosts

    def poll(self, timeout_s: float) -> HostLine | None:
        control = tuple(str(host.address) for host in self._hosts)
        data = tuple((str(host.address),) for host in self._hosts)
        return EndpointsLine(
            control=control, data=data, pids=(1, 1), measurements=("", ""), hardening=((), ())
        )

    def stop(self) -> None:
        """Nothing runs."""

    def dispose(self) -> None:
        """Nothing is open."""


def test_a_host_that_plays_back_a_whole_run_gets_no_key_and_no_frame(
    rig: Rig, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = seen_in_a_run(rig, monkeypatch)
    said = [bytes(wire.back) for wire in seen.controls]
    first = int.from_bytes(said[0][:4], "big") + 4
    assert b"evidence" in said[0][:first]
    assert len(said[0]) > first, "more was recorded: that the grant opened, that it is loaded"
    heard: list[bytes] = []

    def play(_: Host, owner: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):  # the owner hangs up on what it did not read
            owner.sendall(said[0])
            while data := owner.recv(1 << 16):
                heard.append(data)

    with Host(place, play) as host:
        monkeypatch.setattr(
            "vaultline.owner.deployment.HostLink", lambda _: ReplayingLink([host, host])
        )
        # This owner has started anew, and remembers no deployment whose evidence it could be.
        with pytest.raises(ReportDataMismatch), rig.session():
            pass
    assert b"challenge" in b"".join(heard)
    assert b"grant" not in b"".join(heard)


def test_results_of_an_earlier_run_are_none_of_a_later_one(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Genuine enclaves this time; the host keeps their results, and shows the old ones."""
    old = list(records([bytes(seen_in_a_run(rig, monkeypatch).hops[2].there)]))
    assert len(old) == FRAMES + 1

    def replay(wire: Iterator[bytes]) -> Iterator[bytes]:
        for number, _ in enumerate(wire):
            yield old[number]

    middle, results = Middle({2: replay}), []
    monkeypatch.setattr(
        "vaultline.owner.deployment.HostLink", lambda request: MiddleLink(request, middle)
    )
    with pytest.raises(VaultlineError), rig.session(SessionSettings(stall_s=1.0)) as one:
        results.extend(one.stream(frames()))
    assert results == []


# --- A server ------------------------------------------------------------------------------------


def test_requests_and_answers_of_an_earlier_deployment_open_in_no_later_one(
    tmp_path: Path, place: Path
) -> None:
    """The same model, the same file, the same numbers; only the deployment is another."""
    model = load_model(DIGITS)
    trust = Trust.make(tmp_path / "trust")
    sealed = seal_groups(model, [(0, model.node_count)], tmp_path, name="served")
    run = RunCommand(core=0, model=0, group=0, requests=(7,))
    kept: list[bytes] = []
    for deployment in range(2):
        grant = make_grant([sealed], memory_bytes=24 << 20)
        with ServerWorker([sealed], grant, trust, place) as worker:
            worker.install(0)
            if not deployment:
                kept.append(bytes(worker.seal(0, 7, feeds_of(model, 7))))
                worker.tell(run, kept[0])
                worker.done()
                kept.append(
                    bytes(worker.receive(sealed.output_layout.message_bytes + OVERHEAD_BYTES))
                )
                continue
            worker.tell(run, kept[0])
            reply = worker.reply()
            assert isinstance(reply, FailedReply)
            assert reply.code == "RequestTamperedError"
            message = memoryview(bytearray(len(kept[1]) - OVERHEAD_BYTES))
            with pytest.raises(RequestTamperedError):
                worker.opener.open_into(0, 7, memoryview(kept[1]), message)
            _, (answer,) = worker.run(0, 0, 0, [7], inputs=[feeds_of(model, 7)])
            assert all(np.isfinite(each).all() for each in answer.outputs.values())
