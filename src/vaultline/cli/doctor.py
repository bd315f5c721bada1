"""``vaultline doctor``: what this machine offers, and how large the trusted code is."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import vaultline
from vaultline.cli.common import JsonFlag, print_json, results, table
from vaultline.cli.errors_page import errors_page
from vaultline.cli.machine import CipherSpeed, Finding, cipher_speeds, survey
from vaultline.cli.tcb import WORKERS, TrustedBase, trusted_base
from vaultline.core.units import format_bytes

EXIT_REFUSED = 1
EXIT_MACHINE = 4
#: Nothing at all runs without these.
NEEDED = ("onnxruntime",)
EXAMPLE = "Example: vaultline doctor --tcb --json"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("doctor", epilog=EXAMPLE)(doctor)


def doctor(
    tcb: Annotated[
        bool,
        typer.Option("--tcb", help="Count the code that has to be trusted; exit 1 if too much."),
    ] = False,
    errors: Annotated[
        bool, typer.Option("--errors", help="Print docs/errors.md: every refusal and its remedy.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Say which enclaves, protections and speeds this machine offers, and how to get the others.

    With --tcb: the lines and dependencies of the code that runs inside an enclave.
    """
    if errors:
        page = errors_page()
        print_json({"page": page}) if as_json else sys.stdout.write(page)
    elif tcb:
        source = Path(vaultline.__file__).parents[1]
        _report_bases([trusted_base(source, worker) for worker in WORKERS], as_json=as_json)
    else:
        _report_machine(survey(), cipher_speeds(), as_json=as_json)


def _report_machine(
    findings: tuple[Finding, ...], speeds: tuple[CipherSpeed, ...], *, as_json: bool
) -> None:
    if as_json:
        print_json(
            {
                "version": vaultline.__version__,
                "findings": [asdict(finding) for finding in findings],
                "aes_256_gcm": [asdict(speed) for speed in speeds],
            }
        )
    else:
        _print_machine(findings, speeds)
    if any(finding.name in NEEDED and finding.status == "no" for finding in findings):
        raise typer.Exit(EXIT_MACHINE)


def _print_machine(findings: tuple[Finding, ...], speeds: tuple[CipherSpeed, ...]) -> None:
    console = results()
    for group in dict.fromkeys(finding.group for finding in findings):
        rows = [
            (finding.name, finding.status, finding.detail)
            for finding in findings
            if finding.group == group
        ]
        if group == "machine":
            rows += [
                (
                    f"AES-256-GCM, {format_bytes(speed.piece_bytes)}",
                    "yes",
                    f"{speed.bytes_per_s / 1e9:.1f} GB/s on one core",
                )
                for speed in speeds
            ]
        console.print(table(None, (group, "here", ""), rows))
        console.print()
    remedies = [(finding.name, finding.remedy) for finding in findings if finding.remedy]
    if remedies:
        console.print(table(None, ("missing", "what would help"), remedies))


def _report_bases(bases: list[TrustedBase], *, as_json: bool) -> None:
    """Of a pipeline's worker and of a server's, in this order."""
    if as_json:
        stage, server = map(_base_as_json, bases)
        print_json({**stage, "server": server})
    else:
        for base, whose in zip(bases, ("stage of a pipeline", "server"), strict=True):
            _print_base(base, whose)
    if not all(base.within_limit for base in bases):
        raise typer.Exit(EXIT_REFUSED)


def _base_as_json(base: TrustedBase) -> dict[str, object]:
    return {
        **asdict(base),
        "lines": base.lines,
        "code_lines": base.code_lines,
        "simulated_code_lines": base.simulated_code_lines,
        "within_limit": base.within_limit,
    }


def _print_base(base: TrustedBase, whose: str) -> None:
    console = results()
    console.print(f"trusted in the enclave of a {whose}")
    rows = [(module.name, module.lines, module.code_lines) for module in base.modules]
    console.print(
        table(
            None,
            ("trusted module", "lines", "of code"),
            [*rows, ("all", base.lines, base.code_lines), ("limit", "", base.lines_max)],
        )
    )
    console.print()
    packages = [
        (package.name, package.version, "imported" if package.direct else "required by those")
        for package in base.dependencies
    ]
    if packages:
        console.print(table(None, ("trusted package", "version", ""), packages))
        console.print()
    verdict = "within" if base.code_lines <= base.lines_max else "OVER"
    console.print(
        f"{base.code_lines} lines of code (neither blank nor comment nor docstring), "
        f"{verdict} the limit of {base.lines_max}"
    )
    verdict = "within" if base.lines <= base.lines_max else "over"
    console.print(f"{base.lines} lines with all of these: {verdict} that number, not held to it")
    console.print("a worker loads one module of hardware's quotes; the largest of them is counted")
    if base.simulated:
        names = ", ".join(module.name for module in base.simulated)
        console.print(
            f"not among them: {base.simulated_code_lines} lines of code that only simulated "
            f"enclaves and accelerators load, measured like the rest ({names})"
        )
    for place in base.dynamic:
        console.print(f"not counted: {place} imports by a computed name; name the module instead")
    console.print()
