"""The grant of a pipeline's stage: its section, the secrets of its hops, and what may leave."""

# ruff: noqa: N818 - errors are named after what happened
from __future__ import annotations

from collections.abc import Iterable
from math import inf

from vaultline.core.errors import InputError, RefusedError
from vaultline.core.section import SectionAccess
from vaultline.core.serde import Struct


class TensorNotReleased(RefusedError):
    """An untrusted stage would see what the owner's policy does not release."""


class HopRelease(Struct, frozen=True, kw_only=True):
    """What the owner's policy lets an untrusted next stage see; never made from a plan's claims.

    Attributes:
        tensors: names of all that may travel.
        leakage: measured, of all of them together: the worst of every cut that the stages behind
            the hop can compute from them.
        limit: the most that the policy allows.
    """

    tensors: tuple[str, ...]
    leakage: float
    limit: float


class Grant(SectionAccess, frozen=True, kw_only=True):
    """What one enclave may know: what opens its own section, and the secrets of its two hops.

    Attributes:
        deployment: 16 bytes.
        hop_in_secret, hop_out_secret: 32 bytes each, from which the hops' record keys derive.
        replica: which of its stage's replicas this enclave is: they share one section.
        release: what may go to an untrusted next stage; without it nothing may.
        receipt_secret: 32 bytes, the key of a receipt's digests. Without it frames are not digested
            and no link is signed.
        model_digest: for receipts; the owner's word, which each link repeats.
        frames_per_link: the most; a stream's last link may have fewer, or none.
    """

    epoch: int
    deployment: bytes
    hop_in_secret: bytes
    hop_out_secret: bytes
    replica: int = 0
    release: HopRelease | None = None
    receipt_secret: bytes = b""
    model_digest: bytes = b""
    frames_per_link: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = (self.deployment, self.hop_in_secret, self.hop_out_secret)
        if tuple(map(len, parts)) != (16, 32, 32):
            raise InputError("a deployment has 16 bytes, a hop's secret 32")


def check_released(release: HopRelease | None, tensors: Iterable[str]) -> None:
    """Refuse to let an untrusted stage see tensors that a policy does not release.

    The host hears what an enclave says: no tensor is named.

    Raises:
        TensorNotReleased: nothing is, or not all of them, or they leak more than the limit.
    """
    reason = ""
    if release is None:
        reason = "no policy releases anything to it"
    elif not set(tensors).issubset(release.tensors):
        reason = "it would see tensors that were not released"
    elif not release.leakage <= release.limit < inf:  # nor if either is not a number
        reason = "what it would see leaks more than the policy's limit"
    if reason:
        raise TensorNotReleased(f"the next stage is untrusted: {reason}")
