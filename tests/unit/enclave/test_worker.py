"""What a worker says of its failures: the host hears all of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vaultline.attest.grant import GrantRefused
from vaultline.core.control import FailedLine, WorkerConfig
from vaultline.core.program import Step, StepWeight
from vaultline.core.serde import canonical_json, from_json
from vaultline.core.tensors import TensorSpec
from vaultline.enclave.__main__ import hops
from vaultline.enclave.evidence import fresh_key
from vaultline.enclave.executor import Executor
from vaultline.enclave.ledger import BudgetExceededError, Ledger
from vaultline.enclave.pipeline import StageBuffers
from vaultline.enclave.stage import LoadedStage
from vaultline.testing.attestation import grant
from vaultline.testing.programs import Draft, arranged
from vaultline.testing.vaults import small_stage

#: The worker's own ``main``, with a bug in one of its threads while the others wait for it.
BUGGY = """
import threading
from vaultline.enclave import __main__ as worker

def run(self):
    threading.Thread(target=int, args=("a frame's pixels",), daemon=True).start()
    threading.Event().wait(30)

worker.Worker.run = run
worker.main()
"""
CONFIG = WorkerConfig(
    name="w",
    platform="process",
    provider="simulated",
    platform_file=None,
    vault="v",
    control="unix:/c",
    data=("unix:/d",),
    runtime_dir="/",
)


def test_a_bug_in_any_thread_ends_the_worker_without_a_traceback() -> None:
    result = subprocess.run(
        [sys.executable, "-c", BUGGY],
        input=canonical_json(CONFIG) + b"\n",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert b"pixels" not in result.stdout + result.stderr
    failed = from_json(result.stdout, FailedLine, what="the last line")
    assert (result.returncode, failed.code) == (70, "bug")
    assert failed.message == "ValueError in the worker"


class Zeros:
    """Weights that nobody looks at."""

    def read_weight_into(self, index: int, buffer: memoryview) -> None:
        buffer[:] = bytes(len(buffer))


@pytest.mark.parametrize("budget_bytes", [0, 8, 72])
def test_too_little_memory_names_no_tensor(budget_bytes: int) -> None:
    """Neither for the engine is there room, nor then for the weight, nor for the workspace."""
    names = [TensorSpec(name=f"conv{k}/sealed", dtype="uint8", shape=(1, 8)) for k in range(3)]
    steps = tuple(
        Step(
            graph=0,
            feeds=(("in", k),),
            weights=(StepWeight(input="w", weight=0),),
            fetches=(("out", k + 1),),
        )
        for k in range(2)
    )
    draft = Draft(
        tensors=tuple(names),
        inputs=(0,),
        outputs=(2,),
        graphs=(b"",),
        steps=steps,
        weights=(names[0],),
        engine_bytes=8,
    )
    with pytest.raises(BudgetExceededError) as caught:
        Executor(arranged(draft), Zeros(), Ledger(budget_bytes))
    assert "sealed" not in caught.value.message


def loaded(replica: int) -> LoadedStage:
    """The middle one of three stages, of 3, 2 and 4 replicas, granted to a replica of it."""
    program = small_stage((), stage=1, stages=3, replicas=(3, 2, 4)).program
    ledger = Ledger(1 << 20)
    buffers = StageBuffers(program, ledger)
    return LoadedStage(
        grant=grant(replica=replica),
        key=fresh_key(),
        program=program,
        executor=Executor(program, Zeros(), ledger),
        buffers=buffers,
    )


def test_hops_are_what_grant_and_vault_say() -> None:
    stage = loaded(replica=1)
    before, after = hops(stage)
    assert (before.number, before.sources, before.targets) == (1, 3, 2)
    assert (after.number, after.sources, after.targets) == (2, 2, 4)
    assert (before.epoch, after.epoch) == (stage.grant.epoch, stage.grant.epoch)
    assert before.secret == stage.grant.hop_in_secret != after.secret
    assert after.secret == stage.grant.hop_out_secret


@pytest.mark.parametrize("replica", [-1, 2, 1 << 40])
def test_a_grant_for_a_replica_that_was_not_sealed_is_refused(replica: int) -> None:
    with pytest.raises(GrantRefused, match="replica"):
        hops(loaded(replica))
