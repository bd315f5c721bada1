"""Real models: segments put together again are the model, as plain graphs and as programs."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from vaultline.core.program import StageSettings
from vaultline.graph import zoo
from vaultline.graph.compile import compile_segment
from vaultline.graph.cuts import candidates, cuts
from vaultline.graph.engine import run_plain
from vaultline.graph.extract import segment
from vaultline.graph.model import Model, load_model
from vaultline.graph.reference import run_program

SAMPLE = ("squeezenet", "shufflenet", "mobilenetv2")
TOLERANCE = 1e-4
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Path:
    """Materialised models outlive a run: the largest takes ten seconds to make."""
    assert request.config.cache is not None
    return Path(request.config.cache.mkdir("zoo"))


@cache
def case(name: str, folder: Path) -> tuple[Model, Tensors, Tensors]:
    """A model, a frame and its result."""
    model = load_model(zoo.build(name, folder))
    frame = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    fed = {model.inputs[0].name: frame}
    return model, fed, run_plain(model, fed)


def spread(positions: list[int], count: int) -> list[int]:
    """``count`` of the positions, evenly spread, or all of them."""
    if len(positions) <= count:
        return positions
    return [positions[round(i * (len(positions) - 1) / (count - 1))] for i in range(count)]


def check_plain(name: str, folder: Path, count: int) -> None:
    model, fed, expected = case(name, folder)
    places = cuts(model)
    for position in spread(list(range(1, model.node_count)), count):
        crossing = run_plain(segment(model, places, 0, position), fed)
        got = run_plain(segment(model, places, position, model.node_count), crossing)
        for output, reference in expected.items():
            assert np.array_equal(got[output], reference), (name, position)


def check_programs(name: str, folder: Path, count: int) -> None:
    model, fed, expected = case(name, folder)
    inner = [position for position in candidates(model) if 0 < position < model.node_count]
    for turn, position in enumerate(spread(inner, count)):
        values = fed
        for stage, (first, last) in enumerate(((0, position), (position, model.node_count))):
            settings = StageSettings(
                stage=stage,
                stages=2,
                threads=1,
                budget_bytes=1 << 30,
                mode="streamed" if turn % 2 else "resident",
                frames_per_pass=1,
                queue_frames=1,
            )
            made = compile_segment(
                model,
                first,
                last,
                settings=settings,
                step_bytes=4 << 20,
                portable=turn % 4 == 3,
            )
            values = run_program(made, values)
        for output, reference in expected.items():
            error = np.abs(values[output] - reference).max() / np.abs(reference).max()
            assert error <= TOLERANCE, (name, position, error)


@pytest.mark.parametrize("name", SAMPLE)
def test_plain_segments_at_some_cuts(name: str, folder: Path) -> None:
    check_plain(name, folder, 8)


@pytest.mark.parametrize("name", SAMPLE)
def test_programs_at_some_cuts(name: str, folder: Path) -> None:
    check_programs(name, folder, 4)


@pytest.mark.full
@pytest.mark.parametrize("name", zoo.ZOO)
def test_plain_segments_at_every_cut(name: str, folder: Path) -> None:
    check_plain(name, folder, 10**6)


@pytest.mark.full
@pytest.mark.parametrize("name", zoo.ZOO)
def test_programs_at_twenty_cuts(name: str, folder: Path) -> None:
    check_programs(name, folder, 20)
