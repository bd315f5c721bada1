"""Development roots: their files, and the policy that goes with them."""

from __future__ import annotations

import datetime
import stat
from pathlib import Path

import pytest
from cryptography import x509

from vaultline.attest.policy import Policy, root_key_id
from vaultline.core.errors import InputError
from vaultline.core.yaml import from_yaml
from vaultline.enclave.evidence import answer, fresh_key
from vaultline.enclave.simulated_quotes import SimulatedProvider
from vaultline.owner.appraisal import Appraiser, load_collateral, load_policy
from vaultline.owner.devroot import (
    COLLATERAL_FILE,
    PLATFORM_FILE,
    ROOT_FILE,
    create_devroot,
    draft_policy,
)
from vaultline.testing.attestation import MEASUREMENT, challenge

NOW = datetime.datetime(2026, 6, 1, 12, tzinfo=datetime.UTC)
NOW_S = int(NOW.timestamp())


def test_from_files_to_a_verdict(tmp_path: Path) -> None:
    create_devroot(tmp_path / "dev", now=NOW)
    (tmp_path / "policy.yaml").write_text(draft_policy(tmp_path / "dev", [MEASUREMENT]))
    appraiser = Appraiser(
        policy=load_policy(tmp_path / "policy.yaml"),
        collateral=load_collateral({"simulated": tmp_path / "dev" / COLLATERAL_FILE}),
        allow_simulated=True,
    )
    platform = (tmp_path / "dev" / PLATFORM_FILE).read_bytes()
    evidence = answer(SimulatedProvider(platform, MEASUREMENT), challenge(), fresh_key())
    assert appraiser.appraise(evidence, challenge(), NOW_S).simulated


def test_the_platform_is_for_its_owner_only(tmp_path: Path) -> None:
    create_devroot(tmp_path, now=NOW)
    assert stat.S_IMODE((tmp_path / PLATFORM_FILE).stat().st_mode) == 0o600
    for name in (ROOT_FILE, COLLATERAL_FILE):
        text = (tmp_path / name).read_text()
        assert "PRIVATE" not in text
        assert "attestation_key" not in text


def test_a_development_root_is_never_overwritten(tmp_path: Path) -> None:
    create_devroot(tmp_path, now=NOW)
    before = (tmp_path / PLATFORM_FILE).read_bytes()
    with pytest.raises(InputError, match="already"):
        create_devroot(tmp_path, now=NOW)
    assert (tmp_path / PLATFORM_FILE).read_bytes() == before


@pytest.mark.parametrize("name", [ROOT_FILE, PLATFORM_FILE, COLLATERAL_FILE])
def test_a_part_of_a_development_root_is_not_completed(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("left over")
    with pytest.raises(InputError, match="already"):
        create_devroot(tmp_path, now=NOW)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_two_development_roots_differ(tmp_path: Path) -> None:
    roots = [create_devroot(tmp_path / name, now=NOW) for name in ("a", "b")]
    ids = {root_key_id(x509.load_pem_x509_certificate(root.root_pem)) for root in roots}
    assert len(ids) == 2


def test_a_drafted_policy_names_root_and_measurements(tmp_path: Path) -> None:
    made = create_devroot(tmp_path, now=NOW)
    text = draft_policy(tmp_path, [MEASUREMENT, bytes(32)])
    policy = from_yaml(text, Policy, what="the policy", path="policy.yaml")
    key_id = root_key_id(x509.load_pem_x509_certificate(made.root_pem))
    assert policy.accept[0].roots == (key_id,)
    assert policy.accept[0].measurements == (MEASUREMENT.hex(), "00" * 32)
    assert "forge" in text


def test_a_policy_for_no_measurement_refuses_to_load(tmp_path: Path) -> None:
    create_devroot(tmp_path, now=NOW)
    with pytest.raises(InputError):
        from_yaml(draft_policy(tmp_path, []), Policy, what="the policy", path="policy.yaml")
