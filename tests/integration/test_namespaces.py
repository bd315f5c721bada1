"""Wires between namespaces are as slow as they were made."""

from __future__ import annotations

import pytest

from vaultline.bench.namespaces import Network, why_no_namespaces
from vaultline.bench.serdab import measured_links


def test_each_direction_has_a_rate_of_its_own() -> None:
    """A shaped wire cannot carry more than it was given, however fast the machine."""
    reason = why_no_namespaces()
    if reason is not None:
        pytest.skip(reason)
    with Network(("edge", "cloud")) as network:
        network.shape("edge", 20e6)
        network.shape("cloud", 80e6)
        there, back = measured_links(network)
    assert there.bytes_per_s * 8 < 21e6
    assert there.bytes_per_s * 8 < back.bytes_per_s * 8 < 84e6
