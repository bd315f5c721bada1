"""A second attack, of the extra ``[attack]``: a small convolutional decoder, trained.

It sees the same planes through the same interface as the ridge decoder and starts from that one's
reconstruction; the network learns what to add. So that it learns from the kind of errors that it
will meet, the starts that it is trained on are of ridge decoders fitted on other pictures. Training
is seeded, on one thread, for a fixed number of steps; the state kept is the one that did best on
training pictures left out, adding nothing among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import log2
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaultline.core.errors import InputError
from vaultline.privacy import Decoder, Planes, fit_ridge
from vaultline.privacy.planes import on_one_grid
from vaultline.privacy.ssim import C1, C2, SIGMA_PX, WINDOW_PX, Floats

STEPS = 400
BATCH = 4
#: Longest side of what a step looks at, so that steps take about as long at every cut; the whole
#: picture, one at a time, where a place of the grid is a large part of it.
CROP_PX = 96
WHOLE_GRID = 7
CHECK_EVERY = 50
#: Channels at the picture's resolution, at half of it, and so on.
WIDTHS = (24, 32, 48, 64, 96, 128)
LEARNING_RATE = 2e-3
SEED = 0
#: Weight, beside the squared error, of the score by which the attack is judged.
SSIM_WEIGHT = 0.2
#: Pictures needed to fit a ridge decoder on some and start from it on others, and the reverse.
_FOLDS_FROM = 4


def require_torch() -> Any:
    """PyTorch.

    Raises:
        InputError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(
            "the convolutional decoder needs PyTorch, which is not installed",
            expected="the extra `attack`",
            remedy="in a clone of vaultline: pip install '.[attack]'; or use `--decoder ridge`",
        ) from error
    return torch


def fit_conv(
    views: Sequence[Sequence[Planes]],
    pictures: Sequence[Floats],
    owners: Sequence[int],
    steps: int = STEPS,
) -> Decoder:
    """Train the decoder on what crosses a cut for known pictures; arguments as of ``fit_ridge``.

    Raises:
        InputError: PyTorch is not installed.
    """
    torch = require_torch()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    ridge = fit_ridge(views, pictures, owners)
    batches = _Batches(torch, views, pictures, _starts(views, pictures, owners, ridge))
    left_out = set(sorted(set(owners))[1::3])
    learnt = [index for index, owner in enumerate(owners) if owner not in left_out]
    tried = [list(owners).index(owner) for owner in sorted(left_out)]
    network = _network(torch, batches)
    _train(torch, network, batches, (learnt, tried), steps)

    def decode(stacks: Sequence[Planes]) -> NDArray[np.float64]:
        start = np.moveaxis(ridge(stacks), 2, 0)
        with torch.no_grad():
            made = network(batches.features(on_one_grid(stacks)), batches.tensor(start))
        return np.asarray(np.moveaxis(made[0].clamp(0, 1).numpy(), 0, 2), dtype=np.float64)

    return decode


def _starts(
    views: Sequence[Sequence[Planes]],
    pictures: Sequence[Floats],
    owners: Sequence[int],
    ridge: Decoder,
) -> list[NDArray[np.float64]]:
    """A ridge reconstruction of each view, by a decoder that was fitted on other pictures."""
    known = sorted(set(owners))
    if len(known) < _FOLDS_FROM:
        return [ridge(view) for view in views]
    decoders = []
    for fold in (known[::2], known[1::2]):
        rest = [index for index, owner in enumerate(owners) if owner not in fold]
        decoders.append(
            fit_ridge(
                [views[i] for i in rest], [pictures[i] for i in rest], [owners[i] for i in rest]
            )
        )
    return [
        decoders[known.index(owner) % 2](view) for owner, view in zip(owners, views, strict=True)
    ]


class _Batches:
    """Training views as tensors: all of one, or the same part of planes, start and picture."""

    def __init__(
        self,
        torch: Any,
        views: Sequence[Sequence[Planes]],
        pictures: Sequence[Floats],
        starts: Sequence[NDArray[np.float64]],
    ) -> None:
        self._torch = torch
        self._planes = [on_one_grid(view) for view in views]
        self._pictures = [np.moveaxis(picture, 2, 0) for picture in pictures]
        self._starts = [np.moveaxis(start, 2, 0) for start in starts]
        means = [planes.mean(axis=(1, 2)) for planes in self._planes]
        squares = [np.square(planes).mean(axis=(1, 2)) for planes in self._planes]
        self._mean = np.mean(means, axis=0)[:, np.newaxis, np.newaxis]
        variance = np.mean(squares, axis=0)[:, np.newaxis, np.newaxis] - self._mean**2
        self._scale = 1 / np.sqrt(np.maximum(variance, 1e-12) + 1e-6)
        self.channels, *grid = self._planes[0].shape
        self.grid = (grid[0], grid[1])
        self.picture = self._pictures[0].shape[1:]
        self.whole = max(self.grid) <= WHOLE_GRID

    def tensor(self, array: NDArray[np.generic]) -> Any:
        """A batch of one."""
        return self._torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None]

    def features(self, planes: Planes) -> Any:
        """Normalised planes, as a batch of one."""
        return self.tensor((planes - self._mean) * self._scale)

    def view(self, index: int) -> tuple[Any, Any, Any]:
        """Features, start and picture of a view."""
        return (
            self.features(self._planes[index]),
            self.tensor(self._starts[index]),
            self.tensor(self._pictures[index]),
        )

    def parts(self, indices: Sequence[int], random: np.random.Generator) -> tuple[Any, Any, Any]:
        """The same for a random part of some views, or for one whole view."""
        if self.whole:
            return self.view(indices[0])
        cut = [self._part(index, random) for index in indices]
        joined = [self._torch.cat(tensors) for tensors in zip(*cut, strict=True)]
        return joined[0], joined[1], joined[2]

    def _part(self, index: int, random: np.random.Generator) -> tuple[Any, Any, Any]:
        places, pixels = [], []
        for side, length in zip(self.grid, self.picture, strict=True):
            count = min(side, max(WHOLE_GRID, round(CROP_PX * side / length)))
            first = int(random.integers(side - count + 1))
            begin = round(first * length / side)
            places.append(slice(first, first + count))
            pixels.append(slice(begin, min(length, begin + round(count * length / side))))
        planes = self._planes[index][:, *places]
        mean_part = (planes - self._mean) * self._scale
        return (
            self.tensor(mean_part),
            self.tensor(self._starts[index][:, *pixels]),
            self.tensor(self._pictures[index][:, *pixels]),
        )


def _network(torch: Any, batches: _Batches) -> Any:
    """Features are refined, doubled in size up to the picture's, and merged with the start."""
    nn, functional = torch.nn, torch.nn.functional
    grid = (WHOLE_GRID, WHOLE_GRID) if max(batches.grid) == 1 else batches.grid
    doublings = max(0, round(log2(max(batches.picture) / max(grid))))
    widths = [WIDTHS[min(step, len(WIDTHS) - 1)] for step in range(doublings, -1, -1)]

    def block(into: int, out: int, size: int = 3) -> Any:
        return nn.Sequential(nn.Conv2d(into, out, size, padding=size // 2), nn.GELU())

    class Decode(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            if max(batches.grid) == 1:
                squeeze = nn.Linear(batches.channels, WIDTHS[-1])
                spread = nn.Linear(WIDTHS[-1], widths[0] * grid[0] * grid[1])
                shaped = nn.Unflatten(1, (widths[0], *grid))
                self.enter = nn.Sequential(nn.Flatten(), squeeze, nn.GELU(), spread, shaped)
            else:
                self.enter = block(batches.channels, widths[0], 1)
            self.refine = block(widths[0], widths[0])
            self.grow = nn.ModuleList(block(into, out) for into, out in pairwise(widths))
            self.merge = block(widths[-1] + 3, widths[-1])
            self.leave = nn.Conv2d(widths[-1], 3, 3, padding=1)
            nn.init.zeros_(self.leave.weight)
            nn.init.zeros_(self.leave.bias)

        def forward(self, planes: Any, start: Any) -> Any:
            made = self.enter(planes)
            made = made + self.refine(made)
            for grow in self.grow:
                made = grow(functional.interpolate(made, scale_factor=2, mode="bilinear"))
            sized = functional.interpolate(made, size=start.shape[2:], mode="bilinear")
            return start + self.leave(self.merge(torch.cat([sized, start], dim=1)))

    return Decode()


def _train(
    torch: Any,
    network: Any,
    batches: _Batches,
    sides: tuple[Sequence[int], Sequence[int]],
    steps: int,
) -> None:
    """Fit the network on the first side's views; keep the state that is best on the second's."""
    learnt, tried = sides
    random = np.random.default_rng(SEED)
    alike = _torch_ssim(torch)
    chosen = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(chosen, steps)

    def score() -> float:
        with torch.no_grad():
            return sum(
                float(alike(network(planes, start).clamp(0, 1), picture))
                for planes, start, picture in map(batches.view, tried)
            )

    best, state = score(), _copied(network)
    for step in range(1, steps + 1):
        indices = random.choice(learnt, min(BATCH, len(learnt)), replace=False)
        planes, start, picture = batches.parts([int(i) for i in indices], random)
        made = network(planes, start)
        loss = torch.mean((made - picture) ** 2) + SSIM_WEIGHT * (1 - alike(made, picture))
        chosen.zero_grad()
        loss.backward()
        chosen.step()
        slower.step()
        if step % CHECK_EVERY == 0 or step == steps:
            found = score()
            if found > best:
                best, state = found, _copied(network)
    network.load_state_dict(state)


def _copied(network: Any) -> dict[str, Any]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def _torch_ssim(torch: Any) -> Callable[[Any, Any], Any]:
    """``privacy.ssim`` of the greys of two batches, differentiable."""
    offsets = torch.arange(WINDOW_PX) - WINDOW_PX // 2
    window = torch.exp(-(offsets**2) / (2 * SIGMA_PX**2))
    window = (window / window.sum()).reshape(1, 1, -1, 1)
    luma = torch.tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)

    def filtered(greys: Any) -> Any:
        conv = torch.nn.functional.conv2d
        return conv(conv(greys, window), window.transpose(2, 3))

    def alike(one: Any, other: Any) -> Any:
        a, b = (one * luma).sum(1, keepdim=True), (other * luma).sum(1, keepdim=True)
        if min(a.shape[2:]) < WINDOW_PX:  # too small to look through the window
            return 1 - torch.mean((a - b) ** 2)
        mean_a, mean_b = filtered(a), filtered(b)
        both = mean_a * mean_b
        squares = mean_a**2 + mean_b**2
        above = (2 * both + C1) * (2 * (filtered(a * b) - both) + C2)
        below = (squares + C1) * (filtered(a * a) + filtered(b * b) - squares + C2)
        return (above / below).mean()

    return alike
