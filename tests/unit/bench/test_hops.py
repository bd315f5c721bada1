"""What a frame's way costs, measured in real workers, and what becomes of a profile's rates."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vaultline.bench.hops import HopRates, cpu_s, hop_rates
from vaultline.core.errors import MachineError
from vaultline.core.profile import DeviceRates
from vaultline.graph.model import load_model
from vaultline.graph.probe import save_hop_probe

RATES = DeviceRates(
    seal_bytes_per_s=2e9, open_bytes_per_s=1e9, decrypt_bytes_per_s=5e9, call_s=1e-5
)


def test_a_frames_way_is_measured_in_real_workers() -> None:
    found = hop_rates(frames=10, rounds=3)
    rates = (found.open_bytes_per_s, found.seal_bytes_per_s, found.owner_bytes_per_s)
    assert min(rates) > 0
    assert found.frame_s > 0
    assert found.owner_s(1 << 20) > found.owner_s(0) == found.owner_frame_s


def test_a_whole_way_is_never_faster_than_its_cipher() -> None:
    slow = HopRates(
        frame_s=1e-4,
        open_bytes_per_s=5e8,
        seal_bytes_per_s=9e9,
        owner_frame_s=1e-4,
        owner_bytes_per_s=1e9,
    )
    applied = slow.applied(RATES)
    assert (applied.open_bytes_per_s, applied.seal_bytes_per_s) == (5e8, 2e9)
    assert applied.frame_s == 1e-4
    assert (applied.decrypt_bytes_per_s, applied.call_s) == (5e9, 1e-5)


def test_the_processor_time_of_a_process_grows_with_its_work() -> None:
    before_s = cpu_s(os.getpid())
    sum(range(5_000_000))  # several ticks of the kernel's clock
    assert cpu_s(os.getpid()) > before_s > 0


def test_a_process_that_is_gone_has_no_processor_time() -> None:
    with pytest.raises(MachineError, match="processor time"):
        cpu_s(1 << 30)


def test_the_probe_shrinks_what_crosses_in_its_middle(tmp_path: Path) -> None:
    save_hop_probe(tmp_path / "probe.onnx", 1000)
    model = load_model(tmp_path / "probe.onnx")
    assert model.node_count == 3
    assert [spec.shape for spec in (*model.inputs, *model.outputs)] == [(1, 1000), (1, 16)]
