"""The attack gets back what crosses a cut, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from vaultline.core.errors import InputError
from vaultline.core.leakage import PSNR_DB_MAX
from vaultline.privacy import Measured, RidgeSettings, Sample, fit_ridge, luma, measure_cut, ssim
from vaultline.privacy.measure import above_blind, blind_ssim
from vaultline.privacy.ridge import _places

QUICKLY = partial(fit_ridge, settings=RidgeSettings(samples_max=3000, features_max=150))


def attacked(
    samples: list[Sample], crossing: Callable[[np.ndarray], Iterable[np.ndarray]]
) -> Measured:
    """Six pictures to fit on, three to attack, with another tensor crossing."""
    changed = [
        replace(s, stacks=tuple(np.asarray(p, np.float32) for p in crossing(s.stacks[0])))
        for s in samples
    ]
    return measure_cut(changed[:6], changed[6:], QUICKLY)


def shrunk(planes: np.ndarray, factor: int) -> np.ndarray:
    channels, height, width = planes.shape
    return planes.reshape(channels, height // factor, factor, width // factor, factor).mean((2, 4))


def mixed(planes: np.ndarray) -> np.ndarray:
    """Sixteen rectified mixtures of the colours: invertible, not linearly."""
    mixing = np.random.default_rng(1).standard_normal((16, 3))
    return np.maximum(np.tensordot(mixing, planes - 0.5, 1), 0)


def test_the_input_itself_is_reconstructed(samples: list[Sample]) -> None:
    found = attacked(samples, lambda planes: (planes,))
    assert found.reconstruction > 0.99
    assert found.ssim > 0.999
    assert found.psnr_db > 60
    assert found.resolution_px == 48


#: What crosses instead of the picture -> least and largest share that must come back.
CROSSINGS: dict[str, tuple[Callable[[np.ndarray], object], float, float]] = {
    "a scaled and shifted negative": (lambda p: (5 - 1000 * p,), 0.99, 1),
    "a rectified mixture": (lambda p: (mixed(p),), 0.9, 1),
    "half of the channels in another tensor": (lambda p: (p[:1], p[1:]), 0.99, 1),
    "one colour": (lambda p: (p[:1],), 0.02, 0.9),
    "half the size": (lambda p: (shrunk(p, 2),), 0.5, 0.95),
    "a quarter of the size": (lambda p: (shrunk(p, 4),), 0.2, 0.8),
    "an eighth of the size": (lambda p: (shrunk(p, 8),), 0.0, 0.5),
    "a coarse copy beside a fine one": (lambda p: (shrunk(p, 8), p), 0.99, 1),
    "shifted by one pixel": (lambda p: (np.roll(p, 1, axis=2),), 0.9, 1),
    "the mean colour": (lambda p: (p.mean(axis=(1, 2), keepdims=True),), 0.0, 0.2),
    "nothing": (lambda p: (), 0.0, 0.01),
    "constants": (lambda p: (np.full((4, 12, 12), 3.0),), 0.0, 0.01),
    "noise": (
        lambda p: (np.random.default_rng(int(p.sum() * 1e3)).standard_normal((4, 24, 24)),),
        0.0,
        0.05,
    ),
}


@pytest.mark.parametrize("case", CROSSINGS)
def test_as_much_comes_back_as_has_crossed(samples: list[Sample], case: str) -> None:
    crossing, least, largest = CROSSINGS[case]
    found = attacked(samples, crossing)
    assert least <= found.reconstruction <= largest


def test_what_was_destroyed_is_no_better_than_a_guess(samples: list[Sample]) -> None:
    found = attacked(samples, lambda planes: (np.zeros((3, 12, 12)),))
    pictures = [sample.picture for sample in samples]
    colour = np.mean(pictures[:6], axis=(0, 1, 2))
    flat = np.broadcast_to(colour, pictures[0].shape)
    guessed = np.mean([ssim(luma(flat), luma(picture)) for picture in pictures[6:]])
    assert found.ssim == pytest.approx(guessed, abs=0.01)
    assert found.ssim <= found.blind + 0.01
    for made in found.reconstructions:
        assert np.abs(made - colour).max() < 0.02


def test_halving_the_size_again_and_again_leaves_less(samples: list[Sample]) -> None:
    scores = [
        attacked(samples, lambda p, n=factor: (shrunk(p, n),)).reconstruction
        for factor in (1, 2, 4, 8)
    ]
    assert scores == sorted(scores, reverse=True)


def test_the_same_samples_give_the_same_scores(samples: list[Sample]) -> None:
    one, other = (attacked(samples, lambda planes: (shrunk(planes, 2),)) for _ in range(2))
    assert one.ssim == other.ssim


def test_two_training_pictures_are_enough(samples: list[Sample]) -> None:
    found = measure_cut(samples[:2], samples[6:], QUICKLY)
    assert found.reconstruction > 0.99


def test_a_picture_on_both_sides_is_refused(samples: list[Sample]) -> None:
    view = replace(samples[7], picture=samples[7].picture[:, ::-1])
    with pytest.raises(InputError, match="must not be one that the decoder was fitted on"):
        measure_cut([*samples[:6], view], samples[6:], fit_ridge)


def test_a_held_out_picture_is_never_seen_by_the_fit(samples: list[Sample]) -> None:
    seen: list[np.ndarray] = []

    def fit(views: object, pictures: list[np.ndarray], owners: list[int]) -> object:
        seen.extend(pictures)
        assert set(owners) == set(range(6))
        return lambda stacks: pictures[0]

    measure_cut(samples[:6], samples[6:], fit)  # type: ignore[arg-type]
    assert len(seen) == 6
    for held_out in samples[6:]:
        assert not any(np.array_equal(held_out.picture, picture) for picture in seen)


def test_blank_pictures_are_refused() -> None:
    blank = [np.full((16, 16, 3), 0.5)] * 3
    with pytest.raises(InputError, match="show nothing"):
        blind_ssim(blank, blank)


def test_a_share_lies_between_blind_and_perfect() -> None:
    assert above_blind(1.0, 0.4) == 1
    assert above_blind(0.7, 0.4) == pytest.approx(0.5)
    assert above_blind(0.3, 0.4) == 0


def test_a_copy_has_the_largest_psnr(samples: list[Sample]) -> None:
    def fit(views: object, pictures: object, owners: object) -> object:
        return lambda stacks: np.moveaxis(stacks[0], 0, 2)

    exact = [replace(s, picture=s.picture.astype(np.float32)) for s in samples]
    found = measure_cut(exact[:6], exact[6:], fit)  # type: ignore[arg-type]
    assert (found.psnr_db, found.reconstruction) == (PSNR_DB_MAX, 1)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (40, 60)])
def test_sampled_places_are_on_the_grid_and_differ_between_views(shape: tuple[int, int]) -> None:
    rows, columns = _places(shape, 100, 0)
    assert 0 <= rows.min() <= rows.max() < shape[0]
    assert 0 <= columns.min() <= columns.max() < shape[1]
    assert len(rows) == min(100, shape[0] * shape[1])
    assert len(set(zip(rows.tolist(), columns.tolist(), strict=True))) > 0.9 * len(rows)
    if len(rows) == 100:
        assert not np.array_equal(rows, _places(shape, 100, 1)[0])
