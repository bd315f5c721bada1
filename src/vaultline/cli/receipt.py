"""``vaultline receipt``: what the enclaves of a run signed, against a policy."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from msgspec.structs import replace
from rich.markup import escape

from vaultline.attest.judging import Check
from vaultline.attest.receipts import ReceiptOutcome, ReceiptRequest, verify_receipt
from vaultline.attest.refusals import EvidenceRefused, ReceiptForAnotherPlan, ResultsDiffer
from vaultline.attest.results import reasons
from vaultline.cli.common import JsonFlag, print_json, printable, results, show_checks
from vaultline.cli.files import load_plan, read_file
from vaultline.core.errors import InputError
from vaultline.core.plan import Plan
from vaultline.core.serde import from_json
from vaultline.owner.appraisal import load_collateral, load_policy
from vaultline.owner.receipts import (
    SECRET_FILE,
    Array,
    Receipt,
    input_digests,
    load_receipt,
    output_digests,
    results_of,
)
from vaultline.owner.verification import parse_time
from vaultline.video.preprocess import Preprocessor, default_preprocessing, load_preprocessing
from vaultline.video.sinks import top
from vaultline.video.sources import open_source

EXAMPLE = (
    "Example: vaultline receipt verify receipt --policy trust/policy.yaml --allow-simulated "
    "--frames video.mp4 --results results.jsonl --raw raw"
)
EXIT_REFUSED = 1


def register(app: typer.Typer) -> None:
    """Add the verb."""
    group = typer.Typer(
        no_args_is_help=True, help="Verify what the enclaves of a run signed.", epilog=EXAMPLE
    )
    group.callback()(_group)
    group.command("verify", epilog=EXAMPLE)(verify)
    app.add_typer(group, name="receipt")


def _group() -> None:
    """A group even while it has one command."""


def verify(
    folder: Annotated[Path, typer.Argument(help="What `vaultline run --receipts` wrote.")],
    policy: Annotated[
        list[Path], typer.Option("--policy", help="What is accepted. Repeatable: each must accept.")
    ],
    allow_simulated: Annotated[
        bool, typer.Option("--allow-simulated", help="Accept simulated enclaves.")
    ] = False,
    plan: Annotated[
        Path | None, typer.Option(help="The plan that was to be run; else the receipt's own.")
    ] = None,
    at: Annotated[
        str | None, typer.Option(help="The time for which to verify; the receipt's, unless stated.")
    ] = None,
    collateral: Annotated[
        Path | None,
        typer.Option(help="Collateral of one's own, in place of what the receipt's owner used."),
    ] = None,
    frames: Annotated[
        str | None, typer.Option(help="The run's source: shows that it is what went in.")
    ] = None,
    preprocess: Annotated[
        Path | None, typer.Option(help="How frames became the model's input (YAML), as in the run.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Frames of the source, as in the run.")
    ] = None,
    results_file: Annotated[
        Path | None, typer.Option("--results", help="The run's JSON lines: what came out.")
    ] = None,
    raw: Annotated[
        Path | None, typer.Option(help="The run's raw outputs, which --results needs.")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="The run was stopped: verify what all stages signed.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Verify a receipt: each enclave's evidence, its signed links, and that they fit together.

    Exit code 0 if it holds, 1 if not, 2 for files that are none.
    """
    receipt = load_receipt(folder)
    planned = receipt.plan if plan is None else load_plan(plan)
    if planned.digest != receipt.plan.digest:
        raise ReceiptForAnotherPlan(
            "the receipt is of another plan than the one given",
            got=receipt.plan.digest.hex(),
            expected=planned.digest.hex(),
        )
    record = receipt.record
    if collateral is not None:
        kinds = sorted({stage.device.kind for stage in receipt.plan.stages} - {"accelerator"})
        record = replace(record, collateral=load_collateral(dict.fromkeys(kinds, collateral)))
    lines = _Results(results_file, raw, receipt) if results_file is not None else None
    request = ReceiptRequest(
        plan=receipt.plan,
        record=record,
        links=receipt.links,
        policies=tuple(load_policy(path) for path in policy),
        allow_simulated=allow_simulated,
        now_s=None if at is None else parse_time(at),
        secret=receipt.secret,
        partial=partial,
        inputs=None if frames is None else _inputs(frames, preprocess, limit, receipt),
        outputs=None if lines is None else lines.digests(),
    )
    outcome = verify_receipt(request)
    if lines is not None:
        outcome.checks.append(Check(name="lines of the results", refusal=lines.refusal))
    if as_json:
        print_json(_document(request, outcome))
    else:
        _show(folder, request, outcome)
        if plan is None:
            results().print("  not checked: which plan it is (say --plan)", style="yellow")
    if outcome.refusals:
        raise typer.Exit(EXIT_REFUSED)


def _secret(receipt: Receipt) -> bytes:
    if receipt.secret is None:
        raise InputError(
            "frames and results can't be checked without the receipt's secret",
            remedy=f"get {SECRET_FILE} from the owner of the run, and put it into the folder",
        )
    return receipt.secret


def _inputs(
    source: str, preprocess: Path | None, limit: int | None, receipt: Receipt
) -> list[bytes]:
    specs = receipt.plan.stages[0].inputs
    if len(specs) != 1:
        raise InputError("only models with one input are fed from a source", got=str(len(specs)))
    how = default_preprocessing(specs[0]) if preprocess is None else load_preprocessing(preprocess)
    preprocessor = Preprocessor(how, specs[0])
    with open_source(source, limit=limit) as opened:
        tensors = ([preprocessor(frame.image)] for frame in opened)
        return list(input_digests(_secret(receipt), tensors))


class _Results:
    """A run's lines and raw outputs; a line that its raw output contradicts is refused."""

    def __init__(self, path: Path, raw: Path | None, receipt: Receipt) -> None:
        if raw is None:
            raise InputError(
                "--results needs --raw: lines name only the largest values",
                remedy="run with --raw FOLDER, and give the same folder here",
            )
        self._path, self._raw, self._receipt = path, raw, receipt
        self.refusal: EvidenceRefused | None = None

    def digests(self) -> list[bytes]:
        """Of the raw outputs, in the order of the lines."""
        plan = self._receipt.plan
        arrays = results_of(self._lines(plan), self._raw, plan, self._check)
        return list(output_digests(_secret(self._receipt), plan, arrays))

    def _lines(self, plan: Plan) -> Iterator[dict[str, Any]]:
        for number, text in enumerate(read_file(self._path, "the results").splitlines()):
            line = from_json(text, dict[str, Any], what=f"line {number + 1} of the results")
            said = (line.get("frame"), line.get("plan_digest"), line.get("epoch"))
            expected = (number, plan.digest.hex(), self._receipt.record.epoch)
            if said != expected:
                wrong = f"line {number + 1} is of another frame, plan or epoch"
                self._refuse(wrong, said, expected)
            outputs, names = line.get("outputs"), {spec.name for spec in plan.stages[-1].outputs}
            if isinstance(outputs, dict) and not outputs.keys() <= names:
                wrong = f"line {number + 1} has outputs that the model has not"
                self._refuse(wrong, ", ".join(sorted(outputs)), ", ".join(sorted(names)))
            yield line

    def _check(self, number: int, part: dict[str, Any], array: Array) -> None:
        said = part.get("top") or []
        if not isinstance(said, list) or not all(isinstance(entry, dict) for entry in said):
            raise InputError(f"line {number + 1} of the results has another form", got="top")
        shown = [(entry["index"], entry["value"]) for entry in top(array, len(said))]
        named = [(entry.get("index"), entry.get("value")) for entry in said]
        if named != shown:
            text = f"line {number + 1} names other values than its raw output has"
            self._refuse(text, named[:1], shown[:1])

    def _refuse(self, text: str, got: object, expected: object) -> None:
        if self.refusal is None:  # the first one says enough
            self.refusal = ResultsDiffer(text, got=str(got), expected=str(expected))


def _document(request: ReceiptRequest, outcome: ReceiptOutcome) -> dict[str, Any]:
    record = request.record
    return {
        "accepted": not outcome.refusals,
        "frames": outcome.frames,
        "model_digest": request.plan.model_digest,
        "plan_digest": request.plan.digest.hex(),
        "epoch": record.epoch,
        "at_s": record.at_s if request.now_s is None else request.now_s,
        "gaps": [
            {"stage": stage, "devices": devices, "why": _GAP}
            for stage, devices in outcome.gaps.items()
        ],
        "enclaves": [
            {
                "stage": stage,
                "replica": replica,
                "kind": verdict.kind,
                "measurement": verdict.measurement,
                "unsafe": verdict.unsafe,
            }
            for (stage, replica), verdict in sorted(outcome.verdicts.items())
        ],
        "not_checked": _not_checked(request, outcome),
        "checks": [
            {"name": check.name, "passed": check.refusal is None} for check in outcome.checks
        ],
        "reasons": reasons(outcome.checks),
    }


def _not_checked(request: ReceiptRequest, outcome: ReceiptOutcome) -> list[str]:
    """Frames and results that were not given, or that a receipt of a stopped run does not reach."""
    given = {"frames": request.inputs, "results": request.outputs}
    found = []
    for name, value in given.items():
        if value is None:
            found.append(name)
        elif len(value) > outcome.frames:
            found.append(f"{name} from number {outcome.frames} on")
    return found


_GAP = "an untrusted accelerator signs nothing: what it took in and gave out is not shown"


def _show(folder: Path, request: ReceiptRequest, outcome: ReceiptOutcome) -> None:
    console = results()
    head = "[bold red]refused[/]" if outcome.refusals else "[bold green]holds[/]"
    console.print(
        f"{escape(str(folder))}: {head}, {outcome.frames} frames, epoch {request.record.epoch}"
    )
    console.print(f"  model {request.plan.model_digest}", style="dim", soft_wrap=True)
    console.print(f"  plan  {request.plan.digest.hex()}", style="dim", soft_wrap=True)
    if request.now_s is None:
        moment = datetime.datetime.fromtimestamp(request.record.at_s, datetime.UTC)
        text = f"  evidence as at {moment:%Y-%m-%d %H:%M:%S} UTC, as its owner says (or say --at)"
        console.print(text, style="dim")
    if any(verdict.simulated for verdict in outcome.verdicts.values()):
        console.print("  SIMULATED: whoever holds platform.json can forge this", style="yellow")
    for option in sorted({name for v in outcome.verdicts.values() for name in v.unsafe}):
        console.print(f"  unsafe option of the policy: {option}", style="yellow")
    for stage, devices in outcome.gaps.items():
        names = escape(printable(", ".join(devices)))
        console.print(f"  GAP: stage {stage} on {names}: {_GAP}", style="yellow")
    show_checks(console, outcome.checks)
    for option in _not_checked(request, outcome):
        hint = f" (say --{option})" if " " not in option else ""
        console.print(f"  not checked: {option}{hint}", style="yellow")
