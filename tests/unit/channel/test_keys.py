"""Keys of connections: every name is part of them."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from vaultline.channel.keys import Direction, derive_hop_keys
from vaultline.core.errors import LocalProtocolError
from vaultline.core.limits import REPLICAS_MAX

SECRET = bytes(range(32))


def test_no_two_connections_share_a_key_or_an_iv() -> None:
    """All pairs of replicas, on neighbouring hops and epochs, both ways."""
    everyone = range(REPLICAS_MAX)
    keys = [
        derive_hop_keys(
            SECRET, hop=hop, epoch=epoch, source=source, target=target, direction=direction
        )
        for hop, epoch, source, target, direction in product(
            (0, 1), (1, 2), everyone, everyone, Direction
        )
    ]
    assert len({each.key for each in keys}) == len(keys)
    assert len({each.iv for each in keys}) == len(keys)


def test_another_secret_makes_other_keys() -> None:
    other = derive_hop_keys(SECRET[::-1], hop=0, epoch=1, source=1, target=2)
    assert derive_hop_keys(SECRET, hop=0, epoch=1, source=1, target=2).key != other.key


def test_keys_are_not_shown() -> None:
    keys = derive_hop_keys(SECRET, hop=3, epoch=1, source=1, target=2)
    assert repr(keys) == "HopKeys(hop=3, epoch=1, source=1, target=2)"


WRONG: dict[str, dict[str, Any]] = {
    "a short secret": {"secret": bytes(31)},
    "a hop below zero": {"hop": -1},
    "an epoch of more than 64 bits": {"epoch": 1 << 64},
    "a source below zero": {"source": -1},
    "a source beyond the most replicas": {"source": REPLICAS_MAX},
    "a target below zero": {"target": -1},
    "a target beyond the most replicas": {"target": REPLICAS_MAX},
}


@pytest.mark.parametrize("case", WRONG)
def test_names_out_of_range_are_refused(case: str) -> None:
    names = {"secret": SECRET, "hop": 0, "epoch": 1, "source": 0, "target": 0} | WRONG[case]
    with pytest.raises(LocalProtocolError):
        derive_hop_keys(names.pop("secret"), **names)
