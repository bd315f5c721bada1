"""What a leakage measurement looks at: pictures, views of them, and how tensors lie in space."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vaultline.core.errors import InputError
from vaultline.core.serde import canonical_json
from vaultline.graph.structure import Array, Model
from vaultline.video.files import open_folder
from vaultline.video.pixels import Pixels
from vaultline.video.preprocess import Preprocessing

#: Two to fit on (one of them left out to choose the regularisation), one to attack.
PICTURES_MIN = 3
#: More change the scores little and are all held in memory.
PICTURES_MAX = 128
#: One picture in three is held out, up to so many.
HELD_OUT_MAX = 8
#: Training views of all pictures together.
VIEWS = 64
#: Of the crossing tensors of all views; what a small machine can spare.
VIEWS_BYTES_MAX = 1 << 30
#: Parts of a picture, as (share of its sides, place from the top, place from the left), the whole
#: first; each also mirrored.
_CROPS = (
    (1.0, 0.0, 0.0), (0.75, 0.0, 0.0), (0.75, 1.0, 1.0), (0.5, 0.5, 0.5),
    (0.75, 1.0, 0.0), (0.75, 0.0, 1.0), (0.5, 0.0, 0.0), (0.5, 1.0, 1.0),
)  # fmt: skip
#: Operators that give the same values another shape.
_RESHAPES = frozenset({"Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})


def read_pictures(folder: Path) -> tuple[Pixels, ...]:
    """The pictures (HxWx3) directly in a folder, the first ``PICTURES_MAX``, copies once.

    Raises:
        InputError: no such folder, a file that cannot be read, or too few pictures.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: there is no such folder of pictures",
            got="a file" if folder.exists() else "nothing of that name",
            expected="a folder with PNG or JPEG pictures",
        )
    found: dict[str, Pixels] = {}
    with open_folder(folder, limit=PICTURES_MAX) as source:
        for frame in source:
            found.setdefault(_digest(frame.image), frame.image)
    check_count(len(found), str(folder))
    return tuple(found.values())


def check_count(pictures: int, where: str) -> None:
    """Refuse to measure on too few pictures.

    Raises:
        InputError: fewer than ``PICTURES_MIN``.
    """
    if pictures < PICTURES_MIN:
        raise InputError(
            "too few pictures to fit an attack on some and try it on others",
            got=f"{pictures} different ones in {where}",
            expected=f"at least {PICTURES_MIN}; a dozen or more make a stronger attack",
            remedy="add pictures like those that the model will see",
        )


def images_digest(pictures: Sequence[Pixels], how: Preprocessing) -> str:
    """SHA-256 (hex) over the pixels of all pictures, in order, and over their preprocessing."""
    parts = [how, [_digest(picture) for picture in pictures]]
    return hashlib.sha256(canonical_json(parts)).hexdigest()


def _digest(pixels: Pixels) -> str:
    state = hashlib.sha256(str(pixels.shape).encode())
    state.update(np.ascontiguousarray(pixels).data)
    return state.hexdigest()


def split(pictures: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Numbers of the training pictures and of those held out, which are evenly spread."""
    count = max(1, min(HELD_OUT_MAX, pictures // 3))
    held_out = tuple(int((turn + 0.5) * pictures / count) for turn in range(count))
    return tuple(n for n in range(pictures) if n not in held_out), held_out


def views_each(training: int, bytes_per_view: int) -> int:
    """How many views to take of each training picture."""
    affordable = VIEWS_BYTES_MAX // max(1, bytes_per_view)
    return max(1, min(2 * len(_CROPS), min(VIEWS, affordable) // training))


def views_of(pixels: Pixels, count: int) -> list[Pixels]:
    """The first ``count`` of a picture's crops and their mirror images."""
    height, width = pixels.shape[:2]
    made: list[Pixels] = []
    for share, top, left in _CROPS:
        rows, columns = max(1, round(height * share)), max(1, round(width * share))
        first, start = round(top * (height - rows)), round(left * (width - columns))
        crop = pixels[first : first + rows, start : start + columns]
        made += [np.ascontiguousarray(crop), np.ascontiguousarray(crop[:, ::-1])]
    return made[:count]


def seen_picture(tensor: Array, how: Preprocessing) -> NDArray[np.float32]:
    """The picture (HxWx3, 0 to 1) that a model's input holds: preprocessing undone."""
    planes = tensor[0] if how.layout == "NCHW" else np.moveaxis(tensor[0], 2, 0)
    made = []
    for channel, plane in enumerate(planes.astype(np.float64)):
        mean, std = how.mean[channel % len(how.mean)], how.std[channel % len(how.std)]
        made.append(np.clip((plane * std + mean) / how.scale / 255, 0, 1))
    colours = made * 3 if len(made) == 1 else made[::-1] if how.color == "bgr" else made
    return np.stack(colours, axis=2).astype(np.float32)


def spatial_shapes(model: Model) -> Mapping[str, tuple[int, ...]]:
    """For tensors that only give another shape to values of a picture's, the shape before that.

    A flattened feature map is no less spatial for an attacker who knows the model.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for node in model.nodes:
        if node.op not in _RESHAPES or not node.reads or not node.writes:
            continue
        before, after = model.specs.get(node.reads[0]), model.specs.get(node.writes[0])
        if before is None or after is None or before.nbytes != after.nbytes:
            continue
        shape = shapes.get(before.name, before.shape)
        if len(shape) == 4 and len(after.shape) != 4:
            shapes[after.name] = shape
    return shapes
