"""Frames from files and folders, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from media import flat, write_picture, write_sound, write_video

from vaultline.core.errors import InputError
from vaultline.video import open_source
from vaultline.video.files import natural_key
from vaultline.video.frames import redact

GREYS = [20, 60, 100, 140, 180, 220]


@pytest.mark.parametrize("kind", ["mp4", "mkv", "ts"])
def test_a_videos_frames_come_in_order_at_their_times(tmp_path: Path, kind: str) -> None:
    path = write_video(tmp_path / f"clip.{kind}", [flat(grey) for grey in GREYS])
    with open_source(str(path)) as source:
        frames = list(source)
        assert source.name == str(path)
        assert source.frame_count in (None, len(GREYS))
    assert [frame.index for frame in frames] == list(range(len(GREYS)))
    steps = np.diff([frame.timestamp_s for frame in frames])
    np.testing.assert_allclose(steps, 1 / 25, atol=1e-3)
    for frame, grey in zip(frames, GREYS, strict=True):
        assert frame.image.shape == (48, 64, 3)
        assert frame.image.dtype == np.uint8
        assert abs(float(frame.image.mean()) - grey) < 1.5


def test_colours_are_red_green_blue(tmp_path: Path) -> None:
    image = flat(0)
    image[...] = (200, 30, 60)
    path = write_video(tmp_path / "clip.mp4", [image] * 2)
    with open_source(str(path)) as source:
        frame = next(iter(source))
    assert np.abs(frame.image.astype(int) - (200, 30, 60)).max() <= 3


@pytest.mark.parametrize("limit", [1, 2, 6, 7])
def test_a_limit_ends_a_video(tmp_path: Path, limit: int) -> None:
    path = write_video(tmp_path / "clip.mp4", [flat(grey) for grey in GREYS])
    with open_source(str(path), limit=limit) as source:
        assert source.frame_count == min(limit, 6)
        assert len(list(source)) == min(limit, 6)


def test_a_video_held_sideways_is_turned_upright(tmp_path: Path) -> None:
    lying = flat(0)
    lying[:, :32] = 255  # Left half white: turned a quarter counter-clockwise, it is below.
    path = write_video(tmp_path / "clip.mp4", [lying] * 2, turned=90)
    with open_source(str(path)) as source:
        image = next(iter(source)).image
    assert image.shape == (64, 48, 3)
    assert image[-16:].mean() > 250
    assert image[:16].mean() < 5


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.webp", "a.jpg", "A.JPEG"])
def test_a_picture_of_each_kind_keeps_its_colours(tmp_path: Path, name: str) -> None:
    image = flat(0, 40, 24)
    image[:, :20] = (200, 30, 60)
    image[:, 20:] = (10, 90, 250)
    path = write_picture(tmp_path / name, image)
    with open_source(str(path)) as source:
        frames = list(source)
    assert len(frames) == 1
    lossy = name.lower().endswith(("jpg", "jpeg"))
    difference = np.abs(frames[0].image[:, [4, 36]].astype(int) - image[:, [4, 36]])
    assert difference.max() <= (6 if lossy else 0)


def test_a_folder_is_read_in_natural_order_and_other_files_are_left_alone(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write_picture(tmp_path / f"frame{number}.png", flat(number, 8, 8))
    (tmp_path / "notes.txt").write_text("not a picture", encoding="utf-8")
    (tmp_path / ".hidden.png").write_bytes(b"nor this")
    (tmp_path / "folder.png").mkdir()
    with open_source(str(tmp_path)) as source:
        assert source.frame_count == 3
        frames = list(source)
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [1, 2, 10]
    assert [frame.timestamp_s for frame in frames] == [0.0, 1.0, 2.0]
    with open_source(str(tmp_path), limit=2) as source:
        assert len(list(source)) == 2


def empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def text(path: Path) -> Path:
    path.write_text("this is not a video\n" * 100, encoding="utf-8")
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    text(path / "notes.txt")
    return path


def playlist(path: Path) -> Path:
    path.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/x.ts\n#EXT-X-ENDLIST\n")
    return path


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        pytest.param(lambda path: path, "gone.mp4", "there is no such video", id="missing file"),
        pytest.param(lambda path: path, "gone.png", "there is no such video", id="missing picture"),
        pytest.param(empty, "empty.mp4", "not a video", id="empty file"),
        pytest.param(text, "text.mp4", "not a video", id="text called a video"),
        pytest.param(playlist, "list.m3u8", "not a video", id="playlist of the network"),
        pytest.param(write_sound, "song.mp4", "no frames", id="sound without frames"),
        pytest.param(folder, "album", "holds no pictures", id="folder without pictures"),
        pytest.param(text, "text.png", "not a picture", id="text called a picture"),
        pytest.param(empty, "empty.jpg", "not a picture", id="empty picture"),
    ],
)
def test_refuses(tmp_path: Path, make: Callable[[Path], Path], name: str, message: str) -> None:
    path = make(tmp_path / name)
    with pytest.raises(InputError, match=message) as caught, open_source(str(path)) as source:
        list(source)
    assert str(path) in caught.value.message
    assert caught.value.got
    assert caught.value.expected
    assert caught.value.remedy


def test_a_picture_that_is_not_one_is_named_when_its_turn_comes(tmp_path: Path) -> None:
    write_picture(tmp_path / "1.png", flat(9, 8, 8))
    text(tmp_path / "2.png")
    with open_source(str(tmp_path)) as source:
        frames = iter(source)
        assert next(frames).index == 0
        with pytest.raises(InputError, match=r"2\.png: not a picture"):
            next(frames)


def test_a_truncated_video_is_refused_or_gives_only_whole_frames(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mkv", [flat(grey) for grey in GREYS]).read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    try:
        with open_source(str(cut)) as source:
            frames = list(source)
    except InputError as error:
        assert error.got
    else:
        assert 0 < len(frames) < len(GREYS)


@pytest.mark.parametrize("uri", ["http://host/x.mp4", "ftp://user:hunter2@host/x"])
def test_other_addresses_are_refused_without_showing_secrets(uri: str) -> None:
    with pytest.raises(InputError, match="not supported") as caught:
        open_source(uri)
    assert "hunter2" not in caught.value.diagnostics()


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_that_lets_nothing_through_is_refused(tmp_path: Path, limit: int) -> None:
    path = write_video(tmp_path / "clip.mp4", [flat(9)] * 2)
    with pytest.raises(InputError, match="limit"):
        open_source(str(path), limit=limit)


def test_a_name_with_a_colon_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write_video(tmp_path / "clip.mp4", [flat(9)] * 2)
    made.rename(tmp_path / "tcp:clip.mp4")
    monkeypatch.chdir(tmp_path)
    with open_source("tcp:clip.mp4") as source:
        assert len(list(source)) == 2


REDACTED = {
    "rtsp://cam/stream": "rtsp://cam/stream",
    "rtsp://user:pass@cam:554/stream": "rtsp://***@cam:554/stream",
    "rtsp://user@cam/stream": "rtsp://***@cam/stream",
    "rtsp://u:p@ss@cam/stream": "rtsp://***@cam/stream",
    "rtsp://cam/stream?user=u&password=p": "rtsp://cam/stream?***",
    "rtsp://[::1]:554/x": "rtsp://[::1]:554/x",
    "rtsp://u:p@[bad/x": "rtsp://***",
    "plain/path.mp4": "plain/path.mp4",
}


@pytest.mark.parametrize(("uri", "shown"), REDACTED.items())
def test_addresses_are_shown_without_secrets(uri: str, shown: str) -> None:
    assert redact(uri) == shown


@settings(derandomize=True, deadline=None)
@given(st.text("abcXYZ0189:@!$%&+~", min_size=4).map(lambda text: "s3cret" + text))
def test_no_password_survives_redaction(password: str) -> None:
    assert "s3cret" not in redact(f"rtsp://user:{password}@cam/stream")


def test_names_sort_by_the_numbers_in_them() -> None:
    names = ["b1", "a10b2", "a2", "A2", "a10b10", "10", "9", "a02"]
    assert sorted(names, key=natural_key) == ["9", "10", "A2", "a02", "a2", "a10b2", "a10b10", "b1"]
