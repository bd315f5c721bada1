from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultline.core.errors import InputError
from vaultline.core.units import (
    format_rate,
    format_seconds,
    format_utc,
    parse_bytes,
    parse_bytes_per_s,
    parse_seconds,
)


def test_rates_and_times_are_written_as_a_person_would() -> None:
    assert format_rate(30e6 / 8) == "30Mbit/s"
    assert format_rate(1.25e9) == "10Gbit/s"
    assert format_rate(12.5) == "100bit/s"
    assert format_rate(1e12) == "8000Gbit/s"
    assert format_seconds(0.005) == "5ms"
    assert format_seconds(31.2e-6) == "31.2us"
    assert format_seconds(0.0) == "0ns"


def test_moments_are_written_in_utc_or_as_they_are_where_no_calendar_has_them() -> None:
    assert format_utc(1_751_328_000) == "2025-07-01T00:00:00Z"
    assert format_utc(1 << 70) == f"Unix time {1 << 70}"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.floats(1e-6, 1e24))
def test_what_is_written_reads_back_to_three_digits(value: float) -> None:
    assert parse_bytes_per_s(format_rate(value)) == pytest.approx(value, rel=6e-3)
    assert parse_seconds(format_seconds(value)) == pytest.approx(value, rel=6e-3)


@pytest.mark.parametrize(
    "written", ["1e400", "1e400B", "1e308GiB", math.inf, math.nan, 10**400], ids=str
)
def test_what_no_number_holds_is_refused(written: str | float) -> None:
    with pytest.raises(InputError, match="not a size"):
        parse_bytes(written)


def test_sizes_are_read_in_both_kinds_of_units() -> None:
    assert parse_bytes("93MiB") == 93 << 20
    assert parse_bytes("1.5 kB") == 1500
    assert parse_bytes(4096) == parse_bytes("4096") == 4096
