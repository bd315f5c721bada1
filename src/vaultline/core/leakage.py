"""A leakage report: what the tensors at each candidate cut of a model tell about its input.

Measured by ``vaultline privacy`` on the owner's own pictures. An input policy names one of the
metrics and a limit; what each metric is, and what none of them says: ``docs/privacy.md``.
"""

from __future__ import annotations

from itertools import pairwise
from math import isfinite
from typing import Literal, get_args

from vaultline.core.errors import InputError
from vaultline.core.profile import RecordedOn
from vaultline.core.serde import Struct, canonical_json, from_json

LEAKAGE_VERSION = 1
LeakageMetric = Literal["resolution", "similarity", "reconstruction"]
LEAKAGE_METRICS: tuple[LeakageMetric, ...] = get_args(LeakageMetric)
#: The error of a perfect reconstruction is zero and its PSNR infinite, which JSON cannot say.
PSNR_DB_MAX = 100.0
#: A side beyond this is no tensor of a picture.
RESOLUTION_PX_MAX = 1 << 20


class CutLeakage(Struct, frozen=True):
    """What crosses one cut, and how much of the input it shows.

    Attributes:
        position: nodes before the cut.
        tensors: names of the crossing tensors.
        resolution_px: the largest spatial side of the crossing tensors; 1 where none is spatial.
        similarity: the best mean SSIM (-1 to 1) of inputs, grey and resized, and any one channel.
        reconstruction: how much of held-out inputs an attack gets back: the mean SSIM of its
            reconstructions, on a scale from 0, what is guessed without any tensor, to 1, a copy.
        psnr_db: mean PSNR of the same reconstructions, at most ``PSNR_DB_MAX``.
        revealing: tensor and channel of the best similarity; empty where no channel is large
            enough to show anything.
        ssim: the mean SSIM itself, if it was kept.
    """

    position: int
    tensors: tuple[str, ...]
    resolution_px: int
    similarity: float
    reconstruction: float
    psnr_db: float
    revealing: str
    ssim: float | None = None

    def __post_init__(self) -> None:
        checks = (
            (self.position >= 0, "position", "0 or more"),
            (0 <= self.resolution_px <= RESOLUTION_PX_MAX, "resolution_px", "pixels"),
            (_is_ssim(self.similarity), "similarity", "-1 to 1"),
            (_is_ssim(self.reconstruction), "reconstruction", "-1 to 1"),
            (self.ssim is None or _is_ssim(self.ssim), "ssim", "-1 to 1"),
            (
                isfinite(self.psnr_db) and 0 <= self.psnr_db <= PSNR_DB_MAX,
                "psnr_db",
                f"0 to {PSNR_DB_MAX:g}",
            ),
        )
        for holds, name, expected in checks:
            if not holds:
                raise InputError(
                    f"`{name}` of the cut at position {self.position} is out of range",
                    got=str(getattr(self, name)),
                    expected=expected,
                )

    def value(self, metric: LeakageMetric) -> float:
        """The cut's leakage by a metric: higher shows more. Resolution is in pixels.

        Raises:
            InputError: no such metric.
        """
        if metric == "resolution":
            return float(self.resolution_px)
        if metric == "similarity":
            return self.similarity
        if metric == "reconstruction":
            return self.reconstruction
        raise InputError(
            "no such leakage metric", got=repr(metric), expected=", ".join(LEAKAGE_METRICS)
        )


def _is_ssim(value: float) -> bool:
    return isfinite(value) and -1 <= value <= 1


class LeakageReport(Struct, frozen=True):
    """The leakage of a model's candidate cuts.

    Attributes:
        model_digest: SHA-256 (hex), as in the profile and the plan.
        images_digest: SHA-256 (hex) over the pictures and over how they became inputs.
        images: how many pictures.
        decoder: which attack made the reconstructions.
        blind_ssim: what the better of two guesses scores that need no tensor, the mean picture
            and its mean colour: the zero of ``reconstruction``.
        positions: the cuts measured, as node counts, ascending; all candidates (0 and the number
            of nodes among them, as in a profile) unless some were asked for by name.
        cuts: one for each position.
    """

    model_name: str
    model_digest: str
    images_digest: str
    images: int
    decoder: Literal["ridge", "conv"]
    recorded_on: RecordedOn
    positions: tuple[int, ...]
    cuts: tuple[CutLeakage, ...]
    blind_ssim: float | None = None
    version: int = LEAKAGE_VERSION

    def __post_init__(self) -> None:
        if self.version != LEAKAGE_VERSION:
            raise InputError(
                "leakage report of another version",
                got=str(self.version),
                expected=str(LEAKAGE_VERSION),
                remedy="run `vaultline privacy` again",
            )
        rising = all(a < b for a, b in pairwise(self.positions))
        if not self.positions or self.positions[0] < 0 or not rising:
            raise InputError(
                "a leakage report's positions must rise from 0 or more", got=str(self.positions)
            )
        if tuple(cut.position for cut in self.cuts) != self.positions:
            raise InputError(
                "a leakage report needs one cut for each position, in order",
                got=str([cut.position for cut in self.cuts]),
                expected=str(list(self.positions)),
            )
        if self.images < 1:
            raise InputError("a leakage report needs pictures", got=str(self.images))
        if self.blind_ssim is not None and not _is_ssim(self.blind_ssim):
            raise InputError("`blind_ssim` is out of range", got=str(self.blind_ssim))

    def at(self, position: int) -> CutLeakage | None:
        """The leakage at a position, or None where it was not measured."""
        return next((cut for cut in self.cuts if cut.position == position), None)


def write_leakage(report: LeakageReport) -> bytes:
    """The canonical JSON of a report."""
    return canonical_json(report)


def read_leakage(data: bytes) -> LeakageReport:
    """Parse a report.

    Raises:
        InputError: not a leakage report, or an inconsistent one.
    """
    return from_json(
        data,
        LeakageReport,
        what="the leakage report",
        remedy="make it again with `vaultline privacy`",
    )
