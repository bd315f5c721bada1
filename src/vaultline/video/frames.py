"""What every source of frames has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

import av

from vaultline.core.errors import InputError
from vaultline.video.pixels import Pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One picture.

    Attributes:
        index: 0, 1, 2, ... of the frames that this source has handed out.
        timestamp_s: seconds on the source's own clock (see each source).
        image: HxWx3 RGB, 8 bits a channel.
    """

    index: int
    timestamp_s: float
    image: Pixels


class Source(ABC):
    """Frames in order, once. Opened when made; close it, or use it in a ``with`` block.

    Attributes:
        name: what to call it in messages and results; never shows a password.
        frame_count: how many frames to expect, if known: a hint for progress, not a promise.
    """

    name: str
    frame_count: int | None = None

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """The frames from here on."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file or connection; ends an iteration that waits. May be repeated."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_limit(limit: int | None) -> int | None:
    """The limit itself, if it lets any frame through.

    Raises:
        InputError: zero or negative.
    """
    if limit is not None and limit < 1:
        raise InputError(
            "the limit lets no frame through", got=str(limit), expected="1 or more, or no limit"
        )
    return limit


def redact(uri: str) -> str:
    """A URI without what could be a secret: user name, password, query and fragment."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return uri.partition("://")[0] + "://***"
    if not parts.scheme or "://" not in uri:
        return uri
    user, _, host = parts.netloc.rpartition("@")
    tail = "?***" if parts.query or parts.fragment else ""
    return f"{parts.scheme}://{'***@' if user else ''}{host}{parts.path}{tail}"


def reason(error: av.error.FFmpegError) -> str:
    """FFmpeg's words for what went wrong, without the address (it would show the password)."""
    return str(error.strerror or type(error).__name__)
