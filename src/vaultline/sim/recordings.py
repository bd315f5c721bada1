"""Recorded arrivals as files: CSV with a header, or a JSON object a line; see docs/serving.md."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vaultline.core.errors import InputError, MachineError
from vaultline.core.serde import canonical_json, from_json
from vaultline.sched.events import Request
from vaultline.sim.workload import REQUESTS_MAX, RecordedRequest, recording

COLUMNS = ("time_s", "model", "deadline_s", "priority")
_REQUIRED = COLUMNS[:2]


def is_csv(name: str) -> bool:
    """Whether a file of this name is CSV; all others are JSON lines."""
    return name.lower().endswith(".csv")


def parse_recording(text: str, path: str) -> tuple[RecordedRequest, ...]:
    """The requests of a recording; the end of ``path`` says of which kind it is.

    Raises:
        InputError: the message starts with ``path:line:``.
    """
    found: list[RecordedRequest] = []
    for line, request in _csv(text, path) if is_csv(path) else _json_lines(text, path):
        if found and request.time_s < found[-1].time_s:
            raise InputError(
                f"{path}:{line}: a request is earlier than the one before it",
                got=f"{request.time_s} s after {found[-1].time_s} s",
                remedy="sort the recording by time",
            )
        if len(found) == REQUESTS_MAX:
            raise InputError(
                f"{path}:{line}: the recording is too long", expected=f"{REQUESTS_MAX} requests"
            )
        found.append(request)
    if not found:
        raise InputError(f"{path}: the recording has no requests")
    return tuple(found)


def recording_text(requests: Iterable[RecordedRequest], path: str) -> str:
    """What :func:`parse_recording` reads as exactly these requests."""
    if not is_csv(path):
        return "".join(canonical_json(request).decode() + "\n" for request in requests)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for each in requests:  # None becomes an empty cell; floats are written so that they come back
        writer.writerow((repr(each.time_s), each.model, each.deadline_s, each.priority))
    return out.getvalue()


def record(requests: Sequence[Request], path: Path) -> None:
    """Write requests so that a workload with ``arrivals: {kind: recorded}`` sends them again.

    Raises:
        MachineError: the file can't be written.
    """
    try:
        path.write_text(recording_text(recording(requests).requests, path.name), encoding="utf-8")
    except OSError as error:
        raise MachineError(f"cannot write the recording to {path}", got=error.strerror) from error


def _json_lines(text: str, path: str) -> Iterator[tuple[int, RecordedRequest]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, from_json(line.encode(), RecordedRequest, what="a request")
            except InputError as error:
                raise _placed(error, path, number) from error


def _csv(text: str, path: str) -> Iterator[tuple[int, RecordedRequest]]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = [name.strip() for name in next(rows, [])]
        _check_columns(columns, path)
        for row in rows:
            if row:
                yield rows.line_num, _request(columns, row, path, rows.line_num)
    except csv.Error as error:
        raise InputError(f"{path}:{rows.line_num}: not valid CSV", got=str(error)) from error


def _check_columns(columns: Sequence[str], path: str) -> None:
    known = set(columns) <= set(COLUMNS) and set(_REQUIRED) <= set(columns)
    if not known or len(set(columns)) < len(columns):
        raise InputError(
            f"{path}:1: a recording's first line names other columns",
            got=",".join(columns) or "nothing",
            expected=f"{','.join(_REQUIRED)}, and perhaps {','.join(COLUMNS[2:])}",
        )


def _request(columns: Sequence[str], row: Sequence[str], path: str, line: int) -> RecordedRequest:
    if len(row) != len(columns):
        raise InputError(
            f"{path}:{line}: a request has another number of columns than the first line",
            got=",".join(row),
            expected=",".join(columns),
        )
    cells = {name: cell.strip() for name, cell in zip(columns, row, strict=True)}
    deadline, priority = cells.get("deadline_s"), cells.get("priority")
    try:
        return RecordedRequest(
            time_s=float(cells["time_s"]),
            model=cells["model"],
            deadline_s=float(deadline) if deadline else None,
            priority=int(priority) if priority else None,
        )
    except ValueError as error:
        raise InputError(f"{path}:{line}: not a request", got=str(error)) from error
    except InputError as error:
        raise _placed(error, path, line) from error


def _placed(error: InputError, path: str, line: int) -> InputError:
    return InputError(
        f"{path}:{line}: {error.message}",
        got=error.got,
        expected=error.expected,
        remedy=error.remedy,
    )
