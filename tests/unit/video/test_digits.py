"""The example's video, labels and model belong together and are as good as its README says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from vaultline.core.tensors import TensorSpec
from vaultline.video import Preprocessor, load_preprocessing, open_source

DIGITS = Path(__file__).parents[3] / "examples" / "digits"


@pytest.fixture(scope="module")
def labels() -> list[int]:
    return json.loads((DIGITS / "labels.json").read_text(encoding="utf-8"))["labels"]


def test_files_are_small_enough_to_ship() -> None:
    assert (DIGITS / "digits.mp4").stat().st_size <= 1 << 20
    assert (DIGITS / "digits.onnx").stat().st_size <= 2 << 20


def test_every_class_is_shown_equally_often(labels: list[int]) -> None:
    counts = np.bincount(labels, minlength=10)
    assert len(labels) == 900
    assert set(counts.tolist()) == {90}


def test_the_model_reads_at_least_97_percent_of_the_videos_frames(labels: list[int]) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(DIGITS / "digits.onnx"), options)
    source_input = session.get_inputs()[0]
    spec = TensorSpec(name=source_input.name, dtype="float32", shape=tuple(source_input.shape))
    preprocess = Preprocessor(load_preprocessing(DIGITS / "digits.preprocess.yaml"), spec)
    found = []
    with open_source(str(DIGITS / "digits.mp4")) as source:
        assert source.frame_count == len(labels)
        for frame in source:
            scores = session.run(None, {spec.name: preprocess(frame.image)})[0]
            found.append(int(scores.argmax()))
    assert len(found) == len(labels)
    right = np.mean(np.array(found) == np.array(labels))
    assert right >= 0.97
