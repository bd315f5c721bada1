"""A camera over real sockets on loopback: frames, passwords, lost and silent connections."""

from __future__ import annotations

import socket
from itertools import pairwise

import numpy as np
import pytest

from vaultline.core.errors import InputError, PeerError, VaultlineError
from vaultline.testing.rtsp import RtspServer, packetise
from vaultline.video import open_source
from vaultline.video.camera import Camera, Patience

SECRET = "hunter2"
IMPATIENT = Patience(connect_s=2.0, stall_s=0.6, retries=2, backoff_s=0.01, backoff_max_s=0.02)


def pictures(count: int = 20) -> list[np.ndarray]:
    """Flat grey pictures whose brightness is their number; the noise below makes them large."""
    noise = np.random.default_rng(0).integers(0, 256, (32, 96, 3), dtype=np.uint8)
    frames = []
    for number in range(count):
        image = np.full((64, 96, 3), 10 + 10 * number, dtype=np.uint8)
        image[32:] = np.roll(noise, number, axis=0)
        frames.append(image)
    return frames


def number_of(image: np.ndarray) -> int:
    return round((float(image[:24].mean()) - 10) / 10)


def test_frames_arrive_in_order_as_they_were_drawn() -> None:
    with RtspServer(pictures()) as server, open_source(server.url, limit=12) as source:
        frames = list(source)
        assert source.frame_count == 12
    assert [frame.index for frame in frames] == list(range(12))
    assert frames[0].image.shape == (64, 96, 3)
    numbers = [number_of(frame.image) for frame in frames]
    steps = {(after - before) % 20 for before, after in pairwise(numbers)}
    assert numbers[0] == 0
    assert steps <= set(range(1, 10)), numbers
    times = [frame.timestamp_s for frame in frames]
    assert times == sorted(times)


def test_a_slow_reader_gets_new_frames_and_a_count_of_those_it_missed() -> None:
    with RtspServer(pictures(), frames_per_second=500) as server, Camera(server.url) as camera:
        stream = iter(camera)
        next(stream)
        with camera._changed:
            assert camera._changed.wait_for(lambda: camera.dropped >= 10, timeout=10)
        frame = next(stream)
    assert frame.index == 1
    assert camera.dropped >= 10


def test_the_password_is_used_and_never_shown() -> None:
    with (
        RtspServer(pictures(), credentials=f"viewer:{SECRET}") as server,
        open_source(server.url, limit=2) as source,
    ):
        assert len(list(source)) == 2
        assert source.name == f"rtsp://***@127.0.0.1:{server.port}/camera"


def test_a_wrong_password_is_the_users_error_and_is_not_shown() -> None:
    with RtspServer(pictures(), credentials="viewer:right") as server:
        address = server.url.replace("right", SECRET)
        with pytest.raises(InputError, match="refused") as caught:
            open_source(address)
    assert SECRET not in caught.value.diagnostics() + repr(caught.value)


def test_a_camera_that_is_not_there_is_a_peers_error_without_the_password() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(PeerError, match="no connection") as caught:
        open_source(f"rtsp://viewer:{SECRET}@127.0.0.1:{port}/camera?token={SECRET}")
    shown = caught.value.diagnostics()
    assert SECRET not in shown
    assert f"rtsp://***@127.0.0.1:{port}/camera?***" in shown


def test_a_lost_connection_is_made_again_and_frames_go_on_being_numbered() -> None:
    with (
        RtspServer(pictures(), close_after=5) as server,
        Camera(server.url, limit=12, patience=IMPATIENT) as camera,
    ):
        frames = list(camera)
        assert [frame.index for frame in frames] == list(range(12))
        assert server.connections >= 2
    assert camera.reconnections >= 1


def test_a_camera_that_loses_power_ends_with_a_clear_error_after_its_last_frames() -> None:
    with RtspServer(pictures(), credentials=f"viewer:{SECRET}") as server:
        with Camera(server.url, patience=IMPATIENT) as camera:
            seen = 0
            with pytest.raises(PeerError, match="gone after 2 attempts") as caught:
                for frame in camera:
                    seen = frame.index + 1
                    if seen == 3:
                        server.kill()
        assert seen >= 3
        assert SECRET not in caught.value.diagnostics()
        assert "power" in (caught.value.remedy or "")


def test_a_silent_camera_is_found_out_by_the_age_of_its_last_frame() -> None:
    with (
        RtspServer(pictures(), stall_after=3) as server,
        Camera(server.url, limit=8, patience=IMPATIENT) as camera,
    ):
        assert len(list(camera)) == 8
        assert server.connections >= 3


def test_closing_ends_an_iteration() -> None:
    with RtspServer(pictures()) as server, Camera(server.url) as camera:
        seen: list[int] = []
        for frame in camera:
            seen.append(frame.index)
            if frame.index == 4:
                camera.close()
        assert len(seen) == 5


def test_a_server_that_is_no_camera_is_a_peers_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        patience = Patience(connect_s=0.4, stall_s=0.4, retries=1)
        with pytest.raises(VaultlineError, match="no connection"):
            Camera(f"rtsp://127.0.0.1:{port}/x", patience=patience)


def test_a_large_unit_travels_in_fragments_that_join_again() -> None:
    unit = b"\x65" + bytes(range(256)) * 20
    parts = list(packetise(unit))
    assert len(parts) == 4
    assert b"\x65" + b"".join(part[2:] for part in parts) == unit
    assert [part[1] >> 6 for part in parts] == [2, 0, 0, 1]
