"""``vaultline profile``: measure a model on this machine."""

from __future__ import annotations

import datetime
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from vaultline.bench.profiling import ProfileRequest, profile_model
from vaultline.cli.common import JsonFlag, print_json, progress, results, table
from vaultline.cli.files import check_target, parse_shapes, write_file
from vaultline.core.profile import ModelProfile, write_profile
from vaultline.core.units import format_bytes
from vaultline.graph.model import load_model

ShapeOption = Annotated[
    list[str] | None,
    typer.Option("--input-shape", help="Shape of a dynamic input: NAME=1,3,224,224. Repeatable."),
]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    epilog = "Example: vaultline profile model.onnx -o model.profile.json"
    app.command("profile", epilog=epilog)(profile)


def profile(
    model: Annotated[Path, typer.Argument(help="The ONNX model.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Where to write the profile.")],
    repeats: Annotated[int, typer.Option(min=3, max=1000, help="Timed rounds.")] = 9,
    neighbours: Annotated[
        int, typer.Option(min=0, help="Copies that run on other cores meanwhile.")
    ] = 0,
    input_shape: ShapeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure a model's blocks, and this machine's cipher and socket rates, for the planner."""
    check_target(out, "the profile")
    loaded = load_model(model, input_shapes=parse_shapes(input_shape or []))
    request = ProfileRequest(
        repeats=repeats,
        neighbours=neighbours,
        command=shlex.join(["vaultline", *sys.argv[1:]]),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    with progress(unit="blocks/s") as bar:
        task = bar.add_task("measuring blocks", total=None)
        measured = profile_model(
            loaded, request, lambda done, total: bar.update(task, completed=done, total=total)
        )
    write_file(out, write_profile(measured) + b"\n", "the profile")
    if as_json:
        print_json(summary(measured))
    else:
        _show(measured, out)


def summary(measured: ModelProfile) -> dict[str, object]:
    """The profile in a few numbers."""
    return {
        "model": measured.model_name,
        "model_digest": measured.model_digest,
        "blocks": len(measured.blocks),
        "compute_s": sum(block.compute_s[0][1] for block in measured.blocks),
        "weight_bytes": sum(block.weight_bytes for block in measured.blocks),
        "rates": measured.rates,
        "loopback": measured.loopback,
        "recorded_on": measured.recorded_on,
    }


def _show(measured: ModelProfile, out: Path) -> None:
    console = results()
    total_s = sum(block.compute_s[0][1] for block in measured.blocks)
    slowest = sorted(range(len(measured.blocks)), key=lambda k: -measured.blocks[k].compute_s[0][1])
    rows = [
        (
            f"{measured.positions[k]}:{measured.positions[k + 1]}",
            f"{measured.blocks[k].compute_s[0][1] * 1e3:.3f}",
            f"{measured.blocks[k].compute_s[0][1] / total_s:.1%}",
            format_bytes(measured.blocks[k].weight_bytes),
            format_bytes(measured.crossing_bytes[k + 1]),
            " ".join(measured.blocks[k].ops),
        )
        for k in sorted(slowest[:12])
    ]
    title = f"{measured.model_name}: {len(measured.blocks)} blocks, {total_s * 1e3:.2f} ms a frame"
    columns = ("nodes", "ms", "share", "weights", "crossing after", "operators")
    console.print(table(title, columns, rows))
    if len(measured.blocks) > len(rows):
        console.print(f"({len(rows)} slowest blocks shown)", style="dim")
    console.print(f"wrote {out}")
