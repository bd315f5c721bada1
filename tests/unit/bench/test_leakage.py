"""Leakage of real (tiny) models: every candidate cut, no picture on both sides, resumable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from vaultline.bench.conv_decoder import fit_conv, require_torch
from vaultline.bench.leakage import LeakageRequest, measure_leakage
from vaultline.bench.leakage_data import (
    HELD_OUT_MAX,
    VIEWS,
    read_pictures,
    seen_picture,
    spatial_shapes,
    split,
    views_each,
    views_of,
)
from vaultline.core.errors import InputError
from vaultline.core.leakage import read_leakage, write_leakage
from vaultline.core.tensors import TensorSpec
from vaultline.graph.cuts import candidates
from vaultline.graph.model import load_model
from vaultline.graph.structure import Model
from vaultline.video.preprocess import Preprocessing, Preprocessor, default_preprocessing

SIDE = 24


def weights(seed: int, *shape: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Two convolutions, each halving the picture, a flattened map and a classifier."""
    made = {"w1": weights(1, 12, 3, 3, 3), "w2": weights(2, 16, 12, 3, 3), "w3": weights(3, 576, 5)}
    halve = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], **halve),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], **halve),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Flatten", ["r2"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w3"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(array, name) for name, array in made.items()],
    )
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return load_model(path)


def picture(number: int) -> np.ndarray:
    """A picture of discs on a gradient, 40 x 30 pixels."""
    random = np.random.default_rng(number)
    y, x = np.mgrid[:30, :40]
    image = np.stack([x * 3, y * 4, x + y], axis=2) * random.uniform(0.3, 1, 3)
    for _ in range(5):
        cy, cx, radius = random.integers(30), random.integers(40), random.integers(3, 9)
        image[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = random.integers(0, 256, 3)
    return image.astype(np.uint8)


def request(cache: Path, count: int = 6, **more: object) -> LeakageRequest:
    how = Preprocessing(width=SIDE, height=SIDE)
    given = {"pictures": [picture(n) for n in range(count)], "preprocessing": how, "cache": cache}
    return LeakageRequest(**{**given, **more})  # type: ignore[arg-type]


class CountingFit:
    """An attack that gives up: grey for everything. Remembers what it was given."""

    def __init__(self, fails_at: int = 0) -> None:
        self.seen: list[list[np.ndarray]] = []
        self._fails_at = fails_at

    def __call__(self, views: object, pictures: list[np.ndarray], owners: object) -> Callable:
        if len(self.seen) + 1 == self._fails_at:
            raise KeyboardInterrupt
        self.seen.append(list(pictures))
        return lambda stacks: np.full(pictures[0].shape, 0.5)


def test_every_candidate_cut_is_measured_and_less_comes_back_along_the_model(
    model: Model, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    found = measure_leakage(model, request(tmp_path), lambda *step: told.append(step))
    report = found.report
    assert report.positions == candidates(model)
    assert read_leakage(write_leakage(report)) == report
    scores = [cut.reconstruction for cut in report.cuts]
    assert scores[0] > 0.99
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < 0.2
    assert [cut.resolution_px for cut in report.cuts] == [24, 12, 6, 1]
    assert report.cuts[1].revealing.startswith("r1[")
    assert (report.model_digest, report.images) == (model.digest, 6)
    assert told == [(done, 4) for done in range(5)]
    assert (found.training, found.held_out) == (4, 2)


def test_a_flattened_map_is_still_seen_as_a_map(model: Model, tmp_path: Path) -> None:
    assert spatial_shapes(model) == {"flat": (1, 16, 6, 6)}
    found = measure_leakage(model, request(tmp_path, positions=[5]))
    (cut,) = found.report.cuts
    assert (cut.tensors, cut.resolution_px) == (("flat",), 6)
    assert found.records[0].shapes == ((1, 576),)


def test_an_interrupted_measurement_goes_on_where_it_was(model: Model, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        measure_leakage(model, request(tmp_path), fit=CountingFit(fails_at=3))
    again = CountingFit()
    found = measure_leakage(model, request(tmp_path), fit=again)
    assert len(again.seen) == 2
    assert found.report.positions == candidates(model)
    third = CountingFit()
    assert measure_leakage(model, request(tmp_path), fit=third).records == found.records
    assert third.seen == []


CHANGES = {
    "another picture": {"pictures": [picture(n) for n in range(1, 7)]},
    "another order": {"pictures": [picture(n) for n in range(5, -1, -1)]},
    "another preprocessing": {
        "preprocessing": Preprocessing(width=SIDE, height=SIDE, resize="crop")
    },
    "another decoder": {"decoder": "conv"},
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_was_cached_for_other_settings_is_not_used(
    case: str, model: Model, tmp_path: Path
) -> None:
    first, second = CountingFit(), CountingFit()
    measure_leakage(model, request(tmp_path, positions=[0]), fit=first)
    measure_leakage(model, request(tmp_path, positions=[0], **CHANGES[case]), fit=second)
    assert len(second.seen) == 1


def test_a_damaged_cache_file_is_measured_again(model: Model, tmp_path: Path) -> None:
    measure_leakage(model, request(tmp_path, positions=[0, 2]), fit=CountingFit())
    damaged, other = sorted(tmp_path.glob("*.json"))
    damaged.write_bytes(damaged.read_bytes()[:-20])
    other.write_bytes(other.read_bytes().replace(b'"position":2', b'"position":4'))
    again = CountingFit()
    measure_leakage(model, request(tmp_path, positions=[0, 2]), fit=again)
    assert len(again.seen) == 2


def test_no_view_of_a_held_out_picture_is_trained_on(model: Model, tmp_path: Path) -> None:
    fit = CountingFit()
    asked = request(tmp_path, positions=[0], count=6)
    measure_leakage(model, asked, fit=fit)
    preprocessor = Preprocessor(asked.preprocessing, model.inputs[0])
    training, held_out = split(6)
    assert (training, held_out) == ((0, 2, 3, 5), (1, 4))

    def views(numbers: tuple[int, ...]) -> set[bytes]:
        return {
            seen_picture(preprocessor(view), asked.preprocessing).tobytes()
            for number in numbers
            for view in views_of(asked.pictures[number], 16)
        }

    seen = {image.tobytes() for image in fit.seen[0]}
    assert seen <= views(training)
    assert not seen & views(held_out)
    assert len(fit.seen[0]) == 4 * views_each(4, 1)


@pytest.mark.parametrize("count", [3, 4, 7, 10, 24, 100])
def test_pictures_are_split_once_and_for_all(count: int) -> None:
    training, held_out = split(count)
    assert sorted(training + held_out) == list(range(count))
    assert len(training) >= 2
    assert 1 <= len(held_out) <= HELD_OUT_MAX
    assert split(count) == (training, held_out)


def test_views_are_many_but_fit_in_memory() -> None:
    assert views_each(2, 1) == 16
    assert views_each(7, 1) == VIEWS // 7
    assert views_each(1000, 1) == 1
    assert views_each(2, 1 << 28) == 2
    assert views_each(2, 1 << 40) == 1


def test_views_of_a_picture_differ_and_start_with_the_whole() -> None:
    views = views_of(picture(0), 16)
    assert np.array_equal(views[0], picture(0))
    assert np.array_equal(views[1], picture(0)[:, ::-1])
    assert len({view.tobytes() for view in views}) == 16
    assert [view.shape for view in views_of(np.zeros((1, 1, 3), np.uint8), 16)] == [(1, 1, 3)] * 16


PREPROCESSINGS = {
    "plain": Preprocessing(width=40, height=30),
    "normalised": Preprocessing(
        width=40, height=30, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    ),
    "blue first, channels last": Preprocessing(width=40, height=30, color="bgr", layout="NHWC"),
    "bytes": Preprocessing(width=40, height=30, scale=1, dtype="uint8"),
}


@pytest.mark.parametrize("case", PREPROCESSINGS)
def test_the_picture_is_read_back_from_the_input(case: str) -> None:
    how = PREPROCESSINGS[case]
    spec = TensorSpec(name="x", dtype=how.dtype, shape=how.shape)
    seen = seen_picture(Preprocessor(how, spec)(picture(3)), how)
    assert seen == pytest.approx(picture(3) / 255, abs=1e-5)


def test_a_grey_input_is_read_back_in_three_equal_colours() -> None:
    how = Preprocessing(width=40, height=30, color="gray")
    spec = TensorSpec(name="x", dtype="float32", shape=how.shape)
    seen = seen_picture(Preprocessor(how, spec)(picture(3)), how)
    assert seen.shape == (30, 40, 3)
    assert np.array_equal(seen[..., 0], seen[..., 2])


def test_copies_of_a_picture_count_once(tmp_path: Path) -> None:
    for number in range(4):
        Image.fromarray(picture(number)).save(tmp_path / f"{number}.png")
    Image.fromarray(picture(2)).save(tmp_path / "copy.png")
    assert len(read_pictures(tmp_path)) == 4


def test_too_few_pictures_are_refused_with_how_many_are_needed(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        Image.fromarray(picture(0)).save(tmp_path / f"{name}.png")
    with pytest.raises(InputError, match="too few pictures") as caught:
        read_pictures(tmp_path)
    assert "at least 3" in str(caught.value.expected)


BAD_REQUESTS: dict[str, tuple[dict[str, object], str]] = {
    "a cut that is no candidate": ({"positions": [0, 1]}, "no such candidate cut"),
    "no cuts": ({"positions": []}, "no such candidate cut"),
    "two pictures": ({"count": 2}, "too few pictures"),
    "blank pictures": (
        {"pictures": [np.full((9, 9, 3), 99, np.uint8)] * 4, "positions": [0]},
        "show nothing",
    ),
    "a preprocessing for another model": (
        {"preprocessing": Preprocessing(width=8, height=8)},
        "does not fit the model",
    ),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_request_that_cannot_be_met_is_refused(case: str, model: Model, tmp_path: Path) -> None:
    changes, message = BAD_REQUESTS[case]
    with pytest.raises(InputError, match=message):
        measure_leakage(model, request(tmp_path, **changes))  # type: ignore[arg-type]


def test_the_default_preprocessing_fits(model: Model, tmp_path: Path) -> None:
    how = default_preprocessing(model.inputs[0])
    found = measure_leakage(model, request(tmp_path, positions=[0], preprocessing=how))
    assert found.report.cuts[0].reconstruction > 0.99


def has_torch() -> bool:
    try:
        require_torch()
    except InputError:
        return False
    return True


@pytest.mark.skipif(has_torch(), reason="PyTorch is installed")
def test_without_pytorch_the_convolutional_decoder_says_what_to_install(
    model: Model, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="needs PyTorch") as caught:
        measure_leakage(model, request(tmp_path, positions=[0], decoder="conv"))
    assert "[attack]" in str(caught.value.remedy)


@pytest.mark.skipif(not has_torch(), reason="PyTorch is not installed")
def test_the_convolutional_decoder_adds_to_the_ridge_decoder(model: Model, tmp_path: Path) -> None:
    ridge = measure_leakage(model, request(tmp_path, positions=[2, 5]))
    for steps, least in ((0, 1.0), (60, 0.9)):

        def fit(*given: object, count: int = steps) -> object:
            return fit_conv(*given, steps=count)  # type: ignore[arg-type]

        folder = tmp_path / str(steps)
        folder.mkdir()
        conv = measure_leakage(model, request(folder, positions=[2, 5]), fit=fit)  # type: ignore[arg-type]
        for one, other in zip(ridge.report.cuts, conv.report.cuts, strict=True):
            assert other.reconstruction >= least * one.reconstruction - 1e-4
