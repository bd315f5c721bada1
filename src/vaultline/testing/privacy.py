"""Leakage reports with numbers of one's own, and plans with stages on untrusted accelerators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from vaultline.core.leakage import CutLeakage, LeakageReport
from vaultline.core.plan import Plan, PlannedStage, ReleasedTensor
from vaultline.core.privacy import InputPrivacy, ModelPrivacy, PrivacyPolicy
from vaultline.core.profile import RecordedOn
from vaultline.graph.cuts import cuts
from vaultline.graph.structure import Model
from vaultline.owner.disclosure import Disclosure

RECORDED = RecordedOn(host="h", cpu="c", date="2026-01-01", command="none")


def cut_leakage(position: int, tensors: Sequence[str], reconstruction: float) -> CutLeakage:
    """A cut of which only the reconstruction is interesting."""
    return CutLeakage(
        position=position,
        tensors=tuple(tensors),
        resolution_px=0,
        similarity=0.0,
        reconstruction=reconstruction,
        psnr_db=0.0,
        revealing="",
    )


def leakage_report(model: Model, leakage: Mapping[int, float]) -> LeakageReport:
    """A report on the cuts at the given positions, with the reconstruction at each."""
    crossing = cuts(model)
    positions = tuple(sorted(leakage))
    return LeakageReport(
        model_name=model.name,
        model_digest=model.digest,
        images_digest="ab" * 32,
        images=8,
        decoder="ridge",
        recorded_on=RECORDED,
        positions=positions,
        cuts=tuple(
            cut_leakage(at, [spec.name for spec in crossing[at].tensors], leakage[at])
            for at in positions
        ),
    )


def privacy(limit: float | None = None, *disclose: str) -> PrivacyPolicy:
    """A policy on reconstruction; None and no range for sections that are absent."""
    return PrivacyPolicy(
        input=None if limit is None else InputPrivacy(metric="reconstruction", limit=limit),
        model=ModelPrivacy(disclose=disclose) if disclose else None,
    )


def disclosure(
    model: Model, leakage: Mapping[int, float], limit: float | None, *disclose: str
) -> Disclosure:
    """An owner's policy and report."""
    return Disclosure(policy=privacy(limit, *disclose), report=leakage_report(model, leakage))


def on_accelerators(
    plan: Plan, stages: Sequence[int], *, leakage: float = 0.0, limit: float = 1.0
) -> Plan:
    """The plan with some stages moved to untrusted devices, claiming that this is fine."""
    moved: list[PlannedStage] = list(plan.stages)
    for number in stages:
        device = msgspec.structs.replace(
            moved[number].device, name=f"accelerator-{number}", kind="accelerator"
        )
        moved[number] = msgspec.structs.replace(moved[number], devices=(device,))
    released = tuple(
        ReleasedTensor(
            stage=number,
            tensor=tensor.name,
            metric="reconstruction",
            leakage=leakage,
            limit=limit,
        )
        for number, stage in enumerate(moved)
        if stage.device.untrusted
        for tensor in stage.inputs
    )
    return msgspec.structs.replace(plan, stages=tuple(moved), released=released)
