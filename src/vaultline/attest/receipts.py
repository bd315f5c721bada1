"""Receipts of runs: evidence of each enclave, and the links that it signed, against a policy.

In order, and all failures of a step at once, for what follows needs it whole:

1. every worker of the plan has evidence, which answers a challenge of this plan, run and stage and
   satisfies each policy at the stated time (`appraise`): so its signing key is an enclave's
2. every link is signed by its worker's key, and is of this plan, model, run and secret
3. each worker's links cover its frames without a gap, to the end of the stream
4. what a stage gave out of every frame, the next one took in; where replicas take frames in turn,
   their links are interleaved
5. frames and results, if given, are what the first stage took in and the last one gave out

A stage on an untrusted accelerator signs nothing. It is a gap, named in the outcome: its two
neighbours are verified, and nothing connects them.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from vaultline.attest.appraise import Verdict
from vaultline.attest.judging import Check
from vaultline.attest.links import Link, frame_digest
from vaultline.attest.linkwire import ReceiptRecord, check_signature, read_link
from vaultline.attest.policy import Policy
from vaultline.attest.receipt_workers import Place, Workers, differs, worker_name
from vaultline.attest.refusals import (
    ChainBroken,
    EvidenceRefused,
    FramesDiffer,
    LinkAltered,
    LinkMissing,
    LinkRepeated,
    NotShown,
    ReceiptForAnotherModel,
    ReceiptForAnotherPlan,
    ReceiptForAnotherRun,
    ReceiptForAnotherSecret,
    ResultsDiffer,
    StreamUnfinished,
)
from vaultline.core.errors import InputError
from vaultline.core.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptRequest:
    """What is to be verified.

    Attributes:
        policies: each must accept each enclave; none refuses.
        now_s: Unix time at which evidence has to hold; by default the record's.
        secret: of the digests; needed to check frames or results.
        partial: the run was stopped: frames that all stages have links for are verified.
        inputs, outputs: a digest of each frame as it entered the first stage (`frame_digest`), and
            of each result.
    """

    plan: Plan
    record: ReceiptRecord
    links: Sequence[str]
    policies: tuple[Policy, ...]
    allow_simulated: bool = False
    now_s: int | None = None
    secret: bytes | None = None
    partial: bool = False
    inputs: Sequence[bytes] | None = None
    outputs: Sequence[bytes] | None = None

    @property
    def enclaves(self) -> list[int]:
        """Stages that sign links."""
        stages = enumerate(self.plan.stages)
        return [number for number, stage in stages if not stage.device.untrusted]


@dataclass(slots=True, kw_only=True)
class ReceiptOutcome:
    """What was found.

    Attributes:
        frames: how many are shown to have gone through all enclaves.
        checks: in order; those behind a step that failed were not made.
        gaps: stages on untrusted accelerators, with their devices: nothing is shown of them.
        verdicts: on each worker's evidence; the last policy's, with the unsafe options of all.
    """

    frames: int = 0
    checks: list[Check] = field(default_factory=list)
    gaps: dict[int, tuple[str, ...]] = field(default_factory=dict)
    verdicts: dict[Place, Verdict] = field(default_factory=dict)

    @property
    def refusals(self) -> tuple[EvidenceRefused, ...]:
        """Those of the failed checks; empty where the receipt holds."""
        return tuple(check.refusal for check in self.checks if check.refusal)


def verify_receipt(request: ReceiptRequest) -> ReceiptOutcome:
    """Verify a receipt entirely.

    Raises:
        InputError: no policy, or unreadable collateral.
    """
    if not request.policies:
        raise InputError("without a policy nothing is accepted", remedy="name one with --policy")
    outcome = ReceiptOutcome(
        gaps={
            number: tuple(device.name for device in stage.devices)
            for number, stage in enumerate(request.plan.stages)
            if stage.device.untrusted
        }
    )
    _Verification(request, outcome).run()
    return outcome


class _Verification:
    def __init__(self, request: ReceiptRequest, outcome: ReceiptOutcome) -> None:
        self._request, self._outcome = request, outcome
        self._keys: Mapping[Place, bytes] = {}
        self._links: dict[Place, list[Link]] = {}
        self._frames: dict[int, dict[int, tuple[bytes, bytes]]] = {}
        self._ended: dict[int, bool] = {}

    def run(self) -> None:
        for step in (self._evidence, self._read_links, self._cover, self._chain, self._ends):
            for name, refusal in step():
                self._outcome.checks.append(Check(name=name, refusal=refusal))
            if self._outcome.refusals:
                return

    def _evidence(self) -> Iterator[tuple[str, EvidenceRefused | None]]:
        request, record = self._request, self._request.record
        workers = Workers(
            request.plan,
            record,
            request.policies,
            now_s=record.at_s if request.now_s is None else request.now_s,
            allow_simulated=request.allow_simulated,
        )
        self._keys, self._outcome.verdicts = workers.keys, workers.verdicts
        yield from workers.checks()

    def _read_links(self) -> Iterator[tuple[str, EvidenceRefused | None]]:
        """One check for each kind of failure, naming its first link: there may be thousands."""
        failures: dict[str, EvidenceRefused] = {}
        for number, text in enumerate(self._request.links):
            try:
                link = self._verified(text)
            except EvidenceRefused as error:
                error.message = f"link {number + 1}: {error.message}"
                failures.setdefault(error.code, error)
            else:
                self._links.setdefault((link.stage, link.replica), []).append(link)
        said = {(link.vault_id, link.model_id) for links in self._links.values() for link in links}
        if len(said) > 1:
            failures["sealings"] = ReceiptForAnotherModel("links are of several sealings")
        secrets = {link.secret_check for links in self._links.values() for link in links}
        if len(secrets) > 1:
            failures["secrets"] = ReceiptForAnotherSecret("links are keyed with several secrets")
        for refusal in failures.values():
            yield "links", refusal
        if not failures:
            yield f"{len(self._request.links)} links", None

    def _verified(self, text: str) -> Link:
        """Raises: EvidenceRefused."""
        signed = read_link(text)
        link, record = signed.link, self._request.record
        key = self._keys.get((link.stage, link.replica))
        if key is None:
            raise LinkAltered(
                "it names a worker that the receipt has no key of",
                got=worker_name(link.stage, link.replica),
            )
        check_signature(signed, key)
        plan, secret = self._request.plan, self._request.secret
        ours = None if secret is None else frame_digest(secret, 0, 0, ())
        checks = (
            (ReceiptForAnotherPlan, "of another plan", link.plan_digest, plan.digest),
            (
                ReceiptForAnotherModel,
                "of another model",
                link.model_digest.hex(),
                plan.model_digest,
            ),
            (ReceiptForAnotherRun, "of another deployment", link.deployment, record.deployment),
            (ReceiptForAnotherRun, "of another epoch", link.epoch, record.epoch),
            (ReceiptForAnotherSecret, "keyed with another secret", link.secret_check, ours),
        )
        for kind, what, got, expected in checks:
            refusal = None if expected is None else differs(kind, f"it is {what}", got, expected)
            if refusal is not None:
                raise refusal
        return link

    def _cover(self) -> Iterator[tuple[str, EvidenceRefused | None]]:
        """Every worker's links without a gap, and every stage's frames."""
        missing = False
        for stage in self._request.enclaves:
            replicas = len(self._request.plan.stages[stage].devices)
            frames: dict[int, tuple[bytes, bytes]] = {}
            ended = True
            for replica in range(replicas):
                where = worker_name(stage, replica)
                links = sorted(self._links.get((stage, replica), []), key=lambda link: link.first)
                refusal = _walk(links, replica, replicas, where, frames)
                finished = any(link.last for link in links)
                if refusal is None and not finished and not self._request.partial:
                    refusal = StreamUnfinished(f"{where} did not say that the stream had ended")
                ended &= finished
                missing |= refusal is not None
                yield f"links of {where}", refusal
            self._frames[stage], self._ended[stage] = frames, ended
        if missing:
            return
        counts = {}
        for stage, frames in self._frames.items():
            counts[stage] = next(n for n in range(len(frames) + 1) if n not in frames)
            if self._ended[stage] and counts[stage] != len(frames):
                yield (
                    f"frames of stage {stage}",
                    LinkMissing(
                        "its replicas end at different places",
                        got=f"{len(frames)} frames, and none of number {counts[stage]}",
                    ),
                )
        self._outcome.frames = min(counts.values(), default=0)
        if self._request.partial and not self._outcome.frames:
            yield "frames", NotShown("no frame is shown to have gone through all enclaves")
        ends = {count for stage, count in counts.items() if self._ended[stage]}
        same = len(ends) <= 1 and (not ends or max(counts.values()) <= min(ends))
        yield (
            "length of the stream",
            None
            if same
            else ChainBroken(
                "stages saw streams of different lengths",
                got=", ".join(f"stage {stage}: {count} frames" for stage, count in counts.items()),
            ),
        )

    def _chain(self) -> Iterator[tuple[str, EvidenceRefused | None]]:
        for stage in self._request.enclaves:
            if stage + 1 in self._frames:
                given = [self._frames[stage][n][1] for n in range(self._outcome.frames)]
                taken = [self._frames[stage + 1][n][0] for n in range(self._outcome.frames)]
                what = f"stage {stage + 1} took in something else than stage {stage} gave out"
                yield f"stage {stage} to stage {stage + 1}", _same(ChainBroken, what, given, taken)

    def _ends(self) -> Iterator[tuple[str, EvidenceRefused | None]]:
        """The frames and results that were given, and what stands for them in links."""
        last = len(self._request.plan.stages) - 1
        cases = (
            ("frames", self._request.inputs, 0, 0, FramesDiffer, "entered the first stage"),
            ("results", self._request.outputs, last, 1, ResultsDiffer, "left the last stage"),
        )
        for name, given, stage, side, kind, what in cases:
            if given is None:
                continue
            if stage not in self._frames:
                text = f"stage {stage} ran on an untrusted accelerator"
                yield name, NotShown(f"the {name} can't be checked: {text}")
                continue
            count = self._outcome.frames
            shown = [self._frames[stage][n][side] for n in range(count)]
            mine = list(given)[:count] if self._request.partial else list(given)
            yield name, _same(kind, f"the {name} given are not those that {what}", mine, shown)


def _walk(
    links: Sequence[Link],
    replica: int,
    replicas: int,
    where: str,
    frames: dict[int, tuple[bytes, bytes]],
) -> EvidenceRefused | None:
    """A worker's links in order; puts their frames where they belong in the stream."""
    expected, ended = replica, False
    for link in links:
        if link.first < expected or ended:
            what = "goes on after the end" if ended else "is for frames of another link"
            return LinkRepeated(f"a link of {where} {what}", got=f"frame {link.first}")
        if link.first > expected:
            return LinkMissing(
                f"{where} has no link for these frames",
                got=f"a link that begins at frame {link.first}",
                expected=f"one that begins at frame {expected}",
            )
        for digests in link.frames:
            frames[expected] = digests
            expected += replicas
        ended = link.last
    return None


def _same(
    kind: type[EvidenceRefused], what: str, got: Sequence[bytes], expected: Sequence[bytes]
) -> EvidenceRefused | None:
    if len(got) != len(expected):
        return kind(what, got=f"{len(got)} frames", expected=f"{len(expected)} frames")
    pairs = enumerate(zip(got, expected, strict=True))
    wrong = [number for number, (a, b) in pairs if not hmac.compare_digest(a, b)]
    if not wrong:
        return None
    return kind(what, got=f"{len(wrong)} of {len(got)} frames differ, first frame {wrong[0]}")
