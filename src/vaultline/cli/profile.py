"""``vaultline profile``: measure a model on this machine; merge and estimate classes of devices."""

from __future__ import annotations

import datetime
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import TextColumn, TimeRemainingColumn
from typer.core import TyperGroup

from vaultline.bench.hops import hop_rates
from vaultline.bench.journal import Journal
from vaultline.bench.measuring import Step
from vaultline.bench.profile_process import open_journal, profile_in_worker
from vaultline.bench.profile_worker import Started
from vaultline.bench.profiling import ProfileRequest
from vaultline.cli.common import JsonFlag, messages, note, print_json, progress, results, table
from vaultline.cli.files import check_target, load_profile, parse_shapes, write_file
from vaultline.core.merging import estimate_class, merge_profiles
from vaultline.core.profile import BASE_CLASS, RATE_MAX, RATE_MIN, ModelProfile, write_profile
from vaultline.core.units import format_bytes, format_ms
from vaultline.graph.model import load_model

#: Frames and rounds that show what a frame's way costs, in a second or two.
_HOP_FRAMES = 100
_HOP_ROUNDS_MAX = 5

ShapeOption = Annotated[
    list[str] | None,
    typer.Option("--input-shape", help="Shape of a dynamic input: NAME=1,3,224,224. Repeatable."),
]
ClassOption = Annotated[
    str, typer.Option("--class", help="The class of devices that this machine stands for.")
]
EXAMPLE = "Example: vaultline profile model.onnx -o model.profile.json"
DEFAULT = "measure"


class ProfileGroup(TyperGroup):
    """``vaultline profile MODEL ...`` is ``vaultline profile measure MODEL ...``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the verb in front of what starts with none."""
        listed = {*self.commands, *ctx.help_option_names}
        return super().parse_args(ctx, args if not args or args[0] in listed else [DEFAULT, *args])


def register(app: typer.Typer) -> None:
    """Add the verb."""
    group = typer.Typer(
        cls=ProfileGroup,
        no_args_is_help=True,
        help="Measure a model on this machine, block by block: `vaultline profile MODEL -o FILE`. "
        "Options: `vaultline profile measure --help`.",
        epilog=EXAMPLE,
    )
    group.command(DEFAULT, epilog=EXAMPLE)(measure)
    group.command(
        "merge", epilog="Example: vaultline profile merge edge.json cloud.json -o model.json"
    )(merge)
    group.command(
        "scale", epilog="Example: vaultline profile scale model.json --class gpu --factor 0.2"
    )(scale)
    app.add_typer(group, name="profile")


def measure(
    model: Annotated[Path, typer.Argument(help="The ONNX model.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Where to write the profile.")],
    repeats: Annotated[int, typer.Option(min=3, max=1000, help="Timed rounds.")] = 9,
    neighbours: Annotated[
        int, typer.Option(min=0, max=256, help="Copies that run on other cores meanwhile.")
    ] = 0,
    device_class: ClassOption = BASE_CLASS,
    input_shape: ShapeOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure a model's blocks, and this machine's cipher and socket rates, for the planner.

    Measured in a process that is started, pinned and locked down as an enclave's worker is. What is
    measured is kept beside the output: after an interruption the same command goes on there.
    """
    check_target(out, "the profile")
    shapes = parse_shapes(input_shape or [])
    loaded = load_model(model, input_shapes=shapes)
    request = ProfileRequest(
        repeats=repeats,
        neighbours=neighbours,
        command=shlex.join(["vaultline", *sys.argv[1:]]),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        device_class=_class_name(device_class),
    )
    hops = hop_rates(frames=_HOP_FRAMES, rounds=min(repeats, _HOP_ROUNDS_MAX))
    with open_journal(loaded, request, out) as journal:
        resumed = journal.parts.round_count
        _say_resumed(journal, resumed, repeats)
        with _kept(journal), _shown() as tell:
            measured = profile_in_worker(
                model, loaded, request, journal, input_shapes=shapes, tell=tell, hops=hops
            )
        write_file(out, write_profile(measured) + b"\n", "the profile")
        journal.remove()
    if as_json:
        print_json(summary(measured) | {"rounds_resumed": resumed})
    else:
        _show(measured, out)


def merge(
    base: Annotated[Path, typer.Argument(help="The profile whose host others are compared to.")],
    others: Annotated[list[Path], typer.Argument(help="Profiles of other classes.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Where to write the merged profile.")],
    as_json: JsonFlag = False,
) -> None:
    """Join profiles of one model that were measured on several classes of devices."""
    first = load_profile(base)
    rest = [load_profile(path) for path in others]
    merged = merge_profiles(first, rest)
    versions = {first.engine_version, *(each.engine_version for each in rest)}
    if len(versions) > 1:
        _warn(f"measured with several versions of the engine: {', '.join(sorted(versions))}")
    for name in sorted(set(first.class_scale) - set(merged.class_scale)):
        note(f"the estimate of class {name} is replaced by what was measured")
    _replace(out, merged)
    _report_classes(merged, out, as_json=as_json)


def scale(
    profile: Annotated[Path, typer.Argument(help="The profile to add to.")],
    device_class: Annotated[str, typer.Option("--class", help="The class to estimate.")],
    factor: Annotated[
        float,
        typer.Option(
            min=RATE_MIN, max=RATE_MAX, help="Times longer than the measured host: 0.2 is faster."
        ),
    ],
    because: Annotated[str, typer.Option("--note", help="Where the factor comes from.")] = "",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Where to write; the same file by default.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Add a class of devices that isn't at hand, as so many times slower. Marked as estimated."""
    name = _class_name(device_class)
    scaled = estimate_class(load_profile(profile), name, factor, because)
    _replace(out or profile, scaled)
    _report_classes(scaled, out or profile, as_json=as_json)


def summary(measured: ModelProfile) -> dict[str, object]:
    """The profile in a few numbers."""
    return {
        "model": measured.model_name,
        "model_digest": measured.model_digest,
        "blocks": len(measured.blocks),
        "compute_s": _compute_s(measured),
        "weight_bytes": sum(block.weight_bytes for block in measured.blocks),
        "rates": measured.rates,
        "loopback": measured.loopback,
        "recorded_on": measured.recorded_on,
    }


def _compute_s(profile: ModelProfile) -> float:
    return sum(block.compute_s[0][1] for block in profile.blocks)


def _class_name(text: str) -> str:
    if not text or not text.isprintable() or any(sign in text for sign in "@,: "):
        raise typer.BadParameter(f"not a name: {text!r}", param_hint="'--class'")
    return text


def _warn(text: str) -> None:
    messages().print(f"warning: {text}", style="yellow", markup=False)


def _say_resumed(journal: Journal, resumed: int, repeats: int) -> None:
    if journal.note:
        _warn(journal.note)
    if resumed:
        text = f"going on from {journal.path}: {min(resumed, repeats)} of {repeats} rounds are done"
        messages().print(text, markup=False)


@contextmanager
def _kept(journal: Journal) -> Iterator[None]:
    """Whoever stops it is told that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        rounds = journal.parts.round_count
        if journal.path is not None and rounds:
            text = f"{rounds} rounds are kept in {journal.path}: the same command goes on there"
            messages().print(text, markup=False)
        raise


@contextmanager
def _shown() -> Iterator[Callable[[Step | Started], None]]:
    """The phase at hand, how much of it is done, and how long it will take."""
    columns = TextColumn("{task.fields[blocks]}"), TimeRemainingColumn()
    with progress(*columns, unit="/s") as bar:
        task = bar.add_task("reading the model", total=None, blocks="")

        def tell(line: Step | Started) -> None:
            if isinstance(line, Started):
                missing = [step.name for step in line.hardening if step.state == "missing"]
                if missing:
                    note(f"measured without {', '.join(missing)}: this machine lacks it")
                return
            if bar.tasks[task].description != line.what:
                bar.reset(task, description=line.what, total=line.total)
            bar.update(task, completed=line.done)
            if line.what.startswith("compiling"):
                bar.update(task, blocks=f"{line.total} blocks")

        yield tell


def _replace(out: Path, profile: ModelProfile) -> None:
    """Write it beside, then move: the file may be the one that was read."""
    check_target(out, "the profile")
    beside = out.with_name(f".{out.name}.new")
    try:
        write_file(beside, write_profile(profile) + b"\n", "the profile")
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)


def _report_classes(profile: ModelProfile, out: Path, *, as_json: bool) -> None:
    own = profile.recorded_on
    classes = [
        {"name": own.device_class, "estimated": False, "compute_s": _compute_s(profile)}
        | {"host": own.host, "cpu": own.cpu, "note": ""}
    ]
    classes += [
        {"name": each.name, "estimated": False}
        | {"compute_s": sum(times[0][1] for times in each.compute_s)}
        | {"host": each.recorded_on.host, "cpu": each.recorded_on.cpu, "note": ""}
        for each in profile.classes
    ]
    classes += [
        {"name": name, "estimated": True, "compute_s": factor * _compute_s(profile)}
        | {"host": "", "cpu": "", "note": profile.class_notes.get(name, "")}
        for name, factor in sorted(profile.class_scale.items())
    ]
    if as_json:
        print_json({"model": profile.model_name, "classes": classes})
        return
    rows = [
        (
            each["name"],
            format_ms(float(str(each["compute_s"]))),
            f"estimated: {profile.class_scale[str(each['name'])]:g} x {own.device_class}"
            if each["estimated"]
            else f"measured on {each['host']}, {each['cpu']}",
            each["note"],
        )
        for each in classes
    ]
    console = results()
    console.print(table(profile.model_name, ("class", "a frame", "", "note"), rows))
    console.print(f"wrote {out}", markup=False)


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
    console.print(f"wrote {out}", markup=False)
