"""Profiles: measured through the enclave's executor, times inside the model, honest rates."""

from __future__ import annotations

from pathlib import Path

import pytest

from vaultline.bench.noise import frames_of
from vaultline.bench.profiling import ProfileRequest, opening_rate, profile_model, settled
from vaultline.core.profile import BlockProfile, DeviceRates, read_profile, write_profile
from vaultline.graph.model import load_model
from vaultline.graph.node_times import node_times

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx"
RATES = DeviceRates(
    seal_bytes_per_s=1e10, open_bytes_per_s=1e10, decrypt_bytes_per_s=1e10, call_s=0.0
)


def block(*times: tuple[int, float]) -> BlockProfile:
    return BlockProfile(compute_s=times, weight_bytes=0, activation_bytes=0)


def test_settled_times_add_up_to_the_whole() -> None:
    alone = [block((1, 0.4)), block((1, 0.5)), block((1, 0.2), (4, 0.3))]
    found = list(settled(alone, [0.2, 0.4, 0.1], 1.0))
    assert sum(b.compute_s[0][1] for b in found) == pytest.approx(1.0)
    assert found[1].compute_s[0][1] == pytest.approx(2 * found[0].compute_s[0][1])
    assert found[2] == alone[2]


def test_what_blocks_cost_more_alone_slows_the_opening_of_inputs() -> None:
    alone = [block((1, 0.3)), block((1, 0.3))]
    rate = opening_rate(RATES, alone, [0.2, 0.2], [10**9, 10**9, 10**9])
    assert rate == pytest.approx(1 / (1e-10 + 1e-10))
    assert opening_rate(RATES, alone, [0.4, 0.4], [1, 1, 1]) == pytest.approx(1e10)


def test_node_times_cover_the_model() -> None:
    model = load_model(DIGITS)
    (tensors,) = frames_of(model.inputs, 1)
    times = node_times(model, {model.inputs[0].name: tensors[0]}, 3)
    assert len(times) == model.node_count
    assert min(times) >= 0.0
    by_op = {
        op: sum(t for t, node in zip(times, model.nodes, strict=True) if node.op == op)
        for op in {node.op for node in model.nodes}
    }
    convolving = {"Conv", "Relu", "Add", "BatchNormalization"}  # fused into one kernel
    assert sum(by_op.get(op, 0.0) for op in convolving) > 0.5 * sum(times)


@pytest.mark.parametrize("neighbours", [0, 1])
def test_a_profile_of_a_model_is_complete_and_reads_back(neighbours: int) -> None:
    model = load_model(DIGITS)
    seen: list[tuple[int, int]] = []
    request = ProfileRequest(repeats=3, neighbours=neighbours, date="2026-01-01")
    profile = profile_model(model, request, lambda done, total: seen.append((done, total)))
    assert read_profile(write_profile(profile)) == profile
    assert profile.model_digest == model.digest
    assert profile.positions[0] == 0
    assert profile.positions[-1] == model.node_count
    assert seen[-1] == (len(profile.blocks), len(profile.blocks))
    assert sum(b.weight_bytes for b in profile.blocks) > 10**6
    assert profile.rates.decrypt_bytes_per_s > 1e8
    assert profile.loopback.bytes_per_s > 1e8
