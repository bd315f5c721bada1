"""``vaultline bench verify``: how long the verification of given evidence takes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vaultline.attest.examine import Request
from vaultline.bench.verifying import bench_verify
from vaultline.cli.bench_common import machine
from vaultline.cli.common import JsonFlag, print_json, results, table
from vaultline.owner.appraisal import load_policy
from vaultline.owner.verification import load_collateral_file, load_evidence, parse_time


def verify(
    evidence: Annotated[list[Path], typer.Argument(help="Quotes or reports, raw or in hex.")],
    policy: Annotated[list[Path], typer.Option("--policy", help="What is accepted. Repeatable.")],
    collateral: Annotated[Path | None, typer.Option(help="A bundle for all of them.")] = None,
    at: Annotated[str | None, typer.Option(help="The time for which to verify.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Verifications of each.")] = 51,
    as_json: JsonFlag = False,
) -> None:
    """Median time of a verification: with certificates never seen before, of a new device of a
    known vendor, and with all certificates known.

    Reading files is left out. Of SGX and TDX only certificates are remembered.
    """
    policies = tuple(load_policy(path) for path in policy)
    known, now_s = load_collateral_file(collateral), parse_time(at)
    found = {
        path.stem: bench_verify(
            Request(
                evidence=load_evidence(path),
                policies=policies,
                collateral=known,
                now_s=now_s,
                allow_simulated=True,
            ),
            rounds=rounds,
        )
        for path in evidence
    }
    if as_json:
        timings = {name: asdict(timing) for name, timing in found.items()}
        print_json({"timings": timings, "machine": machine()})
        return
    rows = [
        (
            name,
            t.kind,
            "yes" if t.accepted else "no",
            *(f"{ms:.2f}" for ms in (t.first_ms, t.new_device_ms, t.median_ms)),
        )
        for name, t in found.items()
    ]
    columns = ("evidence", "kind", "accepted", "first ms", "new device ms", "known ms")
    results().print(table("verification", columns, rows))
