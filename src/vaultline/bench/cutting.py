"""Plans at given cuts, with nothing searched and nothing priced: for measurements and tests."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from vaultline.core.limits import MIB
from vaultline.core.plan import PLAN_VERSION, Plan, PlannedDevice, PlannedStage
from vaultline.core.profile import TILE_BYTES
from vaultline.core.program import Mode
from vaultline.graph.cuts import cuts
from vaultline.graph.structure import Model


def cut_plan(
    model: Model,
    positions: Sequence[int],
    *,
    hosts: Sequence[str] = (),
    modes: Sequence[Mode] = (),
    replicas: Sequence[int] = (),
    frames_per_pass: int = 2,
    portable: bool = False,
    memory_bytes: int = 256 * MIB,
) -> Plan:
    """A plan with cuts at the given inner positions, priced at nothing.

    Args:
        positions: strictly between 0 and the number of nodes, ascending; cuts need not be
            candidates of the search.
        hosts: of each stage; one host for all if empty.
        modes: of each stage; all resident if empty.
        replicas: of each stage, all on its host; one each if empty.
    """
    all_cuts = cuts(model)
    stages = []
    for number, (first, last) in enumerate(pairwise((0, *positions, model.node_count))):
        count = replicas[number] if replicas else 1
        devices = tuple(
            PlannedDevice(
                name=f"enclave-{number}" + f"-{replica}" * (count > 1),
                host=hosts[number] if hosts else "local",
                kind="simulated",
                cores=1,
                memory_bytes=memory_bytes,
            )
            for replica in range(count)
        )
        stages.append(
            PlannedStage(
                devices=devices,
                first=first,
                last=last,
                threads=1,
                mode=modes[number] if modes else "resident",
                step_bytes=TILE_BYTES,
                frames_per_pass=frames_per_pass,
                queue_frames=2 * frames_per_pass,
                portable=portable,
                inputs=all_cuts[first].tensors,
                outputs=all_cuts[last].tensors,
                predicted_s=0.0,
            )
        )
    return Plan(
        version=PLAN_VERSION,
        model_name=model.name,
        model_digest=model.digest,
        input_shapes={},
        objective="chunk",
        chunk_frames=1,
        stages=tuple(stages),
        hop_s=(0.0,) * (len(stages) + 1),
        predicted={"latency_s": 0.0, "bottleneck_s": 0.0, "chunk_s": 0.0},
    )
