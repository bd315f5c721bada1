"""``vaultline bench``: measure what the project claims, and say where the time goes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from vaultline.bench.channel import ChannelRequest, bench_channel
from vaultline.bench.pipeline import HEADLINE, ModelResult, PipelineRequest, bench_pipeline, figures
from vaultline.cli.bench_bounded import bounded
from vaultline.cli.bench_common import QuickFlag, ZooOption, default_zoo, machine, told
from vaultline.cli.bench_lasagna import lasagna
from vaultline.cli.bench_planner import planner, serdab
from vaultline.cli.bench_sim import sim
from vaultline.cli.bench_verify import verify
from vaultline.cli.common import JsonFlag, print_json, results, table
from vaultline.graph.zoo import ZOO

#: Small enough to profile, seal and measure three of them in a minute.
_QUICK_MODELS = ("squeezenet", "mobilenetv2", "resnet50")


def register(app: typer.Typer) -> None:
    """Add the verb."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Measure what the project claims. Close other programs first.",
        epilog="Example: vaultline bench pipeline --json",
    )
    group.command("pipeline", epilog="Example: vaultline bench pipeline --quick")(pipeline)
    group.command("channel", epilog="Example: vaultline bench channel --json")(channel)
    group.command("planner", epilog="Example: vaultline bench planner --plot growth.png")(planner)
    group.command("serdab", epilog="Example: vaultline bench serdab --plot serdab.png")(serdab)
    group.command("bounded", epilog="Example: vaultline bench bounded --models vgg19 --plot .")(
        bounded
    )
    epilog = "Example: vaultline bench lasagna --plot lasagna.png"
    group.command("lasagna", epilog=epilog)(lasagna)
    group.command("sim", epilog="Example: vaultline bench sim --plot sim.png")(sim)
    epilog = "Example: vaultline bench verify quote.bin --collateral bundle.json --policy p.yaml"
    group.command("verify", epilog=epilog)(verify)
    app.add_typer(group, name="bench")


def pipeline(
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Only this model. Repeatable.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 5,
    models_dir: ZooOption = None,
    quick: QuickFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Frames per second of two enclaves against one and two plain engine sessions."""
    request = PipelineRequest(
        models=tuple(model) if model else _QUICK_MODELS if quick else ZOO,
        zoo=models_dir or default_zoo(),
        rounds=3 if quick else rounds,
        seconds=0.7 if quick else 2.0,
        profile_repeats=5 if quick else 15,
        tuning_turns=2 if quick else 4,
        tuning_s=0.7 if quick else 1.5,
    )
    with told() as tell:
        found = bench_pipeline(request, tell)
    if as_json:
        print_json(
            {
                "figures": figures(found),
                "machine": machine(),
                "models": [asdict(result) for result in found],
            }
        )
    else:
        _show_pipeline(found)


def channel(
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 5,
    models_dir: ZooOption = None,
    quick: QuickFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Sealed records through a socket, both ends counted, and the time from challenge to grant."""
    request = ChannelRequest(
        zoo=models_dir or default_zoo(),
        rounds=3 if quick else rounds,
        bytes_per_round=(1 << 28) if quick else (1 << 30),
        sessions=3 if quick else 5,
    )
    with told() as tell:
        found = bench_channel(request, tell)
    if as_json:
        print_json({"figures": found.figures, "machine": machine(), "grants_ms": found.grant_ms})
        return
    rows = [
        (f"{size >> 10} KiB", f"{rate:.2f}", f"{found.gbps['tcp'][size]:.2f}")
        for size, rate in found.gbps["unix"].items()
    ]
    console = results()
    console.print(table("sealed, sent, opened: GB/s", ("record", "unix", "tcp"), rows))
    console.print(f"challenge to grant: {found.figures['grant_ms']:.2f} ms (median)")


def _show_pipeline(found: list[ModelResult]) -> None:
    rows = [
        (
            result.model,
            f"{result.median('one_native'):.1f}",
            f"{result.median('two_native'):.1f}",
            f"{result.median('vaultline'):.1f}",
            f"{result.ratio('two_native'):.3f}",
            f"{result.ratio('two_untouched'):.3f}",
            f"{result.parts['imbalance_ms']:.2f}",
            f"{result.parts['encryption_ms']:.2f}",
            f"{result.parts['socket_ms']:.2f}",
            f"{result.max_relative_error:.0e}",
        )
        for result in found
    ]
    columns = (
        "model",
        "native x1",
        "native x2",
        "vaultline",
        "ratio",
        "untouched",
        "imbalance ms",
        "crypto ms",
        "socket ms",
        "max error",
    )
    made = figures(found)
    console = results()
    console.print(table("frames per second (medians)", columns, rows))
    if "ratio_geomean" in made:
        count = int(made["ratio_geomean_models"])
        console.print(
            f"ratio to two native sessions: geometric mean {made['ratio_geomean']:.3f} over "
            f"{count} of {len(HEADLINE)} models, least {made['ratio_min']:.3f} of all shown"
        )
