"""What a fuzzed parser must not do, and how inputs are made for it.

An input is a finding if the parser raises what it does not declare, if it takes more memory than
its limit, or if it takes more than a second of the processor's time. Inputs are mutations of good
ones and of the corpus; what ends somewhere new (another error, or the same from another place)
joins the corpus, which the default tests replay.
"""

from __future__ import annotations

import hashlib
import re
import time
import traceback
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hypothesis import strategies as st

CORPUS = Path(__file__).parent / "corpus"
#: Larger inputs show nothing that smaller ones don't, and the corpus is to stay small.
INPUT_BYTES_MAX = 16 << 10
CORPUS_BYTES_MAX = 4 << 10
CORPUS_FILES_MAX = 48
SECONDS_MAX = 1.0
MIB = 1 << 20


@dataclass(frozen=True)
class Target:
    """One parser.

    Attributes:
        parse: raises one of ``errors``, or takes the input.
        make_seeds: good inputs, which ``parse`` takes.
        memory_max: bytes that it may take at most: the parser's own limit, and what holds it.
    """

    name: str
    parse: Callable[[bytes], object]
    make_seeds: Callable[[], Sequence[bytes]]
    errors: tuple[type[BaseException], ...]
    memory_max: int = 4 * MIB

    @cached_property
    def seeds(self) -> tuple[bytes, ...]:
        """Good inputs."""
        return tuple(self.make_seeds())

    @property
    def folder(self) -> Path:
        """Its corpus."""
        return CORPUS / self.name

    def corpus(self) -> list[bytes]:
        """Inputs that were kept, the oldest name first."""
        return [path.read_bytes() for path in sorted(self.folder.glob("*.bin"))]


class Finding(AssertionError):  # noqa: N818 - what was looked for
    """A parser did what it must not do."""


def run_one(target: Target, data: bytes) -> str:
    """Parse one input; returns where that ended, as a short text.

    Raises:
        Finding: an undeclared exception, too much memory or too much time.
    """
    tracemalloc.start()
    before_s = time.thread_time()
    try:
        target.parse(data)
        ended = "taken"
    except target.errors as error:
        ended = _signature(error)
    except BaseException as error:
        raise Finding(f"{target.name}: {type(error).__name__}: {error}") from error
    finally:
        seconds = time.thread_time() - before_s
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    if peak > target.memory_max:
        raise Finding(f"{target.name}: {peak} bytes taken, of {target.memory_max}")
    if seconds > SECONDS_MAX:
        raise Finding(f"{target.name}: {seconds:.2f} s")
    return ended


def _signature(error: BaseException) -> str:
    """Which error, what about, and from which line: causes included."""
    parts = []
    cause: BaseException | None = error
    while cause is not None and len(parts) < 3:
        frames = traceback.extract_tb(cause.__traceback__)
        place = f"{Path(frames[-1].filename).stem}:{frames[-1].lineno}" if frames else ""
        words = re.sub(r"[^a-zA-Z ]+", "", str(cause))[:40]
        parts.append(f"{type(cause).__name__} {place} {words}")
        cause = cause.__cause__
    return " < ".join(parts)


def mutations(target: Target) -> st.SearchStrategy[bytes]:
    """Noise, or a known input with some changes: bits, cuts, gaps, repeats, numbers, splices."""
    known = [data for data in (*target.seeds, *target.corpus()) if data]
    known = [data[:INPUT_BYTES_MAX] for data in known]
    return st.one_of(
        st.binary(max_size=300),
        st.builds(_mutated, st.sampled_from(known), st.lists(_CHANGE, min_size=1, max_size=4)),
        st.builds(_spliced, st.sampled_from(known), st.sampled_from(known), _PLACE, _PLACE),
    )


_PLACE = st.floats(0, 1, exclude_max=True)
_NUMBERS = (
    b"-1",
    b"0",
    b"1e400",
    b"1e308",
    b"9" * 23,
    b"9223372036854775807",
    b"18446744073709551616",
    b"null",
    b"NaN",
    b".inf",
    b'""',
    b"[]",
    b"{}",
    b"[" * 600,
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"\x00\x00\x00\x00",
    b"\xdd\xff\xff\xff\xff",  # a MessagePack array of four billion
    b"\xc6\xff\xff\xff\xff",  # and as many bytes
    b"&a [*a,*a]",
)
_CHANGE = st.tuples(
    st.sampled_from(["bit", "byte", "cut", "gap", "repeat", "insert", "number"]),
    _PLACE,
    st.integers(0, 255),
)


def _mutated(data: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    for kind, place, value in changes:
        at = int(place * len(data))
        if kind == "bit" and data:
            data = data[:at] + bytes([data[at] ^ (1 << value % 8)]) + data[at + 1 :]
        elif kind == "byte" and data:
            data = data[:at] + bytes([value]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "gap":
            data = data[:at] + data[at + 1 + value % 40 :]
        elif kind == "repeat":
            data = data[:at] + data[at : at + value] * 3 + data[at + value :]
        elif kind == "insert":
            data = data[:at] + _NUMBERS[value % len(_NUMBERS)] + data[at:]
        else:
            match = re.compile(rb"-?\d+(\.\d+)?").search(data, at)
            if match:
                number = _NUMBERS[value % len(_NUMBERS)]
                data = data[: match.start()] + number + data[match.end() :]
    return data[:INPUT_BYTES_MAX]


def _spliced(one: bytes, other: bytes, place: float, from_place: float) -> bytes:
    return (one[: int(place * len(one))] + other[int(from_place * len(other)) :])[:INPUT_BYTES_MAX]


def keep(target: Target, data: bytes) -> None:
    """Add an input to a target's corpus, unless that is full or the input is long."""
    if len(data) > CORPUS_BYTES_MAX or len(list(target.folder.glob("*.bin"))) >= CORPUS_FILES_MAX:
        return
    target.folder.mkdir(parents=True, exist_ok=True)
    (target.folder / f"{hashlib.sha256(data).hexdigest()[:16]}.bin").write_bytes(data)
