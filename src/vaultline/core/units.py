"""Sizes in bytes, times in seconds, rates in bytes per second; text only at the edges."""

from __future__ import annotations

import datetime
import math
import re

from vaultline.core.errors import InputError

_SIZES = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
}
#: Network rates are decimal: 30 Mbit/s is 30,000,000 bits per second.
_RATES = {
    "BIT/S": 1 / 8,
    "KBIT/S": 1e3 / 8,
    "MBIT/S": 1e6 / 8,
    "GBIT/S": 1e9 / 8,
    "B/S": 1.0,
    "KB/S": 1e3,
    "MB/S": 1e6,
    "GB/S": 1e9,
    "KIB/S": float(1 << 10),
    "MIB/S": float(1 << 20),
    "GIB/S": float(1 << 30),
}
_TIMES = {"S": 1.0, "MS": 1e-3, "US": 1e-6, "NS": 1e-9}
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z/]*)\s*\Z")


def _parse(text: str | float, table: dict[str, float] | dict[str, int], what: str) -> float:
    if isinstance(text, bool):
        raise InputError(f"not a {what}", got=repr(text))
    if isinstance(text, int | float):
        return _finite(text, 1, what)
    match = _NUMBER.match(text)
    unit = match.group(2).upper() if match else ""
    if match is None or (unit and unit not in table):
        raise InputError(
            f"not a {what}",
            got=repr(text),
            expected="a number with one of the units " + ", ".join(sorted(table)),
        )
    return _finite(match.group(1), table[unit] if unit else 1, what)


def _finite(number: str | float, factor: float, what: str) -> float:
    """Their product; what is written may be more than a float holds."""
    try:
        value = float(number) * factor
    except OverflowError:  # of an integer
        value = math.inf
    if not math.isfinite(value):
        raise InputError(f"not a {what}", got=str(number)[:40], expected="a finite number")
    return value


def parse_bytes(text: str | float) -> int:
    """A size such as ``93MiB`` in bytes; a bare number is bytes."""
    return round(_parse(text, _SIZES, "size"))


def parse_bytes_per_s(text: str | float) -> float:
    """A rate such as ``30Mbit/s`` in bytes per second; a bare number is bytes per second."""
    return _parse(text, _RATES, "rate")


def parse_seconds(text: str | float) -> float:
    """A duration such as ``5ms`` in seconds; a bare number is seconds."""
    return _parse(text, _TIMES, "duration")


def format_bytes(size_bytes: int) -> str:
    """Bytes as ``B``, ``KiB``, ``MiB`` or ``GiB`` with one decimal."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def format_ms(duration_s: float) -> str:
    """Seconds as milliseconds with two decimals."""
    return f"{duration_s * 1e3:.2f} ms"


def format_rate(bytes_per_s: float) -> str:
    """Bytes per second as a cluster file has it, in bits: ``30Mbit/s``; three digits."""
    bits = bytes_per_s * 8
    for unit, size in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if bits >= size:
            return f"{_digits(bits / size)}{unit}"
    return f"{_digits(bits)}bit/s"


def format_seconds(duration_s: float) -> str:
    """Seconds as a cluster file has them: ``5ms``, ``30us``; three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if duration_s >= size:
            return f"{_digits(duration_s / size)}{unit}"
    return f"{_digits(duration_s / 1e-9)}ns"


def _digits(value: float) -> str:
    """Three significant digits, more only where a whole number has them."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def format_utc(unix_s: float) -> str:
    """A moment for a person; numbers beyond the calendar as they are."""
    try:
        moment = datetime.datetime.fromtimestamp(int(unix_s), datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return f"Unix time {unix_s}"
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
