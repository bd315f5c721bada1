"""Options that several verbs take, each in one wording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

KekOption = Annotated[
    Path | None,
    typer.Option("--kek", help="Key-encryption key (JWK); by default ~/.config/vaultline/kek.jwk."),
]
PrivacyOption = Annotated[
    Path | None,
    typer.Option(help="What untrusted devices may see (YAML); nothing if unset."),
]
CollateralOption = Annotated[
    Path | None, typer.Option(help="Collateral; collateral.json beside the policy if unset.")
]
PlatformOption = Annotated[
    Path | None,
    typer.Option(help="Simulated platform; platform.json beside the policy if unset."),
]
SimulatedOption = Annotated[
    bool, typer.Option("--allow-simulated", help="Accept simulated enclaves: no protection.")
]
MetricsOption = Annotated[
    str | None, typer.Option(help="HOST:PORT that serves metrics as Prometheus text, to anybody.")
]
