"""Frames from files: a video, a picture, or a folder of pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import av

from vaultline.core.errors import InputError
from vaultline.video.frames import Frame, Source, check_limit, reason
from vaultline.video.pixels import Pixels, Scaler

#: Kinds of pictures, by the end of the file's name.
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")

#: A file may name other files or addresses (playlists); only local files are followed.
_OPTIONS = {"protocol_whitelist": "file"}


class VideoFile(Source):
    """The frames of the first video track of a file, at the file's presentation times."""

    def __init__(self, path: Path, *, limit: int | None = None) -> None:
        """Open the file and decode its first frame, so that a bad file is refused here.

        Raises:
            InputError: missing, unreadable, not a video, or without frames.
        """
        self.name = str(path)
        self._limit = check_limit(limit)
        _check_file(path, "video")
        self._container = _open(path, "video")
        try:
            self._frames = self._decode(self._container)
            self._first = next(self._frames, None)
            if self._first is None:
                raise _no_frames(self.name)
        except InputError:
            self.close()
            raise

    def __iter__(self) -> Iterator[Frame]:
        """The frames; a file can be gone through once."""
        first, self._first = self._first, None
        if first is not None:
            yield first
            if self._limit != 1:
                yield from self._frames

    def close(self) -> None:
        self._container.close()

    def _decode(self, container: av.container.InputContainer) -> Iterator[Frame]:
        if not container.streams.video:
            raise _no_frames(self.name)
        stream = container.streams.video[0]
        # One thread: the cores belong to the enclaves, and a camera's frame takes under 10 ms.
        stream.thread_count, stream.thread_type = 1, "SLICE"
        known = [number for number in (stream.frames, self._limit) if number]
        self.frame_count = min(known) if stream.frames else None
        rate = float(stream.average_rate or stream.base_rate or 1)
        scaler = Scaler()
        frames = container.decode(stream)
        for index in count():
            if index == self._limit:
                return
            try:
                frame = next(frames)
            except (StopIteration, av.error.EOFError):
                return
            except av.error.FFmpegError as error:
                raise InputError(
                    f"{self.name}: the video is damaged after {index} frames",
                    got=reason(error),
                    remedy="encode or copy the file again",
                ) from None
            time_s = frame.time if frame.pts is not None else index / rate
            yield Frame(index=index, timestamp_s=float(time_s), image=scaler.rgb(frame))


class Pictures(Source):
    """Picture files in the given order. They have no clock: frame n is at n seconds."""

    def __init__(self, name: str, paths: list[Path], *, limit: int | None = None) -> None:
        self.name = name
        self._paths = paths[: check_limit(limit)]
        self.frame_count = len(self._paths)
        self._next = 0

    def __iter__(self) -> Iterator[Frame]:
        """The pictures.

        Raises:
            InputError: a file isn't the picture that its name says.
        """
        scaler = Scaler()
        while self._next < len(self._paths):
            index = self._next
            self._next += 1
            image = read_picture(self._paths[index], scaler)
            yield Frame(index=index, timestamp_s=float(index), image=image)

    def close(self) -> None:
        self._next = len(self._paths)


def open_folder(path: Path, *, limit: int | None = None) -> Pictures:
    """The pictures directly in a folder, in natural order (``2.png`` before ``10.png``).

    Raises:
        InputError: none there.
    """
    entries = sorted(path.iterdir(), key=lambda entry: natural_key(entry.name))
    paths = [entry for entry in entries if is_picture(entry) and entry.is_file()]
    if not paths:
        raise InputError(
            f"{path}: the folder holds no pictures",
            got=", ".join(entry.name for entry in entries[:5]) or "an empty folder",
            expected="files ending in " + ", ".join(PICTURE_SUFFIXES),
            remedy="pictures in folders below are not looked for: name the folder itself",
        )
    return Pictures(str(path), paths, limit=limit)


def is_picture(path: Path) -> bool:
    """Whether the name is that of a picture (hidden files are not looked at)."""
    return path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")


def natural_key(name: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sorts digits in names by value; equal values by the text itself."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    keys = ((0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in parts)
    return tuple(keys), name


def read_picture(path: Path, scaler: Scaler) -> Pixels:
    """One picture file as HxWx3 RGB.

    Raises:
        InputError: missing, unreadable, or not a picture.
    """
    _check_file(path, "picture")
    with _open(path, "picture") as container:
        try:
            frame = next(container.decode(video=0), None) if container.streams.video else None
        except av.error.FFmpegError as error:
            raise _not_a("picture", path, reason(error)) from None
        if frame is None:
            raise _not_a("picture", path, "no image in it")
        return scaler.rgb(frame)


def _open(path: Path, what: str) -> av.container.InputContainer:
    try:
        # The prefix keeps a name such as "tcp:x.mp4" a name.
        return av.open(f"file:{path}", mode="r", options=_OPTIONS, metadata_errors="replace")
    except av.error.PermissionError:
        raise InputError(f"{path}: may not be read", remedy="change its permissions") from None
    except av.error.FFmpegError as error:
        raise _not_a(what, path, reason(error)) from None


def _check_file(path: Path, what: str) -> None:
    if not path.is_file():
        found = "something that is not a file" if path.exists() else "no file of that name"
        raise InputError(
            f"{path}: there is no such {what}",
            got=found,
            expected="a video, a picture, a folder of pictures, or rtsp://",
            remedy="check the spelling and the current folder",
        )


def _not_a(what: str, path: Path, found: str) -> InputError:
    size = path.stat().st_size
    expected = "H.264, H.265, VP9 or another video in MP4, MKV or the like"
    if what == "picture":
        expected = "the picture that its name says: " + ", ".join(PICTURE_SUFFIXES)
    return InputError(
        f"{path}: not a {what} that can be read",
        got=f"{found} ({size} bytes)",
        expected=expected,
        remedy=f"check the file in a player, or convert it to a common kind of {what}",
    )


def _no_frames(name: str) -> InputError:
    return InputError(
        f"{name}: the video has no frames",
        got="a readable file without a single frame to show",
        expected="at least one frame",
        remedy="sound and subtitles alone can't be run; give another file",
    )
