"""Wires between namespaces are as slow as they were made."""

from __future__ import annotations

import threading
from queue import SimpleQueue

import pytest

from vaultline.bench.links import LinkRate, measure_link, serve_once
from vaultline.bench.namespaces import Network, why_no_namespaces
from vaultline.transport.sockets import Address

pytestmark = pytest.mark.skipif(why_no_namespaces() is not None, reason=str(why_no_namespaces()))
LISTEN_S = 10.0


def measured(network: Network) -> LinkRate:
    listening: SimpleQueue[Address] = SimpleQueue()
    address = Address("tcp", network.address["cloud"], 0)

    def serve() -> None:
        network.call("cloud", lambda: serve_once(address, on_listening=listening.put))

    serving = threading.Thread(target=serve)
    serving.start()
    where = listening.get(timeout=LISTEN_S)
    rate = network.call("edge", lambda: measure_link(where, wanted_s=0.2))
    serving.join()
    return rate


def test_each_direction_has_a_rate_of_its_own() -> None:
    """A shaped wire cannot carry more than it was given, however fast the machine."""
    with Network(("edge", "cloud")) as network:
        network.shape("edge", 20e6)
        network.shape("cloud", 80e6)
        rate = measured(network)
    assert rate.bytes_per_s * 8 < 21e6
    assert rate.bytes_per_s * 8 < rate.back_bytes_per_s * 8 < 84e6
