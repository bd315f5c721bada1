"""Pictures to tensors: geometry, colours, arithmetic, and what does not fit a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.core.errors import InputError
from vaultline.core.tensors import TensorSpec
from vaultline.video import (
    Preprocessing,
    Preprocessor,
    default_preprocessing,
    load_preprocessing,
)
from vaultline.video.pixels import Scaler, luma

PLAIN: dict[str, Any] = {"width": 8, "height": 6, "scale": 1.0}


def run(image: np.ndarray, **fields: Any) -> np.ndarray:
    how = Preprocessing(**{**PLAIN, **fields})
    return Preprocessor(how, spec_of(how))(image)


def spec_of(how: Preprocessing) -> TensorSpec:
    return TensorSpec(name="image", dtype=how.dtype, shape=how.shape)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_picture_of_the_right_size_is_only_rearranged() -> None:
    image = noise(6, 8)
    np.testing.assert_array_equal(run(image)[0], image.transpose(2, 0, 1))
    np.testing.assert_array_equal(run(image, layout="NHWC")[0], image)
    np.testing.assert_array_equal(run(image, color="bgr", layout="NHWC")[0], image[:, :, ::-1])
    np.testing.assert_array_equal(run(image, color="gray")[0, 0], luma(image)[:, :, 0])


def test_scale_mean_and_deviation_apply_per_channel_in_the_models_order() -> None:
    image = noise(6, 8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    made = run(image, scale=1 / 255, mean=mean, std=std, color="bgr")
    wanted = (image[:, :, ::-1] / 255 - mean) / std
    np.testing.assert_array_equal(made[0], wanted.transpose(2, 0, 1).astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8", "int8", "int32"])
def test_each_element_type_holds_the_rounded_value(dtype: Any) -> None:
    image = noise(6, 8)
    made = run(image, dtype=dtype, scale=0.5, mean=(7.0,), layout="NHWC")
    exact = image * 0.5 - 7
    if not dtype.startswith("float"):
        exact = np.clip(np.rint(exact), np.iinfo(dtype).min, np.iinfo(dtype).max)
    assert made.dtype == dtype
    np.testing.assert_array_equal(made[0], exact.astype(dtype))


def test_stretching_averages_what_it_shrinks_and_keeps_flat_colours_exact() -> None:
    image = np.zeros((60, 80, 3), dtype=np.uint8)
    image[:, :40], image[:, 40:] = (10, 20, 30), (200, 210, 220)
    made = run(image, layout="NHWC")[0]
    np.testing.assert_array_equal(made[:, :3], np.broadcast_to((10, 20, 30), (6, 3, 3)))
    np.testing.assert_array_equal(made[:, 5:], np.broadcast_to((200, 210, 220), (6, 3, 3)))
    stripes = np.zeros((60, 80, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(run(stripes, layout="NHWC")[0, :, 1:-1] - 127.5).max() < 16


def test_a_ramp_is_resized_to_a_ramp() -> None:
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (64, 256, 3))
    made = Scaler().resize(np.ascontiguousarray(ramp), 32, 16)
    wanted = (np.arange(32) + 0.5) * 8 - 0.5
    assert np.abs(made[:, 1:-1] - wanted[None, 1:-1, None]).max() <= 1


def test_a_letterbox_keeps_the_aspect_ratio_and_pads_evenly() -> None:
    made = run(np.full((30, 80, 3), 9, dtype=np.uint8), resize="letterbox", pad=77)[0, 0]
    np.testing.assert_array_equal(made[1:4], 9)
    np.testing.assert_array_equal(made[[0, 4, 5]], 77)
    tall = run(np.full((60, 20, 3), 9, dtype=np.uint8), resize="letterbox", pad=77)[0, 0]
    np.testing.assert_array_equal(tall[:, 3:5], 9)
    np.testing.assert_array_equal(tall[:, [0, 1, 2, 5, 6, 7]], 77)


def test_a_crop_takes_the_centre() -> None:
    image = np.zeros((6, 24, 3), dtype=np.uint8)
    image[:, 8:16] = 50
    np.testing.assert_array_equal(run(image, resize="crop")[0, 0], 50)
    framed = np.zeros((12, 12, 3), dtype=np.uint8)
    framed[3:9, 2:10] = 50
    made = run(framed, resize="crop", resize_shorter=12)
    np.testing.assert_array_equal(made[0, 0], 50)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    resize=st.sampled_from(["stretch", "letterbox", "crop"]),
    color=st.sampled_from(["rgb", "bgr", "gray"]),
    layout=st.sampled_from(["NCHW", "NHWC"]),
    grey=st.integers(0, 255),
)
def test_any_picture_becomes_exactly_the_models_tensor(
    height: int, width: int, resize: Any, color: Any, layout: Any, grey: int
) -> None:
    how = Preprocessing(
        width=31, height=17, resize=resize, color=color, layout=layout, scale=1.0, pad=grey
    )
    made = Preprocessor(how, spec_of(how))(np.full((height, width, 3), grey, dtype=np.uint8))
    assert made.shape == how.shape
    assert made.dtype == np.float32
    assert made.flags.c_contiguous
    np.testing.assert_array_equal(made, grey)


def test_the_same_picture_makes_the_same_bytes() -> None:
    image = noise(270, 480)
    again = [run(image, width=224, height=224, resize="crop").tobytes() for _ in range(2)]
    assert again[0] == again[1]


def test_what_is_not_a_picture_is_refused() -> None:
    for wrong in (np.zeros((6, 8), np.uint8), np.zeros((6, 8, 3)), np.zeros((0, 8, 3), np.uint8)):
        with pytest.raises(InputError, match="not a picture"):
            run(wrong)


MISMATCHES: dict[str, TensorSpec] = {
    "other size": TensorSpec(name="image", dtype="float32", shape=(1, 3, 8, 8)),
    "other channels": TensorSpec(name="image", dtype="float32", shape=(1, 1, 6, 8)),
    "other layout": TensorSpec(name="image", dtype="float32", shape=(1, 6, 8, 3)),
    "other type": TensorSpec(name="image", dtype="float16", shape=(1, 3, 6, 8)),
    "not a picture": TensorSpec(name="image", dtype="float32", shape=(1, 144)),
}


@pytest.mark.parametrize("spec", MISMATCHES.values(), ids=MISMATCHES.keys())
def test_a_file_that_does_not_fit_the_model_is_refused_naming_both(spec: TensorSpec) -> None:
    with pytest.raises(InputError, match="does not fit") as caught:
        Preprocessor(Preprocessing(**PLAIN), spec)
    assert "[1, 3, 6, 8]" in (caught.value.got or "")
    assert str(list(spec.shape)) in (caught.value.expected or "")
    assert "'image'" in (caught.value.expected or "")


def test_a_file_for_another_input_is_refused() -> None:
    how = Preprocessing(**PLAIN, input="photo")
    with pytest.raises(InputError, match="another input"):
        Preprocessor(how, spec_of(how))


DEFAULTS: dict[tuple[int, ...], tuple[str, str, tuple[int, int]]] = {
    (1, 3, 48, 64): ("rgb", "NCHW", (64, 48)),
    (1, 1, 28, 30): ("gray", "NCHW", (30, 28)),
    (1, 48, 64, 3): ("rgb", "NHWC", (64, 48)),
    (1, 48, 64, 1): ("gray", "NHWC", (64, 48)),
}


@pytest.mark.parametrize(("shape", "wanted"), DEFAULTS.items())
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_without_a_file_the_models_input_says_how(
    shape: tuple[int, ...], wanted: tuple[str, str, tuple[int, int]], dtype: str
) -> None:
    spec = TensorSpec(name="image", dtype=dtype, shape=shape)
    how = default_preprocessing(spec)
    assert (how.color, how.layout, (how.width, how.height)) == wanted
    made = Preprocessor(how, spec)(np.full((90, 70, 3), 255, dtype=np.uint8))
    np.testing.assert_array_equal(made, 255 if dtype == "uint8" else 1)
    assert "stretch to" in how.describe()


@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec(name="x", dtype="float32", shape=(1, 64)),
        TensorSpec(name="x", dtype="float32", shape=(2, 3, 8, 8)),
        TensorSpec(name="x", dtype="float32", shape=(1, 4, 8, 8)),
        TensorSpec(name="x", dtype="int64", shape=(1, 3, 8, 8)),
    ],
    ids=["flat", "a batch of two", "four channels", "words"],
)
def test_an_input_that_says_nothing_of_pictures_has_no_default(spec: TensorSpec) -> None:
    with pytest.raises(InputError, match="can't tell") as caught:
        default_preprocessing(spec)
    assert caught.value.remedy


def test_a_file_says_all_that_it_may(tmp_path: Path) -> None:
    path = tmp_path / "model.preprocess.yaml"
    path.write_text(
        "input: image\nwidth: 224\nheight: 160\nresize: crop\nresize_shorter: 256\ncolor: bgr\n"
        "scale: 1\nmean: [104, 117.0, 123]\nstd: [1, 1, 1]\nlayout: NHWC\ndtype: float16\n",
        encoding="utf-8",
    )
    how = load_preprocessing(path)
    assert how.shape == (1, 160, 224, 3)
    assert how.mean == (104.0, 117.0, 123.0)
    assert how.dtype == "float16"


BAD_FILES = {
    "a size is missing": ("width: 8\n", "height"),
    "an unknown word": ("width: 8\nheight: 8\ncolour: rgb\n", "colour"),
    "an unknown way to resize": ("width: 8\nheight: 8\nresize: squash\n", "resize"),
    "no width": ("width: 0\nheight: 8\n", "width"),
    "a huge height": ("width: 8\nheight: 99999\n", "height"),
    "two means": ("width: 8\nheight: 8\nmean: [1, 2]\n", "mean"),
    "three means for grey": ("width: 8\nheight: 8\ncolor: gray\nmean: [1, 2, 3]\n", "mean"),
    "a deviation of zero": ("width: 8\nheight: 8\nstd: [0]\n", "std"),
    "a negative scale": ("width: 8\nheight: 8\nscale: -1\n", "scale"),
    "an infinite mean": ("width: 8\nheight: 8\nmean: [.inf]\n", "mean"),
    "too small a shorter side": ("width: 8\nheight: 9\nresize: crop\nresize_shorter: 8\n", "9"),
    "a shorter side without a crop": ("width: 8\nheight: 8\nresize_shorter: 9\n", "crop"),
    "not YAML": ("width: [8\n", "YAML"),
    "a list": ("- 8\n", "preprocessing file"),
    "nothing": ("", "preprocessing file"),
}


@pytest.mark.parametrize(("text", "named"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_refuses_a_file_with(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_preprocessing(path)
    assert named in caught.value.diagnostics()
    assert "bad.yaml" in caught.value.message


def test_refuses_a_missing_or_binary_or_endless_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such preprocessing file"):
        load_preprocessing(tmp_path / "gone.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        load_preprocessing(tmp_path / "binary.yaml")
    (tmp_path / "long.yaml").write_text("#" * 70_000, encoding="utf-8")
    with pytest.raises(InputError, match="too long"):
        load_preprocessing(tmp_path / "long.yaml")
