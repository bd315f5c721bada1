"""From a challenge to a loaded stage: evidence, grant, vault."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import dataclass

from vaultline.attest.challenge import Challenge
from vaultline.attest.grant import Grant, check_released, open_grant, transcript_hash
from vaultline.core.control import (
    ChallengeMessage,
    EvidenceMessage,
    GrantedMessage,
    GrantMessage,
    LoadedMessage,
    RefusedMessage,
)
from vaultline.core.errors import RefusedError, RemoteProtocolError, VaultlineError
from vaultline.core.program import StageProgram
from vaultline.enclave.evidence import Provider, answer, fresh_key
from vaultline.enclave.executor import Executor, check_engine
from vaultline.enclave.ledger import Ledger
from vaultline.enclave.pipeline import StageBuffers
from vaultline.enclave.vault import VaultSection
from vaultline.transport.control import receive_control, send_control
from vaultline.transport.sockets import Listener, hang_up

#: An owner that has connected speaks at once; a stranger that doesn't must not block it for long.
_OWNER_TIMEOUT_S = 10.0


class PagedRefusedError(RefusedError):
    """A page cache is simulated by simulated enclaves only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedStage:
    """A stage that is ready for frames."""

    grant: Grant
    program: StageProgram
    executor: Executor
    buffers: StageBuffers


def admit(
    listener: Listener,
    provider: Provider,
    measurement: bytes,
    vault_fd: int,
    isa: str,
    *,
    mapped: bool = True,
) -> LoadedStage:
    """Answer challenges until one is followed by a grant that opens and a vault that loads.

    A stranger's challenge is answered too: evidence is public and each has a key of its own. A
    grant that doesn't open ends that exchange only; a granted stage that doesn't load ends the
    worker, since its keys have been used. ``mapped``: see ``VaultSection``.
    """
    while True:
        sock = listener.accept()
        try:
            grant = _exchange(sock, provider, measurement)
        except VaultlineError as error:
            _refuse(sock, error)
            continue
        try:
            stage, seconds = _load(grant, vault_fd, isa, provider, mapped=mapped)
        except VaultlineError as error:
            _refuse(sock, error)
            raise
        held_bytes = stage.executor.metrics.held_bytes
        send_control(sock, LoadedMessage(seconds=seconds, held_bytes=held_bytes))
        hang_up(sock)
        return stage


def _exchange(sock: socket.socket, provider: Provider, measurement: bytes) -> Grant:
    asked = receive_control(sock, ChallengeMessage, timeout_s=_OWNER_TIMEOUT_S)
    challenge = Challenge.decode(asked.challenge)
    key = fresh_key()
    evidence = answer(provider, challenge, key, measurement)
    send_control(sock, EvidenceMessage(evidence=evidence.encode()))
    sealed = receive_control(sock, GrantMessage, timeout_s=_OWNER_TIMEOUT_S).sealed
    grant = open_grant(sealed, key, transcript_hash(challenge, evidence), challenge=challenge)
    send_control(sock, GrantedMessage())
    return grant


def _load(
    grant: Grant, vault_fd: int, isa: str, provider: Provider, *, mapped: bool
) -> tuple[LoadedStage, float]:
    before_s = time.monotonic()
    section = VaultSection(vault_fd, grant, mapped=mapped)
    program = section.program
    if program.settings.next_untrusted:  # held against the owner's policy, not against the plan
        check_released(grant.release, [spec.name for spec in program.specs(program.outputs)])
    check_engine(program, isa)
    ledger = Ledger(program.settings.budget_bytes)
    buffers = StageBuffers(program, ledger)
    executor = executor_type(program, provider)(program, section, ledger)
    stage = LoadedStage(grant=grant, program=program, executor=executor, buffers=buffers)
    return stage, time.monotonic() - before_s


def executor_type(program: StageProgram, provider: Provider) -> type[Executor]:
    """What runs the stage: in memory, or on a page cache, which only simulated enclaves have.

    Raises:
        PagedRefusedError: a paged stage in any other enclave.
    """
    if program.settings.mode != "paged":
        return Executor
    if provider.kind != "simulated":
        raise PagedRefusedError("paging is simulated", got=provider.kind, remedy="plan it streamed")
    from vaultline.enclave.simulated_epc import PagedExecutor

    return PagedExecutor


def _refuse(sock: socket.socket, error: VaultlineError) -> None:
    with contextlib.suppress(VaultlineError, OSError):
        send_control(sock, RefusedMessage(code=error.code, message=error.message))
    hang_up(sock)


def open_vault(path: str) -> int:
    """Open the vault file for reading; the descriptor outlives the file system's lockdown.

    Raises:
        RemoteProtocolError: the host named a file that can't be read.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise RemoteProtocolError("cannot read the vault", got=str(error)) from error
