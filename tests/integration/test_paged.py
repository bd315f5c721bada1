"""Paged stages in real, hardened workers: the same outputs, from a page cache that swaps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from vaultline.bench.cutting import cut_plan
from vaultline.bench.rig import make_rig
from vaultline.core.limits import MIB
from vaultline.core.program import PageMode
from vaultline.graph.engine import run_plain
from vaultline.graph.model import load_model
from vaultline.graph.zoo import build
from vaultline.owner.frames import OwnerFrame


@pytest.mark.parametrize("page_mode", ["crypto", "sgx1"])
def test_a_paged_stage_equals_the_whole_model(page_mode: PageMode, tmp_path: Path) -> None:
    model = load_model(build("squeezenet", tmp_path))
    plan = cut_plan(model, [], modes=["paged"], frames_per_pass=1, memory_bytes=8 * MIB)
    plan = replace(plan, stages=(replace(plan.stages[0], page_mode=page_mode),))
    rig = make_rig(model, plan, tmp_path)
    (spec,) = model.inputs
    random = np.random.default_rng(0)
    frames = [random.standard_normal(spec.shape, np.float32) for _ in range(3)]
    with rig.session() as session:
        sent = [OwnerFrame(number, 0.0, [frame]) for number, frame in enumerate(frames)]
        results = list(session.stream(sent))
    assert [result.index for result in results] == [0, 1, 2]
    for frame, result in zip(frames, results, strict=True):
        for name, expected in run_plain(model, {spec.name: frame}).items():
            error = np.abs(result.outputs[name] - expected).max() / np.abs(expected).max()
            assert error <= 1e-4
