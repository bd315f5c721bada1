"""Releasing one stage's keys: challenge, evidence, appraisal, grant."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from msgspec.structs import asdict, replace

from vaultline.attest.challenge import CHALLENGE_VERSION, RECEIPTS_VERSION, Challenge
from vaultline.attest.evidence import Evidence
from vaultline.attest.grant import transcript_hash
from vaultline.attest.granting import read_evidence, seal_grant
from vaultline.attest.server_grant import ServerGrant
from vaultline.attest.stage_grant import Grant, HopRelease
from vaultline.core.control import (
    ChallengeMessage,
    EvidenceMessage,
    GrantedMessage,
    GrantMessage,
    LoadedMessage,
    RefusedMessage,
)
from vaultline.core.errors import PeerError
from vaultline.core.section import SectionAccess
from vaultline.transport.control import receive_control, send_control
from vaultline.transport.sockets import Address, connect, hang_up

_CONNECT_TIMEOUT_S = 10.0
#: An enclave hears out whoever came first, and gives a silent stranger 10 s.
_ANSWER_TIMEOUT_S = 30.0
#: Decrypting gigabytes into memory, on a busy machine.
_LOAD_TIMEOUT_S = 300.0


A = TypeVar("A", EvidenceMessage, GrantedMessage, LoadedMessage)


class RefusedByPeerError(PeerError):
    """The enclave said no and why (unauthenticated)."""

    exit_code = 1


def receive_answer(sock: socket.socket, kind: type[A], *, timeout_s: float) -> A:
    """The one message of an enclave that must come next.

    Raises:
        RefusedByPeerError: the enclave refused instead.
        PeerError: as `receive_control`.
    """
    message: Any = receive_control(sock, kind, RefusedMessage, timeout_s=timeout_s)
    if isinstance(message, RefusedMessage):
        raise RefusedByPeerError(f"the enclave refused: {message.message}", got=message.code)
    answer: A = message
    return answer


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptTerms:
    """What the enclaves of a run are granted for receipts; ``model_digest``: SHA-256."""

    secret: bytes = field(repr=False)
    model_digest: bytes
    frames_per_link: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSecrets:
    """What one stage's grant carries, apart from the names of the exchange.

    ``release``: what the owner's policy lets an untrusted next stage see (`owner.disclosure`);
    ``receipt``: the enclave is to sign links of a receipt (`owner.receipts`).
    """

    access: SectionAccess
    hop_in_secret: bytes = field(repr=False)
    hop_out_secret: bytes = field(repr=False)
    release: HopRelease | None = None
    receipt: ReceiptTerms | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One run of one plan: its names, and no key."""

    deployment: bytes
    number: int
    plan_digest: bytes


@dataclass(slots=True)
class Release:
    """A granted stage that may still be loading.

    Attributes:
        verdict: what the appraisal said, of which challenge and evidence.
        grant_s: seconds from the challenge to the enclave's word that the grant opened.
    """

    verdict: object
    challenge: Challenge
    evidence: Evidence
    grant_s: float
    _sock: socket.socket

    def wait_loaded(self) -> LoadedMessage:
        """Block until the stage is in memory.

        Raises:
            PeerError: it refused, died or took too long.
        """
        try:
            return receive_answer(self._sock, LoadedMessage, timeout_s=_LOAD_TIMEOUT_S)
        finally:
            self.close()

    def close(self) -> None:
        """Hang up; safe to call twice."""
        hang_up(self._sock)


def release(
    address: Address,
    stage: int,
    epoch: Epoch,
    secrets: StageSecrets,
    appraise: Callable[[Evidence, Challenge], object],
    *,
    replica: int = 0,
) -> Release:
    """Grant a stage's keys to the enclave at ``address`` if its evidence is accepted.

    Each ``replica`` of a stage is granted once in an epoch: two enclaves that were the same one
    would seal different frames under the same keys and nonces.

    Raises:
        RefusedError: the evidence is not accepted; nothing was released.
        PeerError: the enclave refused, misbehaved or vanished.
    """
    grant = Grant(
        **asdict(secrets.access),
        epoch=epoch.number,
        deployment=epoch.deployment,
        hop_in_secret=secrets.hop_in_secret,
        hop_out_secret=secrets.hop_out_secret,
        replica=replica,
        release=secrets.release,
    )
    if secrets.receipt is not None:
        terms = secrets.receipt
        grant = replace(
            grant,
            receipt_secret=terms.secret,
            model_digest=terms.model_digest,
            frames_per_link=terms.frames_per_link,
        )
    return release_grant(address, grant, appraise)


def release_grant(
    address: Address,
    grant: Grant | ServerGrant,
    appraise: Callable[[Evidence, Challenge], object],
) -> Release:
    """Challenge the enclave at ``address``, and grant it this if its evidence is accepted.

    A grant is released once, whatever it is for: see ``release``.

    Raises:
        RefusedError: the evidence is not accepted; nothing was released.
        PeerError: the enclave refused, misbehaved or vanished.
    """
    receipts = isinstance(grant, Grant) and bool(grant.receipt_secret)
    challenge = Challenge(
        version=RECEIPTS_VERSION if receipts else CHALLENGE_VERSION,
        nonce=os.urandom(32),
        deployment=grant.deployment,
        epoch=grant.epoch,
        stage=grant.stage,
        plan_digest=grant.plan_digest,
    )
    sock = connect(address, timeout_s=_CONNECT_TIMEOUT_S)
    try:
        before_s = time.perf_counter()
        send_control(sock, ChallengeMessage(challenge=challenge.encode()))
        answer = receive_answer(sock, EvidenceMessage, timeout_s=_ANSWER_TIMEOUT_S)
        evidence = read_evidence(answer.evidence)
        verdict = appraise(evidence, challenge)
        sealed = seal_grant(grant, evidence.public_key, transcript_hash(challenge, evidence))
        send_control(sock, GrantMessage(sealed=sealed))
        receive_answer(sock, GrantedMessage, timeout_s=_ANSWER_TIMEOUT_S)
        return Release(verdict, challenge, evidence, time.perf_counter() - before_s, sock)
    except BaseException:
        hang_up(sock)
        raise
