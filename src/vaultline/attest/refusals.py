# ruff: noqa: N818 - errors are named after what happened
"""Why evidence is refused: one class for each reason, so that logs can tell them apart."""

from __future__ import annotations

from vaultline.core.errors import RefusedError


class EvidenceRefused(RefusedError):
    """Evidence does not satisfy the policy, or does not answer the challenge."""


class KindRefused(EvidenceRefused):
    """The policy accepts no enclave of this kind, or the quote is of another."""


class SimulatedNotAllowed(EvidenceRefused):
    """Simulated evidence without the owner's explicit consent, or posing as real."""


class QuoteInvalid(EvidenceRefused):
    """Not a quote, or one of its signatures or certificates does not verify."""


class QuoteTrailingBytes(EvidenceRefused):
    """The quote is not exactly as long as it says."""


class RootRefused(EvidenceRefused):
    """The certificates lead to a root that the policy does not name."""


class CollateralExpired(EvidenceRefused):
    """The collateral or a certificate is not valid at this time."""


class DebugRefused(EvidenceRefused):
    """The enclave is debuggable: the host can read its memory."""


class PinnedKeyRefused(EvidenceRefused):
    """An accelerator signs with a key that the policy does not name."""


class TcbRefused(EvidenceRefused):
    """The platform's firmware is in a state that the policy does not accept."""


class MeasurementRefused(EvidenceRefused):
    """The enclave runs other code than the policy names."""


class ReportDataMismatch(EvidenceRefused):
    """Genuine evidence, but not for this challenge and key."""


class EvidenceForAnotherKey(ReportDataMismatch):
    """It commits to a key that was presented elsewhere: relayed evidence."""


class EvidenceForAnotherDeployment(ReportDataMismatch):
    """It answers a challenge of another deployment."""


class EvidenceForAnotherPlan(ReportDataMismatch):
    """It answers a challenge for another plan."""


class EvidenceForAnotherStage(ReportDataMismatch):
    """It answers a challenge for another stage."""


class EvidenceForAnotherEpoch(ReportDataMismatch):
    """It answers a challenge of another epoch."""


class EvidenceReplayed(ReportDataMismatch):
    """It answers an earlier challenge for the same stage."""
