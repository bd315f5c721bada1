"""What every verb shares: where text goes, the ``--json`` flag, tables, progress, errors.

Standard output is results: tables for a person or, with ``--json``, exactly one JSON document,
which after a failure is ``{"error": {...}}``. Standard error is notes and progress, silent when
it is not a terminal, and errors and what a service announces, which are never silent. ``NO_COLOR``
is respected on both.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from vaultline.core.errors import PeerError, VaultlineError
from vaultline.core.plan import PlannedStage
from vaultline.core.serde import canonical_json

if TYPE_CHECKING:  # slow to import
    from vaultline.attest.judging import Check

#: The flag of every verb: ``def verb(..., as_json: JsonFlag = False)``.
JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON document on standard output.")
]
#: Columns of tables that go to a file or a pipe, where there is no terminal to fit.
PIPE_COLUMNS = 120


def device_names(stage: PlannedStage) -> str:
    """The devices of a stage in few words: frames go round several of them."""
    more = len(stage.devices) - 1
    return stage.device.name + (f" and {more} more" if more else "")


def results() -> Console:
    """Standard output, for tables and lines that are the result."""
    width = None if sys.stdout.isatty() else PIPE_COLUMNS
    return Console(highlight=False, emoji=False, width=width)


def messages() -> Console:
    """Standard error, for errors; for anything less important there is :func:`note`."""
    return Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)


def note(text: str) -> None:
    """Tell a person who watches what is going on; nobody else is told."""
    console = messages()
    if console.is_terminal:
        console.print(escape(text), style="dim")


def announce(text: str) -> None:
    """Tell whoever started a service what it takes to use it: on standard error, terminal or not,
    since a log is looked into for that, and scripts wait for such a line."""
    sys.stderr.write(printable(text) + "\n")
    sys.stderr.flush()


def print_json(value: Any) -> None:
    """Print a result (Structs, dataclasses, dicts, lists, numbers) as one line of JSON.

    Names of files may be no text; of those the bytes that are none are spelt out.
    """
    try:
        encoded = canonical_json(value)
    except UnicodeEncodeError:
        encoded = canonical_json(_as_text(msgspec.to_builtins(value)))
    sys.stdout.write(encoded.decode() + "\n")


def _as_text(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_as_text(key): _as_text(item) for key, item in value.items()}
    return [_as_text(item) for item in value] if isinstance(value, list | tuple) else value


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table whose columns, but for the first, are right-aligned where all cells are numeric."""
    cells = [[str(cell) for cell in row] for row in rows]
    made = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = index > 0 and all(row[index][:1].isdigit() for row in cells)
        made.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        made.add_row(*(escape(cell) for cell in row))
    return made


class RateColumn(ProgressColumn):
    """Finished units per second of a task, for example frames per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Any) -> Text:
        """The rate over the last seconds, or the mean of a task that has ended."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {self.unit}", style="cyan")


def progress(*extra: ProgressColumn, unit: str = "frames/s") -> Progress:
    """A progress display on standard error, off when that is not a terminal.

    Args:
        extra: further columns; ``TextColumn("{task.fields[stages]}")`` shows what
            ``update(task, stages=...)`` was given last.
        unit: of the rate column.
    """
    console = messages()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(unit),
        *extra,
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def error_document(
    code: str,
    message: str,
    exit_code: int,
    *,
    got: str | None = None,
    expected: str | None = None,
    why: str | None = None,
    remedy: str | None = None,
) -> dict[str, dict[str, str | int | None]]:
    """What ``--json`` prints after a failure."""
    return {
        "error": {
            "code": code,
            "message": message,
            "got": got,
            "expected": expected,
            "why": why,
            "remedy": remedy,
            "exit_code": exit_code,
        }
    }


def show_error(error: VaultlineError, *, as_json: bool) -> None:
    """An error of ours: what was got, what was expected, why that matters, what to do next."""
    from vaultline.cli.explanations import explained  # takes a moment to import

    known = explained(error)
    why, remedy = (known.why if known else None), error.remedy
    if known and (remedy is None or isinstance(error, PeerError)):  # a peer's own words are general
        remedy = "; ".join(filter(None, (known.fix, remedy)))
    if as_json:
        print_json(
            error_document(
                error.code,
                error.message,
                error.exit_code,
                got=error.got,
                expected=error.expected,
                why=why,
                remedy=remedy,
            )
        )
    console = messages()
    console.print(f"[bold red]error:[/] {escape(_lines(error.message))}", soft_wrap=True)
    _show_details(console, error, why, remedy, indent="  ")


def show_checks(console: Console, checks: Iterable[Check]) -> None:
    """What passed or was waived, and why the rest failed and what to do about it."""
    for check in checks:
        error = check.refusal
        if check.waived:
            console.print(f"  waived: {check.name}, by {check.waived}", style="yellow")
            continue
        if error is None:
            console.print(f"  passed: {check.name}", style="dim")
            continue
        console.print(f"  [red]failed:[/] {check.name}: {error.code}")
        console.print(escape(f"    what: {_lines(error.message)}"), soft_wrap=True)
        _show_details(console, error, error.why, error.remedy, indent="    ")


def _show_details(
    console: Console, error: VaultlineError, why: str | None, remedy: str | None, *, indent: str
) -> None:
    lines = {"got": error.got, "expected": error.expected, "why": why, "to fix": remedy}
    for label, text in lines.items():
        if text:
            console.print(escape(f"{indent}{label}: {_lines(text)}"), soft_wrap=True)


def _lines(text: str) -> str:
    return "\n".join(map(printable, text.splitlines()))


def printable(text: str) -> str:
    """Text that a host or a file may have written, with what would steer a terminal spelt out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
