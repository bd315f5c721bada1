"""Grants of servers: opened with the same checks as those of stages, and never as one another."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import asdict, replace

from vaultline.attest.grant import (
    GrantForAnotherDeployment,
    GrantForAnotherEnclave,
    GrantForAnotherEpoch,
    GrantForAnotherPlan,
    GrantForAnotherStage,
    open_grant,
    public_key_bytes,
    transcript_hash,
)
from vaultline.attest.granting import seal_grant
from vaultline.attest.server_grant import (
    CORES_MAX,
    GROUPS_MAX,
    MODELS_MAX,
    ServedAccess,
    ServerGrant,
)
from vaultline.attest.stage_grant import Grant
from vaultline.core.errors import InputError, RemoteProtocolError
from vaultline.core.section import SectionAccess
from vaultline.enclave.evidence import fresh_key
from vaultline.testing.attestation import challenge, evidence, grant

KEY = fresh_key()
ASKED = challenge(stage=0)
TRANSCRIPT = transcript_hash(ASKED, evidence(ASKED, key=KEY))
SECTION = SectionAccess(
    **{name: value for name, value in asdict(grant()).items() if hasattr(SectionAccess, name)}
)


def server_grant(**changes: Any) -> ServerGrant:
    base = ServerGrant(
        epoch=ASKED.epoch,
        deployment=ASKED.deployment,
        plan_digest=ASKED.plan_digest,
        stage=0,
        secret=b"s" * 32,
        memory_bytes=1 << 20,
        cores=2,
        workspace_bytes=1 << 16,
        message_bytes=1 << 10,
        models=(ServedAccess(sections=(SECTION, SECTION)), ServedAccess(sections=(SECTION,))),
    )
    return replace(base, **changes)


def opened(sealed: Grant | ServerGrant, kind: type[Any]) -> object:
    data = seal_grant(sealed, public_key_bytes(KEY), TRANSCRIPT)
    return open_grant(data, KEY, TRANSCRIPT, kind, challenge=ASKED)


def test_the_enclave_that_was_asked_opens_its_servers_grant() -> None:
    assert opened(server_grant(), ServerGrant) == server_grant()
    assert "k" * 32 not in repr(server_grant()) + repr(server_grant().models)
    assert "sss" not in repr(server_grant())


OTHERS = {
    "another deployment": ({"deployment": b"o" * 16}, GrantForAnotherDeployment),
    "another list of models": ({"plan_digest": b"o" * 32}, GrantForAnotherPlan),
    "another epoch": ({"epoch": ASKED.epoch + 1}, GrantForAnotherEpoch),
    "another stage": ({"stage": 1}, GrantForAnotherStage),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_grant_for_something_else_is_refused(case: str) -> None:
    changes, error = OTHERS[case]
    with pytest.raises(error):
        opened(server_grant(**changes), ServerGrant)


def test_a_grant_for_another_enclave_is_refused() -> None:
    data = seal_grant(server_grant(), public_key_bytes(KEY), TRANSCRIPT)
    with pytest.raises(GrantForAnotherEnclave):
        open_grant(data, fresh_key(), TRANSCRIPT, ServerGrant, challenge=ASKED)


def test_a_stages_grant_is_not_a_servers_nor_the_other_way_round() -> None:
    with pytest.raises(RemoteProtocolError, match="malformed"):
        opened(grant(ASKED), ServerGrant)
    with pytest.raises(RemoteProtocolError, match="malformed"):
        opened(server_grant(), Grant)


IMPOSSIBLE: dict[str, dict[str, Any]] = {
    "a short secret": {"secret": b"s" * 31},
    "no model": {"models": ()},
    "too many models": {"models": (ServedAccess(sections=(SECTION,)),) * (MODELS_MAX + 1)},
    "no memory": {"memory_bytes": 0},
    "no core": {"cores": 0},
    "too many cores": {"cores": CORES_MAX + 1},
    "a negative workspace": {"workspace_bytes": -1},
    "a negative message": {"message_bytes": -1},
    "a negative page cache": {"cache_bytes": -1},
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_an_impossible_grant_cannot_exist(case: str) -> None:
    with pytest.raises(InputError):
        server_grant(**IMPOSSIBLE[case])


@pytest.mark.parametrize("count", [0, GROUPS_MAX + 1])
def test_a_model_has_some_step_groups(count: int) -> None:
    with pytest.raises(InputError):
        ServedAccess(sections=(SECTION,) * count)


def test_a_grant_of_too_many_models_says_so() -> None:
    many = (ServedAccess(sections=(SECTION,) * GROUPS_MAX),) * 64
    with pytest.raises(InputError, match="too large") as caught:
        seal_grant(server_grant(models=many), public_key_bytes(KEY), TRANSCRIPT)
    assert "fewer models" in str(caught.value.remedy)
