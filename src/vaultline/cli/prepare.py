"""``vaultline prepare``: divide models into step groups, seal them for a cluster, measure them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from vaultline.bench.rig import make_trust
from vaultline.cli.bench_common import ZooOption, default_zoo
from vaultline.cli.common import JsonFlag, messages, print_json, progress, results, table
from vaultline.cli.options import KekOption
from vaultline.core.errors import InputError
from vaultline.core.limits import MIB
from vaultline.core.program import PageMode
from vaultline.core.units import format_bytes, parse_bytes
from vaultline.graph.groups import GroupRule
from vaultline.graph.zoo import ZOO, build
from vaultline.owner.appraisal import Appraiser, load_collateral, load_policy
from vaultline.owner.keyfile import Kek, load_kek
from vaultline.owner.prepare import PreparedFiles, model_name, prepare, write_served
from vaultline.owner.served import ServedModel
from vaultline.serve.lone_worker import WorkerTrust
from vaultline.serve.measuring import measure

_PAGE_MODES: tuple[PageMode, ...] = ("crypto", "sgx1")
_COLUMNS = (
    "model", "nodes", "weights", "carried", "frames", "ms a run of 1, 2, 4.. frames", "load ms",
)  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the verb."""
    epilog = "Example: vaultline prepare resnet50.onnx googlenet.onnx --out models"
    app.command("prepare", epilog=epilog)(prepare_models)


def prepare_models(
    models: Annotated[
        list[str], typer.Argument(help="ONNX files, or names of the benchmarks' models.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for vaults, keys and manifests.")],
    name: Annotated[
        str | None, typer.Option("--name", help="What one model is served as; else the file's.")
    ] = None,
    workspace: Annotated[
        str | None,
        typer.Option(
            "--workspace",
            help="Most that a step group may take on a core besides kept weights, sessions and "
            "messages: 12MiB. With --paged, of the page cache: 64MiB.",
        ),
    ] = None,
    frames: Annotated[
        int, typer.Option("--frames", min=1, max=16, help="The most requests of one run.")
    ] = 16,
    portable: Annotated[
        bool, typer.Option("--portable", help="For any instruction set: slower.")
    ] = False,
    paged: Annotated[
        str | None,
        typer.Option("--paged", help="For servers that page: the cost of a page, crypto or sgx1."),
    ] = None,
    kek: KekOption = None,
    measured: Annotated[
        bool | None,
        typer.Option(
            "--measure/--no-measure",
            help="Measure again, or keep estimates; by default what was not measured before is.",
        ),
    ] = None,
    core: Annotated[
        int | None, typer.Option("--core", min=0, help="Measure on this core; else the last.")
    ] = None,
    models_dir: ZooOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Divide models into step groups, compile and seal them once for all servers, and measure
    what each group takes on a core of this machine."""
    mode = page_mode(paged)
    size = parse_bytes(workspace) if workspace is not None else None
    paths = [model_path(model, models_dir or default_zoo()) for model in models]
    check_names(paths, name)
    wrapping = load_kek(kek, create=True)
    done: list[ServedModel] = []
    with progress(unit="steps/s") as bar:
        for path in paths:
            with _task(bar) as tell:
                served = prepare(
                    path,
                    out,
                    name=name,
                    workspace_bytes=size,
                    portable=portable,
                    paged=mode,
                    rule=GroupRule(frames_max=frames),
                    kek=wrapping,
                    progress=tell,
                )
                if measured or (measured is None and not served.measured):
                    served = _measured(served, out, wrapping, core, tell)
            done.append(served)
    if as_json:
        print_json({"out": str(out), "models": [_document(served, out) for served in done]})
        return
    _print(done, out)


def page_mode(text: str | None) -> PageMode | None:
    """The mode that ``--paged`` names.

    Raises:
        InputError: there is no such mode.
    """
    for mode in _PAGE_MODES:
        if text == mode:
            return mode
    if text is not None:
        raise InputError("no such cost of a page", got=text, expected=" or ".join(_PAGE_MODES))
    return None


def model_path(model: str, zoo: Path) -> Path:
    """A file, or a model of the benchmarks, which is made if it has not been.

    Raises:
        InputError: neither.
    """
    path = Path(model)
    if path.is_file():
        return path
    if model in ZOO:
        return build(model, zoo)
    raise InputError(
        "there is no such model",
        got=model,
        expected="an ONNX file, or one of " + ", ".join(ZOO),
        remedy="check the name",
    )


def check_names(paths: Sequence[Path], name: str | None) -> None:
    """Refuse names that can't be, or that two models would share, before any work is done.

    Raises:
        InputError: which.
    """
    if name is not None and len(paths) > 1:
        raise InputError("--name is for one model", got=f"{len(paths)} models")
    names = [model_name(path, name) for path in paths]
    twice = sorted({each for each in names if names.count(each) > 1})
    if twice:
        raise InputError(
            "two models would be served under one name",
            got=", ".join(twice),
            remedy="prepare them one by one, with --name",
        )


@contextmanager
def _task(bar: Progress) -> Iterator[Any]:
    """A progress bar as a callback: (what, done, total)."""
    task = bar.add_task("preparing", total=None)

    def tell(what: str, done: int, total: int) -> None:
        bar.update(task, description=what, completed=done, total=total)

    yield tell
    bar.remove_task(task)


def _measured(served: ServedModel, out: Path, kek: Kek, core: int | None, tell: Any) -> ServedModel:
    """Measure in a worker of this machine, which is trusted for that as this process is: under a
    development root that is forgotten afterwards."""
    with tempfile.TemporaryDirectory(prefix="vaultline-") as folder:
        files = make_trust(Path(folder) / "trust")
        appraiser = Appraiser(
            policy=load_policy(files["policy"]),
            collateral=load_collateral({"simulated": files["collateral"]}),
            allow_simulated=True,
        )
        trust = WorkerTrust(platform_file=files["platform"], appraise=appraiser.appraise_now)
        found = measure(
            served,
            out,
            kek=kek,
            trust=trust,
            core=core,
            progress=tell,
            warn=lambda text: messages().print(text, style="yellow", markup=False),
        )
    write_served(out, found)
    return found


def _document(served: ServedModel, out: Path) -> dict[str, Any]:
    files = PreparedFiles(folder=out, name=served.name)
    return {
        "name": served.name,
        "manifest": str(files.manifest),
        "vault": str(files.vault),
        "vault_bytes": files.vault.stat().st_size,
        "keys": str(files.keys),
        "plan_digest": served.plan_digest.hex(),
        "isa": served.isa,
        "paged": served.paged,
        "measured": served.measured,
        "workspace_bytes": served.workspace_bytes,
        "sessions_bytes": served.facts.fixed_bytes,
        "request_bytes": served.facts.input_bytes,
        "install_s": served.facts.install_s,
        "groups": [
            {
                "first": first,
                "last": last,
                "weight_bytes": facts.weight_bytes,
                "carried_bytes": facts.output_bytes,
                "frames": facts.frames_max,
                "run_s": {str(count): seconds for count, seconds in facts.run_s},
                "load_s": facts.load_s,
            }
            for (first, last), facts in zip(served.groups, served.facts.groups, strict=True)
        ],
    }


def _print(done: Sequence[ServedModel], out: Path) -> None:
    rows: list[Sequence[object]] = []
    for served in done:
        for (first, last), facts in zip(served.groups, served.facts.groups, strict=True):
            rows.append(
                (
                    served.name,
                    f"{first}:{last}",
                    format_bytes(facts.weight_bytes),
                    format_bytes(facts.output_bytes),
                    facts.frames_max,
                    "  ".join(f"{seconds * 1e3:.1f}" for _, seconds in facts.run_s),
                    f"{facts.load_s * 1e3:.1f}",
                )
            )
    console = results()
    console.print(table(None, _COLUMNS, rows))
    for served in done:
        times = "measured" if served.measured else "ESTIMATED"
        console.print(
            f"{served.name}: workspace {served.workspace_bytes / MIB:.1f} MiB, sessions "
            f"{served.facts.fixed_bytes / MIB:.1f} MiB a core, installed in "
            f"{served.facts.install_s * 1e3:.0f} ms; times are {times}"
        )
    console.print(f"vaults for the servers, keys and manifests are in {out}", markup=False)
