from __future__ import annotations

from pathlib import Path

import pytest

from vaultline.cli.pictures import _passes, draw_plan, draw_timeline
from vaultline.core.errors import InputError
from vaultline.planner import make_plan
from vaultline.testing.planning import MIB, cluster, device, profile

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("stages", [1, 2, 8])
def test_a_plan_is_drawn_as_a_small_png(stages: int, tmp_path: Path) -> None:
    layers = profile([0.01 * (1 + n % 3) for n in range(9)], weight_bytes=MIB)
    plan = make_plan(layers, cluster(device("a", count=8)), stages=stages)
    path = tmp_path / "plan.png"
    draw_plan(plan, layers, path)
    data = path.read_bytes()
    assert data.startswith(PNG)
    assert len(data) < 200_000


def test_a_timeline_is_drawn_as_a_small_png(tmp_path: Path) -> None:
    records = [
        {"frame": n, "stages": [(n * 10, n * 10 + 9), (n // 4 * 40 + 40, n // 4 * 40 + 70)]}
        for n in range(100)
    ]
    path = tmp_path / "timeline.png"
    draw_timeline(records, path, labels=("edge",))
    assert path.read_bytes().startswith(PNG)


def test_frames_of_one_pass_share_a_bar() -> None:
    records = [{"frame": n, "stages": [(n // 2, n // 2 + 1)]} for n in range(4)]
    assert _passes(records, 0) == {(0, 1): [0, 1], (1, 2): [2, 3]}


@pytest.mark.parametrize("records", [[], [{"frame": 0, "stages": []}]])
def test_a_timeline_of_nothing_is_refused(records: list[dict[str, object]], tmp_path: Path) -> None:
    with pytest.raises(InputError):
        draw_timeline(records, tmp_path / "timeline.png")
