"""A plan's check: real workers, and predicted times beside measured ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from vaultline.bench.checking import Checked, CheckedTime, CheckRequest, check_plan
from vaultline.bench.cutting import cut_plan
from vaultline.graph.model import load_model

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx"


@pytest.fixture(scope="module")
def checked() -> Checked:
    model = load_model(DIGITS)
    return check_plan(model, cut_plan(model, [30]), CheckRequest(frames=40, rounds=2))


def test_every_time_is_measured(checked: Checked) -> None:
    assert (checked.frames, len(checked.chunks_s), len(checked.stages)) == (40, 2, 2)
    times = (checked.chunk, checked.latency, *checked.stages)
    assert all(time.measured_s > 0 for time in times)


def test_a_chunk_takes_longer_than_a_frame_and_than_each_stage(checked: Checked) -> None:
    assert checked.chunk.measured_s > max(each.measured_s for each in checked.stages)
    assert checked.chunk.measured_s == pytest.approx(sum(sorted(checked.chunks_s)) / 2)


def test_a_chunk_is_never_too_short_to_fill_the_pipeline() -> None:
    model = load_model(DIGITS)
    short = check_plan(model, cut_plan(model, []), CheckRequest(frames=1, rounds=1))
    assert short.frames == 32


def test_an_error_is_relative_to_what_was_predicted() -> None:
    assert CheckedTime(predicted_s=2.0, measured_s=2.5).error == pytest.approx(0.25)
    assert CheckedTime(predicted_s=2.0, measured_s=1.5).error == pytest.approx(-0.25)
    assert CheckedTime(predicted_s=0.0, measured_s=1.5).error == 0.0
