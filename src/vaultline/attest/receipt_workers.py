"""The workers of a receipt: who they were, by their evidence, and with which keys they sign."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from vaultline.attest.appraise import Verdict, appraise
from vaultline.attest.challenge import Challenge
from vaultline.attest.evidence import Evidence
from vaultline.attest.granting import read_evidence
from vaultline.attest.linkwire import ReceiptRecord, RecordedWorker
from vaultline.attest.policy import Policy
from vaultline.attest.refusals import (
    EvidenceForAnotherStage,
    EvidenceRefused,
    KindRefused,
    NotShown,
    ReceiptForAnotherPlan,
    ReceiptForAnotherRun,
    ReceiptIncomplete,
)
from vaultline.core.errors import RemoteProtocolError
from vaultline.core.plan import Plan

#: Stage and replica.
Place = tuple[int, int]


class Workers:
    """Recorded workers against a plan and policies.

    Attributes:
        keys: with which each enclave signs, by its place, once it has been checked.
        verdicts: on each worker's evidence, likewise; the last policy's, with the unsafe options
            of all.
    """

    def __init__(
        self,
        plan: Plan,
        record: ReceiptRecord,
        policies: Sequence[Policy],
        *,
        now_s: int,
        allow_simulated: bool,
    ) -> None:
        self._plan, self._record, self._policies = plan, record, policies
        self._now_s, self._allow_simulated = now_s, allow_simulated
        self.keys: dict[Place, bytes] = {}
        self.verdicts: dict[Place, Verdict] = {}

    def checks(self) -> Iterator[tuple[str, EvidenceRefused | None]]:
        """Each check by its name, and why it failed.

        Raises:
            InputError: unreadable collateral.
        """
        got, expected = self._record.plan_digest, self._plan.digest
        yield (
            "plan",
            differs(ReceiptForAnotherPlan, "the receipt is of another plan", got, expected),
        )
        refusal = self._incomplete()
        yield "workers", refusal
        if refusal is not None:
            return
        for worker in self._record.workers:
            name = worker_name(worker.stage, worker.replica)
            yield f"evidence of {name}", self._appraised(worker, name)
        same = "two workers have the same signing key: one enclave's evidence stands for both"
        unique = len(set(self.keys.values())) == len(self.keys)
        yield "signing keys", None if unique else ReceiptForAnotherRun(same)
        enclaves = any(not stage.device.untrusted for stage in self._plan.stages)
        yield "enclaves", None if enclaves else NotShown("no stage ran in an enclave")

    def _incomplete(self) -> EvidenceRefused | None:
        planned = {
            (stage, replica)
            for stage, each in enumerate(self._plan.stages)
            for replica in range(len(each.devices))
        }
        recorded = [(worker.stage, worker.replica) for worker in self._record.workers]
        if len(recorded) == len(planned) and set(recorded) == planned:
            return None
        return ReceiptIncomplete(
            "the receipt has not exactly one evidence of each worker of the plan",
            got=_places(recorded),
            expected=_places(planned),
        )

    def _appraised(self, worker: RecordedWorker, name: str) -> EvidenceRefused | None:
        """Appraise one worker's evidence, and remember its key."""
        device = self._plan.stages[worker.stage].device
        try:
            challenge = Challenge.decode(worker.challenge)
            evidence = read_evidence(worker.evidence)
        except RemoteProtocolError as error:
            return ReceiptIncomplete(f"the evidence of {name} is malformed", got=error.message)
        try:
            _check_asked(challenge, worker, self._record)
            if evidence.kind != device.kind:
                raise KindRefused(
                    f"{name} ran in another kind of enclave than planned",
                    got=evidence.kind,
                    expected=device.kind,
                )
            verdicts = [self._appraise(evidence, challenge, each) for each in self._policies]
        except EvidenceRefused as error:
            return error
        unsafe = sorted({name for verdict in verdicts for name in verdict.unsafe})
        whole = replace(verdicts[-1], unsafe=tuple(unsafe))
        self.verdicts[worker.stage, worker.replica] = whole
        if not device.untrusted:
            if not evidence.signing_key:
                return ReceiptIncomplete(f"{name} was not asked to sign a receipt")
            self.keys[worker.stage, worker.replica] = evidence.signing_key
        return None

    def _appraise(self, evidence: Evidence, challenge: Challenge, policy: Policy) -> Verdict:
        collateral = self._record.collateral.get(evidence.kind, b"")
        return appraise(evidence, challenge, policy, collateral, self._now_s, self._allow_simulated)


def _check_asked(challenge: Challenge, worker: RecordedWorker, record: ReceiptRecord) -> None:
    name = worker_name(worker.stage, worker.replica)
    fields: tuple[tuple[type[EvidenceRefused], str, object, object], ...] = (
        (ReceiptForAnotherPlan, "plan", challenge.plan_digest, record.plan_digest),
        (EvidenceForAnotherStage, "stage", challenge.stage, worker.stage),
        (ReceiptForAnotherRun, "deployment", challenge.deployment, record.deployment),
        (ReceiptForAnotherRun, "epoch", challenge.epoch, record.epoch),
    )
    for kind, what, got, expected in fields:
        refusal = differs(kind, f"the evidence of {name} is for another {what}", got, expected)
        if refusal is not None:
            raise refusal


def differs(
    kind: type[EvidenceRefused], what: str, got: object, expected: object
) -> EvidenceRefused | None:
    """A refusal, unless the two are equal; bytes are shown in hex."""
    texts = [v.hex() if isinstance(v, bytes) else str(v) for v in (got, expected)]
    return None if got == expected else kind(what, got=texts[0], expected=texts[1])


def worker_name(stage: int, replica: int) -> str:
    """A worker, for people."""
    return f"stage {stage}, replica {replica}"


def _places(places: Sequence[Place] | set[Place]) -> str:
    return ", ".join(f"{stage}/{replica}" for stage, replica in sorted(places)[:32]) or "none"
