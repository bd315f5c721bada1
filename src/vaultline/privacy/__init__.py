"""What a cut leaks: pure functions from planes and pictures to the scores of ``core.leakage``.

``planes`` finds the spatial axes of a tensor, ``similarity`` looks for a channel that resembles the
input, ``ridge`` fits a decoder and ``measure`` puts the scores of a cut together. Running the model
is the caller's affair (``bench.leakage``).
"""

from vaultline.privacy.measure import Decoder, Fit, Measured, Sample, measure_cut
from vaultline.privacy.planes import RESOLUTION_RULE_PX, Planes, planes_of, resolution_px
from vaultline.privacy.ridge import RidgeDecoder, RidgeSettings, fit_ridge
from vaultline.privacy.similarity import Revealing, normalised, similarity
from vaultline.privacy.ssim import luma, psnr_db, ssim

__all__ = [
    "RESOLUTION_RULE_PX",
    "Decoder",
    "Fit",
    "Measured",
    "Planes",
    "Revealing",
    "RidgeDecoder",
    "RidgeSettings",
    "Sample",
    "fit_ridge",
    "luma",
    "measure_cut",
    "normalised",
    "planes_of",
    "psnr_db",
    "resolution_px",
    "similarity",
    "ssim",
]
