"""``vaultline seal``: compile every stage of a plan and encrypt it under its own key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from vaultline.cli.common import JsonFlag, print_json, progress, results
from vaultline.cli.files import check_target, load_plan
from vaultline.cli.options import KekOption, PrivacyOption
from vaultline.core.units import format_bytes
from vaultline.graph.model import load_model
from vaultline.owner.deploy import compile_stages
from vaultline.owner.disclosure import check_disclosed, load_disclosure
from vaultline.owner.keyfile import load_kek, new_keys, read_keyfile, write_keyfile
from vaultline.owner.seal import seal_vault


def register(app: typer.Typer) -> None:
    """Add the verb."""
    epilog = "Example: vaultline seal model.onnx --plan plan.json -o model.vault --key owner.key"
    app.command("seal", epilog=epilog)(seal)


def seal(
    model: Annotated[Path, typer.Argument(help="The ONNX model that the plan was made for.")],
    plan: Annotated[Path, typer.Option("--plan", help="The plan.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Where to write the vault.")],
    key: Annotated[
        Path, typer.Option("--key", help="Key file; made if it does not exist, mode 0600.")
    ] = Path("owner.key"),
    kek: KekOption = None,
    privacy: PrivacyOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Compile a model's stages for their devices and seal them into a vault any host may store."""
    check_target(out, "the vault")
    check_target(key, "the key file")
    # First the keys: a wrong key-encryption key must not cost a good vault.
    wrapping = load_kek(kek, create=True)
    keys = read_keyfile(key, wrapping) if key.exists() else new_keys()
    planned = load_plan(plan)
    check_disclosed(planned, load_disclosure(privacy, None).policy)
    loaded = load_model(model, input_shapes=planned.input_shapes)
    with progress(unit="MiB/s") as bar:
        compiling = bar.add_task("compiling stages", total=len(planned.stages))
        stages = compile_stages(
            loaded, planned, lambda done, _: bar.update(compiling, completed=done)
        )
        task = bar.add_task("sealing", total=None)
        sealing = seal_vault(
            out,
            stages,
            model_key=keys.model_key,
            plan_digest=planned.digest,
            model_digest=planned.model_digest,
            progress=lambda done, total: bar.update(task, completed=done >> 20, total=total >> 20),
        )
    write_keyfile(key, keys.with_sealing(sealing), wrapping)
    size = out.stat().st_size
    if as_json:
        print_json(
            {
                "vault": str(out),
                "bytes": size,
                "stages": len(stages),
                "vault_id": sealing.vault_id.hex(),
                "plan_digest": sealing.plan_digest.hex(),
                "key": str(key),
            }
        )
        return
    count = f"{len(stages)} stage{'s'[: len(stages) != 1]}"
    console = results()
    console.print(escape(f"sealed {count} into {out} ({format_bytes(size)}); keys are in {key}"))
    for old in keys.sealings:
        if old.plan_digest == sealing.plan_digest:
            console.print(f"it takes the place of what was sealed for this plan {old.created}")
