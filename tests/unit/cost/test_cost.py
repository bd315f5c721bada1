from __future__ import annotations

from math import isclose

import numpy as np

from vaultline.core.frame_meta import hop_buffers_bytes
from vaultline.core.limits import MIB
from vaultline.core.profile import BlockProfile, DeviceRates
from vaultline.cost import bottleneck_s, chunk_s, latency_s, link_s, stage_s
from vaultline.cost.memory import engine_bytes, io_bytes, streamed_bytes
from vaultline.cost.segments import shifted

RATES = DeviceRates(
    seal_bytes_per_s=10.0, open_bytes_per_s=20.0, decrypt_bytes_per_s=100.0, call_s=0.5, step_s=0.25
)


def test_a_stage_pays_per_frame_for_records_and_per_pass_for_weights_and_the_call() -> None:
    one = stage_s(
        in_bytes=20.0,
        out_bytes=10.0,
        pass_compute_s=3.0,
        stream_bytes=200.0,
        calls=4.0,
        frames=1,
        rates=RATES,
    )
    assert isclose(one, 1.0 + 3.0 + 2.0 + 0.5 + 1.0 + 4 * 0.25)
    four = stage_s(
        in_bytes=20.0,
        out_bytes=10.0,
        pass_compute_s=10.0,
        stream_bytes=200.0,
        calls=4.0,
        frames=4,
        rates=RATES,
    )
    assert isclose(four, 2.0 + (10.0 + 2.0 + 0.5 + 4 * 0.25) / 4)


def test_weights_decrypted_ahead_take_time_only_where_there_is_nothing_to_compute() -> None:
    def stage(pass_compute_s: float, *, prefetch: bool) -> float:
        return stage_s(
            in_bytes=0.0,
            out_bytes=0.0,
            pass_compute_s=pass_compute_s,
            stream_bytes=200.0,
            calls=0.0,
            frames=1,
            rates=RATES,
            prefetch=prefetch,
        )

    assert [stage(3.0, prefetch=ahead) for ahead in (False, True)] == [5.5, 3.5]
    assert [stage(1.0, prefetch=ahead) for ahead in (False, True)] == [3.5, 2.5]


def test_a_link_has_latency_and_bandwidth() -> None:
    assert isclose(link_s(300.0, bytes_per_s=100.0, latency_s=0.25), 3.25)


def test_a_chunk_is_one_latency_and_a_bottleneck_for_each_other_frame() -> None:
    stages, hops = [1.0, 3.0], [0.5, 2.0, 0.5]
    assert latency_s(stages, hops) == 7.0
    assert bottleneck_s(stages, hops) == 3.0
    assert bottleneck_s(stages, [0.5, 4.0, 0.5]) == 4.0
    assert chunk_s(7.0, 3.0, 1) == 7.0
    assert chunk_s(7.0, 3.0, 11) == 37.0


def test_message_buffers_are_those_of_the_enclave() -> None:
    sizes = {"input_bytes": 10 * MIB, "output_bytes": 4096}
    counted = io_bytes(
        in_bytes=np.array([float(sizes["input_bytes"])]),
        out_bytes=np.array([float(sizes["output_bytes"])]),
        frames=4,
        queue_frames=8,
    )
    # What the enclave takes for its message buffers, by its own formula.
    assert counted[0] == hop_buffers_bytes(queue_frames=8, frames_per_pass=4, **sizes)


def test_the_engine_takes_memory_for_nodes_steps_and_frames() -> None:
    sizes = {key: np.array([value]) for key, value in (("nodes_bytes", 1e6), ("values", 10.0))}
    few = engine_bytes(**sizes, steps=np.array([1.0]), frames=1)[0]
    assert few == 1e6 + (72 + 2 + 3 + 5 + 24) * 1024
    many = engine_bytes(**sizes, steps=np.array([100.0]), frames=4)[0]
    assert many == 1e6 + (72 + 100 * (2 + 4 * 3) + 4 * 5 + 24 * 24) * 1024


def test_weights_are_streamed_as_far_as_there_is_no_room() -> None:
    weights, spare = np.full(4, 100.0), np.array([-50.0, 0.0, 30.0, 200.0])
    assert streamed_bytes(weights, spare).tolist() == [100.0, 100.0, 70.0, 0.0]


def test_a_shifted_table_reads_the_value_where_a_segment_starts() -> None:
    table = shifted(np.array([5.0, 6.0, 7.0, 8.0]), 3, np.inf)
    assert table.tolist() == [
        [np.inf, 5.0, 6.0, 7.0],
        [np.inf, np.inf, 5.0, 6.0],
        [np.inf, np.inf, np.inf, 5.0],
    ]


def test_the_time_of_a_pass_is_interpolated_and_beyond_the_last_measurement_proportional() -> None:
    block = BlockProfile(compute_s=((1, 1.0), (5, 3.0)), weight_bytes=0, activation_bytes=0)
    assert [block.compute_pass_s(frames) for frames in (1, 2, 3, 5, 10)] == [
        1.0,
        1.5,
        2.0,
        3.0,
        6.0,
    ]
    single = BlockProfile(compute_s=((1, 1.0),), weight_bytes=0, activation_bytes=0)
    assert single.compute_pass_s(4) == 4.0
