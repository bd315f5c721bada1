"""From a plan to what sealing and running it need: compiled stages, secrets, workers."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vaultline.channel.keys import SECRET_BYTES
from vaultline.core.errors import InfeasibleError, InputError
from vaultline.core.hostline import LaunchWorker
from vaultline.core.plan import Plan
from vaultline.core.program import StageSettings
from vaultline.core.tensors import TensorSpec
from vaultline.graph.compile import CompiledStage, compile_segment
from vaultline.graph.structure import Model
from vaultline.owner.keyfile import SealedKeys
from vaultline.owner.release import StageSecrets
from vaultline.owner.starting import Place, start_of

#: A pass counts as stuck after this many times its predicted time, but not before the minimum:
#: machines are shared, and a pass that a neighbour slows down must not end a run.
_STUCK_FACTOR = 20
_STUCK_S_MIN = 1.5


class PlanForAnotherModelError(InputError):
    """The plan was made for another model than the one given."""


def stage_settings(plan: Plan, stage: int) -> StageSettings:
    """The settings that are sealed with a stage's program."""
    planned, following = plan.stages[stage], plan.stages[stage + 1 : stage + 2]
    counts = [1, *(len(each.devices) for each in plan.stages), 1]  # the owner at both ends
    return StageSettings(
        stage=stage,
        stages=len(plan.stages),
        threads=planned.threads,
        budget_bytes=planned.device.memory_bytes,
        mode=planned.mode,
        frames_per_pass=planned.frames_per_pass,
        queue_frames=planned.queue_frames,
        sources=counts[stage],
        replicas=counts[stage + 1],
        targets=counts[stage + 2],
        next_untrusted=any(each.device.untrusted for each in following),
        page_mode=planned.page_mode,
    )


def check_model(model: Model, plan: Plan) -> None:
    """Refuse a plan for another model.

    Raises:
        PlanForAnotherModelError: with both digests.
    """
    if model.digest != plan.model_digest:
        raise PlanForAnotherModelError(
            "the plan was made for another model",
            got=f"{model.name} with digest {model.digest}",
            expected=f"{plan.model_name} with digest {plan.model_digest}",
            remedy="profile and plan this model, or name the model that the plan was made for",
        )


def compile_stages(
    model: Model, plan: Plan, progress: Callable[[int, int], None] | None = None
) -> list[CompiledStage]:
    """Compile every stage of a plan.

    Raises:
        InputError: the plan is for another model, or a stage can't be compiled.
        InfeasibleError: a stage does not fit into its device's memory.
    """
    check_model(model, plan)
    if plan.stages[-1].last != model.node_count:
        raise PlanForAnotherModelError(
            "the plan's stages do not end at the end of the model",
            got=f"{plan.stages[-1].last} nodes",
            expected=f"{model.node_count} nodes",
            remedy="make the plan again with `vaultline plan`",
        )
    stages = []
    for number, planned in enumerate(plan.stages):
        stage = _compiled(model, plan, number)
        program = stage.program
        for there, stated in ((program.inputs, planned.inputs), (program.outputs, planned.outputs)):
            if program.specs(there) != stated:
                raise PlanForAnotherModelError(
                    f"stage {number} of the plan has other tensors than the model's cut",
                    got=_tensors(stated),
                    expected=_tensors(program.specs(there)),
                    remedy="make the plan again with `vaultline plan`",
                )
        stages.append(stage)
        if progress is not None:
            progress(number + 1, len(plan.stages))
    return stages


def _compiled(model: Model, plan: Plan, number: int) -> CompiledStage:
    """Compile one stage; says here, not in the enclave, that it will not fit.

    Raises:
        InfeasibleError: it needs more than its device's protected memory.
    """
    planned = plan.stages[number]
    try:
        return compile_segment(
            model,
            planned.first,
            planned.last,
            settings=stage_settings(plan, number),
            step_bytes=planned.step_bytes,
            rates=planned.rates,
            prefetch=planned.prefetch,
            portable=planned.portable,
        )
    except InfeasibleError as error:
        raise InfeasibleError(
            f"stage {number} does not fit on device {planned.device.name}: {error.message}",
            got=error.got,
            expected=error.expected,
            remedy=error.remedy,
        ) from error


def _tensors(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name}: {spec.dtype}{list(spec.shape)}" for spec in specs)


def stage_secrets(plan: Plan, keys: SealedKeys) -> tuple[StageSecrets, ...]:
    """What each stage's grant carries: its key, and fresh secrets for its two hops.

    Raises:
        RefusedError: the key file has no sealing for this plan.
    """
    sealing = keys.sealing_for(plan.digest)
    hops = [secrets.token_bytes(SECRET_BYTES) for _ in range(len(plan.stages) + 1)]
    return tuple(
        StageSecrets(
            access=sealing.access(keys.model_key, stage),
            hop_in_secret=hops[stage],
            hop_out_secret=hops[stage + 1],
        )
        for stage in range(len(plan.stages))
    )


def launch_workers(
    plan: Plan,
    vault: Path,
    *,
    platform_file: Path | None,
    places: Mapping[str, Place],
    accelerator_key: Path | None = None,
) -> tuple[LaunchWorker, ...]:
    """What to ask the host for: one worker per device, by stage, each on cores of its own.

    Raises:
        InputError: nothing says how a device's worker is started: see `start_of`.
    """
    places_of = [
        (stage, replica, planned, device)
        for stage, planned in enumerate(plan.stages)
        for replica, device in enumerate(planned.devices)
    ]
    cores = share_cores([device.cores for *_, device in places_of])
    workers = []
    for (stage, replica, planned, device), share in zip(places_of, cores, strict=True):
        place = places.get(device.host, Place())
        start = start_of(
            device.name,
            device.kind,
            place,
            platform_file=platform_file,
            accelerator_key=accelerator_key,
        )
        pass_s = planned.predicted_s * planned.frames_per_pass
        workers.append(
            LaunchWorker(
                name=f"stage{stage}" + f"-{replica}" * (len(planned.devices) > 1),
                stage=stage,
                replica=replica,
                cores=share,
                vault=place.vault(vault),
                start=start,
                busy_s_max=max(_STUCK_S_MIN, _STUCK_FACTOR * pass_s),
                bind=place.bind,
                netns=place.netns,
            )
        )
    return tuple(workers)


def share_cores(wanted: Sequence[int], among: Sequence[int] | None = None) -> list[tuple[int, ...]]:
    """Cores of this machine for each worker, taken in turn; shared where there are too few.

    Args:
        among: those to take; by default all that this process may use.
    """
    available = sorted(os.sched_getaffinity(0)) if among is None else among
    shares, turn = [], 0
    for count in wanted:
        share = {available[(turn + k) % len(available)] for k in range(count)}
        shares.append(tuple(sorted(share)))
        turn += count
    return shares
