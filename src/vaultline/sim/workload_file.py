"""The workload file: YAML in a person's units, into a checked workload, with the line of a mistake.

The classes are the file's own shape, and so are their descriptions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from vaultline.core.cluster_file import SCHEMA_DIALECT, Duration
from vaultline.core.errors import InputError
from vaultline.core.serde import Struct
from vaultline.core.units import parse_seconds
from vaultline.core.yaml import from_yaml, line_of
from vaultline.sim.recordings import parse_recording
from vaultline.sim.workload import (
    DURATION_S_MAX,
    Arrivals,
    Bursty,
    Phase,
    Poisson,
    Recorded,
    RecordedRequest,
    Workload,
    WorkloadModel,
    zipf_weights,
)

#: With a larger exponent all requests are for the first model.
ZIPF_MAX = 20.0
Place = tuple[str | int, ...]
Rate = Annotated[int | float, Meta(description="Requests a second.", examples=[40])]


class ModelEntry(Struct, frozen=True):
    """A model that requests come for."""

    name: Annotated[str, Meta(description="As it was prepared.")]
    weight: Annotated[
        int | float | None, Meta(description="Share of the requests, over the sum of all; 1.")
    ] = None
    deadline: Annotated[Duration | None, Meta(description="After arrival; none by default.")] = None
    priority: Annotated[int, Meta(description="Higher ones go first within a queue.")] = 0

    def __post_init__(self) -> None:
        self.made(1.0 if self.weight is None else float(self.weight))

    def made(self, weight: float) -> WorkloadModel:
        """In seconds."""
        deadline_s = None if self.deadline is None else parse_seconds(self.deadline)
        return WorkloadModel(
            name=self.name, weight=weight, deadline_s=deadline_s, priority=self.priority
        )


class PhaseEntry(Struct, frozen=True):
    """A state of bursty arrivals."""

    rate: Rate
    mean: Annotated[Duration, Meta(description="How long it lasts, on average.")]

    def __post_init__(self) -> None:
        self.made()

    def made(self) -> Phase:
        """In seconds."""
        return Phase(rate=float(self.rate), mean_s=parse_seconds(self.mean))


class PoissonEntry(Struct, frozen=True, tag="poisson", tag_field="kind"):
    """Independent requests."""

    rate: Rate

    def __post_init__(self) -> None:
        Poisson(rate=float(self.rate))


class BurstyEntry(Struct, frozen=True, tag="bursty", tag_field="kind"):
    """Bursts and what lies between them, each of random length."""

    burst: PhaseEntry
    calm: PhaseEntry

    def __post_init__(self) -> None:
        Bursty(burst=self.burst.made(), calm=self.calm.made())


class RecordedEntry(Struct, frozen=True, tag="recorded", tag_field="kind"):
    """Requests of a file."""

    file: Annotated[
        str, Meta(description="CSV, or JSON lines; beside the workload file unless absolute.")
    ]
    speed: Annotated[int | float, Meta(description="2: in half the time.")] = 1.0

    def __post_init__(self) -> None:
        if not (isfinite(self.speed) and self.speed > 0):
            raise InputError("a recording's speed is not more than 0", got=str(self.speed))


class WorkloadFile(Struct, frozen=True):
    """Which requests arrive when."""

    arrivals: PoissonEntry | BurstyEntry | RecordedEntry
    models: Annotated[
        tuple[ModelEntry, ...],
        Meta(description="May be left out where arrivals are recorded: all that occur."),
    ] = ()
    zipf: Annotated[
        int | float | None,
        Meta(description="Popularity falls as 1/rank**zipf in the order of the models."),
    ] = None
    rotate: Annotated[
        Duration | None,
        Meta(description="So often each model takes the popularity of the one before it."),
    ] = None
    duration: Annotated[Duration | None, Meta(description="Of the arrivals.")] = None
    count: Annotated[int | None, Meta(description="Of requests.")] = None
    seed: Annotated[int, Meta(description="The same seed gives the same requests.")] = 0


def read_workload(path: Path) -> Workload:
    """Read a workload file, and the recording that it may name.

    Raises:
        InputError: a file can't be read or is wrong; the message starts with ``path:line:``.
    """

    def recorded(name: str) -> tuple[RecordedRequest, ...]:
        beside = path.parent / name
        return parse_recording(_read(beside, "the recording"), str(beside))

    return parse_workload(_read(path, "the workload file"), str(path), recorded)


def parse_workload(
    text: str, path: str, recorded: Callable[[str], Sequence[RecordedRequest]]
) -> Workload:
    """Make a workload of a file's text.

    Args:
        path: the file's name, for messages.
        recorded: reads the recording that the file names.

    Raises:
        InputError: not YAML, an unknown field, or inconsistent; it starts with ``path:line:``.
    """
    file = from_yaml(text, WorkloadFile, what="the workload file", path=path)
    for place, error in _problems(file):
        raise _placed(error, f"{path}:{line_of(text, place)}")
    entry = file.arrivals
    requests = recorded(entry.file) if isinstance(entry, RecordedEntry) else ()
    try:
        return _made(file, requests)
    except InputError as error:
        place = ("arrivals",) if isinstance(entry, RecordedEntry) else ()
        raise _placed(error, f"{path}:{line_of(text, place)}") from error


def workload_schema() -> dict[str, Any]:
    """The JSON Schema of workload files, for editors and other tools."""
    made = msgspec.json.schema(WorkloadFile)
    return {"$schema": SCHEMA_DIALECT, "title": "workload file", **made}


def _problems(file: WorkloadFile) -> Iterator[tuple[Place, InputError]]:
    """What is wrong between fields, where each of them is right."""
    drawn = not isinstance(file.arrivals, RecordedEntry)
    names: set[str] = set()
    for number, entry in enumerate(file.models):
        if entry.name in names:
            yield ("models", number), InputError("a model is named twice", got=entry.name)
        names.add(entry.name)
        if entry.weight is not None and (not drawn or file.zipf is not None):
            other = "`zipf` says it of all models" if drawn else "the recording says who comes"
            yield (
                ("models", number, "weight"),
                InputError("a model has a weight of its own", got=other, remedy="remove one"),
            )
    for name in ("zipf", "rotate"):
        if not drawn and getattr(file, name) is not None:
            error = InputError(f"`{name}` says nothing of a recording", remedy="remove it")
            yield (name,), error
    if drawn and not file.models:
        yield ("models",), InputError("the workload names no model")
    if drawn and file.duration is None and file.count is None:
        yield (), InputError("nothing ends the workload", expected="`duration` or `count`")
    yield from _bad_numbers(file)


def _bad_numbers(file: WorkloadFile) -> Iterator[tuple[Place, InputError]]:
    if file.zipf is not None and not 0 <= file.zipf <= ZIPF_MAX:
        expected = f"0 (all alike) to {ZIPF_MAX:.0f}"
        yield (
            ("zipf",),
            InputError("not an exponent of Zipf's law", got=str(file.zipf), expected=expected),
        )
    if file.count is not None and file.count < 1:
        yield ("count",), InputError("a workload has at least one request", got=str(file.count))
    for name in ("duration", "rotate"):
        given = getattr(file, name)
        try:
            if given is not None and not 0 < parse_seconds(given) < DURATION_S_MAX:
                yield (name,), InputError(f"not a {name} of a workload", got=str(given))
        except InputError as error:
            yield (name,), error


def _made(file: WorkloadFile, requests: Sequence[RecordedRequest]) -> Workload:
    """In seconds, the models of a recording found."""
    source = file.arrivals
    match source:
        case PoissonEntry():
            arrivals: Arrivals = Poisson(rate=float(source.rate))
        case BurstyEntry():
            arrivals = Bursty(burst=source.burst.made(), calm=source.calm.made())
        case RecordedEntry():
            arrivals = Recorded(requests=tuple(requests))
    weights = [1.0 if entry.weight is None else float(entry.weight) for entry in file.models]
    if file.zipf is not None:
        weights = zipf_weights(len(file.models), float(file.zipf))
    models = [entry.made(weight) for entry, weight in zip(file.models, weights, strict=True)]
    found = dict.fromkeys(request.model for request in requests)
    workload = Workload(
        models=tuple(models or (WorkloadModel(name=name) for name in found)),
        arrivals=arrivals,
        seed=file.seed,
        duration_s=None if file.duration is None else parse_seconds(file.duration),
        count=file.count,
        rotate_s=None if file.rotate is None else parse_seconds(file.rotate),
    )
    return workload.faster(source.speed) if isinstance(source, RecordedEntry) else workload


def _placed(error: InputError, where: str) -> InputError:
    return InputError(
        f"{where}: {error.message}", got=error.got, expected=error.expected, remedy=error.remedy
    )


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {what}", got=f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{what} is not UTF-8 text", got=str(path), remedy="save it as UTF-8"
        ) from error
