"""Real handwritten digits, drawn as a camera above a desk would see them.

Shared by ``make_video.py`` (held-out digits) and ``train.py`` (all the others), so that the model
learns from the same kind of picture that it is tested on and from none of the same digits.
Needs scikit-learn.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

SIDE_PIXELS = 128
FRAMES_PER_SECOND = 30
FRAMES_PER_DIGIT = 2
HELD_OUT_PER_CLASS = 45
SPLIT_SEED = 20_200_518
#: x264's constant rate factor: a usual quality; 900 frames stay well under 1 MiB.
RATE_FACTOR = 23

Pixels = NDArray[np.uint8]


def split() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of (training, held-out) digits: 45 of each class are held out, picked at random."""
    labels = load_digits().target
    random = np.random.default_rng(SPLIT_SEED)
    held_out = np.concatenate(
        [
            random.permutation(np.flatnonzero(labels == digit))[:HELD_OUT_PER_CLASS]
            for digit in range(10)
        ]
    )
    training = np.setdiff1d(np.arange(len(labels)), held_out)
    return random.permutation(training), random.permutation(held_out)


def draw(digit: NDArray[np.float64], count: int, random: np.random.Generator) -> Iterator[Pixels]:
    """``count`` successive frames of one digit (8x8, 0 to 16) as HxWx3 RGB.

    Paper and ink have a random colour, light falls from one side, the sheet drifts and turns a
    little while it is seen, and the sensor is noisy.
    """
    paper = random.uniform(150, 245) + random.uniform(-22, 22, 3)
    ink = random.uniform(10, 80) + random.uniform(-10, 40, 3)
    side = random.uniform(78, 104)
    angle = random.uniform(-0.14, 0.14)
    centre = SIDE_PIXELS / 2 + random.uniform(-9, 9, 2)
    drift, turn = random.uniform(-1.5, 1.5, 2), random.uniform(-0.02, 0.02)
    light = random.uniform(-0.2, 0.2, 2)
    noise = random.uniform(2, 6)
    grid = (np.mgrid[0:SIDE_PIXELS, 0:SIDE_PIXELS] + 0.5) / SIDE_PIXELS - 0.5
    shade = 1 + light[0] * grid[0] + light[1] * grid[1]
    for number in range(count):
        cover = _place(digit / 16, centre + drift * number, side, angle + turn * number)
        colour = paper + cover[:, :, np.newaxis] * (ink - paper)
        seen = colour * shade[:, :, np.newaxis] + random.normal(0, noise, (*cover.shape, 1))
        yield np.clip(np.rint(seen), 0, 255).astype(np.uint8)


def _place(
    digit: NDArray[np.float64], centre: NDArray[np.float64], side: float, angle: float
) -> NDArray[np.float64]:
    """How much ink covers each pixel: the 8x8 digit enlarged (bilinear), turned and moved."""
    rows, columns = np.mgrid[0:SIDE_PIXELS, 0:SIDE_PIXELS] + 0.5
    down, right = rows - centre[0], columns - centre[1]
    cos, sin = np.cos(angle), np.sin(angle)
    # Where in the digit (with a border of empty cells around it) each pixel of the frame lies.
    y = np.clip((cos * down - sin * right) / side * 8 + 4.5, 0, 9)
    x = np.clip((sin * down + cos * right) / side * 8 + 4.5, 0, 9)
    cells = np.pad(digit, 1)
    top, left = np.minimum(y.astype(int), 8), np.minimum(x.astype(int), 8)
    below, beside = y - top, x - left
    upper = cells[top, left] * (1 - beside) + cells[top, left + 1] * beside
    lower = cells[top + 1, left] * (1 - beside) + cells[top + 1, left + 1] * beside
    return upper * (1 - below) + lower * below


def write_video(path: Path, frames: Iterator[Pixels]) -> None:
    """Encode as H.264 in MP4, one thread, so that the same frames make the same file."""
    options = {"crf": str(RATE_FACTOR), "preset": "slow", "x264-params": "keyint=60:threads=1"}
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
        stream.width = stream.height = SIDE_PIXELS
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        stream.codec_context.time_base = Fraction(1, FRAMES_PER_SECOND)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FRAMES_PER_SECOND)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
