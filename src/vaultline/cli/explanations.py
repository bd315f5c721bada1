"""Why a refusal matters and what to do about it, for those who never heard of enclaves.

Refusals of evidence say so themselves. The others are explained here and not at their classes: most
are raised inside enclaves, whose code is to stay small, and arrive as a bare name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from vaultline.attest.refusals import EvidenceRefused
from vaultline.channel.chunks import RESEAL
from vaultline.core.errors import PeerError, RefusedError, VaultlineError


class Explanation(NamedTuple):
    """``why``: what could go wrong if this were accepted; ``fix``: what to do, for most cases."""

    why: str
    fix: str


_DISCLOSE = (
    "name a policy (--privacy, --leakage) that allows it, or keep the stage on attested devices"
)
_PRIVATE = "make the file its owner's alone: chmod 600; make a new one if others may have read it"
_LATER = "send the request again a little later, or fewer at a time"

EXPLANATIONS: Final[Mapping[str, Explanation]] = {
    "TensorNotReleased": Explanation(
        "What an untrusted machine sees once, its operator can keep and look at.", _DISCLOSE
    ),
    "WeightsNotDisclosed": Explanation(
        "Weights that an untrusted machine gets are its operator's for ever.", _DISCLOSE
    ),
    "VaultError": Explanation("Another file may hold another model, or none.", RESEAL),
    "VaultFormatError": Explanation(
        "A file that breaks its format was made to confuse, or damaged on its way.", RESEAL
    ),
    "VaultTruncatedError": Explanation(
        "What is missing may be weights without which answers are wrong.", RESEAL
    ),
    "VaultTamperedError": Explanation(
        "Whoever alters weights decides what the network sees.", RESEAL
    ),
    "VaultSwappedError": Explanation("Weights in the wrong place make another network.", RESEAL),
    "VaultOtherModelError": Explanation(
        "Answers would be another model's.", "name the vault and the key file of the same `seal`"
    ),
    "VaultOtherPlanError": Explanation(
        "Another plan may put stages where you did not mean them to be.",
        "name the plan that was sealed, or run `vaultline seal` with this one",
    ),
    "VaultOtherStageError": Explanation(
        "A stage with another's weights computes something else.", RESEAL
    ),
    "VaultStaleError": Explanation(
        "Whoever puts an old file back brings back what you replaced, with its faults.", RESEAL
    ),
    "PagedRefusedError": Explanation(
        "Real enclaves have a page cache in hardware; a simulated one beside it measures nothing.",
        "plan and prepare without `mode: paged`",
    ),
    "PageTamperedError": Explanation(
        "Memory outside of the enclave is the host's: what comes back may be what it likes.",
        "start again; distrust the machine's memory if it happens twice",
    ),
    "KeyFileModeError": Explanation(
        "Who reads the file has the model; who writes it chooses which one runs.", _PRIVATE
    ),
    "KeyFileDamagedError": Explanation(
        "An altered file may name keys or sealings that somebody else chose.",
        "restore the file, or seal the model again",
    ),
    "WrongKekError": Explanation(
        "The file can't be opened without the key that it is wrapped under.",
        "name the file of that key with --kek",
    ),
    "RefusedByServerError": Explanation(
        "A server that takes on more than it can do in time answers nobody in time.",
        "give the request a later deadline or more priority, or serve with more servers",
    ),
    "OverloadedError": Explanation(
        "Requests that wait take memory; without a limit all would be lost together.", _LATER
    ),
    "DrainingError": Explanation(
        "A request that is taken during a shutdown might never be answered.",
        "send it to another gateway, or when this one is up again",
    ),
    "CredentialRefusedError": Explanation(
        "Somebody between could read requests, or answer them himself.",
        "give client and gateway the same credential file",
    ),
    "CredentialModeError": Explanation(
        "Whoever reads the credential can send requests in its owner's name.", _PRIVATE
    ),
}


def explanation(kind: type[RefusedError]) -> Explanation:
    """Why this refusal matters and what to do about it, usually."""
    if issubclass(kind, EvidenceRefused):
        return Explanation(kind.why, kind.fix)
    return EXPLANATIONS[kind.__name__]


def explained(error: VaultlineError) -> Explanation | None:
    """The same for an error, also one that relays an enclave's refusal by its name in ``got``.

    That name came by way of the host, unauthenticated: it chooses among these texts, no more.
    """
    if isinstance(error, EvidenceRefused):
        return Explanation(error.why, error.fix)
    name = error.got or "" if isinstance(error, PeerError) else error.code
    return EXPLANATIONS.get(name)
