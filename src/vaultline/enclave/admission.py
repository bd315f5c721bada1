"""From a challenge to what was granted: evidence, grant, loading."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Mapping
from typing import TypeAlias, TypeVar

from vaultline.attest.challenge import Challenge
from vaultline.attest.grant import GrantKey, open_grant, transcript_hash
from vaultline.core.control import (
    BufferKind,
    ChallengeMessage,
    EvidenceMessage,
    GrantedMessage,
    GrantMessage,
    LoadedMessage,
    RefusedMessage,
)
from vaultline.core.errors import VaultlineError
from vaultline.core.serde import Struct
from vaultline.enclave.evidence import answer, fresh_key
from vaultline.enclave.process import Process
from vaultline.transport.control import receive_control, send_control
from vaultline.transport.sockets import hang_up

#: An owner that has connected speaks at once; a stranger that doesn't must not block it for long.
_OWNER_TIMEOUT_S = 10.0
G = TypeVar("G", bound=Struct)
T = TypeVar("T")
Load: TypeAlias = Callable[[G, GrantKey], tuple[T, Mapping[BufferKind, int]]]


def admit(process: Process, kind: type[G], load: Load[G, T]) -> T:
    """Answer challenges until one is followed by a grant that opens and can be loaded.

    A stranger's challenge is answered too: evidence is public and each has a key of its own. A
    grant that doesn't open ends that exchange only; what was granted and doesn't load ends the
    worker, since its keys have been used.

    Args:
        kind: of grant. load: what to do with it and the key that it was granted to; the owner is
            told how much memory that took.
    """
    while True:
        sock = process.control.accept()
        try:
            grant = _exchange(sock, process, kind, key := fresh_key())
        except VaultlineError as error:
            _refuse(sock, error)
            continue
        before_s = time.monotonic()
        try:
            loaded, held_bytes = load(grant, key)
        except VaultlineError as error:
            _refuse(sock, error)
            raise
        seconds = time.monotonic() - before_s
        send_control(sock, LoadedMessage(seconds=seconds, held_bytes=held_bytes))
        hang_up(sock)
        process.control.close()
        return loaded


def _exchange(sock: socket.socket, process: Process, kind: type[G], key: GrantKey) -> G:
    asked = receive_control(sock, ChallengeMessage, timeout_s=_OWNER_TIMEOUT_S)
    challenge = Challenge.decode(asked.challenge)
    evidence = answer(process.provider, challenge, key)
    send_control(sock, EvidenceMessage(evidence=evidence.encode()))
    sealed = receive_control(sock, GrantMessage, timeout_s=_OWNER_TIMEOUT_S).sealed
    transcript = transcript_hash(challenge, evidence)
    grant = open_grant(sealed, key, transcript, kind, challenge=challenge)
    send_control(sock, GrantedMessage())
    return grant


def _refuse(sock: socket.socket, error: VaultlineError) -> None:
    with contextlib.suppress(VaultlineError, OSError):
        send_control(sock, RefusedMessage(code=error.code, message=error.message))
    hang_up(sock)
