"""From what the user wrote after ``--source`` to frames."""

from __future__ import annotations

from pathlib import Path

from vaultline.core.errors import InputError
from vaultline.video.camera import Camera
from vaultline.video.files import Pictures, VideoFile, is_picture, open_folder
from vaultline.video.frames import Frame, Source, redact

__all__ = ["Frame", "Source", "open_source", "redact"]

_CAMERA_SCHEMES = ("rtsp", "rtsps")


def open_source(uri: str, *, limit: int | None = None) -> Source:
    """Open a video file, a picture, a folder of pictures, or a camera (``rtsp://``).

    Args:
        uri: a path or an address.
        limit: the most frames to hand out; a camera has no other end.

    Raises:
        InputError: missing, of a wrong kind, or without frames.
        PeerError: the camera cannot be reached.
    """
    scheme, separator, _ = uri.partition("://")
    if separator and scheme.lower() in _CAMERA_SCHEMES:
        return Camera(uri, limit=limit)
    if separator and scheme.isalnum():
        raise InputError(
            f"{redact(uri)}: this kind of source is not supported",
            got=f"{scheme}://",
            expected="a path, rtsp:// or rtsps://",
        )
    path = Path(uri)
    if path.is_dir():
        return open_folder(path, limit=limit)
    if is_picture(path) and path.is_file():
        return Pictures(str(path), [path], limit=limit)
    return VideoFile(path, limit=limit)
