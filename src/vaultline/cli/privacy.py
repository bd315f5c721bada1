"""``vaultline privacy``: what each cut of a model shows of its input."""

from __future__ import annotations

import datetime
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from vaultline.bench.leakage import LeakageFindings, LeakageRequest, measure_leakage
from vaultline.bench.leakage_data import read_pictures
from vaultline.cli.common import JsonFlag, note, print_json, progress, results, table
from vaultline.cli.files import parse_shapes, write_file
from vaultline.cli.privacy_page import page
from vaultline.cli.privacy_verdicts import Verdicts
from vaultline.cli.profile import ShapeOption
from vaultline.core.errors import InputError, MachineError
from vaultline.core.leakage import write_leakage
from vaultline.graph.model import load_model
from vaultline.video.preprocess import default_preprocessing, load_preprocessing

#: Beyond this, silhouettes can be told in the reconstructions of photographs.
LIMIT = 0.2
REPORT_FILE, PAGE_FILE, CACHE_FOLDER = "leakage.json", "index.html", "cache"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    epilog = "Example: vaultline privacy model.onnx --images pictures/ -o report/"
    app.command("privacy", epilog=epilog)(privacy)


def privacy(
    model: Annotated[Path, typer.Argument(help="The ONNX model.")],
    images: Annotated[
        Path, typer.Option(help="Folder of pictures like those that the model will see.")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for leakage.json and index.html.")
    ],
    decoder: Annotated[
        Literal["ridge", "conv"],
        typer.Option(help="The attack; conv adds a network, takes minutes a cut, needs PyTorch."),
    ] = "ridge",
    cuts: Annotated[
        str | None, typer.Option(help="Only these positions: 0,5,10. All candidates if unset.")
    ] = None,
    limit: Annotated[
        float, typer.Option(min=0, max=1, help="Reconstruction that counts as a success.")
    ] = LIMIT,
    preprocess: Annotated[
        Path | None, typer.Option(help="How pictures become the model's input (YAML).")
    ] = None,
    input_shape: ShapeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Attack every cut of a model on your own pictures: what would its tensors show?"""
    positions = None if cuts is None else parse_positions(cuts)
    loaded = load_model(model, input_shapes=parse_shapes(input_shape or []))
    if preprocess is None:
        how = default_preprocessing(loaded.inputs[0])
    else:
        how = load_preprocessing(preprocess)
    note(f"preprocessing: {how.describe()}")
    request = LeakageRequest(
        pictures=read_pictures(images),
        preprocessing=how,
        cache=prepare_folder(out),
        decoder=decoder,
        positions=positions,
        command=shlex.join(["vaultline", *sys.argv[1:]]),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    with progress(unit="cuts/s") as bar:
        task = bar.add_task("attacking cuts", total=None)
        found = measure_leakage(
            loaded, request, lambda done, total: bar.update(task, completed=done, total=total)
        )
    verdicts = Verdicts(found.report, limit)
    write_file(out / REPORT_FILE, write_leakage(found.report) + b"\n", "the leakage report")
    write_file(out / PAGE_FILE, page(found, verdicts).encode(), "the page")
    if as_json:
        print_json(summary(found, verdicts, out))
    else:
        show(found, verdicts, out)


def parse_positions(text: str) -> tuple[int, ...]:
    """``0,5,10`` as numbers.

    Raises:
        InputError: something else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and part.isascii() and len(part) < 10 for part in parts):
        raise InputError("not a list of positions", got=text, expected="numbers such as 0,5,10")
    return tuple(int(part) for part in parts)


def prepare_folder(out: Path) -> Path:
    """Make the folder of the report, and in it that of the cache, which is returned.

    Raises:
        InputError: something else is there, or it may not be written to.
    """
    cache = out / CACHE_FOLDER
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise InputError(
            f"cannot write the report to {out}",
            got=str(error.strerror),
            expected="a folder, or a name for a new one",
            remedy="name another folder",
        ) from error
    except OSError as error:
        raise MachineError(f"cannot make the folder {out}", got=str(error.strerror)) from error
    for folder in (out, cache):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"cannot write the report to {folder}", got="no right to write there")
    return cache


def summary(found: LeakageFindings, verdicts: Verdicts, out: Path) -> dict[str, object]:
    """What ``--json`` prints."""
    return {
        "report": found.report,
        "limit": verdicts.limit,
        "safe_from": verdicts.safe_from,
        "rule_passes_attack_succeeds": verdicts.missed,
        "rule_fails_attack_does_not": verdicts.overcautious,
        "seconds_per_cut": [record.elapsed_s for record in found.records],
        "files": {"report": str(out / REPORT_FILE), "page": str(out / PAGE_FILE)},
    }


def show(found: LeakageFindings, verdicts: Verdicts, out: Path) -> None:
    """The scores in a table."""
    rows = [
        (
            cut.position,
            _names(cut.tensors),
            cut.resolution_px,
            f"{cut.similarity:.2f}",
            f"{cut.reconstruction:.2f}",
            f"{cut.psnr_db:.1f}",
            verdicts.verdict(cut),
        )
        for cut in found.report.cuts
    ]
    columns = ("cut", "tensors", "pixels", "similarity", "reconstruction", "PSNR dB", "verdict")
    title = (
        f"{found.report.model_name}: {found.report.decoder} attack fitted on {found.training} "
        f"pictures, tried on {found.held_out} others"
    )
    console = results()
    console.print(table(title, columns, rows))
    console.print(verdicts.sentence)
    console.print(f"wrote {out / REPORT_FILE} and {out / PAGE_FILE}", markup=False)


def _names(tensors: Sequence[str]) -> str:
    more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
    return (tensors[0] if tensors else "nothing") + more
