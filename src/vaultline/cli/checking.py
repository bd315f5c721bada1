"""``vaultline plan --check``: the plan is run, and what was predicted stands beside what came."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vaultline.bench.checking import Checked, CheckedTime, CheckRequest, check_plan
from vaultline.cli.common import progress, results, table
from vaultline.core.errors import InputError
from vaultline.core.plan import Plan
from vaultline.graph.model import load_model
from vaultline.owner.deploy import check_model
from vaultline.owner.disclosure import Disclosure


def run_check(
    plan: Plan,
    model: Path,
    input_shapes: Mapping[str, tuple[int, ...]],
    *,
    rounds: int,
    disclosure: Disclosure,
) -> Checked:
    """Run a plan on this machine under a development root of its own.

    Raises:
        RefusedError: untrusted stages would see or get more than ``disclosure`` allows.
        InputError: the plan is for another model, or for devices that this machine can't stand for.
    """
    foreign = sorted({stage.device.kind for stage in plan.stages} - {"simulated", "accelerator"})
    if foreign:
        raise InputError(
            "only simulated enclaves and plain workers can be run here to check a plan",
            got=", ".join(foreign),
            expected="kind: simulated or accelerator",
            remedy="plan for simulated devices of that memory, or run it where it belongs",
        )
    loaded = load_model(model, input_shapes=dict(input_shapes))
    check_model(loaded, plan)
    with progress(unit="chunks/s") as bar:
        task = bar.add_task("running the plan", total=rounds)
        return check_plan(
            loaded,
            plan,
            CheckRequest(rounds=rounds, disclosure=disclosure),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def check_document(checked: Checked) -> dict[str, Any]:
    """What ``--json`` shows of a check."""
    return {
        "frames": checked.frames,
        "chunk": _document(checked.chunk),
        "chunks_s": list(checked.chunks_s),
        "latency": _document(checked.latency),
        "period": _document(checked.period),
        "stages": [_document(stage) for stage in checked.stages],
    }


def show_check(checked: Checked) -> None:
    """A table of predicted against measured."""
    rows = [
        _row(f"chunk of {checked.frames} frames", checked.chunk),
        _row("a frame alone", checked.latency),
        _row("between frames", checked.period),
    ]
    rows += [
        _row(f"stage {number}, per frame of a replica", stage)
        for number, stage in enumerate(checked.stages)
    ]
    columns = ("what", "predicted ms", "measured ms", "measured - predicted")
    console = results()
    console.print(table("predicted and measured, on this machine", columns, rows))
    spread = ", ".join(f"{seconds:.3f}" for seconds in checked.chunks_s)
    console.print(f"chunks took {spread} s; links between hosts are this machine's own here")


def _row(what: str, time: CheckedTime) -> tuple[str, str, str, str]:
    return (
        what,
        f"{time.predicted_s * 1e3:.2f}",
        f"{time.measured_s * 1e3:.2f}",
        f"{time.error:+.1%}",
    )


def _document(time: CheckedTime) -> dict[str, float]:
    return {
        "predicted_s": time.predicted_s,
        "measured_s": time.measured_s,
        "error": time.error,
    }
