"""``vaultline collateral``: what verification needs besides the evidence, for offline use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vaultline.cli.common import JsonFlag, print_json, results
from vaultline.core.errors import InputError
from vaultline.owner.verification import fetch_intel, load_evidence, pack_files, write_bundle


def register(app: typer.Typer) -> None:
    """Add the verb."""
    epilog = (
        "Example: vaultline collateral pack vcek.der ask_ark.pem crl.der --kind snp --out b.json"
    )
    group = typer.Typer(
        no_args_is_help=True,
        help="Certificates, revocation lists and TCB levels, in one file for offline verification.",
        epilog=epilog,
    )
    group.command("pack", epilog=epilog)(pack)
    app.add_typer(group, name="collateral")


def pack(
    out: Annotated[Path, typer.Option("--out", help="The bundle to write.")],
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="JSON collateral or bundles; certificates and lists, in any order."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="What certificates are for: snp or nvidia.")
    ] = None,
    pccs: Annotated[
        str | None, typer.Option(help="Fetch the collateral of --quote from this address.")
    ] = None,
    quote: Annotated[
        list[Path] | None, typer.Option("--quote", help="SGX or TDX quotes to fetch for.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Put collateral into one bundle. Nothing is fetched unless --pccs gives an address."""
    if bool(pccs) != bool(quote):
        raise InputError(
            "fetching takes an address and quotes", expected="both --pccs and --quote, or neither"
        )
    items = pack_files(files or [], kind=kind)
    for path in quote or []:
        items += fetch_intel(str(pccs), load_evidence(path))
    write_bundle(items, out)
    kinds = sorted(item.kind for item in items)
    if as_json:
        print_json({"out": str(out), "kinds": kinds})
    else:
        results().print(f"wrote {out}: {', '.join(kinds)}", markup=False)
