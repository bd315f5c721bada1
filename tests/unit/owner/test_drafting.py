"""Policies drafted from evidence."""

from __future__ import annotations

import pytest

from vaultline.attest.judging import judge
from vaultline.attest.policy import DEVELOPMENT_FMSPC, Policy
from vaultline.attest.verifiers import verify
from vaultline.core.yaml import from_yaml
from vaultline.owner.drafting import draft, render_policy
from vaultline.testing.certificates import NOW_S
from vaultline.testing.intel_vectors import Vector
from vaultline.testing.nvidia_vectors import NvidiaVector
from vaultline.testing.snp_vectors import SnpVector


@pytest.mark.parametrize(
    "driver", ["550.90.07", '550"\n    unsafe_skip_revocation: true #', "a: {b", "\\", "\x01"]
)
def test_texts_of_a_device_stay_values(driver: str) -> None:
    """A driver's version is what the device says: it must not write policy."""
    vector = NvidiaVector(driver=driver)
    roots = frozenset({vector.root_id})
    claims = verify("nvidia", vector.report(), vector.collateral(), roots, NOW_S)
    drafted = from_yaml(render_policy("nvidia", claims, NOW_S), Policy, what="p", path="p")
    (entry,) = drafted.accept
    assert entry.gpus[0].driver == driver
    assert not entry.unsafe_skip_revocation


def test_a_simulated_platform_writes_no_policy() -> None:
    """Its collateral is anybody's, and so are the names of advisories in it."""
    text = "x]\n  - kind: sgx\n    roots: [intel]\n    measurements: ['" + "00" * 32 + "']\n    #"
    vector = Vector(fmspc=DEVELOPMENT_FMSPC, advisories=("INTEL-SA-00001", text))
    drafted = draft(vector.quote(), vector.collateral(), NOW_S)
    policy = from_yaml(drafted, Policy, what="p", path="p")
    assert [entry.kind for entry in policy.accept] == ["simulated"]
    accepting = from_yaml(drafted.replace("# accepted", "accepted"), Policy, what="p", path="p")
    assert accepting.accept[0].accepted_advisories == ("INTEL-SA-00001", text)


def test_a_draft_of_a_guest_asks_for_the_oldest_firmware_that_it_knows() -> None:
    vector = SnpVector(body=((0x1F0, bytes([3, 0, 0, 0, 0, 0, 8, 114])),))
    claims = verify("snp", vector.report(), vector.collateral(), frozenset({vector.root_id}), NOW_S)
    text = render_policy("snp", claims, NOW_S)
    assert "kernel hashes" in text  # without them the digest is no more than the firmware's
    drafted = from_yaml(text, Policy, what="p", path="p")
    assert drafted.accept[0].tcb_min.microcode == 114
    assert not judge(drafted, "snp", claims, NOW_S).refusals
