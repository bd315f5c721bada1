"""From a camera's picture to a model's input tensor, as declared in a small YAML file."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vaultline.core.errors import InputError
from vaultline.core.serde import Struct
from vaultline.core.tensors import TensorSpec
from vaultline.core.yaml import from_yaml
from vaultline.video.pixels import Pixels, Scaler, luma

#: A side of 16,384 pixels is beyond any camera; more is a typing error in the file.
SIDE_PIXELS_MAX = 16_384
#: The file is a dozen lines.
FILE_BYTES_MAX = 1 << 16

InputType = Literal["float32", "float64", "float16", "uint8", "int8", "int32"]


class Preprocessing(Struct, frozen=True):
    """How a picture becomes the model's input.

    A channel's value is ``(pixel * scale - mean) / std`` with pixels from 0 to 255.

    Attributes:
        input: the model's input that this is for; empty: its only one.
        width, height: pixels of the model's input.
        resize: ``stretch`` ignores the aspect ratio; ``letterbox`` keeps it and fills the rest
            with ``pad``; ``crop`` scales the shorter side to ``resize_shorter`` (if 0: just large
            enough) and cuts out the centre.
        color: order of the channels that the model wants.
        mean, std: one number, or one per channel in the order of ``color``.
        layout: order of the tensor's axes: batch, channels, height, width.
        pad: the pixel value of a letterbox's border.
    """

    width: int
    height: int
    input: str = ""
    resize: Literal["stretch", "letterbox", "crop"] = "stretch"
    resize_shorter: int = 0
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: InputType = "float32"
    pad: int = 114

    def __post_init__(self) -> None:
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, self.channels):
                raise InputError(
                    f"`{name}` has the wrong number of values",
                    got=str(len(numbers)),
                    expected=f"1, or {self.channels} for {self.color}",
                )
        needed = max(self.width, self.height)
        checks = (
            (0 < self.width <= SIDE_PIXELS_MAX, "width", f"1 to {SIDE_PIXELS_MAX}"),
            (0 < self.height <= SIDE_PIXELS_MAX, "height", f"1 to {SIDE_PIXELS_MAX}"),
            (0 <= self.pad <= 255, "pad", "0 to 255"),
            (isfinite(self.scale) and self.scale > 0, "scale", "a positive number"),
            (all(map(isfinite, self.mean)), "mean", "finite numbers"),
            (all(isfinite(value) and value > 0 for value in self.std), "std", "positive numbers"),
            (
                self.resize_shorter == 0
                or (self.resize == "crop" and needed <= self.resize_shorter <= SIDE_PIXELS_MAX),
                "resize_shorter",
                f"only with `resize: crop`, and {needed} to {SIDE_PIXELS_MAX}",
            ),
        )
        for holds, name, expected in checks:
            if not holds:
                raise InputError(
                    f"`{name}` is out of range", got=str(getattr(self, name)), expected=expected
                )

    @property
    def channels(self) -> int:
        """Channels of the tensor: 1 for grey, else 3."""
        return 1 if self.color == "gray" else 3

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The tensor's shape, with a batch of one."""
        if self.layout == "NCHW":
            return (1, self.channels, self.height, self.width)
        return (1, self.height, self.width, self.channels)

    def describe(self) -> str:
        """One line for a person."""
        return (
            f"{self.resize} to {self.width}x{self.height}, {self.color}, "
            f"(pixel * {self.scale:.6g} - {_numbers(self.mean)}) / {_numbers(self.std)}, "
            f"{self.layout} {self.dtype}"
        )


def load_preprocessing(path: Path) -> Preprocessing:
    """Read the YAML file beside a model.

    Raises:
        InputError: no such file, or not a valid declaration; the message carries the line.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: there is no such preprocessing file",
            remedy="write one beside the model, or leave it out to have one derived from the model",
        )
    with path.open("rb") as file:
        data = file.read(FILE_BYTES_MAX + 1)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: the preprocessing file is not UTF-8 text") from error
    if len(data) > FILE_BYTES_MAX:
        raise InputError(
            f"{path}: too long for a preprocessing file", expected=f"at most {FILE_BYTES_MAX} bytes"
        )
    return from_yaml(text, Preprocessing, what="the preprocessing file", path=str(path))


def default_preprocessing(spec: TensorSpec) -> Preprocessing:
    """What a model's input suggests: stretched, RGB or grey, floats from 0 to 1.

    Raises:
        InputError: the input isn't shaped like one picture, or of a type that pixels don't have.
    """
    layout = _image_layout(spec)
    if layout is None:
        raise InputError(
            f"can't tell how pictures become the model's input {spec.name!r}",
            got=f"{spec.dtype}{list(spec.shape)}",
            expected="[1, 1 or 3, height, width] or [1, height, width, 1 or 3] of floats or bytes",
            remedy="declare width, height, color, layout and dtype in a YAML file beside the model",
        )
    shape = spec.shape if layout == "NCHW" else _to_nchw(spec.shape)
    dtype: Any = spec.dtype
    return Preprocessing(
        input=spec.name,
        width=shape[3],
        height=shape[2],
        color="gray" if shape[1] == 1 else "rgb",
        scale=1 / 255 if dtype.startswith("float") else 1.0,
        layout=layout,
        dtype=dtype,
    )


class Preprocessor:
    """Turns HxWx3 RGB pictures into tensors of exactly one spec."""

    def __init__(self, preprocessing: Preprocessing, spec: TensorSpec) -> None:
        """Check the declaration against the model.

        Raises:
            InputError: it makes another shape or type than the model's input, or names another.
        """
        declared, wanted = (preprocessing.shape, preprocessing.dtype), (spec.shape, spec.dtype)
        if preprocessing.input not in ("", spec.name):
            declared_name = f"input {preprocessing.input!r}"
            raise InputError(
                "the preprocessing file is for another input than the model's",
                got=declared_name,
                expected=f"input {spec.name!r}",
                remedy="change `input` in the preprocessing file",
            )
        if declared != wanted:
            raise InputError(
                "the preprocessing file does not fit the model",
                got=f"the file makes {preprocessing.dtype}{list(preprocessing.shape)} "
                f"({preprocessing.layout}, {preprocessing.color})",
                expected=f"the model's input {spec.name!r} is {spec.dtype}{list(spec.shape)}",
                remedy="change `width`, `height`, `color`, `layout` or `dtype` in the file",
            )
        self._how = preprocessing
        self.spec = spec
        self._scaler = Scaler()
        self._tables = _tables(preprocessing)

    def __call__(self, image: Pixels) -> NDArray[Any]:
        """The tensor (``spec.shape``, ``spec.dtype``) of an HxWx3 RGB picture of any size."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise InputError(
                "not a picture",
                got=f"{image.dtype}{list(image.shape)}",
                expected="uint8[height, width, 3]",
            )
        pixels = self._fit(self._channels(image))
        tensor = np.empty(self._how.shape, dtype=self._how.dtype)
        for channel, table in enumerate(self._tables):
            nchw = self._how.layout == "NCHW"
            plane = tensor[0, channel] if nchw else tensor[0, :, :, channel]
            plane[...] = table[pixels[:, :, channel]]
        return tensor

    def _channels(self, image: Pixels) -> Pixels:
        if self._how.color == "gray":
            return luma(image)
        return image[:, :, ::-1] if self._how.color == "bgr" else image

    def _fit(self, image: Pixels) -> Pixels:
        """The picture at the size that the model wants."""
        how = self._how
        height, width = image.shape[:2]
        if how.resize == "stretch":
            return self._scaler.resize(image, how.width, how.height)
        if how.resize == "letterbox":
            ratio = min(how.width / width, how.height / height)
            inner = self._scaler.resize(image, _side(width, ratio), _side(height, ratio))
            return _letterbox(inner, how)
        if how.resize_shorter:
            ratio = how.resize_shorter / min(width, height)
        else:
            ratio = max(how.width / width, how.height / height)
        scaled_width = max(how.width, _side(width, ratio))
        scaled_height = max(how.height, _side(height, ratio))
        if max(scaled_width, scaled_height) > 4 * SIDE_PIXELS_MAX:
            raise InputError(
                "the picture is too long and thin to crop from",
                got=f"{width}x{height} pixels",
                remedy="use `resize: stretch` or `resize: letterbox` in the preprocessing file",
            )
        scaled = self._scaler.resize(image, scaled_width, scaled_height)
        top, left = (scaled_height - how.height) // 2, (scaled_width - how.width) // 2
        return scaled[top : top + how.height, left : left + how.width]


def _tables(how: Preprocessing) -> list[NDArray[Any]]:
    """Per channel the tensor's value of each of the 256 pixel values.

    Computed in double precision and rounded once: the same bits on every machine, and a look-up
    instead of arithmetic per frame. Integers are rounded to nearest and clipped to their range.
    """
    pixels = np.arange(256, dtype=np.float64) * how.scale
    tables = []
    for channel in range(how.channels):
        mean, std = how.mean[channel % len(how.mean)], how.std[channel % len(how.std)]
        values = (pixels - mean) / std
        if not how.dtype.startswith("float"):
            bounds = np.iinfo(how.dtype)
            values = np.clip(np.rint(values), bounds.min, bounds.max)
        tables.append(values.astype(how.dtype))
    return tables


def _letterbox(inner: Pixels, how: Preprocessing) -> Pixels:
    height, width, channels = inner.shape
    framed = np.full((how.height, how.width, channels), how.pad, dtype=np.uint8)
    top, left = (how.height - height) // 2, (how.width - width) // 2
    framed[top : top + height, left : left + width] = inner
    return framed


def _side(pixels: int, ratio: float) -> int:
    return max(1, round(pixels * ratio))


def _image_layout(spec: TensorSpec) -> Literal["NCHW", "NHWC"] | None:
    if len(spec.shape) != 4 or spec.shape[0] != 1 or min(spec.shape) < 1:
        return None
    if spec.dtype not in ("float32", "float64", "float16", "uint8"):
        return None
    if spec.shape[1] in (1, 3):
        return "NCHW"
    return "NHWC" if spec.shape[3] in (1, 3) else None


def _to_nchw(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], shape[3], shape[1], shape[2])


def _numbers(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:.6g}" for value in values)
