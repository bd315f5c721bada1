"""``vaultline policy``: a development root with its policy, and keys of untrusted accelerators."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from vaultline.bench.rig import make_trust
from vaultline.cli.common import JsonFlag, print_json, results
from vaultline.core.privacy import privacy_schema
from vaultline.core.serde import canonical_json
from vaultline.owner.accelerator import ACCELERATOR_FILE, accelerator_entry, create_accelerator
from vaultline.owner.devroot import ROOT_FILE
from vaultline.owner.drafting import draft
from vaultline.owner.passport import make_verifier_key
from vaultline.owner.verification import load_collateral_file, load_evidence, parse_time


def register(app: typer.Typer) -> None:
    """Add the verb."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Make policies: which evidence this owner accepts.",
        epilog="Example: vaultline policy dev --out trust",
    )
    group.command("dev", epilog="Example: vaultline policy dev --out trust")(dev)
    epilog = "Example: vaultline policy accelerator --out trust"
    group.command("accelerator", epilog=epilog)(accelerator)
    epilog = "Example: vaultline policy from quote.bin --collateral bundle.json > policy.yaml"
    group.command("from", epilog=epilog)(from_evidence)
    epilog = "Example: vaultline policy verifier --out trust"
    group.command("verifier", epilog=epilog)(verifier)
    epilog = "Example: vaultline policy schema > privacy.schema.json"
    group.command("schema", epilog=epilog)(schema)
    app.add_typer(group, name="policy")


def dev(
    out: Annotated[Path, typer.Option("--out", help="Folder for the five files; new or empty.")],
    as_json: JsonFlag = False,
) -> None:
    """Make a development root, a simulated platform, an accelerator's key, and a policy for these.

    SIMULATED: whoever holds platform.json can forge evidence. Good for development, and for
    nothing that must stay secret.
    """
    files = make_trust(out)
    if as_json:
        print_json({name: str(path) for name, path in files.items()})
        return
    console = results()
    names = [ROOT_FILE, *(path.name for path in files.values())]
    console.print(f"wrote {', '.join(names)} to {out}", markup=False)
    console.print("SIMULATED: whoever holds platform.json can forge evidence", style="yellow")


def accelerator(
    out: Annotated[Path, typer.Option("--out", help="Folder for the key; made if missing.")],
    as_json: JsonFlag = False,
) -> None:
    """Make the identity key of an untrusted accelerator, and the policy entry that pins it.

    UNTRUSTED: nothing vouches for that worker. It gets only tensors and weights that a privacy
    policy lets it have, and its results are marked unverified.
    """
    key = create_accelerator(out)
    path, entry = out / ACCELERATOR_FILE, accelerator_entry([key.public_key])
    if as_json:
        print_json({"key": str(path), "public_key": key.public_key.hex(), "entry": entry})
        return
    console = results()
    console.print(f"wrote {path}; add to `accept:` of the policy:", markup=False)
    console.print(entry, end="", highlight=False, markup=False)


def from_evidence(
    evidence: Annotated[Path, typer.Argument(help="A quote or report, raw or in hex.")],
    collateral: Annotated[
        Path | None, typer.Option(help="Certificates, revocation lists, TCB levels: a bundle.")
    ] = None,
    at: Annotated[
        str | None, typer.Option(help="The time for which to verify; now, unless stated.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Draft a policy with the reference values of genuine evidence.

    What the default refuses of that evidence stands in comments, with what would accept it.
    """
    text = draft(load_evidence(evidence), load_collateral_file(collateral), parse_time(at))
    if as_json:
        print_json({"policy": text})
    else:
        sys.stdout.write(text)


def verifier(
    out: Annotated[Path, typer.Option("--out", help="Folder for the keys; made if missing.")],
    as_json: JsonFlag = False,
) -> None:
    """Make the key pair with which a verifier signs results, for others to rely on."""
    private, public = make_verifier_key(out)
    if as_json:
        print_json({"private": str(private), "public": str(public)})
    else:
        results().print(f"wrote {private} (keep it) and {public} (hand it out)", markup=False)


def schema(as_json: JsonFlag = False) -> None:
    """Print the JSON Schema of privacy policies: what untrusted devices may see."""
    if as_json:
        print_json(privacy_schema())
    else:
        sys.stdout.write(schema_text())


def schema_text() -> str:
    """The schema as it is published: indented, keys sorted."""
    return msgspec.json.format(canonical_json(privacy_schema()), indent=2).decode() + "\n"
