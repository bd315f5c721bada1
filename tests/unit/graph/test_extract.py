"""Segments put together again are the model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from vaultline.core.errors import InputError
from vaultline.graph.cuts import cuts
from vaultline.graph.engine import run_plain
from vaultline.graph.extract import extract
from vaultline.graph.model import Model, load_model, save

Feeds = Callable[..., dict[str, np.ndarray]]


def equal(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    same = (np.array_equal(got[name], expected[name]) for name in expected)
    return list(got) == list(expected) and all(same)


def test_loading_keeps_what_the_model_computes(
    sample_proto: onnx.ModelProto, sample: Model, feeds: Feeds
) -> None:
    fed = feeds(sample)
    initializers = {item.name for item in sample_proto.graph.initializer}
    names = [value.name for value in sample_proto.graph.output]
    plain = ort.SessionOptions()
    plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    through = {name for name in names if name in fed or name in initializers}
    for value in list(sample_proto.graph.output):
        if value.name in through:
            sample_proto.graph.output.remove(value)
    expected = ort.InferenceSession(sample_proto.SerializeToString(), plain).run(None, fed)
    got = run_plain(sample, fed)
    assert list(got) == names
    computed = [got[name] for name in names if name not in through]
    for array, reference in zip(computed, expected, strict=True):
        np.testing.assert_allclose(array, reference, rtol=1e-5, atol=1e-6)


def test_segments_recompose_at_every_cut(sample: Model, feeds: Feeds) -> None:
    fed = feeds(sample)
    expected = run_plain(sample, fed)
    for cut in cuts(sample)[1:-1]:
        assert cut.unusable is None
        crossing = run_plain(extract(sample, 0, cut.position), fed)
        assert [spec.name for spec in cut.tensors] == list(crossing)
        assert all(crossing[spec.name].shape == spec.shape for spec in cut.tensors)
        rest = extract(sample, cut.position, sample.node_count)
        assert equal(run_plain(rest, crossing), expected), cut


def test_single_nodes_recompose(sample: Model, feeds: Feeds) -> None:
    fed = feeds(sample)
    values = fed
    for position in range(sample.node_count):
        values = run_plain(extract(sample, position, position + 1), values)
    assert equal(values, run_plain(sample, fed))


def test_a_saved_segment_loads_again(samples, write, feeds: Feeds, tmp_path) -> None:
    model = load_model(write(samples["a small convolutional network"]()))
    part = extract(model, 2, 9)
    save(part, tmp_path / "part.onnx")
    again = load_model(tmp_path / "part.onnx")
    assert (again.inputs, again.outputs) == (part.inputs, part.outputs)
    fed = feeds(part)
    assert equal(run_plain(again, fed), run_plain(part, fed))


@pytest.mark.parametrize("bounds", [(0, 0), (3, 2), (-1, 2), (0, 99)])
def test_impossible_segments_are_refused(samples, write, bounds: tuple[int, int]) -> None:
    model = load_model(write(samples["a weight shared by three nodes"]()))
    with pytest.raises(InputError, match="no such segment"):
        extract(model, *bounds)
