"""Finding the balance of a pipeline by running it: measure, correct the profile, plan again.

A profile is taken block by block in one process; a pipeline's stages share memory bandwidth and
caches, run other threads on their cores, and stack what waits. What a stage really takes is known
once it has run, and correcting its blocks by that factor lets the same exact search find a better
cut. A few turns suffice; the fastest plan that was measured is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from vaultline.core.plan import Plan
from vaultline.core.profile import BlockProfile, ModelProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A plan that has run: frames per second, and seconds per frame of each stage's computing."""

    plan: Plan
    fps: float
    compute_s: tuple[float, ...]


def tune(
    profile: ModelProfile,
    planner: Callable[[ModelProfile], Plan],
    measure: Callable[[Plan], Measured],
    *,
    turns: int = 4,
) -> Measured:
    """Plan, run and correct until a plan comes back or the turns are used up.

    Args:
        planner: makes a plan of a profile.
        measure: runs a plan.

    Returns:
        The fastest plan measured.
    """
    tried: dict[tuple[int, ...], Measured] = {}
    for _ in range(turns):
        plan = planner(profile)
        cuts = tuple(stage.last for stage in plan.stages)
        if cuts in tried:
            break
        tried[cuts] = measure(plan)
        profile = corrected(profile, tried[cuts])
    return max(tried.values(), key=lambda measured: measured.fps)


def corrected(profile: ModelProfile, measured: Measured) -> ModelProfile:
    """The profile with every stage's blocks scaled to what the stage took when it ran."""
    blocks: list[BlockProfile] = []
    for number, block in enumerate(profile.blocks):
        stage = _stage_of(measured.plan, profile.positions[number])
        expected_s = _expected_s(profile, measured.plan, stage)
        factor = measured.compute_s[stage] / expected_s if expected_s else 1.0
        times = tuple((frames, seconds * factor) for frames, seconds in block.compute_s)
        blocks.append(replace(block, compute_s=times))
    return replace(profile, blocks=tuple(blocks))


def _stage_of(plan: Plan, position: int) -> int:
    return next(k for k, stage in enumerate(plan.stages) if stage.first <= position < stage.last)


def _expected_s(profile: ModelProfile, plan: Plan, stage: int) -> float:
    planned = plan.stages[stage]
    frames = planned.frames_per_pass
    return sum(
        block.compute_pass_s(frames) / frames
        for block, position in zip(profile.blocks, profile.positions, strict=False)
        if planned.first <= position < planned.last
    )
