"""Receipts of runs that never were: real evidence, links and keys, and frames of a few bytes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from msgspec.structs import replace

from vaultline.attest.challenge import RECEIPTS_VERSION, Challenge
from vaultline.attest.evidence import Evidence
from vaultline.attest.grant import GrantKey
from vaultline.attest.links import frame_digest
from vaultline.attest.linkwire import RECEIPT_VERSION, ReceiptRecord, RecordedWorker
from vaultline.attest.receipts import ReceiptRequest
from vaultline.attest.stage_grant import Grant
from vaultline.core.plan import Plan
from vaultline.enclave.evidence import fresh_key
from vaultline.enclave.links import Links
from vaultline.testing.attestation import (
    NOW_S,
    challenge,
    devroot,
    evidence,
    grant,
    pinned_evidence,
    policy,
)

SECRET = b"the secret of a run's receipts.."


def tensor(hop: int, frame: int) -> bytes:
    """What crosses a hop for a frame: anything, and different for each."""
    return f"tensor of hop {hop}, frame {frame}".encode()


class SmallRun:
    """A run of a plan over so many frames; every part of its receipt can be replaced.

    Another ``number`` is another run, with other challenges.

    Attributes:
        links: by stage and replica.
    """

    def __init__(
        self,
        plan: Plan,
        frames: int,
        *,
        frames_per_link: int = 4,
        epoch: int = 7,
        secret: bytes = SECRET,
        accelerator: bytes | None = None,
        end: bool = True,
        number: int = 0,
    ) -> None:
        self.plan, self.frames, self.secret = plan, frames, secret
        self.keys: dict[tuple[int, int], GrantKey] = {}
        self.challenges: dict[tuple[int, int], Challenge] = {}
        self.evidence: dict[tuple[int, int], Evidence] = {}
        self.links: dict[tuple[int, int], list[str]] = {}
        self.epoch, self._accelerator, self._end = epoch, accelerator, end
        self._run = number
        for stage, planned in enumerate(plan.stages):
            for replica in range(len(planned.devices)):
                self._start(stage, replica)
                if not planned.device.untrusted:
                    self._work(stage, replica, frames_per_link)

    def _start(self, stage: int, replica: int) -> None:
        place = (stage, replica)
        device = self.plan.stages[stage].device
        asked = challenge(
            nonce=bytes([stage, replica, self._run, 0]) * 8,
            stage=stage,
            epoch=self.epoch,
            plan_digest=self.plan.digest,
        )
        self.keys[place] = key = fresh_key()
        if device.untrusted:
            self.evidence[place] = pinned_evidence(asked, key, self._accelerator or b"")
        else:
            asked = replace(asked, version=RECEIPTS_VERSION)
            self.evidence[place] = evidence(asked, key=key)
        self.challenges[place] = asked

    def granted(self, stage: int, replica: int, frames_per_link: int = 4) -> Grant:
        """What the worker there was granted."""
        return grant(
            self.challenges[stage, replica],
            replica=replica,
            receipt_secret=self.secret,
            model_digest=bytes.fromhex(self.plan.model_digest),
            frames_per_link=frames_per_link,
        )

    def _work(self, stage: int, replica: int, frames_per_link: int) -> None:
        lines = self.links[stage, replica] = []
        step = len(self.plan.stages[stage].devices)
        links = Links(
            self.granted(stage, replica, frames_per_link),
            self.keys[stage, replica].ed25519,
            step,
            lambda line: lines.append(line.link),
        )
        for frame in range(replica, self.frames, step):
            messages = [SimpleNamespace(parts=[tensor(stage + k, frame)]) for k in range(2)]
            links.add(*messages)  # type: ignore[arg-type]
        if self._end:
            links.sign(last=True)

    def record(self, **changes: Any) -> ReceiptRecord:
        """The owner's record."""
        base = ReceiptRecord(
            version=RECEIPT_VERSION,
            at_s=NOW_S,
            deployment=challenge().deployment,
            epoch=self.epoch,
            plan_digest=self.plan.digest,
            workers=tuple(
                RecordedWorker(
                    stage=stage,
                    replica=replica,
                    challenge=self.challenges[stage, replica].encode(),
                    evidence=self.evidence[stage, replica].encode(),
                )
                for stage, replica in self.keys
            ),
            collateral={"simulated": devroot().collateral},
        )
        return replace(base, **changes)

    def request(self, **changes: Any) -> ReceiptRequest:
        """All of it, as it should be verified."""
        fields: dict[str, Any] = {
            "plan": self.plan,
            "record": self.record(),
            "links": [text for lines in self.links.values() for text in lines],
            "policies": (policy(),),
            "allow_simulated": True,
            "secret": self.secret,
        }
        return ReceiptRequest(**fields | changes)

    def digests(self, hop: int) -> list[bytes]:
        """Of what crossed a hop, frame by frame."""
        return [
            frame_digest(self.secret, hop, frame, [tensor(hop, frame)])
            for frame in range(self.frames)
        ]
