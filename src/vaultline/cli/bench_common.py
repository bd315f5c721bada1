"""What the benchmarks' verbs share."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from vaultline.bench.profiling import cpu_name
from vaultline.cli.common import progress
from vaultline.core.errors import InputError

QuickFlag = Annotated[bool, typer.Option("--quick", help="Finish within a minute.")]
ZooOption = Annotated[
    Path | None,
    typer.Option("--models-dir", help="Where the models are made; ~/.cache/vaultline/zoo."),
]


def default_zoo() -> Path:
    """Where models for benchmarks are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return home / "vaultline" / "zoo"


def named(text: str, known: Collection[str], message: str, option: str) -> tuple[str, ...]:
    """Names with commas between them, each once.

    Raises:
        InputError: with this message: one that is not known.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(
            message,
            got=", ".join(unknown),
            expected=", ".join(known),
            remedy=f"name some of these with {option}, commas between them",
        )
    return names


@contextmanager
def told() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar as a callback: (what, done, total)."""
    with progress(unit="steps/s") as bar:
        task = bar.add_task("measuring", total=None)
        yield lambda what, done, total: bar.update(
            task, description=f"measuring {what}", completed=done, total=total
        )


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0))}
