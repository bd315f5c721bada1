"""``vaultline policy dev``: a development root and a policy that accepts this installation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vaultline.bench.rig import make_trust
from vaultline.cli.common import JsonFlag, print_json, results


def register(app: typer.Typer) -> None:
    """Add the verb."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Make policies: which evidence this owner accepts.",
        epilog="Example: vaultline policy dev --out trust",
    )
    group.command("dev", epilog="Example: vaultline policy dev --out trust")(dev)
    app.add_typer(group, name="policy")


def dev(
    out: Annotated[Path, typer.Option("--out", help="Folder for the four files; new or empty.")],
    as_json: JsonFlag = False,
) -> None:
    """Make a development root, a simulated platform under it, and a policy for this installation.

    SIMULATED: whoever holds platform.json can forge evidence. Good for development, and for
    nothing that must stay secret.
    """
    files = make_trust(out)
    if as_json:
        print_json({name: str(path) for name, path in files.items()})
        return
    console = results()
    console.print(f"wrote {', '.join(path.name for path in files.values())} to {out}")
    console.print("SIMULATED: whoever holds platform.json can forge evidence", style="yellow")
