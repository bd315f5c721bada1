# ruff: noqa: N818 - errors are named after what happened
"""Why evidence is refused: one class for each reason, so that logs can tell them apart.

Each class says in its docstring what was found, in ``why`` what could go wrong if it were accepted,
and in ``fix`` what to do. A raise may give a remedy that fits the case better than ``fix``.
``docs/errors.md`` is made from these texts.
"""

from __future__ import annotations

from vaultline.core.errors import RefusedError


class EvidenceRefused(RefusedError):
    """Evidence does not satisfy the policy, or does not answer the challenge."""

    why = "Keys would go to something that nothing vouches for."
    fix = "read the reason; nothing was released"

    def __init__(
        self,
        message: str,
        *,
        got: str | None = None,
        expected: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message, got=got, expected=expected, remedy=remedy or self.fix)


# What kind of evidence it is, and whether it is whole.


class KindRefused(EvidenceRefused):
    """The policy accepts no enclave of this kind, or the quote is of another."""

    why = "Every kind of hardware protects from other attackers; the owner has to choose."
    fix = "add an entry for this kind to the policy, or run the stage on another device"


class SimulatedNotAllowed(EvidenceRefused):
    """Simulated evidence without the owner's explicit consent, or posing as real."""

    why = "Nothing protects a simulated enclave from the machine that it runs on."
    fix = "use real hardware; for development, name the development root and --allow-simulated"


class QuoteInvalid(EvidenceRefused):
    """Not a quote or report, or one of its signatures does not verify."""

    why = "Altered evidence says whatever its author likes."
    fix = "get fresh evidence from the platform; if this repeats, somebody alters it on the way"


class QuoteTrailingBytes(QuoteInvalid):
    """The evidence is not exactly as long as it says, or unsigned bytes in it are not zero."""

    why = "Bytes that nobody signed could carry a second, unchecked statement."
    fix = "the provider must cut off padding"


class VendorRefused(QuoteInvalid):
    """The quoting enclave names another vendor than the one whose format this is."""

    why = "Only the vendor's own quoting enclave is known to sign nothing but the truth."
    fix = "use a platform with the vendor's quoting enclave"


class QuotingEnclaveRefused(QuoteInvalid):
    """The enclave that signed the quote is not the one that the vendor's identity describes."""

    why = "Another enclave with the same key could sign any measurement."
    fix = "update the platform's attestation software, and fetch the collateral again"


# Certificates, lists of revoked ones, and other statements of the vendor.


class RootRefused(EvidenceRefused):
    """The certificates lead to a root that the policy does not name."""

    why = "Anybody can make a chain of certificates under a root of his own."
    fix = "use evidence and collateral of an accepted root, or name this root in the policy"


class CertificateRefused(QuoteInvalid):
    """A certificate is not signed by the next one, or is not of the right type."""

    why = "The chain is what ties the platform's key to the vendor."
    fix = "put the platform's own certificates and their issuers into the collateral"


class CertificateRevoked(EvidenceRefused):
    """A certificate of the platform or of its issuer is on a revocation list."""

    why = "Its key is known to be lost: whoever has it can forge evidence."
    fix = "do not use this platform; ask its operator or vendor"


class RevocationUnknown(EvidenceRefused):
    """There is no list of revoked certificates by this issuer."""

    why = "A platform whose key was stolen would look like any other."
    fix = "put the vendor's revocation lists into the bundle: vaultline collateral pack"


class CollateralExpired(EvidenceRefused):
    """The collateral or a certificate is not valid at this time."""

    why = "What is known about the platform may be out of date."
    fix = "fetch the collateral again, or check the clock (or --at)"


class CollateralMismatch(EvidenceRefused):
    """The collateral is genuine, and of another platform or product."""

    why = "Another platform's state says nothing about this one."
    fix = "fetch the collateral for this evidence"


class FreshnessRefused(EvidenceRefused):
    """The collateral is older than the policy allows, or evaluates the platform by old rules."""

    why = "An attacker would keep collateral from before a weakness became known."
    fix = "fetch the collateral again"


# What the platform is and in which state.


class DebugRefused(EvidenceRefused):
    """The enclave is debuggable: the host can read its memory."""

    why = "There would be no secret in it."
    fix = "build the enclave, or launch the machine, for production"


class MigrationRefused(EvidenceRefused):
    """The guest's host may move it, by an agent of the host's choosing."""

    why = "Such an agent gets the keys of the guest's memory, and nothing here measures the agent."
    fix = "launch the guest so that it may not be migrated (AMD: policy bit 18, Intel: TD bit 29)"


class PinnedKeyRefused(EvidenceRefused):
    """An accelerator signs with a key that the policy does not name."""

    why = "It is some other machine than the one that the owner knows."
    fix = "if it is yours, add the key to `public_keys` of the policy's accelerator"


class TcbRefused(EvidenceRefused):
    """The platform's firmware is in a state that the policy does not accept."""

    why = "Known weaknesses of older firmware let the host read protected memory."
    fix = "update the platform's firmware, or accept the status in the policy"


class AdvisoryRefused(TcbRefused):
    """A security advisory applies to the platform, and the policy does not accept it."""

    why = "Each advisory describes a published attack."
    fix = "update the platform; or read the advisory, and accept it if it does not concern you"


class PlatformRefused(TcbRefused):
    """The platform has a property that the policy refuses, or is silent about it."""

    why = "Some properties, such as hyperthreading, widen what a neighbour can observe."
    fix = "use another platform or change its set-up, or drop the property from the policy"


class TcbMismatch(EvidenceRefused):
    """The report's firmware versions are not those that its signing key was made for."""

    why = "A key of older firmware may have leaked through that firmware's weaknesses."
    fix = "put the certificate for the report's own versions into the collateral"


class ChipMismatch(EvidenceRefused):
    """The report names another processor than the certificate of its signing key."""

    why = "The certificate vouches for one chip, and the evidence is about another one."
    fix = "put the certificate of this chip into the collateral"


class SigningKeyMismatch(EvidenceRefused):
    """The report is signed by a chip's key and certified as a loaded one, or the reverse."""

    why = "Both kinds of keys have chains of their own; mixing them up hides who vouches."
    fix = "a VCEK report needs the VCEK chain, a VLEK report the VLEK chain"


class PrivilegeRefused(EvidenceRefused):
    """The report was asked for at a less privileged level of the guest than the policy allows."""

    why = "Less privileged code inside the guest could answer for the whole guest."
    fix = "ask for the report at a lower VMPL, or raise `vmpl_max` in the policy"


# What runs there.


class MeasurementRefused(EvidenceRefused):
    """The enclave runs other code than the policy names."""

    why = "Other code may do anything with what it is given."
    fix = "if you trust the new code, put its measurement into the policy"


class SvnRefused(MeasurementRefused):
    """The right code of the right signer, and of an older security version than the policy's."""

    why = "Older versions have weaknesses that the newer ones mend."
    fix = "update the enclave, or lower `svn_min` in the policy"


class ReportDataMismatch(EvidenceRefused):
    """Genuine evidence, but not for this challenge and key."""

    why = "Somebody replays or relays the evidence of another exchange."
    fix = "ask for fresh evidence; no key is released"


class ReportDataUnknown(ReportDataMismatch):
    """The policy wants fresh evidence, and nothing was said to compare with."""

    why = "Without a nonce of one's own, evidence may be years old."
    fix = "say --report-data (what the evidence must commit to)"


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


class ResultRefused(EvidenceRefused):
    """A signed result is not by a verifier that is trusted here, or is not affirmative or fresh."""

    why = "Who believes any result need not ask for evidence at all."
    fix = "get a fresh result from a verifier whose key you have"


# Receipts.


class ReceiptKeyRefused(EvidenceRefused):
    """Evidence without the key that signs receipts, or with one that nobody asked for."""

    why = "A receipt is worth what vouches for its key; a key beside the point hides something."
    fix = "start the run again; if this repeats, the worker is of another version"


class ReceiptRefused(EvidenceRefused):
    """A receipt does not show that these results were computed from these frames."""

    why = "What was not shown may have been computed by anybody, from anything."
    fix = "ask the owner of the run for the whole receipt"


class ReceiptIncomplete(ReceiptRefused):
    """There is no evidence of a stage's worker, or evidence of one that the plan does not have."""

    why = "An enclave that nothing vouches for may have computed anything."
    fix = "get the receipt's folder as `vaultline run --receipts` wrote it"


class ReceiptForAnotherPlan(ReceiptRefused):
    """Evidence or a link names another plan than the receipt, or than the one given."""

    why = "Another plan is another model, or the same one on machines that nobody chose."
    fix = "verify with the plan that was run, or ask for a receipt of the right run"


class ReceiptForAnotherModel(ReceiptRefused):
    """A link names another model than the plan."""

    why = "The results may be another model's."
    fix = "ask the owner which model was sealed for this plan"


class ReceiptForAnotherRun(ReceiptRefused):
    """Evidence or a link is of another deployment, epoch or place than the receipt says."""

    why = "Parts of two runs put together show nothing about either."
    fix = "use evidence and links of one run"


class ReceiptForAnotherSecret(ReceiptRefused):
    """A link's digests are keyed with another secret than the receipt's."""

    why = "Digests under different secrets can't be compared with anything."
    fix = "get the secret of this run from its owner"


class LinkAltered(ReceiptRefused):
    """A link is not signed by the key that its stage's evidence commits to, or is none."""

    why = "Whoever carries links could write results of his own into them."
    fix = "get the links again from where the run was; an altered one proves nothing"


class LinkMissing(ReceiptRefused):
    """Frames for which a stage has no link."""

    why = "What happened to these frames is not shown."
    fix = "get the links again from where the run was; the host that carries them can lose them"


class LinkRepeated(ReceiptRefused):
    """Two links of one worker are for the same frames, or one goes on after the end."""

    why = "Only one of them can tell what was computed."
    fix = "get the links again from where the run was"


class StreamUnfinished(ReceiptRefused):
    """A stage never said that the stream had ended."""

    why = "Frames at the end may have been left out."
    fix = "say --partial if the run was stopped: what all stages have links for is verified then"


class ChainBroken(ReceiptRefused):
    """What a stage gave out is not what the next one took in."""

    why = "Something between the two enclaves was exchanged."
    fix = "do not rely on these frames; the run was interfered with, or mixed from two"


class FramesDiffer(ReceiptRefused):
    """The frames given are not those that entered the first stage."""

    why = "The results are of other frames."
    fix = "give the same source and preprocessing as in the run"


class ResultsDiffer(ReceiptRefused):
    """The results given are not what the last stage gave out."""

    why = "They were altered after the run, or are of another one."
    fix = "get the results again from where the run was"


class NotShown(ReceiptRefused):
    """What was to be checked lies behind a stage on an untrusted accelerator."""

    why = "Nothing vouches for what such a stage took in or gave out."
    fix = "plan these stages in enclaves, or do without this check"
