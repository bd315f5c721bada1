"""Replicas: where models come and go, and when nothing may change."""

from __future__ import annotations

import pytest

from vaultline.core.errors import InputError
from vaultline.sched.balancer import Balancer, Earliest
from vaultline.sched.replicas import Change, ReplicaControl, ReplicaSettings
from vaultline.testing.serving import group, model, server

MODELS = {
    name: model(name, group(2, run_s=0.02, four_s=0.08), fixed_mib=10) for name in ("hot", "cold")
}
SETTINGS = ReplicaSettings(memory_s=2.0, hold_s=5.0)


def control(*models: list[str], mib: float = 32) -> ReplicaControl:
    servers = [server(f"s{k}", names, mib=mib) for k, names in enumerate(models)]
    return ReplicaControl(Balancer(servers, MODELS, Earliest()), SETTINGS)


def run(one: ReplicaControl, rates: list[tuple[float, dict[str, float]]]) -> list[Change]:
    """Decide every half second while requests come at these rates, each for so long."""
    changes: list[Change] = []
    now_s, owed = 0.0, dict.fromkeys(MODELS, 0.0)
    for until_s, by_model in rates:
        while now_s < until_s:
            now_s += 0.01
            for name, rate in by_model.items():
                owed[name] += rate * 0.01
                while owed[name] >= 1:
                    owed[name] -= 1
                    one.arrived(name, now_s)
            if round(now_s * 100) % 50 == 0:
                made = one.decide(now_s)
                for change in made:
                    one._balancer.placed(change.server, change.model, there=change.there)
                changes += made
    return changes


def test_a_model_that_grows_hot_gains_a_server_and_loses_it_when_it_is_cold() -> None:
    one = control(["hot"], ["cold"])
    hot, cold = {"hot": 40.0, "cold": 1.0}, {"hot": 2.0, "cold": 1.0}
    assert run(one, [(20.0, hot)]) == [Change(server="s1", model="hot", there=True)]
    both = run(control(["hot"], ["cold"]), [(20.0, hot), (60.0, cold)])
    assert [(each.model, each.there) for each in both] == [("hot", True), ("hot", False)]


def test_where_there_is_no_room_a_colder_model_with_other_servers_goes_first() -> None:
    one = control(["hot"], ["cold"], ["cold"], mib=18)
    changes = run(one, [(30.0, {"hot": 40.0, "cold": 0.5})])
    assert [(each.model, each.there) for each in changes[:2]] == [("cold", False), ("hot", True)]
    assert changes[0].server == changes[1].server
    # The last server of a cold model keeps it.
    alone = control(["hot"], ["cold"], mib=18)
    assert run(alone, [(30.0, {"hot": 40.0, "cold": 0.5})]) == []


def test_a_load_that_swings_does_not_thrash() -> None:
    one = control(["hot"], ["cold"], ["cold"])
    swings = [(float(k), {"hot": 40.0 if k % 2 else 5.0, "cold": 1.0}) for k in range(1, 120)]
    assert len(run(one, swings)) <= 4


def test_nothing_changes_before_a_cluster_has_been_watched_for_a_while() -> None:
    one = control(["hot"], ["cold"])
    assert one.decide(0.0) == []
    assert run(one, [(4.9, {"hot": 80.0})]) == []


@pytest.mark.parametrize(
    "wrong",
    [{"shrink_at": 0.4}, {"hold_s": 0.0}, {"replicas_min": 0}, {"shrink_at": 0.0}],
)
def test_settings_under_which_models_would_move_all_the_time_are_refused(
    wrong: dict[str, float],
) -> None:
    with pytest.raises(InputError, match="come and go"):
        ReplicaSettings(**wrong)  # type: ignore[arg-type]
