"""Make ``digits.mp4`` and ``labels.json`` from the held-out digits.

Run in this folder: ``python make_video.py`` (needs vaultline's requirements and scikit-learn).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from render import FRAMES_PER_DIGIT, draw, split, write_video
from sklearn.datasets import load_digits

HERE = Path(__file__).parent
RENDER_SEED = 5_043


def main() -> None:
    """Write the video and the digit that each of its frames shows."""
    digits = load_digits()
    _, held_out = split()
    random = np.random.default_rng(RENDER_SEED)
    frames = (
        frame
        for index in held_out
        for frame in draw(digits.images[index], FRAMES_PER_DIGIT, random)
    )
    write_video(HERE / "digits.mp4", frames)
    shown = np.repeat(digits.target[held_out], FRAMES_PER_DIGIT).tolist()
    text = json.dumps({"frames_per_digit": FRAMES_PER_DIGIT, "labels": shown})
    (HERE / "labels.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
