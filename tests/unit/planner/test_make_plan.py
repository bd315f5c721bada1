"""Plans whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from math import isclose

import msgspec
import pytest

from vaultline.core.cluster import Cluster
from vaultline.core.errors import InfeasibleError, InputError
from vaultline.core.plan import Plan, read_plan, write_plan
from vaultline.core.profile import ClassProfile, DeviceRates, ModelProfile
from vaultline.planner import (
    PlanRequest,
    Release,
    Settings,
    make_plan,
    parse_partition,
    plan_request,
)
from vaultline.planner.infeasible import MemoryShortError
from vaultline.planner.options import need_bytes
from vaultline.planner.plan import problem_of
from vaultline.testing.planning import MIB, both_ways, cluster, device, profile


def cuts(plan: Plan) -> list[int]:
    return [stage.last for stage in plan.stages[:-1]]


def devices(plan: Plan) -> list[str]:
    return [stage.device.name for stage in plan.stages]


def written(plan: Plan) -> str:
    """A plan as the text of a partition."""
    return ",".join(
        f"{stage.first}:{stage.last}@{'+'.join(each.name for each in stage.devices)}"
        for stage in plan.stages
    )


def without_replicas(**request: object) -> PlanRequest:
    return PlanRequest(settings=Settings(replicas_max=1), **request)  # type: ignore[arg-type]


def two_slow_and_two_fast() -> tuple[ModelProfile, Cluster]:
    """PipeEdge's case: 12 equal layers, 1.0 s each on slow devices and 0.1 s on fast ones."""
    layers = profile([0.1] * 12, scale={"slow": 10.0, "fast": 1.0})
    machines = cluster(
        device("slow", count=2, speed_class="slow"), device("fast", count=2, speed_class="fast")
    )
    return layers, machines


def test_a_slow_type_does_not_displace_a_fast_one() -> None:
    """PipeEdge's planner gives 3.0 s here: it indexes devices by type. Two fast ones do 0.6 s."""
    plan = plan_request(*two_slow_and_two_fast(), without_replicas(objective="throughput"))
    assert isclose(plan.predicted["bottleneck_s"], 0.6)
    assert devices(plan) == ["fast-0", "fast-1"]
    assert cuts(plan) == [6]


def test_replicas_use_what_a_partition_cannot() -> None:
    """Eleven layers on both fast devices in turn take 0.55 s, one on both slow ones 0.5 s: with
    whole layers no split is nearer to the 12 / (10 + 10 + 1 + 1) s of all devices together."""
    layers, machines = two_slow_and_two_fast()
    plan = make_plan(layers, machines, objective="throughput")
    assert isclose(plan.predicted["bottleneck_s"], 0.55)
    shares = {
        tuple(each.name for each in stage.devices): stage.last - stage.first
        for stage in plan.stages
    }
    assert shares == {("fast-0", "fast-1"): 11, ("slow-0", "slow-1"): 1}
    assert isclose(plan.predicted["latency_s"], 2.1)
    whole = make_plan(layers, machines, objective="throughput", stages=1)
    assert isclose(whole.predicted["bottleneck_s"], 0.6)
    assert [each.name for each in whole.stages[0].devices] == ["fast-0", "fast-1"]


def test_replicas_of_the_whole_have_no_imbalance_and_no_cut() -> None:
    layers = profile([0.5, 0.1, 0.3], crossing_bytes=[1, 10**7, 10**7, 1])
    plan = make_plan(layers, cluster(device("a", count=3)), objective="throughput")
    (stage,) = plan.stages
    assert [each.name for each in stage.devices] == ["a-0", "a-1", "a-2"]
    assert isclose(stage.predicted_s, 0.9)
    assert isclose(stage.period_s, 0.3)
    assert isclose(plan.predicted["bottleneck_s"], 0.3)
    assert isclose(plan.predicted["latency_s"], 0.9)


def test_one_slow_stage_is_replicated_between_others() -> None:
    """The middle layer is four times as long; only two devices of four are alike."""
    layers = profile([1.0, 2.0, 1.0])
    machines = cluster(device("a", cores=2), device("b", count=2), device("c", cores=3))
    plan = make_plan(layers, machines, objective="throughput")
    assert isclose(plan.predicted["bottleneck_s"], 1.0)
    assert cuts(plan) == [1, 2]
    assert [len(stage.devices) for stage in plan.stages] == [1, 2, 1]


def test_replicas_can_be_limited_and_switched_off() -> None:
    layers, machines = profile([1.0] * 2), cluster(device("a", count=5))
    for most, bottleneck_s in ((1, 1.0), (2, 0.5), (3, 0.5), (16, 0.4)):
        settings = Settings(replicas_max=most)
        plan = plan_request(
            layers, machines, PlanRequest(objective="throughput", settings=settings)
        )
        assert max(len(stage.devices) for stage in plan.stages) <= most
        assert isclose(plan.predicted["bottleneck_s"], bottleneck_s), most


def test_no_more_devices_are_replicas_than_shorten_the_bottleneck() -> None:
    """The link takes 1 s a frame: a third device would gain nothing."""
    layers = profile([1.0, 1.0], crossing_bytes=[100, 1, 1])
    machines = cluster(device("a", "far", count=3), links=both_ways("box", "far", 100.0))
    plan = make_plan(layers, machines, objective="throughput")
    assert isclose(plan.predicted["bottleneck_s"], 1.0)
    assert sum(len(stage.devices) for stage in plan.stages) == 2


def test_a_link_is_not_shared_among_replicas() -> None:
    layers = profile([1.0], crossing_bytes=[150, 1])
    machines = cluster(device("a", "far", count=4), links=both_ways("box", "far", 100.0))
    plan = make_plan(layers, machines, objective="throughput")
    assert plan.hop_s == (1.5, 0.01)
    assert isclose(plan.predicted["bottleneck_s"], 1.5)


def test_only_interchangeable_devices_are_replicas() -> None:
    layers = profile([1.0], scale={"x": 1.0})
    differences: dict[str, dict[str, object]] = {
        "memory": {"memory_bytes": 99 * MIB},
        "cores": {"cores": 2},
        "kind": {"kind": "sgx"},
        "programs": {"portable": True},
        "speed": {"speed_class": "x"},
        "links": {"host": "far"},
    }
    for what, change in differences.items():
        links = both_ways("box", "far", 1e9, 1e-6) if what == "links" else ()
        machines = cluster(device("a"), device("b", **change), links=links)
        plan = make_plan(layers, machines, objective="throughput")
        assert len(plan.stages[0].devices) == 1, what
    alike = make_plan(layers, cluster(device("a"), device("b")), objective="throughput")
    assert len(alike.stages[0].devices) == 2


def test_room_for_neighbours_is_kept_only_where_there_are_any() -> None:
    """A budget that just holds half the model, with one record buffer on each side, still does:
    plans without replicas compete with room for one neighbour."""
    layers = profile(
        [1.0] * 4, weight_bytes=10 * MIB, crossing_bytes=[MIB] * 5, decrypt_bytes_per_s=1.0
    )
    probe = problem_of(layers, cluster(device("a")), PlanRequest())
    (half,) = (int(need_bytes(probe.segments, "resident", 1, 2)[1, 2]) for _ in range(1))
    machines = cluster(device("a", memory_bytes=half + 1024, count=4))
    plan = make_plan(layers, machines, objective="latency", stages=2)
    assert [stage.mode for stage in plan.stages] == ["resident", "resident"]
    assert [len(stage.devices) for stage in plan.stages] == [1, 1]
    busy = make_plan(layers, machines, objective="throughput", stages=2)
    # With replicas each half would need a second record buffer, and does not fit resident.
    assert isclose(busy.predicted["bottleneck_s"], 2.0)
    roomy = cluster(device("a", memory_bytes=half + 4 * MIB, count=4))
    assert isclose(
        make_plan(layers, roomy, objective="throughput", stages=2).predicted["bottleneck_s"], 1.0
    )


def test_times_measured_on_a_class_go_before_scaled_ones() -> None:
    layers = profile([1.0, 1.0], scale={"guessed": 0.5})
    own = ClassProfile(
        name="sgx",
        recorded_on=layers.recorded_on,
        isa="portable",
        compute_s=(((1, 0.1),), ((1, 3.0),)),
        rates=DeviceRates(
            seal_bytes_per_s=1e18, open_bytes_per_s=1e18, decrypt_bytes_per_s=1e18, call_s=0.25
        ),
    )
    layers = msgspec.structs.replace(layers, classes=(own,))
    machines = cluster(
        device("measured", kind="sgx"), device("guess", speed_class="guessed"), device("host")
    )
    found = {
        name: make_plan(layers, machines, devices=(name,), objective="latency").stages[0]
        for name in ("measured", "guess", "host")
    }
    assert isclose(found["measured"].predicted_s, 3.1 + 0.25)
    assert isclose(found["guess"].predicted_s, 1.0)
    assert isclose(found["host"].predicted_s, 2.0)
    assert [each.estimated for each in found.values()] == [False, True, False]
    assert [each.portable for each in found.values()] == [True, False, False]
    both = make_plan(layers, machines, devices=("measured", "guess"), objective="latency")
    assert devices(both) == ["measured", "guess"], "each runs the layer that it is good at"


def test_two_equal_devices_share_uneven_blocks_as_evenly_as_can_be() -> None:
    uneven = [0.05, 0.3, 0.1, 0.2, 0.05, 0.1, 0.2]
    plan = make_plan(uneven_profile := profile(uneven), cluster(device("a", count=2)), stages=2)
    sides = [max(sum(uneven[:cut]), sum(uneven[cut:])) for cut in range(1, len(uneven))]
    assert isclose(plan.predicted["bottleneck_s"], min(sides))
    assert plan.stages[-1].last == uneven_profile.positions[-1]


def test_one_frame_alone_stays_on_one_device() -> None:
    plan = make_plan(profile([1.0] * 4), cluster(device("a", count=3)), objective="latency")
    assert len(plan.stages) == 1
    assert plan.stages[0].frames_per_pass == 1


def test_the_order_of_devices_is_free() -> None:
    """The last device of the file is the only one near the owner's camera."""
    links = (
        both_ways("box", "near", 1e9) + both_ways("box", "far", 1e3) + both_ways("near", "far", 1e3)
    )
    big_then_small = profile([1.0, 1.0], crossing_bytes=[1000, 10, 1000])
    machines = cluster(device("f", "far"), device("n", "near"), links=links)
    plan = make_plan(big_then_small, machines, objective="latency")
    assert devices(plan) == ["n"]


def test_a_cut_goes_where_little_crosses() -> None:
    thin_waist = profile([1.0, 1.0, 1.0], crossing_bytes=[1, 500, 10, 1])
    machines = cluster(device("a"), device("b", "far"), links=both_ways("box", "far", 100.0))
    plan = make_plan(thin_waist, machines, objective="throughput")
    assert cuts(plan) == [2]
    assert isclose(plan.predicted["bottleneck_s"], 2.0)


def test_a_chunk_weighs_latency_against_the_bottleneck() -> None:
    """A second stage costs one hop of 1 s and saves 1 s for each frame after the first."""
    machines = cluster(device("a"), device("b", "far"), links=both_ways("box", "far", 1e9, 0.75))
    two = profile([1.0, 1.0])
    assert len(make_plan(two, machines, chunk_frames=2).stages) == 1
    assert len(make_plan(two, machines, chunk_frames=3).stages) == 2


def test_weights_that_do_not_fit_are_streamed_and_their_time_is_shared_by_a_pass() -> None:
    heavy = profile([0.1] * 3, weight_bytes=40 * MIB, decrypt_bytes_per_s=120 * MIB)
    plan = make_plan(heavy, cluster(device("a")), objective="throughput")
    (stage,) = plan.stages
    assert (stage.mode, stage.frames_per_pass, stage.queue_frames) == ("streamed", 4, 8)
    assert stage.step_bytes == 4 * MIB
    assert stage.memory is not None
    assert stage.memory.need_bytes <= 100 * MIB
    assert stage.memory.resident_bytes + stage.memory.streamed_bytes == 120 * MIB
    # 20 MiB are more than there is room for, and a step needs room for a tile.
    assert 20 * MIB + 4 * MIB < stage.memory.streamed_bytes < 26 * MIB
    streamed_s = stage.memory.streamed_bytes / (120 * MIB)
    assert isclose(stage.predicted_s, 0.3 + streamed_s / 4, rel_tol=0.01)
    assert isclose(plan.predicted["latency_s"], 0.3 + streamed_s, rel_tol=0.01)


def test_resident_weights_are_kept_where_they_fit() -> None:
    light = profile([0.1] * 3, weight_bytes=20 * MIB, decrypt_bytes_per_s=120 * MIB)
    plan = make_plan(light, cluster(device("a")))
    assert plan.stages[0].mode == "resident"
    assert plan.stages[0].frames_per_pass == 1, "nothing is won by a larger pass"


def test_a_pass_is_smaller_where_memory_is_short() -> None:
    layers = profile([0.1], crossing_bytes=[12 * MIB, MIB], passes=((4, 1.5),))
    plan = make_plan(layers, cluster(device("a")), objective="throughput")
    assert plan.stages[0].frames_per_pass == 3
    assert isclose(plan.stages[0].predicted_s, 0.1 * (1 + 0.5 * 2 / 3) / 3)


def test_stacked_frames_count_in_a_busy_pipeline_and_not_for_a_frame_alone() -> None:
    layers = profile([0.1, 0.1], passes=((4, 1.2),))
    busy = make_plan(layers, cluster(device("a")), objective="throughput")
    alone = make_plan(layers, cluster(device("a")), objective="latency")
    assert isclose(busy.predicted["bottleneck_s"], 0.2 * 1.2 / 4)
    assert isclose(busy.predicted["latency_s"], 0.2)
    assert isclose(alone.predicted["bottleneck_s"], 0.2)


def test_programs_are_portable_where_the_cluster_says_so() -> None:
    """Not for every accelerator: a plain worker on a processor would lose its blocked layout."""
    parts = parse_partition("0:2@a,2:4@b")
    machines = cluster(device("a"), device("b", portable=True))
    plan = make_plan(profile([1.0] * 4), machines, partition=parts)
    assert [stage.portable for stage in plan.stages] == [False, True]


def test_an_untrusted_device_is_not_used_unless_everything_it_sees_is_released() -> None:
    machines = cluster(
        device("gpu", kind="accelerator", trust="none", speed_class="fast"), device("enclave")
    )
    layers = profile([1.0] * 4, scale={"fast": 0.1})
    assert devices(make_plan(layers, machines, objective="latency")) == ["enclave"]
    released = Release(cuts=(False, False, True, True, True), blocks=(True,) * 4)
    request = PlanRequest(objective="latency", release=released)
    plan = plan_request(layers, machines, request)
    assert (devices(plan), cuts(plan)) == (["enclave", "gpu"], [2])
    weights_stay = replace(request, release=Release(cuts=(True,) * 5, blocks=(False,) * 4))
    assert devices(plan_request(layers, machines, weights_stay)) == ["enclave"]


def test_the_number_of_stages_can_be_forced() -> None:
    layers = profile([1.0] * 6)
    machines = cluster(device("a", count=3))
    for count in (1, 2, 3):
        plan = make_plan(layers, machines, objective="latency", stages=count)
        assert len(plan.stages) == count


def test_only_the_named_devices_are_used() -> None:
    machines = cluster(device("a", count=2), device("b"), device("c"))
    plan = make_plan(profile([1.0] * 6), machines, objective="throughput", devices=("a-1", "c"))
    assert sorted(devices(plan)) == ["a-1", "c"]
    plan = make_plan(profile([1.0] * 6), machines, objective="throughput", devices=("a",))
    assert sorted(devices(plan)) == ["a-0", "a-1"]


def test_the_users_partition_is_priced_and_kept() -> None:
    machines = cluster(
        device("edge"), device("cloud", "far", count=2), links=both_ways("box", "far", 1e9, 0.5)
    )
    layers = profile([1.0] * 6)
    parts = parse_partition("0:1@edge,1:3@cloud,3:6@cloud")
    plan = make_plan(layers, machines, partition=parts, chunk_frames=10)
    assert (devices(plan), cuts(plan)) == (["edge", "cloud-0", "cloud-1"], [1, 3])
    assert isclose(plan.predicted["latency_s"], 6.0 + 2 * 0.5, rel_tol=1e-6)
    assert isclose(plan.predicted["bottleneck_s"], 3.0)
    assert isclose(plan.predicted["chunk_s"], 7.0 + 9 * 3.0, rel_tol=1e-6)


def test_naming_the_searchs_own_answer_gives_the_same_plan() -> None:
    layers = profile([0.3, 0.1, 0.2, 0.4, 0.1], weight_bytes=30 * MIB, decrypt_bytes_per_s=1e9)
    machines = cluster(device("a"), device("b", memory_bytes=50 * MIB))
    found = make_plan(layers, machines)
    assert make_plan(layers, machines, partition=parse_partition(written(found))) == found
    alike = cluster(device("a", count=4), device("b", memory_bytes=50 * MIB))
    found = make_plan(layers, alike, objective="throughput")
    assert max(len(each.devices) for each in found.stages) > 1
    again = make_plan(
        layers, alike, objective="throughput", partition=parse_partition(written(found))
    )
    assert again == found


def test_the_users_replicas_are_priced_and_kept() -> None:
    machines = cluster(
        device("edge"), device("cloud", "far", count=3), links=both_ways("box", "far", 1e9, 0.5)
    )
    layers = profile([1.0] * 6)
    for text in (
        "0:2@edge,2:6@cloud-0+cloud-2",
        "0:2@edge,2:6@cloud+cloud",
        "0:2@edge,2:6@cloud*2",
    ):
        plan = make_plan(layers, machines, partition=parse_partition(text), chunk_frames=10)
        assert [len(stage.devices) for stage in plan.stages] == [1, 2]
        assert isclose(plan.predicted["latency_s"], 7.0, rel_tol=1e-6)
        assert isclose(plan.predicted["bottleneck_s"], 2.0)
    names = [
        each.name
        for each in make_plan(layers, machines, partition=parse_partition("0:6@cloud*3"))
        .stages[0]
        .devices
    ]
    assert names == ["cloud-0", "cloud-1", "cloud-2"]
    with pytest.raises(InputError, match="interchangeable"):
        make_plan(layers, machines, partition=parse_partition("0:6@edge+cloud"))
    with pytest.raises(InputError, match="one stage"):
        make_plan(layers, machines, partition=parse_partition("0:6@cloud*4"))


def test_a_plan_is_canonical_and_its_digest_survives_a_round_trip() -> None:
    plan = make_plan(
        profile([1.0] * 4), cluster(device("a", count=2)), input_shapes={"x": (1, 3, 224, 224)}
    )
    again = read_plan(write_plan(plan))
    assert again == plan
    assert again.digest == plan.digest
    assert all(type(value) is float for value in (*plan.hop_s, *plan.predicted.values()))


INFEASIBLE = {
    "a budget too small for any partition names the device and what is missing": (
        {"memory_bytes": 10 * MIB, "count": 2},
        {},
        r"needs 6\.2 MiB more on device a-[01].*: memory",
    ),
    "more stages than devices": ({"count": 2}, {"stages": 3}, "number of devices"),
    "more stages than blocks": ({"count": 9}, {"stages": 5}, "number of cuts"),
    "no attested device": ({"kind": "accelerator", "trust": "none"}, {}, "trust"),
}


@pytest.mark.parametrize("case", INFEASIBLE)
def test_an_infeasible_problem_names_its_constraint(case: str) -> None:
    changes, request, message = INFEASIBLE[case]
    layers = profile([1.0] * 4, activation_bytes=15 * MIB, crossing_bytes=[0] * 5)
    with pytest.raises(InfeasibleError, match=message) as caught:
        make_plan(layers, cluster(device("a", **changes)), **request)  # type: ignore[arg-type]
    assert caught.value.exit_code == 3
    assert caught.value.expected


def test_the_named_change_is_enough_and_nothing_less_is() -> None:
    layers = profile([1.0] * 4, weight_bytes=3 * MIB, activation_bytes=7 * MIB)
    with pytest.raises(MemoryShortError, match="MiB more on device a") as caught:
        make_plan(layers, cluster(device("a", memory_bytes=9 * MIB)))
    need = caught.value.needed_bytes
    # Weights and activations of a layer, what may be lost between them, and the engine.
    assert 3 * MIB + 7 * MIB < need < 3 * MIB + 8.5 * MIB
    assert make_plan(layers, cluster(device("a", memory_bytes=need))).stages[0].mode == "streamed"
    with pytest.raises(InfeasibleError):
        make_plan(layers, cluster(device("a", memory_bytes=need - 1)))


BAD_REQUESTS = {
    "an unknown device": ({"devices": ("nobody",)}, "no such device"),
    "no device at all": ({"devices": ()}, "no device to plan for"),
    "a partition that stops early": ({"partition": "0:2@a"}, "does not cover"),
    "a partition cut where the model has no cut": ({"partition": "0:9@a"}, "cannot be cut there"),
    "a partition that uses a device twice": ({"partition": "0:2@a,2:4@a"}, "one stage"),
    "a partition and another number of stages": (
        {"partition": "0:4@a", "stages": 2},
        "contradict",
    ),
    "a chunk without frames": ({"chunk_frames": 0}, "at least one frame"),
    "an unknown objective": ({"objective": "cheap"}, "no such objective"),
    "no stages": ({"stages": 0}, "impossible number of stages"),
    "no replicas": ({"replicas_max": 0}, "impossible number of replicas"),
    "too many replicas": ({"replicas_max": 17}, "impossible number of replicas"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_bad_request_is_the_users_error(case: str) -> None:
    request, message = dict(BAD_REQUESTS[case][0]), BAD_REQUESTS[case][1]
    if "partition" in request:
        request["partition"] = parse_partition(str(request["partition"]))
    with pytest.raises(InputError, match=message):
        settings = Settings(replicas_max=int(request.pop("replicas_max", 16)))  # type: ignore[call-overload]
        plan_request(
            profile([1.0] * 4),
            cluster(device("a")),
            PlanRequest(settings=settings, **request),  # type: ignore[arg-type]
        )


BAD_PARTITIONS = {
    "no device": "0:3",
    "a gap": "0:3@a,4:6@b",
    "an empty part": "0:0@a",
    "it does not start at 0": "1:3@a",
    "words": "all@a",
    "nothing": "",
    "a replica without a name": "0:3@a+",
    "no replicas": "0:3@a*0",
    "more replicas than there may be": "0:3@a*17",
}


@pytest.mark.parametrize("case", BAD_PARTITIONS)
def test_a_bad_partition_is_refused(case: str) -> None:
    with pytest.raises(InputError):
        parse_partition(BAD_PARTITIONS[case])


def test_a_device_of_the_profiles_own_class_is_as_fast_as_its_host() -> None:
    own = profile([1.0]).recorded_on.device_class
    plan = make_plan(profile([1.0]), cluster(device("a", kind="sgx", speed_class=own)))
    assert (
        plan.stages[0].predicted_s
        == make_plan(profile([1.0]), cluster(device("a"))).stages[0].predicted_s
    )


def test_an_unknown_speed_class_is_refused() -> None:
    with pytest.raises(InputError, match="speed class"):
        make_plan(profile([1.0]), cluster(device("a", speed_class="warp")))


def test_a_users_partition_that_does_not_fit_says_what_is_missing() -> None:
    layers = profile([1.0] * 4, activation_bytes=15 * MIB)
    parts = parse_partition("0:4@a")
    with pytest.raises(InfeasibleError, match="memory") as caught:
        make_plan(layers, cluster(device("a", memory_bytes=10 * MIB)), partition=parts)
    assert caught.value.expected == "6.2 MiB more"
    with pytest.raises(InfeasibleError, match="trust"):
        make_plan(layers, cluster(device("a", kind="accelerator", trust="none")), partition=parts)
