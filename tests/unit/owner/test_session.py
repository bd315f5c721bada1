"""A session over one real worker: what a failing source and a wrong frame lead to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from vaultline.bench.profiling import ProfileRequest, profile_model
from vaultline.bench.rig import Rig, local_cluster, make_rig
from vaultline.core.errors import InputError, PeerError, VaultlineError
from vaultline.graph.model import load_model
from vaultline.owner.frames import OwnerFrame, ResultFrame
from vaultline.owner.session import SessionSettings
from vaultline.planner import make_plan

GOOD = np.array([[-1.0, 0.5, 2.0]], np.float32)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    folder: Path = tmp_path_factory.mktemp("rig")
    shape = [1, 3]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "relu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), folder / "m.onnx")
    model = load_model(folder / "m.onnx")
    profile = profile_model(model, ProfileRequest(repeats=1))
    return make_rig(model, make_plan(profile, local_cluster(1)), folder)


def frame(index: int, *tensors: Any) -> OwnerFrame:
    return OwnerFrame(index, index / 10, list(tensors) or [GOOD * index])


def collect(
    rig: Rig, frames: Iterator[OwnerFrame]
) -> tuple[list[ResultFrame], VaultlineError | None]:
    """All results that came, and the error that came after them."""
    results: list[ResultFrame] = []
    with rig.session(SessionSettings(stall_s=20.0)) as session:
        try:
            for result in session.stream(frames):
                results.append(result)
        except VaultlineError as error:
            return results, error
    return results, None


def test_every_frame_comes_back_once_in_order(rig: Rig) -> None:
    results, error = collect(rig, (frame(index) for index in range(20)))
    assert error is None
    assert [result.index for result in results] == list(range(20))
    for result in results:
        assert result.timestamp_s == result.index / 10
        assert result.sent_ns <= result.received_ns
        np.testing.assert_array_equal(result.outputs["y"], np.maximum(GOOD * result.index, 0))


def test_no_frames_are_no_results(rig: Rig) -> None:
    assert collect(rig, iter([])) == ([], None)


class _CameraGoneError(PeerError):
    """What a camera raises."""


def _raises(error: Exception) -> Callable[[], OwnerFrame]:
    def action() -> OwnerFrame:
        raise error

    return action


#: What the source does instead of its frame 5 -> what the stream raises after frames 0 to 4.
FAILURES: dict[str, tuple[Callable[[], OwnerFrame], type[VaultlineError], str]] = {
    "a file is damaged": (_raises(InputError("damaged")), InputError, "damaged"),
    "the camera is gone": (_raises(_CameraGoneError("no camera")), _CameraGoneError, "no camera"),
    "the caller's code has a bug": (_raises(ZeroDivisionError("x")), InputError, "source failed"),
    "a frame has another shape": (
        lambda: frame(5, np.zeros((3, 1), np.float32)),
        InputError,
        "does not fit the model's input 'x'",
    ),
    "a frame has another type": (
        lambda: frame(5, np.zeros((1, 3), np.float64)),
        InputError,
        "does not fit the model's input 'x'",
    ),
    "a frame has a tensor too many": (
        lambda: frame(5, GOOD, GOOD),
        InputError,
        "wrong number of tensors",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_frames_on_their_way_arrive_before_a_failing_source_is_reported(
    case: str, rig: Rig
) -> None:
    fifth, kind, message = FAILURES[case]

    def source() -> Iterator[OwnerFrame]:
        for index in range(5):
            yield frame(index)
        yield fifth()
        yield frame(6)

    results, error = collect(rig, source())
    assert [result.index for result in results] == [0, 1, 2, 3, 4]
    assert isinstance(error, kind)
    assert message in error.message


def test_a_session_may_be_closed_twice_and_while_frames_are_on_their_way(rig: Rig) -> None:
    session = rig.session()
    with session:
        results = session.stream(frame(index) for index in range(1000))
        assert next(results).index == 0
    session.close()
