"""The files around appraisal, and which of them is missing."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from vaultline.attest.refusals import KindRefused
from vaultline.core.errors import InputError
from vaultline.owner.appraisal import (
    COLLATERAL_BYTES_MAX,
    Appraiser,
    load_collateral,
    load_policy,
)
from vaultline.testing.attestation import NOW_S, challenge, devroot, evidence, policy


def test_a_missing_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the policy"):
        load_policy(tmp_path / "none.yaml")


def test_a_policy_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError):
        load_policy(tmp_path / "policy.yaml")


def test_missing_or_huge_collateral_is_named(tmp_path: Path) -> None:
    (tmp_path / "huge").write_bytes(bytes(COLLATERAL_BYTES_MAX + 1))
    for name in ("none", "huge"):
        with pytest.raises(InputError, match="collateral for `sgx`"):
            load_collateral({"sgx": tmp_path / name})


def test_a_kind_without_collateral_is_the_users_mistake() -> None:
    appraiser = Appraiser(policy=policy(), collateral={}, allow_simulated=True)
    with pytest.raises(InputError, match="no collateral"):
        appraiser.appraise(evidence(), challenge(), NOW_S)


def test_a_kind_that_is_not_accepted_is_refused_before_its_collateral_is_missed() -> None:
    appraiser = Appraiser(policy=policy(), collateral={}, allow_simulated=True)
    with pytest.raises(KindRefused):
        appraiser.appraise(msgspec.structs.replace(evidence(), kind="sgx"), challenge(), NOW_S)


def test_it_remembers_no_more_than_it_needs() -> None:
    collateral = {"simulated": devroot().collateral}
    appraiser = Appraiser(policy=policy(), collateral=collateral, allow_simulated=True)
    for epoch in range(130):
        asked = challenge(epoch=epoch)
        appraiser.appraise(evidence(asked), asked, NOW_S)
    assert len(appraiser._known.challenges) == 128
