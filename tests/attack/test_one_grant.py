"""A host that starts two enclaves where the owner means one: what is granted opens in one alone."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lone_workers import (
    WAIT_S,
    Exchange,
    Host,
    Kind,
    Recording,
    both_kinds,
    new_deployment,
    record,
    workers,
)

from vaultline.attest.refusals import EvidenceReplayed
from vaultline.core.control import (
    ChallengeMessage,
    EvidenceMessage,
    GrantedMessage,
    GrantMessage,
    LoadedMessage,
)
from vaultline.core.errors import PeerError
from vaultline.owner.release import RefusedByPeerError
from vaultline.testing.deployment import wait_until
from vaultline.transport.control import receive_control, send_control
from vaultline.transport.sockets import Address

KINDS = ("stage", "server")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    return both_kinds(tmp_path_factory.mktemp("kinds"))


@pytest.fixture
def place() -> Iterator[Path]:
    """Short: the path of a Unix socket may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="vlt") as folder:
        yield Path(folder)


def refused_by(exchange: Exchange, sealed: bytes) -> str | None:
    with pytest.raises(RefusedByPeerError) as caught:
        exchange.give(sealed)
    return caught.value.got


def gone(address: Address) -> bool:
    """Whether nobody listens there any more."""
    try:
        Exchange.to(address, timeout_s=0.1).close()
    except PeerError:
        return True
    return False


def takes_its_owner(kind: Kind, address: Address) -> bool:
    """Whether a worker still waits for a grant, and takes a genuine one."""
    granted = kind.grant(address, new_deployment())
    granted.wait_loaded()
    granted.close()
    return True


@pytest.mark.parametrize("name", KINDS)
def test_a_grant_relayed_to_two_enclaves_opens_in_the_one_that_was_appraised(
    name: str, kinds: dict[str, Kind], place: Path
) -> None:
    kind, refusals = kinds[name], []

    with workers(kind, place, "meant", "other") as (meant, other):

        def deed(_: Host, owner: socket.socket) -> None:
            """Both are asked the owner's question; the owner hears one answer."""
            asked = receive_control(owner, ChallengeMessage, timeout_s=WAIT_S).challenge
            first, second = Exchange.to(meant), Exchange.to(other)
            evidence = first.ask(asked)
            assert second.ask(asked) != evidence
            send_control(owner, EvidenceMessage(evidence=evidence))
            sealed = receive_control(owner, GrantMessage, timeout_s=WAIT_S).sealed
            refusals.append(refused_by(second, sealed))
            third = Exchange.to(other)  # with the evidence's challenge once more
            third.ask(asked)
            refusals.append(refused_by(third, sealed))
            first.give(sealed)
            send_control(owner, GrantedMessage())
            send_control(owner, receive_control(first.sock, LoadedMessage, timeout_s=WAIT_S))

        with Host(place, deed) as host:
            granted = kind.grant(host.address, new_deployment())
            granted.wait_loaded()
        assert refusals == ["GrantForAnotherEnclave"] * 2
        # What was granted takes no second grant.
        wait_until(lambda: gone(meant), timeout_s=WAIT_S, what="the end of its control socket")
        assert takes_its_owner(kind, other)


@pytest.mark.parametrize("name", KINDS)
def test_a_second_challenge_is_answered_by_nobody_who_was_asked_the_first(
    name: str, kinds: dict[str, Kind], place: Path
) -> None:
    """The owner grants a second place (a replica, another try) in the same deployment. Neither the
    first enclave's answer, nor another's answer to the first challenge, gets a grant for it."""
    kind, deployment = kinds[name], new_deployment()
    with workers(kind, place, "meant", "other") as (meant, other):
        first = record(kind, meant, place, deployment)
        by_other = Recording(evidence=Exchange.to(other).ask(first.challenge))
        for answers in (first, by_other):
            with Host(place, answers.play) as host, pytest.raises(EvidenceReplayed):
                kind.grant(host.address, deployment)
            assert len(answers.asked) == 1, "nothing but a challenge was heard"
            assert answers.asked[0] != first.challenge
        assert takes_its_owner(kind, other)
