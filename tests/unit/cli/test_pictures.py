from __future__ import annotations

from pathlib import Path

import pytest

from vaultline.cli.pictures import _passes, draw_timeline
from vaultline.core.errors import InputError

PNG = b"\x89PNG\r\n\x1a\n"


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
