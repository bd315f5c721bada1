from __future__ import annotations

from math import inf, nan

import msgspec
import pytest

from vaultline.core.errors import InputError
from vaultline.core.leakage import (
    LEAKAGE_METRICS,
    PSNR_DB_MAX,
    CutLeakage,
    LeakageReport,
    read_leakage,
    write_leakage,
)
from vaultline.core.profile import RecordedOn

CUT = CutLeakage(
    position=3,
    tensors=("conv1",),
    resolution_px=112,
    similarity=0.75,
    reconstruction=0.5,
    psnr_db=21.5,
    revealing="conv1[17]",
)
REPORT = LeakageReport(
    model_name="m",
    model_digest="ab" * 32,
    images_digest="cd" * 32,
    images=6,
    decoder="ridge",
    recorded_on=RecordedOn(host="h", cpu="c", date="2026-01-01", command="vaultline privacy m"),
    positions=(0, 3),
    cuts=(
        msgspec.structs.replace(CUT, position=0, reconstruction=1.0, psnr_db=PSNR_DB_MAX),
        CUT,
    ),
)


def test_a_report_survives_a_round_trip() -> None:
    assert read_leakage(write_leakage(REPORT)) == REPORT


def test_every_metric_has_a_value() -> None:
    assert [CUT.value(metric) for metric in LEAKAGE_METRICS] == [112.0, 0.75, 0.5]


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(InputError, match="no such leakage metric"):
        CUT.value("entropy")  # type: ignore[arg-type]


def test_a_cut_is_found_by_its_position() -> None:
    assert REPORT.at(3) == CUT
    assert REPORT.at(2) is None


BAD_CUTS = {
    "a negative position": {"position": -1},
    "a negative resolution": {"resolution_px": -1},
    "a similarity above one": {"similarity": 1.1},
    "a similarity that is no number": {"similarity": nan},
    "a reconstruction below minus one": {"reconstruction": -1.1},
    "a reconstruction that is no number": {"reconstruction": nan},
    "an SSIM above one": {"ssim": 1.1},
    "an infinite PSNR": {"psnr_db": inf},
    "a PSNR that is no number": {"psnr_db": nan},
    "a negative PSNR": {"psnr_db": -0.1},
}


@pytest.mark.parametrize("case", BAD_CUTS)
def test_an_impossible_cut_is_refused(case: str) -> None:
    with pytest.raises(InputError):
        msgspec.structs.replace(CUT, **BAD_CUTS[case])


BAD_REPORTS = {
    "another version": {"version": 9},
    "no positions": {"positions": (), "cuts": ()},
    "positions that do not rise": {"positions": (3, 3), "cuts": (CUT, CUT)},
    "a cut too few": {"cuts": (CUT,)},
    "cuts of other positions": {"positions": (0, 4)},
    "no pictures": {"images": 0},
    "a blind guess above one": {"blind_ssim": 1.5},
}


@pytest.mark.parametrize("case", BAD_REPORTS)
def test_an_inconsistent_report_is_refused(case: str) -> None:
    with pytest.raises(InputError):
        msgspec.structs.replace(REPORT, **BAD_REPORTS[case])


BAD_FILES = {
    "not JSON": b"leakage",
    "another document": b'{"plan": 1}',
    "a field too many": write_leakage(REPORT)[:-1] + b',"more":1}',
    "an unknown decoder": write_leakage(REPORT).replace(b'"ridge"', b'"magic"'),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_is_no_report_is_refused_with_a_remedy(case: str) -> None:
    with pytest.raises(InputError) as caught:
        read_leakage(BAD_FILES[case])
    assert "vaultline privacy" in str(caught.value.remedy)


def test_a_file_with_a_value_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match="similarity"):
        read_leakage(write_leakage(REPORT).replace(b"0.75", b"7.5"))
