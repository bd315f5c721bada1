"""Scale runs: made-up clusters that are as loaded as they should be."""

from __future__ import annotations

from collections import Counter

import pytest

from vaultline.bench.sim_scale import made_up_models, made_up_servers, popularity, scale


@pytest.mark.parametrize("count", [3, 40])
def test_made_up_clusters_have_every_model_somewhere_and_hot_ones_more_often(count: int) -> None:
    models = made_up_models(20, seed=1)
    servers = made_up_servers(count, models)
    replicas = Counter(name for each in servers for name in each.models)
    assert set(replicas) == set(models)
    assert min(replicas.values()) >= 2
    assert replicas["model000"] > replicas["model019"] or count == 3
    assert sum(popularity(20)) == pytest.approx(1)


def test_a_scale_run_ends_every_request_and_says_what_it_took() -> None:
    rows = scale([2, 8], models=12, requests=300)
    assert [row.servers for row in rows] == [2, 8]
    for row in rows:
        assert row.refused == 0
        assert 0 < row.mean_s < row.p95_s * 2
        assert row.virtual_s * row.rate_per_s == pytest.approx(300, rel=0.3)
        assert 0 < row.decision_us < 5_000
        assert row.core_s > 0


@pytest.mark.full
def test_a_decision_takes_little_and_hardly_more_among_a_thousand_servers() -> None:
    few, many = scale([10, 1000], models=200, requests=20_000)
    assert many.decision_us <= 100
    assert many.decision_us < few.decision_us * (1000 / 10) ** 0.5
    assert many.core_s < 12
