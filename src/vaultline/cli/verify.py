"""``vaultline verify``: evidence against a policy, offline, for a stated time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

import vaultline
from vaultline.attest.examine import Outcome, Request, examine, policy_id
from vaultline.attest.results import attestation_result, status_of, warnings_of
from vaultline.cli.common import JsonFlag, print_json, printable, results, show_checks
from vaultline.cli.files import read_file, read_text
from vaultline.core.errors import InputError
from vaultline.core.units import format_utc
from vaultline.owner.appraisal import load_policy
from vaultline.owner.passport import (
    TOKEN_BYTES_MAX,
    Trust,
    check_passport,
    load_key,
    sign_result,
)
from vaultline.owner.verification import load_collateral_file, load_evidence, parse_time

EXIT_REFUSED = 1
#: A JWK takes a few hundred.
_KEY_BYTES_MAX = 64 << 10


def register(app: typer.Typer) -> None:
    """Add the verb."""
    epilog = "Example: vaultline verify quote.bin --collateral bundle.json --policy policy.yaml"
    app.command("verify", epilog=epilog)(verify)


def verify(
    evidence: Annotated[
        list[Path], typer.Argument(help="Quotes or reports, raw or in hex; or one signed result.")
    ],
    policy: Annotated[
        list[Path], typer.Option("--policy", help="What is accepted. Repeatable: each must accept.")
    ],
    collateral: Annotated[
        Path | None, typer.Option(help="Certificates, revocation lists, TCB levels: a bundle.")
    ] = None,
    at: Annotated[
        str | None, typer.Option(help="The time for which to verify; now, unless stated.")
    ] = None,
    report_data: Annotated[
        str | None, typer.Option(help="What the evidence must commit to, in hex.")
    ] = None,
    allow_simulated: Annotated[
        bool, typer.Option("--allow-simulated", help="Accept a simulated enclave.")
    ] = False,
    sign: Annotated[
        Path | None, typer.Option(help="Print the result as a JWT, signed with this key (JWK).")
    ] = None,
    nonce: Annotated[
        str | None, typer.Option(help="What the relying party of a signed result asked for.")
    ] = None,
    valid_s: Annotated[
        int, typer.Option(min=1, help="For how long a signed result may be relied on, in seconds.")
    ] = 300,
    verifier_key: Annotated[
        Path | None,
        typer.Option(help="EVIDENCE is a result (JWT) by the verifier with this public key."),
    ] = None,
    allow_warning: Annotated[
        bool, typer.Option("--allow-warning", help="Of a signed result: accept a warning.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Verify evidence of SGX, TDX, SEV-SNP or NVIDIA hardware, without any network.

    Exit code 0 if it is genuine and each policy accepts it, 1 if not, 2 for files that are none.
    """
    policies = tuple(load_policy(path) for path in policy)
    now_s = parse_time(at)
    if nonce is not None and not (nonce and printable(nonce) == nonce):
        raise InputError("a nonce is text that is not empty", got=printable(nonce))
    if verifier_key is not None:
        _refuse_ignored(
            {
                "--collateral": collateral,
                "--report-data": report_data,
                "--sign": sign,
                "--allow-simulated": allow_simulated or None,
            }
        )
        trust = Trust(
            policy_ids=(f"sha256:{policy_id(policies)}",),
            nonce=nonce,
            age_s_max=valid_s,
            allow_warning=allow_warning,
        )
        _passport(evidence, verifier_key, trust, now_s, as_json=as_json)
        return
    if allow_warning:
        raise InputError("--allow-warning is for signed results", remedy="name --verifier-key")
    expected = _hex(report_data)
    known = load_collateral_file(collateral)
    outcomes = {
        name: examine(
            Request(
                evidence=load_evidence(path),
                policies=policies,
                collateral=known,
                now_s=now_s,
                report_data=expected,
                allow_simulated=allow_simulated,
            )
        )
        for name, path in _named(evidence).items()
    }
    made = attestation_result(
        outcomes,
        issued_s=parse_time(None),
        valid_s=valid_s,
        build=vaultline.__version__,
        nonce=nonce,
    )
    if sign is not None:
        if at is not None and made["exp"] <= made["iat"]:
            raise InputError(
                "nobody could rely on the signed result: it ends before it is issued",
                got=f"verified for {format_utc(now_s)}, good until {format_utc(made['exp'])}",
                remedy="sign without --at, or give --valid-s more: it counts from --at",
            )
        _print_signed(made, sign, as_json=as_json)
    elif as_json:
        print_json(made)
    else:
        for name, outcome in outcomes.items():
            _show(results(), name, outcome)
    if any(outcome.refusals for outcome in outcomes.values()):
        raise typer.Exit(EXIT_REFUSED)


def _refuse_ignored(options: dict[str, object]) -> None:
    """Nobody should think that something was checked which was not."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise InputError(
            "a signed result is checked without evidence",
            got=", ".join(given),
            remedy="leave these out: the verifier has applied its own",
        )


def _named(paths: list[Path]) -> dict[str, Path]:
    """Files by their names without endings; by whole paths if that is not enough."""
    different = list(dict.fromkeys(paths))
    stems = {printable(path.stem): path for path in different}
    whole = {printable(str(path)): path for path in different}
    named = stems if len(stems) == len(different) else whole
    if len(named) != len(different):
        raise InputError("two files have names that read alike", remedy="rename one")
    return named


def _hex(text: str | None) -> bytes | None:
    try:
        data = None if text is None else bytes.fromhex(text)
    except ValueError as error:
        raise InputError("--report-data is not hex", got=text) from error
    if data == b"":
        raise InputError(
            "--report-data is empty",
            remedy="leave it out, or say what the evidence must commit to",
        )
    return data


def _print_signed(made: dict[str, Any], key_file: Path, *, as_json: bool) -> None:
    remedy = "make one with `vaultline policy verifier`"
    token = sign_result(made, load_key(_read_key(key_file, remedy), private=True))
    if as_json:
        print_json({"jwt": token})
    else:
        sys.stdout.write(token + "\n")


def _read_key(path: Path, remedy: str) -> bytes:
    return read_file(path, "the verifier's key", remedy, bytes_max=_KEY_BYTES_MAX)


def _passport(
    files: list[Path], key_file: Path, trust: Trust, now_s: int, *, as_json: bool
) -> None:
    if len(files) != 1:
        raise InputError("one signed result at a time", got=f"{len(files)} files")
    remedy = "get the verifier's public key from its operator"
    key = load_key(_read_key(key_file, remedy), private=False)
    token = read_text(files[0], "the signed result", bytes_max=TOKEN_BYTES_MAX).strip()
    found = check_passport(token, [key], trust, now_s)
    if as_json:
        print_json(found)
        return
    for name, submodule in found["submods"].items():
        results().print(
            escape(printable(f"{name}: {submodule['ear.status']}, as the verifier says"))
        )
        for option in submodule["vaultline.unsafe"]:
            text = f"  unsafe option of the policy: {option}"
            results().print(escape(printable(text)), style="yellow")


def _show(console: Console, name: str, outcome: Outcome) -> None:
    status = status_of(outcome)
    colour = {"affirming": "green", "warning": "yellow"}.get(status, "red")
    head = "refused" if outcome.refusals else "genuine and accepted"
    console.print(f"{escape(name)} ({outcome.kind}): [bold {colour}]{head}[/]")
    if outcome.kind == "simulated":
        console.print("  SIMULATED: nothing protects it from its host", style="yellow")
    for option in outcome.unsafe:
        console.print(f"  unsafe option of the policy: {option}", style="yellow")
    said = {*outcome.unsafe, "simulated"}
    for warning in [text for text in warnings_of(outcome) if text not in said]:
        console.print(f"  warning: {warning}", style="yellow")
    show_checks(console, outcome.checks)
    if not outcome.fresh and not outcome.refusals:
        console.print("  not checked: what it commits to (say --report-data)", style="yellow")
