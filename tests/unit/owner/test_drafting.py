"""Policies drafted from evidence."""

from __future__ import annotations

import pytest

from vaultline.attest.policy import Policy
from vaultline.attest.verifiers import verify
from vaultline.core.yaml import from_yaml
from vaultline.owner.drafting import render_policy
from vaultline.testing.certificates import NOW_S
from vaultline.testing.nvidia_vectors import NvidiaVector


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
