"""Small videos and pictures that the tests make for themselves."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def flat(value: int, width: int = 64, height: int = 48) -> Pixels:
    """A picture of one grey."""
    return np.full((height, width, 3), value, dtype=np.uint8)


def write_video(path: Path, images: list[Pixels], *, turned: int = 0, rate: int = 25) -> Path:
    """H.264 in whatever container the name says, almost without loss."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "4"})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.thread_count = "yuv420p", 1
        if turned:
            stream.set_display_rotation(turned)
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    """A file with a sound track and no video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts = 48_000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_picture(path: Path, image: Pixels) -> Path:
    """A PNG, BMP, JPEG or WebP by the name's end."""
    codecs = {".png": ("png", "rgb24"), ".bmp": ("bmp", "bgr24"), ".webp": ("libwebp", "bgra")}
    codec, pixels = codecs.get(path.suffix.lower(), ("mjpeg", "yuvj444p"))
    encoder: Any = av.CodecContext.create(codec, "w")
    encoder.height, encoder.width = image.shape[:2]
    encoder.pix_fmt, encoder.time_base = pixels, Fraction(1, 1)
    if codec == "libwebp":
        encoder.options = {"lossless": "1"}
    if codec == "mjpeg":
        encoder.color_range = 2
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)
    frame.pts = 0
    packets = [*encoder.encode(frame), *encoder.encode(None)]
    path.write_bytes(b"".join(bytes(packet) for packet in packets))
    return path
