"""Workers of either kind, each alone with its control socket, and hosts before them."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from vaultline.bench.cutting import cut_plan
from vaultline.bench.rig import make_rig
from vaultline.core.control import (
    ChallengeMessage,
    EvidenceMessage,
    FailedLine,
    GrantedMessage,
    GrantMessage,
    LoadedMessage,
    ReadyLine,
    WorkerConfig,
    WorkerLine,
)
from vaultline.core.serde import canonical_json, from_json
from vaultline.core.serving import ServerWorkerConfig
from vaultline.graph.model import load_model
from vaultline.host.launcher import start_module
from vaultline.owner.appraisal import Appraiser, load_collateral, load_policy
from vaultline.owner.deploy import stage_secrets
from vaultline.owner.release import Epoch, Release, receive_answer, release
from vaultline.owner.server_release import release_server
from vaultline.testing.servermodels import make_grant, seal_groups
from vaultline.transport.control import receive_control, send_control
from vaultline.transport.sockets import Address, Listener, connect, hang_up

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"
WAIT_S = 30.0
Config = WorkerConfig | ServerWorkerConfig


@dataclass(frozen=True, slots=True)
class Kind:
    """How workers of a kind are started, and what their owner does.

    Attributes:
        config: of a worker of this name, whose sockets lie in a folder.
        grant: releases what this owner has to the worker at an address, for a deployment.
    """

    module: str
    config: Callable[[Path, str], Config]
    grant: Callable[[Address, bytes], Release]


def appraiser(trust: dict[str, Path]) -> Appraiser:
    return Appraiser(
        policy=load_policy(trust["policy"]),
        collateral=load_collateral({"simulated": trust["collateral"]}),
        allow_simulated=True,
    )


def both_kinds(folder: Path) -> dict[str, Kind]:
    """A stage of a pipeline, and a server of one model, under one development root."""
    model = load_model(DIGITS)
    rig = make_rig(model, cut_plan(model, [23]), folder)
    platform, owner = str(rig.trust["platform"]), appraiser(rig.trust)
    (access, *_) = stage_secrets(rig.plan, rig.keys)
    groups = seal_groups(model, [(0, model.node_count)], folder, name="served")

    def stage_config(place: Path, name: str) -> Config:
        return WorkerConfig(
            name=name,
            platform="process",
            provider="simulated",
            platform_file=platform,
            vault=str(rig.vault),
            control=f"unix:{place}/{name}.control",
            data=(f"unix:{place}/{name}.data",),
            runtime_dir=str(place),
        )

    def server_config(place: Path, name: str) -> Config:
        return ServerWorkerConfig(
            name=name,
            platform="process",
            provider="simulated",
            platform_file=platform,
            vaults=(str(groups.vault),),
            control=f"unix:{place}/{name}.control",
            commands=f"unix:{place}/{name}.commands",
            runtime_dir=str(place),
        )

    def to_stage(address: Address, deployment: bytes) -> Release:
        epoch = Epoch(deployment=deployment, number=1, plan_digest=rig.plan.digest)
        return release(address, 0, epoch, access, owner.appraise_now)

    def to_server(address: Address, deployment: bytes) -> Release:
        given = make_grant([groups], memory_bytes=24 << 20)
        changes: Any = {"deployment": deployment, "plan_digest": rig.plan.digest}
        return release_server(address, replace(given, **changes), owner.appraise_now)

    return {
        "stage": Kind("vaultline.enclave", stage_config, to_stage),
        "server": Kind("vaultline.enclave.server", server_config, to_server),
    }


def new_deployment() -> bytes:
    return secrets.token_bytes(16)


@contextlib.contextmanager
def workers(kind: Kind, place: Path, *names: str) -> Iterator[list[Address]]:
    """So many workers that listen; where their control sockets are."""
    started = [start_module(kind.module, ()) for _ in names]
    try:
        for popen, name in zip(started, names, strict=True):
            assert popen.stdin is not None
            popen.stdin.write(canonical_json(kind.config(place, name)) + b"\n")
            popen.stdin.flush()
        yield [_control(popen.stdout) for popen in started]
    finally:
        for popen in started:
            popen.kill()
            popen.wait(WAIT_S)
            for pipe in (popen.stdin, popen.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()


def _control(stdout: Any) -> Address:
    union: Any = WorkerLine
    while data := stdout.readline():
        line = from_json(data, union, what="a worker's line")
        if isinstance(line, ReadyLine):
            return Address.parse(line.control)
        assert not isinstance(line, FailedLine), line
    raise AssertionError("the worker ended without a word")


@dataclass
class Exchange:
    """One connection to a worker, as anybody may have it."""

    sock: socket.socket

    @classmethod
    def to(cls, address: Address, *, timeout_s: float = WAIT_S) -> Exchange:
        return cls(connect(address, timeout_s=timeout_s))

    def ask(self, challenge: bytes) -> bytes:
        """Its evidence."""
        send_control(self.sock, ChallengeMessage(challenge=challenge))
        return receive_answer(self.sock, EvidenceMessage, timeout_s=WAIT_S).evidence

    def give(self, sealed: bytes) -> None:
        """A grant, which it takes.

        Raises:
            RefusedByPeerError: or not, by name.
        """
        send_control(self.sock, GrantMessage(sealed=sealed))
        receive_answer(self.sock, GrantedMessage, timeout_s=WAIT_S)

    def close(self) -> None:
        hang_up(self.sock)


class Host:
    """Where an owner believes an enclave to be. What happens there is a test's affair."""

    def __init__(self, place: Path, deed: Callable[[Host, socket.socket], None]) -> None:
        self._listener = Listener(Address("unix", f"{place}/host{os.urandom(4).hex()}"))
        self.address = self._listener.address
        self.error: BaseException | None = None
        self._deed = deed
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        sock = self._listener.accept()
        try:
            self._deed(self, sock)
        except BaseException as error:  # told to the test
            self.error = error
            hang_up(sock)

    def __enter__(self) -> Host:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(WAIT_S)
        self._listener.close()
        if self.error is not None:
            raise self.error


@dataclass
class Recording:
    """All that a host sees of one enclave's admission.

    Attributes:
        after: what the owner said after the evidence, if anything.
    """

    challenge: bytes = b""
    evidence: bytes = b""
    sealed: bytes = b""
    loaded: LoadedMessage | None = None
    asked: list[bytes] = field(default_factory=list)

    def carry(self, worker: Address) -> Callable[[Host, socket.socket], None]:
        """An honest host that writes everything down."""

        def deed(_: Host, owner: socket.socket) -> None:
            exchange = Exchange.to(worker)
            self.challenge = receive_control(owner, ChallengeMessage, timeout_s=WAIT_S).challenge
            self.evidence = exchange.ask(self.challenge)
            send_control(owner, EvidenceMessage(evidence=self.evidence))
            self.sealed = receive_control(owner, GrantMessage, timeout_s=WAIT_S).sealed
            exchange.give(self.sealed)
            send_control(owner, GrantedMessage())
            self.loaded = receive_control(exchange.sock, LoadedMessage, timeout_s=WAIT_S)
            send_control(owner, self.loaded)

        return deed

    def play(self, _: Host, owner: socket.socket) -> None:
        """A host that says what was said before, to whatever is asked; notes what it heard."""
        self.asked.append(receive_control(owner, ChallengeMessage, timeout_s=WAIT_S).challenge)
        send_control(owner, EvidenceMessage(evidence=self.evidence))
        while data := owner.recv(1 << 16):  # a grant would come now
            self.asked.append(data)


def record(kind: Kind, worker: Address, place: Path, deployment: bytes) -> Recording:
    """An honest admission, written down."""
    recording = Recording()
    with Host(place, recording.carry(worker)) as host:
        granted = kind.grant(host.address, deployment)
        granted.wait_loaded()
        granted.close()
    return recording
