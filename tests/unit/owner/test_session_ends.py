"""A session and its own streams; the test holds the far ends of its hops in place of workers."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from msgspec.structs import replace

from vaultline.attest.refusals import KindRefused
from vaultline.channel.keys import derive_hop_keys
from vaultline.core.errors import InputError, LocalProtocolError, MachineError
from vaultline.core.hostline import EndpointsLine, LaunchRequest, LaunchWorker, Start
from vaultline.core.plan import PLAN_VERSION, Plan, PlannedDevice, PlannedStage
from vaultline.core.section import SectionAccess
from vaultline.core.tensors import TensorSpec
from vaultline.owner import deployment
from vaultline.owner import session as module
from vaultline.owner.frames import OwnerFrame
from vaultline.owner.hostlink import HostLostError
from vaultline.owner.release import StageSecrets
from vaultline.owner.session import FramesLostError, Session, SessionSettings
from vaultline.testing.attestation import challenge, evidence
from vaultline.transport.streams import HopReceiver, HopSender

FRAME = TensorSpec(name="x", dtype="float32", shape=(1, 2))
DEVICE = PlannedDevice(name="d", host="h", kind="simulated", cores=1, memory_bytes=1 << 20)
STAGE = PlannedStage(
    devices=(DEVICE,),
    first=0,
    last=1,
    threads=1,
    mode="resident",
    step_bytes=1,
    frames_per_pass=1,
    queue_frames=1,
    portable=True,
    inputs=(FRAME,),
    outputs=(FRAME,),
    predicted_s=0.0,
)
PLAN = Plan(
    version=PLAN_VERSION,
    model_name="m",
    model_digest="00" * 32,
    input_shapes={},
    objective="latency",
    chunk_frames=1,
    stages=(STAGE,),
    hop_s=(0.0, 0.0),
    predicted=dict.fromkeys(("latency_s", "bottleneck_s", "chunk_s"), 0.0),
)
ACCESS = SectionAccess(
    vault_id=bytes(16),
    model_id=bytes(16),
    plan_digest=PLAN.digest,
    stage=0,
    stage_key=bytes(32),
    section_digest=bytes(32),
    section_offset=0,
    section_bytes=0,
    program_bytes=0,
)


WORKER = LaunchWorker(
    name="stage0",
    stage=0,
    cores=(),
    vault="v",
    start=Start(provider="simulated", platform_file=None),
    busy_s_max=1.0,
)


def new_session(plan: Plan = PLAN) -> Session:
    secrets = StageSecrets(access=ACCESS, hop_in_secret=b"i" * 32, hop_out_secret=b"o" * 32)
    return Session(plan, (secrets,), (WORKER,), lambda *_: None, SessionSettings())


@dataclass
class Ends:
    """A session and the worker's ends of its two hops."""

    session: Session
    receiver: HopReceiver
    sender: HopSender

    def pass_on(self, count: int) -> None:
        """Return frames as their own results."""
        message = memoryview(bytearray(self.session._codec.sent.message_bytes))
        for _ in range(count):
            assert self.receiver.receive(message)
            self.sender.send(message)


@pytest.fixture
def ends() -> Iterator[Ends]:
    session = new_session()
    size = session._codec.sent.message_bytes
    keys = [derive_hop_keys(os.urandom(32), hop=hop, epoch=1) for hop in (0, 1)]
    (out, into), (back, home) = socket.socketpair(), socket.socketpair()
    session._deployment.sender = HopSender(out, keys[0], message_bytes=size)
    session._deployment.receiver = HopReceiver(lambda: home, keys[1], message_bytes=size)
    yield Ends(
        session,
        HopReceiver(lambda: into, keys[0], message_bytes=size),
        HopSender(back, keys[1], message_bytes=size),
    )
    for sock in (out, into, back, home):
        sock.close()


def frame(index: int) -> OwnerFrame:
    return OwnerFrame(index, 0.0, [np.full((1, 2), index, np.float32)])


def no_host(_: LaunchRequest) -> None:
    raise MachineError("no host")


def test_a_session_is_entered_once_even_if_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or records of two runs would share keys and nonces."""
    monkeypatch.setattr(deployment, "HostLink", no_host)
    session = new_session()
    with pytest.raises(MachineError), session:
        pass
    with pytest.raises(LocalProtocolError, match="once"), session:
        pass


def test_a_session_streams_once(ends: Ends) -> None:
    ends.sender.end()
    assert list(ends.session.stream([])) == []
    with pytest.raises(LocalProtocolError, match="once"):
        list(ends.session.stream([]))


def test_an_end_that_the_owner_has_not_sent_is_a_loss_while_the_source_blocks(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FED_S", 0.05)
    released = threading.Event()

    def source() -> Iterator[OwnerFrame]:
        yield frame(0)
        released.wait(30)

    results = ends.session.stream(source())
    worker = threading.Thread(target=lambda: (ends.pass_on(1), ends.sender.end()))
    worker.start()
    assert next(results).index == 0
    with pytest.raises(FramesLostError, match="before the source"):
        next(results)
    released.set()
    worker.join()


def test_a_source_that_exits_ends_the_stream(ends: Ends) -> None:
    def source() -> Iterator[OwnerFrame]:
        yield frame(0)
        raise SystemExit(3)

    def work() -> None:
        ends.pass_on(1)
        if not ends.receiver.receive(memoryview(bytearray(ends.session._codec.sent.message_bytes))):
            ends.sender.end()

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    results = ends.session.stream(source())
    assert next(results).index == 0
    with pytest.raises(InputError, match="source failed"):
        next(results)
    worker.join()


class Silent:
    """A host that says nothing until it is asked for the third time, when it goes."""

    def __init__(self) -> None:
        self.asked = 0

    def poll(self, _: float) -> None:
        self.asked += 1
        if self.asked == 3:
            raise HostLostError("gone")


@pytest.mark.parametrize(
    ("awaiting", "failure"), [(True, "ResultsStalledError"), (False, "HostLostError")]
)
def test_only_a_result_that_is_awaited_can_be_late(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, awaiting: bool, failure: str
) -> None:
    """A caller that takes its time over a result is not the pipeline's stall."""
    session = ends.session
    monkeypatch.setattr(session, "_note", lambda error: setattr(session, "_failure", error))
    session._deployment._host = Silent()  # type: ignore[assignment]
    session._sent, session._awaiting_result = 1, awaiting
    session._progress_s -= session._stall_s + 1
    session._watch_host()
    assert type(session._failure).__name__ == failure


@pytest.mark.parametrize(
    ("planned", "presented"), [("sgx", "simulated"), ("simulated", "sgx"), ("sgx", "sgx")]
)
def test_a_stage_gets_the_kind_of_enclave_that_the_plan_says(planned: str, presented: str) -> None:
    """Whatever else the policy, which stands for all stages, accepts."""
    stage = replace(STAGE, devices=(replace(DEVICE, kind=planned),))
    session = new_session(replace(PLAN, stages=(stage,)))
    shown = replace(evidence(), kind=presented)
    if planned == presented:
        assert session._deployment._appraise_planned(shown, challenge(stage=0)) is None
        return
    with pytest.raises(KindRefused) as caught:
        session._deployment._appraise_planned(shown, challenge(stage=0))
    assert (caught.value.got, caught.value.expected) == (presented, planned)


@pytest.mark.parametrize("missing", ["control", "data"])
def test_a_host_with_fewer_endpoints_than_stages_is_refused(missing: str) -> None:
    endpoints = {"control": ("unix:/c",), "data": (("unix:/d",),)} | {missing: ()}
    line = EndpointsLine(**endpoints, measurements=(), hardening=(), pids=())
    with pytest.raises(HostLostError, match="another number"):
        new_session()._deployment._grant_all(line)


def test_a_worker_without_a_place_for_frames_is_refused_before_any_grant() -> None:
    line = EndpointsLine(control=("unix:/c",), data=((),), measurements=(), hardening=(), pids=())
    with pytest.raises(HostLostError, match="takes no frames"):
        new_session()._deployment._grant_all(line)


@pytest.mark.parametrize("wrong", ["control", "data"])
def test_the_owner_connects_to_no_unix_socket_of_its_machine_because_a_host_says_so(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[object] = []
    monkeypatch.setattr(deployment, "release", lambda address, *_, **__: tried.append(address))
    monkeypatch.setattr(deployment, "connect", lambda address, **_: tried.append(address))
    deployed = new_session()._deployment
    deployed._transport = "tcp"
    named = {"control": "tcp:127.0.0.1:1", "data": "tcp:127.0.0.1:2"} | {wrong: "unix:/run/bus"}
    line = EndpointsLine(
        control=(named["control"],),
        data=((named["data"],),),
        measurements=(),
        hardening=(),
        pids=(),
    )
    ask = deployed._grant_all if wrong == "control" else deployed._connect_first
    with pytest.raises(HostLostError, match="not asked to"):
        ask(line)
    assert not tried
