"""The zoo: the same models on every machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vaultline.core.errors import InputError
from vaultline.graph import zoo
from vaultline.graph.engine import run_plain
from vaultline.graph.model import load_model

#: Digests of small models: if one changes, so did the seeds, and old measurements don't compare.
DIGESTS = {"squeezenet": "b6b975c8", "shufflenet": "0e9ca8a1", "mobilenetv2": "3185cb17"}


@pytest.mark.parametrize("name", DIGESTS)
def test_models_are_the_same_everywhere_and_tell_inputs_apart(name: str, tmp_path: Path) -> None:
    path = zoo.build(name, tmp_path)
    before = path.stat().st_mtime_ns
    assert zoo.build(name, tmp_path) == path
    assert path.stat().st_mtime_ns == before
    model = load_model(path)
    assert model.digest[:8] == DIGESTS[name]
    rng, outputs = np.random.default_rng(0), []
    for scale in (0.5, 1.0):
        frame = rng.standard_normal((1, 3, 224, 224)).astype(np.float32) * scale
        (result,) = run_plain(model, {model.inputs[0].name: frame}).values()
        assert np.isfinite(result).all()
        assert result.std() > 0
        outputs.append(result)
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3 * np.abs(outputs[0]).max()


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such model"):
        zoo.build("lenet", tmp_path)
