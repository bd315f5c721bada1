from __future__ import annotations

from pathlib import Path

import pytest

from vaultline.cli.pictures import _device_rows, _passes, draw_timeline
from vaultline.core.errors import InputError

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_timeline_is_drawn_as_a_small_png(tmp_path: Path) -> None:
    records = [
        {"frame": n, "stages": [(n * 10, n * 10 + 9), (n // 4 * 40 + 40, n // 4 * 40 + 70)]}
        for n in range(100)
    ]
    path = tmp_path / "timeline.png"
    draw_timeline(records, path, devices=(("edge",),))
    assert path.read_bytes().startswith(PNG)


def test_replicas_have_rows_of_their_own() -> None:
    records = [{"frame": n, "stages": [(n, n + 1), (n + 10, n + 13)]} for n in range(4)]
    rows = _device_rows(records, 2, [["edge"], ["a", "b", "$c"]])
    assert [(name, sorted(passes.values())) for name, passes in rows] == [
        ("edge", [[0], [1], [2], [3]]),
        ("a", [[0], [3]]),
        ("b", [[1]]),
        (r"\$c", [[2]]),
    ]


def test_a_timeline_with_more_devices_than_frames_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "timeline.png"
    draw_timeline([{"frame": 0, "stages": [(0, 9)]}], path, devices=[["a", "b"]])
    assert path.read_bytes().startswith(PNG)


def test_frames_of_one_pass_share_a_bar() -> None:
    records = [{"frame": n, "stages": [(n // 2, n // 2 + 1)]} for n in range(4)]
    assert _passes(records, 0) == {(0, 1): [0, 1], (1, 2): [2, 3]}


@pytest.mark.parametrize("records", [[], [{"frame": 0, "stages": []}]])
def test_a_timeline_of_nothing_is_refused(records: list[dict[str, object]], tmp_path: Path) -> None:
    with pytest.raises(InputError):
        draw_timeline(records, tmp_path / "timeline.png")
