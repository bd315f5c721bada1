"""Models sealed in step groups and grants for servers of them, without preparing or measuring."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaultline.attest.server_grant import ServedAccess, ServerGrant
from vaultline.bench.rig import make_trust
from vaultline.channel.keys import SECRET_BYTES
from vaultline.channel.requests import OVERHEAD_BYTES
from vaultline.core.frames import FrameLayout
from vaultline.core.profile import TILE_BYTES
from vaultline.core.program import Mode, PageMode, StageSettings
from vaultline.enclave.groups import kept_bytes
from vaultline.graph.compile import CompiledStage, compile_segment
from vaultline.graph.structure import Model
from vaultline.owner.appraisal import Appraiser, load_collateral, load_policy
from vaultline.owner.keyfile import SealedKeys, new_keys
from vaultline.owner.seal import seal_vault
from vaultline.owner.server_release import fixed_bytes


def feeds_of(model: Model, number: int) -> dict[str, NDArray[Any]]:
    """Inputs for a model, from a generator seeded with a number."""
    random = np.random.default_rng(number)
    return {spec.name: random.standard_normal(spec.shape, np.float32) for spec in model.inputs}


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedModel:
    """A model in step groups, sealed.

    Attributes:
        plan_digest: under which it is sealed.
    """

    model: Model
    stages: tuple[CompiledStage, ...] = field(repr=False)
    vault: Path
    keys: SealedKeys
    plan_digest: bytes

    @property
    def access(self) -> ServedAccess:
        """What opens it."""
        sealing = self.keys.sealing_for(self.plan_digest)
        parts = [sealing.access(self.keys.model_key, g) for g in range(len(self.stages))]
        return ServedAccess(sections=tuple(parts))

    @property
    def input_layout(self) -> FrameLayout:
        """Of a request."""
        return self.layout(0)

    @property
    def output_layout(self) -> FrameLayout:
        """Of an answer."""
        return self.layout(len(self.stages))

    def layout(self, group: int) -> FrameLayout:
        """Of a request's message before a group."""
        program = self.stages[max(group - 1, 0)].program
        ends = program.outputs if group else program.inputs
        return FrameLayout(program.specs(ends), len(self.stages))

    @property
    def workspace_bytes(self) -> int:
        """Of the neediest group; paged ones have theirs in the page cache."""
        programs = [stage.program for stage in self.stages]
        sizes = [each.workspace_bytes for each in programs if each.settings.mode != "paged"]
        return max(sizes, default=0)

    @property
    def message_bytes(self) -> int:
        """The larger of a sealed request and a sealed answer."""
        layouts = (self.input_layout, self.output_layout)
        return max(layout.message_bytes for layout in layouts) + OVERHEAD_BYTES

    @property
    def engine_bytes(self) -> int:
        """Sessions of all groups, on one core."""
        return sum(stage.program.engine_bytes for stage in self.stages)

    def kept_bytes(self, group: int) -> int:
        """Weights of a group, kept."""
        return kept_bytes(self.stages[group].program)


def seal_groups(
    model: Model,
    groups: Sequence[tuple[int, int]],
    folder: Path,
    *,
    name: str,
    frames: Sequence[int] | int = 1,
    budget_bytes: int = 1 << 30,
    mode: Mode = "streamed",
    page_mode: PageMode = "crypto",
) -> SealedModel:
    """Compile step groups and seal them to ``folder/NAME.vault``.

    Args:
        frames: the most frames of one run, of each group or of all.
    """
    counts = [frames] * len(groups) if isinstance(frames, int) else frames
    stages = []
    for number, ((first, last), count) in enumerate(zip(groups, counts, strict=True)):
        settings = StageSettings(
            stage=number,
            stages=len(groups),
            threads=1,
            budget_bytes=budget_bytes,
            mode=mode,
            frames_per_pass=count,
            queue_frames=count,
            page_mode=page_mode,
        )
        stages.append(
            compile_segment(
                model, first, last, settings=settings, step_bytes=TILE_BYTES, keep=False
            )
        )
    keys, digest = new_keys(), os.urandom(32)
    vault = folder / f"{name}.vault"
    sealing = seal_vault(
        vault, stages, model_key=keys.model_key, plan_digest=digest, model_digest="00" * 32
    )
    return SealedModel(
        model=model,
        stages=tuple(stages),
        vault=vault,
        keys=keys.with_sealing(sealing),
        plan_digest=digest,
    )


def make_grant(
    models: Sequence[SealedModel], *, memory_bytes: int, cores: int = 1, cache_bytes: int = 0
) -> ServerGrant:
    """A grant for one server that may get all of these models."""
    return ServerGrant(
        epoch=0,
        deployment=os.urandom(16),
        plan_digest=os.urandom(32),
        stage=0,
        secret=os.urandom(SECRET_BYTES),
        memory_bytes=memory_bytes,
        cores=cores,
        workspace_bytes=max(each.workspace_bytes for each in models),
        message_bytes=max(each.message_bytes for each in models),
        cache_bytes=cache_bytes,
        models=tuple(each.access for each in models),
    )


def granted_bytes(grant: ServerGrant) -> int:
    """What the worker holds before anything is installed."""
    return fixed_bytes(
        cores=grant.cores,
        workspace_bytes=grant.workspace_bytes,
        message_bytes=grant.message_bytes,
        cache_bytes=grant.cache_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Where a simulated platform and what accepts it are."""

    platform: Path
    appraiser: Appraiser

    @classmethod
    def make(cls, folder: Path) -> Trust:
        """A development root in a folder that does not exist yet."""
        folder.mkdir()
        files = make_trust(folder)
        appraiser = Appraiser(
            policy=load_policy(files["policy"]),
            collateral=load_collateral({"simulated": files["collateral"]}),
            allow_simulated=True,
        )
        return cls(platform=files["platform"], appraiser=appraiser)
