"""Results as JSON lines: complete, in order, once, readable at any moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vaultline.core.errors import InputError, LocalProtocolError, MachineError
from vaultline.video import JsonLinesSink, Result, StageTimes
from vaultline.video.sinks import top

TIMES = StageTimes(open_s=0.001, wait_s=0.0, compute_s=0.004, seal_s=0.002)


def result(frame: int, **outputs: Any) -> Result:
    return Result(
        frame=frame,
        timestamp_s=frame / 25,
        outputs=outputs or {"scores": np.array([[0.1, 0.7, 0.2]], dtype=np.float32)},
        stage_times=(TIMES, TIMES),
        epoch=3,
        plan_digest="ab" * 32,
        enclave="simulated",
        attested="quote under a development root",
        latency_s=0.012,
    )


def test_a_line_says_everything_of_its_frame(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with JsonLinesSink(path, topk=2, labels=["cat", "dog"]) as sink:
        sink.write(result(0))
    line = json.loads(path.read_text(encoding="utf-8"))
    scores = line.pop("outputs")["scores"]
    assert line == {
        "frame": 0,
        "timestamp_s": 0.0,
        "stage_times": [{"open_s": 0.001, "wait_s": 0.0, "compute_s": 0.004, "seal_s": 0.002}] * 2,
        "epoch": 3,
        "plan_digest": "ab" * 32,
        "enclave": "simulated",
        "attested": "quote under a development root",
        "unverified": [],
        "latency_s": 0.012,
    }
    assert scores["dtype"] == "float32"
    assert scores["shape"] == [1, 3]
    assert [(entry["index"], entry.get("label")) for entry in scores["top"]] == [
        (1, "dog"),
        (2, None),
    ]
    assert scores["top"][0]["value"] == pytest.approx(0.7)


def test_every_line_is_in_the_file_before_the_next_is_written(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with JsonLinesSink(path) as sink:
        for number in range(4):
            sink.write(result(number))
            lines = path.read_text(encoding="utf-8").splitlines()
            assert [json.loads(line)["frame"] for line in lines] == list(range(number + 1))


@pytest.mark.parametrize(
    "frames", [[1], [0, 0], [0, 2], [0, 1, 0]], ids=["late start", "twice", "gap", "back"]
)
def test_a_frame_out_of_order_is_our_own_mistake(tmp_path: Path, frames: list[int]) -> None:
    with JsonLinesSink(tmp_path / "results.jsonl") as sink:
        for frame in frames[:-1]:
            sink.write(result(frame))
        with pytest.raises(LocalProtocolError, match="out of order"):
            sink.write(result(frames[-1]))
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == len(frames) - 1


def test_nothing_is_written_after_the_end(tmp_path: Path) -> None:
    sink = JsonLinesSink(tmp_path / "results.jsonl")
    sink.close()
    sink.close()
    with pytest.raises(LocalProtocolError, match="out of order"):
        sink.write(result(0))


def test_raw_tensors_lie_beside_the_lines(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    first, second = np.arange(6, dtype=np.float16).reshape(1, 2, 3), np.array([[7]], dtype=np.int64)
    with JsonLinesSink(tmp_path / "results.jsonl", topk=0, raw_dir=raw) as sink:
        sink.write(result(0, **{"a/b": first, "../a/b": second}))
    outputs = json.loads((tmp_path / "results.jsonl").read_text(encoding="utf-8"))["outputs"]
    assert sorted(path.name for path in raw.iterdir()) == sorted(
        output["file"] for output in outputs.values()
    )
    for name, wanted in (("a/b", first), ("../a/b", second)):
        assert "top" not in outputs[name]
        read = np.load(raw / outputs[name]["file"], allow_pickle=False)
        assert read.dtype == wanted.dtype
        np.testing.assert_array_equal(read, wanted)


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be written"):
        JsonLinesSink(tmp_path / "gone" / "results.jsonl")
    with pytest.raises(InputError, match="negative"):
        JsonLinesSink(tmp_path / "results.jsonl", topk=-1)
    if Path("/dev/full").exists():
        with JsonLinesSink(Path("/dev/full")) as sink, pytest.raises(MachineError, match="written"):
            sink.write(result(0))


def test_values_that_json_lacks_are_text_and_not_a_number_comes_last() -> None:
    value = np.array([np.nan, -np.inf, 2.0, np.inf], dtype=np.float32)
    entries = top(value, 4)
    assert [entry["index"] for entry in entries] == [3, 2, 0, 1]
    assert [entry["value"] for entry in entries] == ["inf", 2.0, "nan", "-inf"]


@settings(derandomize=True, deadline=None)
@given(
    value=hnp.arrays(
        dtype=st.sampled_from(["float32", "float16", "int64", "uint8", "bool"]),
        shape=hnp.array_shapes(max_dims=3, max_side=6),
    ),
    count=st.integers(1, 8),
)
def test_the_largest_values_are_those_of_a_full_sort(value: np.ndarray, count: int) -> None:
    flat = [float("-inf") if number != number else number for number in value.reshape(-1).tolist()]
    wanted = sorted(range(len(flat)), key=lambda index: (-flat[index], index))[:count]
    assert [entry["index"] for entry in top(value, count)] == wanted
