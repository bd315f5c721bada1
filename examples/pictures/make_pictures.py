"""Makes the pictures of this folder from those that come with scikit-image (0.26).

pip install scikit-image && python make_pictures.py
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from skimage import data

NAMES = ("astronaut", "camera", "chelsea", "coffee", "hubble_deep_field", "retina", "rocket")
#: Enough for models of 224 x 224 pixels, and small enough for a repository.
SHORTER_SIDE_PX = 256


def main() -> None:
    """Write one JPEG for each name."""
    for name in NAMES:
        image = Image.fromarray(getattr(data, name)()).convert("RGB")
        ratio = SHORTER_SIDE_PX / min(image.size)
        size = (round(image.width * ratio), round(image.height * ratio))
        small = image.resize(size, Image.Resampling.LANCZOS)
        small.save(Path(__file__).parent / f"{name}.jpg", quality=88, optimize=True)


if __name__ == "__main__":
    main()
